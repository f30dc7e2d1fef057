"""Fine-tuning of low-rank changes: what is trained, what is kept, and when the guard says no."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import clipkit
from clipkit import CLIP, ImageClassifier, TrainConfig
from clipkit.data.labelled import Pairs
from clipkit.errors import ConfigError, DataError, TrainingError
from clipkit.models.changes import has_changes
from clipkit.training import low_rank
from clipkit.training.finetune import finetune
from clipkit.training.low_rank import choose, plan_changes
from clipkit.training.run import finetune_from
from clipkit.training.tasks import PromptTask
from tests.helpers.models import assert_same_weights
from tests.helpers.training_worker import rows_of_log, state_of

QUICK = TrainConfig(steps=6, lr=1e-2, warm_up=0, save_every=0)
PROMPTS = [["a cat", "a kitten"], ["a dog"], ["a red bird", "a bird", "birds"]]


def rows(*kinds: tuple[int, float], classes: int = 3) -> Tensor:
    """Return logits of images of class 0: so many rows for each logit of that class."""
    logits = torch.zeros(sum(count for count, _ in kinds), classes)
    logits[:, 0] = torch.cat([torch.full((count,), value) for count, value in kinds])
    return logits


def choice(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let the held-out images speak for one choice."""
    monkeypatch.setattr(low_rank, "choose", lambda *_: (name, {"images": 32}))


# The task


def test_the_task_is_the_cross_entropy_of_zero_shot(model: CLIP) -> None:
    texts = [["a cat"], ["a dog"], ["a bird"]]
    images, labels = torch.randn(5, 3, 32, 32), torch.tensor([0, 2, 1, 1, 0])
    loss = PromptTask(model, texts)(images, labels)
    with torch.no_grad():
        x = model.encode_image(images).double().numpy()
        w = model.encode_text(model.tokenizer([own[0] for own in texts])).double().numpy()
    x, w = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, w))
    logits = math.exp(model.logit_scale.item()) * x @ w.T
    surprises = [np.log(np.exp(row).sum()) - row[i] for row, i in zip(logits, labels, strict=True)]
    assert loss.item() == pytest.approx(np.mean(surprises), abs=1e-5)
    assert not model.logit_scale.requires_grad


