"""Fine-tuned classifiers: each stage against what it must equal or beat."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clipkit import CLIP, ImageClassifier, zero_shot_weights
from clipkit.classify.few_shot import fit_head
from clipkit.classify.heads import Head, LinearHead
from clipkit.data.labelled import Pairs
from clipkit.encode.embed import embed_images
from clipkit.encode.fingerprints import fingerprint_0_1_0
from clipkit.errors import ConfigError, DataError
from clipkit.training.config import TrainConfig
from clipkit.training.finetune import finetune, finetune_captions
from clipkit.training.tasks import ClassificationTask
from tests.helpers.models import assert_same_weights
from tests.helpers.training_worker import rows_of_log, state_of

QUICK = TrainConfig(steps=4, lr=1e-3, warm_up=1, save_every=0)


def state(module: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(module.state_dict())


def accuracy(model: CLIP, head: Head, pairs: Pairs) -> float:
    with torch.no_grad():
        predicted = head(embed_images(model, pairs.files)).argmax(dim=1)
    return (predicted == torch.tensor(pairs.labels)).double().mean().item()


@pytest.fixture
def zero_shot(model: CLIP, colors: Pairs) -> LinearHead:
    weights = zero_shot_weights(model, colors.class_names or [])
    return LinearHead.from_zero_shot(weights, model.logit_scale)


# What it learns


def test_learns_colors(
    model: CLIP, colors: Pairs, unseen: Pairs, zero_shot: LinearHead, tmp_path: Path
) -> None:
    given = accuracy(model, zero_shot, unseen)
    config = replace(QUICK, steps=20, warm_up=2)
    classifier = finetune(model, colors, tmp_path, batch_size=16, alpha=1.0, config=config)
    tuned = classifier.model
    assert accuracy(tuned, classifier.head, unseen) == 1
    assert given < 0.7
    assert classifier.labels == colors.class_names
    assert classifier.predict(unseen.files[0]).label == "blue"
    assert not any(module.training for module in classifier.modules())
    rows = rows_of_log(tmp_path / "run")
    assert rows[-1]["step"] == 20
    assert rows[-1]["loss"] < 0.3
    assert torch.equal(tuned.logit_scale, model.logit_scale)
    assert_same_weights(tuned.text.state_dict(), model.text.state_dict())
    conv = "conv1.weight"
    assert not torch.equal(tuned.visual.get_parameter(conv), model.visual.get_parameter(conv))


def test_the_model_is_left_alone(model: CLIP, colors: Pairs, tmp_path: Path) -> None:
    before = state(model)
    finetune(model, colors, tmp_path, batch_size=8, config=QUICK)
    assert_same_weights(state(model), before)
    assert all(p.requires_grad for p in model.parameters())
    assert not model.training


def test_what_is_saved_is_a_classifier(
    model: CLIP, colors: Pairs, unseen: Pairs, tmp_path: Path
) -> None:
    classifier = finetune(model, colors, tmp_path, batch_size=8, config=QUICK)
    loaded = ImageClassifier.load(tmp_path, device="cpu")
    assert loaded.labels == ["blue", "dark_red", "green", "white"]
    words = ["blue", "dark red", "green", "white"]
    assert loaded.prompts == [[f"a photo of a {name}."] for name in words]
    about = {"method": "finetune", "counts": [8] * 4, "alpha": 0.5, "steps": 4}
    assert loaded.provenance.items() >= about.items()
    assert loaded.provenance == classifier.provenance
    assert_same_weights(state(loaded), state(classifier))
    assert torch.equal(loaded.probabilities(unseen.files), classifier.probabilities(unseen.files))


def test_its_logits_take_no_new_classes_until_it_is_fitted_again(
    model: CLIP, colors: Pairs, unseen: Pairs, tmp_path: Path
) -> None:
    """They are not those of cosines any more."""
    classifier = finetune(model, colors, tmp_path, batch_size=8, config=QUICK)
    with pytest.raises(ConfigError, match="scale of its own"):
        classifier.add_classes(["yellow"])
    classifier.fit(colors.files, colors.labels)  # with the tower as it was tuned
    assert classifier.provenance["method"] == "anchored"
    assert accuracy(classifier.model, classifier.head, unseen) > 0.9


# The stages


def test_alpha_0_is_zero_shot(model: CLIP, colors: Pairs, unseen: Pairs, tmp_path: Path) -> None:
    """The logits are as sure as those of the fitted head."""
    start = ImageClassifier.zero_shot(model, colors.class_names or [])
    old = finetune(model, colors, tmp_path, batch_size=8, alpha=0, config=QUICK)
    assert_same_weights(state(old.model), state(model))
    features = embed_images(model, colors.files)
    fitted, _ = fit_head(features, torch.tensor(colors.labels), start.zero_shot_head)
    assert fitted.scale is not None
    expected = fitted.scale * start.zero_shot_head.weight
    head = old.head.to_linear()
    torch.testing.assert_close(head.weight, expected, rtol=1e-6, atol=0, check_stride=False)
    assert not head.bias.any()
    labels = [prediction.label for prediction in old.predict(unseen.files)]
    assert labels == [prediction.label for prediction in start.predict(unseen.files)]


def named(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in module.state_dict().items()}


def test_alpha_1_is_what_was_trained(model: CLIP, colors: Pairs, tmp_path: Path) -> None:
    new = finetune(model, colors, tmp_path, batch_size=8, alpha=1, config=QUICK)
    trained = state_of(tmp_path / "run")["task"]
    assert_same_weights(named("model", new.model) | named("head", new.head), trained)


def test_alpha_between_is_between(model: CLIP, colors: Pairs, tmp_path: Path) -> None:
    old, half, new = (
        finetune(model, colors, tmp_path / str(a), batch_size=8, alpha=a, config=QUICK)
        for a in (0, 0.5, 1)
    )
    for name, value in half.head.state_dict().items():
        middle = (old.head.state_dict()[name] + new.head.state_dict()[name]) / 2
        torch.testing.assert_close(value, middle, rtol=1e-5, atol=1e-5)
    first, middle, last = (c.model.visual.get_parameter("proj") for c in (old, half, new))
    torch.testing.assert_close(middle, (first + last) / 2, rtol=1e-5, atol=1e-6)
    assert not torch.equal(first, last)


def test_the_head_alone(model: CLIP, colors: Pairs, zero_shot: LinearHead, tmp_path: Path) -> None:
    classifier = finetune(model, colors, tmp_path, head_only=True, alpha=1)
    assert_same_weights(state(classifier.model), state(model))
    anchored = ImageClassifier.zero_shot(model, colors.class_names or [])
    anchored.fit(embed_images(model, colors.files), colors.labels)
    assert_same_weights(state(classifier.head), state(anchored.head))
    assert accuracy(model, classifier.head, colors) > accuracy(model, zero_shot, colors)
    assert not (tmp_path / "run").exists()
    assert (tmp_path / "head.safetensors").exists()


def test_names_and_templates_make_the_zero_shot_head(
    model: CLIP, colors: Pairs, tmp_path: Path
) -> None:
    names = ["sky", "blood", "grass", "snow"]
    classifier = finetune(
        model, colors, tmp_path, class_names=names, templates="stl10", head_only=True, alpha=0
    )
    assert classifier.labels == names
    assert classifier.prompts[1] == ["a photo of a blood.", "a photo of the blood."]
    expected = zero_shot_weights(model, names, "stl10")
    assert torch.equal(classifier.zero_shot_head.weight, expected)


def with_broken(pairs: Pairs, place: int, folder: Path) -> Pairs:
    """Return pairs with a file in one place that is no image."""
    broken = folder / "broken.png"
    broken.write_bytes(b"no image")
    files = [*pairs.files]
    files[place] = broken
    return replace(pairs, files=files)


def test_broken_images_are_left_out_of_the_head(model: CLIP, colors: Pairs, tmp_path: Path) -> None:
    sound = colors.select([i for i in range(len(colors)) if i != 3])
    more = with_broken(colors, 3, tmp_path)
    head = finetune(model, more, tmp_path / "head", head_only=True, alpha=1)
    fitted = finetune(model, sound, tmp_path / "sound", head_only=True, alpha=1)
    assert_same_weights(state(head.head), state(fitted.head))
    assert head.provenance["counts"] == [7, 8, 8, 8]
    assert head.provenance["skipped"][0][0] == str(tmp_path / "broken.png")


def test_broken_images_are_skipped_in_training(model: CLIP, colors: Pairs, tmp_path: Path) -> None:
    more = with_broken(colors, 3, tmp_path)
    finetune(model, more, tmp_path, epochs=1, batch_size=32)
    assert rows_of_log(tmp_path / "run")[-1]["skipped"] == 1


def test_blocks_lock_the_rest_of_the_tower(model: CLIP, colors: Pairs, tmp_path: Path) -> None:
    tuned = finetune(model, colors, tmp_path, epochs=1, batch_size=8, blocks=1, alpha=1).model
    before = model.state_dict()
    changed = {k for k, v in tuned.state_dict().items() if not torch.equal(v, before[k])}
    last = ("visual.transformer.resblocks.1.", "visual.ln_post", "visual.proj")
    assert changed
    assert all(name.startswith(last) for name in changed)
    assert all(p.requires_grad for p in tuned.parameters())


def test_half_precision_models_are_tuned_in_float32(
    model: CLIP, colors: Pairs, tmp_path: Path
) -> None:
    half = copy.deepcopy(model).half()
    before = state(half)
    classifier = finetune(half, colors, tmp_path / "a", batch_size=8, alpha=1, config=QUICK)
    assert classifier.model.dtype == torch.float32
    assert classifier.head.to_linear().weight.dtype == torch.float32
    assert accuracy(classifier.model, classifier.head, colors) > 0.9
    trained = state_of(tmp_path / "a" / "run")["task"]
    assert torch.equal(classifier.model.visual.get_parameter("proj"), trained["model.visual.proj"])
    captions = finetune_captions(half, colors, tmp_path / "b", batch_size=8, alpha=1, config=QUICK)
    assert captions.dtype == torch.float32
    assert_same_weights(state(half), before)


class Center(nn.Module):
    """Preprocess an image in a way of its own: its middle, of 32 x 32 pixels."""

    def forward(self, image: Any) -> Tensor:
        pixels = torch.from_numpy(np.array(image.resize((32, 32)))).permute(2, 0, 1)  # (3, 32, 32)
        return pixels.float() / 127.5 - 1


def test_a_preprocessing_of_its_own_is_used_in_both_stages(
    model: CLIP, colors: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, int]] = []
    plain = Center.forward

    def forward(self: Center, image: Any) -> Tensor:
        calls.append(image.size)
        return plain(self, image)

    monkeypatch.setattr(Center, "forward", forward)
    monkeypatch.setattr(ImageClassifier, "save", lambda self, out: None)
    monkeypatch.setattr(CLIP, "save_pretrained", lambda self, out: None)
    model.preprocess = Center()
    classifier = finetune(model, colors, tmp_path, epochs=1, batch_size=32)
    assert isinstance(classifier.model.preprocess, Center)
    assert calls[:32] == [(40, 36)] * 32  # for the head, whole images
    assert len(set(calls[32:])) > 10  # crops


# Going on


def test_a_run_goes_on_from_its_checkpoint(model: CLIP, colors: Pairs, tmp_path: Path) -> None:
    """A second call finds all steps done, and gives the same classifier."""
    first = finetune(model, colors, tmp_path, batch_size=8, config=QUICK)
    second = finetune(model, colors, tmp_path, batch_size=8, config=QUICK)
    assert_same_weights(state(first), state(second))


def test_a_run_of_0_1_0_goes_on(model: CLIP, colors: Pairs, tmp_path: Path) -> None:
    """It knew a model by another digest."""
    first = finetune(model, colors, tmp_path, batch_size=8, config=QUICK)
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    written = state_of(tmp_path / "run")
    spaced = ["blue", "dark red", "green", "white"]  # its labels of class folders
    written["identity"][1] = fingerprint_0_1_0(model, spaced, first.prompts)
    del written["start"]
    torch.save(written, checkpoint)
    second = finetune(model, colors, tmp_path, batch_size=8, config=QUICK)
    assert_same_weights(state(first), state(second))


def test_a_batch_larger_than_the_data_is_all_of_it(
    model: CLIP, colors: Pairs, tmp_path: Path
) -> None:
    finetune(model, colors.select(range(0, 32, 8)), tmp_path, epochs=2)
    assert rows_of_log(tmp_path / "run")[-1]["step"] == 2


# Options


@pytest.mark.parametrize(
    ("width", "given", "expected"),
    [
        (512, None, 5e-5),
        (768, None, 5e-5 / 2.25),
        (64, None, 1e-3),
        (128, None, 8e-4),
        (64, 3e-4, 3e-4),
    ],
)
def test_the_rate_follows_the_width(
    model: CLIP,
    colors: Pairs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    width: int,
    given: float | None,
    expected: float,
) -> None:
    """It is the width of the text tower that counts, unless the rate is given."""
    asked: list[TrainConfig] = []

    def trainer(task: Any, batches: Any, config: TrainConfig, *others: Any, **options: Any) -> Any:
        asked.append(config)
        raise InterruptedError("asked")

    monkeypatch.setattr("clipkit.training.stage.Trainer", trainer)
    model.config = replace(model.config, text=replace(model.config.text, width=width))
    with pytest.raises(InterruptedError, match="asked"):
        finetune(model, colors, tmp_path, epochs=2, lr=given)
    with pytest.raises(InterruptedError, match="asked"):
        finetune_captions(model, colors, tmp_path, epochs=2, lr=given)
    assert [config.lr for config in asked] == pytest.approx([expected] * 2)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"class_names": ["only", "three", "names"]}, DataError, "a class name for each label"),
        ({"batch_size": 0}, DataError, "batch_size 0"),
        ({"epochs": -1}, ConfigError, "epochs must be a positive integer, not -1"),
        ({"epochs": 0}, ConfigError, "epochs must be a positive integer, not 0.*head_only=True"),
        ({"epochs": 1.5}, ConfigError, "epochs must be a positive integer, not 1.5"),
        ({"blocks": 3}, ConfigError, "3 of them cannot be trained"),
        ({"workers": -1}, DataError, "workers .* not -1"),
        ({"templates": ("no place",)}, ConfigError, "no place"),
        ({"alpha": 1.5}, ConfigError, "alpha must be from 0.* not 1.5"),
        ({"alpha": float("nan")}, ConfigError, "alpha must be from 0.* not nan"),
        ({"config": QUICK, "epochs": 3}, ConfigError, "config= says .*: epochs would be ignored"),
        ({"config": QUICK, "lr": 1e-4}, ConfigError, "config= says .*: lr would be ignored"),
        ({"config": QUICK, "blocks": 1}, ConfigError, "config= says .*: blocks would be ignored"),
        ({"head_only": True, "epochs": 3}, ConfigError, "trains no tower: epochs would be"),
        ({"head_only": True, "batch_size": 8}, ConfigError, "trains no tower: batch_size would"),
        (
            {"head_only": True, "lr": 1e-4, "blocks": 1},
            ConfigError,
            "trains no tower: blocks and lr would be ignored",
        ),
        ({"head_only": True, "config": QUICK}, ConfigError, "trains no tower: config would be"),
    ],
)
def test_refuses_impossible_options_before_anything_is_done(
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

    monkeypatch.setattr("clipkit.training.finetune.extract_features", encode)
    with pytest.raises(error, match=message):
        finetune(model, colors, tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_refuses_images_without_labels_or_names(model: CLIP, colors: Pairs, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="images with labels"):
        finetune(model, Pairs(colors.files, colors.captions), tmp_path, class_names=["a"])
    with pytest.raises(DataError, match="a class name for each label"):
        finetune(model, Pairs(colors.files, colors.captions, colors.labels), tmp_path)


def test_the_task_is_the_cross_entropy_of_the_head(model: CLIP, zero_shot: LinearHead) -> None:
    images = torch.randn(6, 3, 32, 32)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    loss = ClassificationTask(model, zero_shot)(images, labels)
    with torch.no_grad():
        features = nn.functional.normalize(model.encode_image(images), dim=-1)
        logits = zero_shot(features).double().numpy()
    surprises = [np.log(np.exp(row).sum()) - row[i] for row, i in zip(logits, labels, strict=True)]
    assert loss.item() == pytest.approx(np.mean(surprises), abs=1e-5)
    assert not model.logit_scale.requires_grad