def test_each_step_draws_one_of_the_prompts_of_a_class(
    model: CLIP, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = PromptTask(model, PROMPTS)
    seen: set[tuple[int, ...]] = set()
    plain = model.encode_text

    def encode(tokens: Tensor) -> Tensor:
        ids = model.tokenizer([text for own in PROMPTS for text in own])
        seen.add(tuple(int((ids == row).all(dim=1).nonzero()) for row in tokens))
        return plain(tokens)

    monkeypatch.setattr(model, "encode_text", encode)
    for seed in range(40):
        torch.manual_seed(seed)
        task(torch.zeros(1, 3, 32, 32), torch.tensor([0]))
    assert seen == {(i, 2, j) for i in (0, 1) for j in (3, 4, 5)}
    assert not [name for name in task.state_dict() if not name.startswith("model.")]


# What is trained


def test_what_is_saved_is_a_plain_zero_shot_classifier_of_both_tuned_towers(
    model: CLIP, colors: Pairs, unseen: Pairs, tmp_path: Path
) -> None:
    classifier = finetune(model, colors, tmp_path, lora=2, guard=False, config=QUICK)
    loaded = ImageClassifier.load(tmp_path, device="cpu")
    assert torch.equal(loaded.probabilities(unseen.files), classifier.probabilities(unseen.files))
    assert loaded.provenance == classifier.provenance
    assert loaded.provenance["lora"] == {"chosen": "low_rank", "rank": 2}
    about = {"method": "finetune", "alpha": 1.0, "steps": 6, "counts": [8] * 4}
    assert loaded.provenance.items() >= about.items()
    again = ImageClassifier.zero_shot(classifier.model, classifier.labels)
    assert torch.equal(again.head.to_linear().weight, classifier.head.to_linear().weight)
    assert not has_changes(classifier.model)
    before, after = model.state_dict(), classifier.model.state_dict()
    changed = [name for name, value in after.items() if not torch.equal(value, before[name])]
    assert len(changed) == 4
    assert all(name.endswith("attn.in_proj_weight") for name in changed)
    assert not any(module.training for module in classifier.modules())
    classifier.add_classes(["yellow"])
    assert classifier.predict(unseen.files[0]).label in (*loaded.labels, "yellow")


def test_merged_is_what_was_trained(model: CLIP, colors: Pairs, tmp_path: Path) -> None:
    """The checkpoint has the changes beside the weights; the classifier has their sum."""
    tuned = finetune(model, colors, tmp_path, lora=3, guard=False, config=QUICK).model
    weights = state_of(tmp_path / "run")["task"]
    unmerged = clipkit.lora(model, 3)
    unmerged.load_state_dict({name.removeprefix("model."): w for name, w in weights.items()})
    images, tokens = torch.randn(4, 3, 32, 32), model.tokenizer(["a cat", "the red dog"])
    with torch.no_grad():
        for found, expected, start in (
            (m.encode_image(images) for m in (tuned, unmerged, model)),
            (m.encode_text(tokens) for m in (tuned, unmerged, model)),
        ):
            assert (found - expected).abs().max() < 1e-5
            assert (found - start).abs().max() > 1e-4


def test_alpha_goes_part_of_the_way(model: CLIP, colors: Pairs, tmp_path: Path) -> None:
    name = "text.transformer.resblocks.1.attn.in_proj_weight"
    options: dict[str, Any] = {"lora": 2, "guard": False, "config": QUICK}
    whole = finetune(model, colors, tmp_path / "a", **options).model.get_parameter(name)
    half = finetune(model, colors, tmp_path / "b", alpha=0.25, **options).model.get_parameter(name)
    start = model.get_parameter(name)
    torch.testing.assert_close(half - start, 0.25 * (whole - start), rtol=1e-3, atol=1e-7)


def test_it_learns(model: CLIP, colors: Pairs, unseen: Pairs, tmp_path: Path) -> None:
    config = replace(QUICK, steps=60, lr=0.05)
    tuned = finetune(model, colors, tmp_path, lora=4, guard=False, config=config)
    losses = [row["loss"] for row in rows_of_log(tmp_path / "run")]
    assert losses[-1] < 0.8
    start = ImageClassifier.zero_shot(model, tuned.labels)
    answers = torch.tensor(unseen.labels)
    right = [(c.probabilities(unseen.files).argmax(dim=1) == answers).sum() for c in (start, tuned)]
    assert right[1] > right[0] + 6


def test_a_resnet_is_tuned_in_its_attention_pool(colors: Pairs, tmp_path: Path) -> None:
    tiny = CLIP.from_pretrained("tiny", device="cpu")
    few = colors.select(range(0, 32, 8))
    config = replace(QUICK, steps=1)
    tuned = finetune(tiny, few, tmp_path, lora=2, guard=False, config=config).model
    before = tiny.state_dict()
    changed = {k for k, v in tuned.state_dict().items() if not torch.equal(v, before[k])}
    pool = {f"visual.attnpool.{name}_proj.weight" for name in "qkv"}
    fused = {f"text.transformer.resblocks.{i}.attn.in_proj_weight" for i in range(4)}
    assert changed == pool | fused


def test_a_run_goes_on_and_knows_its_rank(model: CLIP, colors: Pairs, tmp_path: Path) -> None:
    options: dict[str, Any] = {"guard": False, "config": QUICK}
    first = finetune(model, colors, tmp_path, lora=2, **options)
    second = finetune(model, colors, tmp_path, lora=2, **options)
    assert_same_weights(first.state_dict(), second.state_dict())
    with pytest.raises(TrainingError, match="another run"):
        finetune(model, colors, tmp_path, lora=3, **options)


# What is kept


def test_a_clear_gain_on_held_out_images_is_taken() -> None:
    answers = torch.zeros(40, dtype=torch.int64)
    logits = {
        "zero_shot": rows((20, 2), (20, -1)),
        "anchored": rows((26, 2), (14, -1)),
        "low_rank": rows((38, 2), (2, -1)),
    }
    chosen, figures = choose(logits, answers)
    assert chosen == "low_rank"
    assert figures["images"] == 40
    accuracies = [figures[name]["accuracy"] for name in logits]
    assert accuracies == [0.5, 0.65, 0.95]
    assert figures["low_rank"]["loss"] < figures["anchored"]["loss"]
    assert figures["anchored"]["loss"] < figures["zero_shot"]["loss"]


@pytest.mark.parametrize(
    ("zero_shot", "anchored", "changed", "expected"),
    [
        ([(20, 2), (20, -1)], [(26, 2), (14, -1)], [(27, 2), (13, -1)], "anchored"),  # by noise
        ([(26, 2), (14, -1)], [(20, 2), (20, -1)], [(27, 2), (13, -1)], "zero_shot"),
        ([(26, 2), (14, -1)], [(26, 2), (14, -1)], [(10, 2), (30, -1)], "zero_shot"),
        # Surer of the images that are right, but fewer of them are.
        ([(30, 1), (10, -1.5)], [(20, 1), (20, -1)], [(28, 9), (12, -0.5)], "zero_shot"),
    ],
)
def test_what_was_there_is_kept_otherwise(
    zero_shot: Any, anchored: Any, changed: Any, expected: str
) -> None:
    logits = {
        "zero_shot": rows(*zero_shot),
        "anchored": rows(*anchored),
        "low_rank": rows(*changed),
    }
    chosen, _ = choose(logits, torch.zeros(40, dtype=torch.int64))
    assert chosen == expected


def test_a_single_held_out_image_proves_nothing() -> None:
    logits = {name: rows((1, value)) for name, value in (("zero_shot", -5), ("anchored", -6))}
    chosen, _ = choose(logits | {"low_rank": rows((1, 9))}, torch.zeros(1, dtype=torch.int64))
    assert chosen == "zero_shot"


def test_changes_that_spoil_the_model_are_not_kept(
    model: CLIP, colors: Pairs, unseen: Pairs, tmp_path: Path
) -> None:
    config = replace(QUICK, lr=0.5)
    guarded = finetune(model, colors, tmp_path, lora=2, config=config)
    head = ImageClassifier.zero_shot(model, guarded.labels).fit(colors)
    assert torch.equal(guarded.probabilities(unseen.files), head.probabilities(unseen.files))
    assert guarded.provenance["method"] == "anchored"
    about = guarded.provenance["lora"]
    assert about["chosen"] == "anchored"
    assert about["held_out"]["images"] == 32
    assert about["held_out"]["anchored"]["loss"] < about["held_out"]["low_rank"]["loss"]
    folds = [rows_of_log(tmp_path / "run" / f"fold_{i}")[-1]["step"] for i in (1, 2)]
    assert folds == [3, 3]  # half of the steps, for half of the images
    assert not (tmp_path / "run" / "checkpoint.pt").exists()  # nobody wanted them


def test_the_images_that_are_held_out_are_not_trained_on(
    model: CLIP, colors: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[set[Path]] = []
    measured: list[set[Path]] = []
    embed = low_rank.embed_images

    def train(start: ImageClassifier, pairs: Pairs, *_: Any) -> CLIP:
        trained.append(set(pairs.files))
        return start.model

    def watch(model: CLIP, files: list[Path], **options: Any) -> Tensor:
        measured.append(set(files))
        return embed(model, files, **options)

    monkeypatch.setattr(low_rank, "train_changes", train)
    monkeypatch.setattr(low_rank, "embed_images", watch)
    finetune(model, colors, tmp_path, lora=2, config=QUICK)
    assert [len(files) for files in measured] == [16, 16]
    assert measured[0] | measured[1] == set(colors.files)
    assert [known & out for known, out in zip(trained, measured, strict=False)] == [set(), set()]


def test_zero_shot_can_be_what_is_kept(
    model: CLIP, colors: Pairs, unseen: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice(monkeypatch, "zero_shot")
    kept = finetune(model, colors, tmp_path, lora=2, config=QUICK)
    plain = ImageClassifier.zero_shot(model, kept.labels)
    assert torch.equal(kept.probabilities(unseen.files), plain.probabilities(unseen.files))
    assert kept.provenance["method"] == "zero_shot"
    assert "strength" not in kept.provenance
    assert ImageClassifier.load(tmp_path, device="cpu").provenance == kept.provenance


def test_a_gain_trains_on_all_images(
    model: CLIP, colors: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice(monkeypatch, "low_rank")
    guarded = finetune(model, colors, tmp_path / "a", lora=2, config=QUICK)
    plain = finetune(model, colors, tmp_path / "b", lora=2, guard=False, config=QUICK)
    assert_same_weights(guarded.state_dict(), plain.state_dict())
    assert guarded.provenance["lora"]["held_out"] == {"images": 32}


def test_single_images_leave_the_head_alone(model: CLIP, colors: Pairs, tmp_path: Path) -> None:
    few = colors.select(range(0, 32, 8))
    kept = finetune(model, few, tmp_path, lora=2, config=QUICK)
    expected = {"chosen": "anchored", "rank": 2, "held_out": {"images": 0}}
    assert kept.provenance["lora"] == expected
    head = ImageClassifier.zero_shot(model, kept.labels).fit(few)
    assert_same_weights(kept.head.state_dict(), head.head.state_dict())


def test_broken_images_are_left_out(model: CLIP, colors: Pairs, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    files = [broken, *colors.files[1:]]
    kept = finetune(model, replace(colors, files=files), tmp_path, lora=2, config=QUICK)
    assert kept.provenance["counts"] == [7, 8, 8, 8]
    assert kept.provenance["skipped"][0][0] == str(broken)
    assert kept.provenance["lora"]["held_out"]["images"] == 31


@pytest.mark.parametrize("kept", ["zero_shot", "anchored", "low_rank"])
def test_the_images_are_known_again(
    model: CLIP,
    colors: Pairs,
    unseen: Pairs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kept: str,
) -> None:
    choice(monkeypatch, kept)
    tuned = finetune(model, colors, tmp_path, lora=2, config=replace(QUICK, lr=0.1))
    loaded = ImageClassifier.load(tmp_path, device="cpu")
    for pairs, count in ((colors, 32), (unseen, 0)):
        found = clipkit.extract_features(tuned.model, pairs.files)
        assert tuned.count_seen(found.features, found.paths) == count
        assert loaded.count_seen(found.features, found.paths) == count


# Options


def test_the_setting_is_that_of_the_paper(model: CLIP, colors: Pairs) -> None:
    how = plan_changes(model, colors, 2)
    assert (how.rank, how.guard, how.alpha, how.batch_size) == (2, True, 1.0, 32)
    config = how.config
    assert (config.steps, config.lr, config.weight_decay) == (4000, 2e-4, 0.01)
    assert (config.betas, config.warm_up_steps, config.clip_grad) == ((0.9, 0.999), 0, None)
    uneven = colors.select([0, 8, 9, 10])
    assert plan_changes(model, uneven, 2).config.steps == 1000  # two classes, two images on average
    shorter = plan_changes(model, colors, 1, epochs=3, batch_size=8, lr=1e-3)
    assert (shorter.config.steps, shorter.config.lr, shorter.batch_size) == (12, 1e-3, 8)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lora": 0}, ConfigError, "a rank of at least 1, such as 2, not 0: head_only=True"),
        ({"lora": True}, ConfigError, "a rank of at least 1, such as 2, not True"),
        ({"lora": 2.0}, ConfigError, "a rank of at least 1, such as 2, not 2.0"),
        ({"lora": 2, "blocks": 1}, ConfigError, "blocks would be ignored"),
        ({"lora": 2, "head_only": True}, ConfigError, "trains no tower: lora would be ignored"),
        ({"lora": 2, "epochs": 0}, ConfigError, "epochs must be a positive integer, not 0"),
        ({"lora": 2, "config": QUICK, "lr": 1.0}, ConfigError, "lr would be ignored"),
        ({"lora": 2, "alpha": 2}, ConfigError, "alpha must be from 0"),
        ({"lora": 2, "batch_size": 0}, DataError, "batch_size 0"),
        ({"guard": False}, ConfigError, "guard=False would be ignored without lora="),
        ({"lora": 99}, ConfigError, "rank must be at most the width 32, not 99"),
    ],
)
def test_impossible_options_are_told_before_the_work(
    model: CLIP,
    colors: Pairs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    def encode(*_: Any, **__: Any) -> Any:
        raise AssertionError("images were encoded")

    monkeypatch.setattr(low_rank, "extract_features", encode)
    monkeypatch.setattr("clipkit.training.finetune.extract_features", encode)
    with pytest.raises(error, match=message):
        finetune(model, colors, tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_captions_take_no_rank(model: CLIP, colors: Pairs, tmp_path: Path) -> None:
    captioned = Pairs(colors.files, colors.captions)
    with pytest.raises(ConfigError, match="lora is for class folders"):
        finetune_from(captioned, tmp_path / "out", model, lora=2)
