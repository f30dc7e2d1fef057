"""clipkit.training.finetune: the stages, each against what it must equal or beat."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clipkit import CLIP, ImageClassifier, zero_shot_weights
from clipkit.classify.few_shot import fit_head
from clipkit.classify.heads import CacheHead, CosineHead, Head, LinearHead
from clipkit.classify.metrics import recall_at_k
from clipkit.config import CLIPConfig
from clipkit.data.labelled import Pairs, read_folder, read_table
from clipkit.encode.embed import embed_images, embed_texts
from clipkit.errors import ConfigError, DataError
from clipkit.tokenizer import Tokenizer
from clipkit.training.finetune import finetune, finetune_captions, interpolate_weights
from clipkit.training.config import TrainConfig
from clipkit.training.tasks import ClassificationTask
from tests.helpers.toy_data import caption_table, colour_folders, toy_config

QUICK = TrainConfig(steps=4, lr=1e-3, warm_up=1, save_every=0)


@pytest.fixture
def model(small_tokenizer: Tokenizer) -> CLIP:
    torch.manual_seed(0)
    return CLIP(toy_config(), small_tokenizer).eval()


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pairs, list[str]]:
    pairs = read_folder(colour_folders(tmp_path_factory.mktemp("train"), each=8))
    return pairs, pairs.class_names or []


@pytest.fixture(scope="module")
def unseen(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    return read_folder(colour_folders(tmp_path_factory.mktemp("test"), each=6, seed=500))


def state(module: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(module.state_dict())


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(
        torch.equal(value, second[key]) and value.dtype == second[key].dtype
        for key, value in first.items()
    )


def accuracy(model: CLIP, head: Head, pairs: Pairs) -> float:
    with torch.no_grad():
        predicted = head(embed_images(model, pairs.files)).argmax(dim=1)
    return (predicted == torch.tensor(pairs.labels)).double().mean().item()


# Interpolation


def test_interpolation_is_exact_at_the_ends_and_linear_between(
    resnet_config: CLIPConfig, small_tokenizer: Tokenizer
) -> None:
    torch.manual_seed(0)
    first, second = (CLIP(resnet_config, small_tokenizer) for _ in range(2))
    second.visual.bn1.num_batches_tracked.fill_(9)  # pyright: ignore
    kept = state(first), state(second)
    ends = [state(interpolate_weights(first, second, alpha)) for alpha in (0, 1)]
    floating = {k for k, v in kept[0].items() if v.is_floating_point()}
    assert all(torch.equal(ends[0][k], kept[0][k]) for k in floating)
    assert_same(ends[1], kept[1])
    quarter = interpolate_weights(first, second, 0.25).state_dict()
    for key in floating:
        expected = 0.75 * kept[0][key].double() + 0.25 * kept[1][key].double()
        torch.testing.assert_close(quarter[key].double(), expected, rtol=1e-6, atol=1e-7)
    assert_same(state(first), kept[0])
    assert_same(state(second), kept[1])


def test_interpolation_keeps_the_precision_of_the_second(model: CLIP) -> None:
    tuned = copy.deepcopy(model)
    nn.init.normal_(tuned.visual.proj)  # pyright: ignore
    assert_same(
        interpolate_weights(copy.deepcopy(model).half(), tuned, 1.0).state_dict(), tuned.state_dict()
    )


def test_heads_are_interpolated_as_linear_ones() -> None:
    random = torch.Generator().manual_seed(0)
    features, weight = torch.randn(5, 8, generator=random), torch.randn(3, 8, generator=random)
    first = CosineHead(nn.functional.normalize(weight, dim=-1), torch.tensor(2.0))
    second = LinearHead(torch.randn(3, 8, generator=random), torch.randn(3, generator=random))
    for heads in ((first, second), (second, first)):
        for alpha in (0, 0.25, 1):
            between = interpolate_weights(*heads, alpha)  # pyright: ignore
            assert isinstance(between, LinearHead)
            expected = (1 - alpha) * heads[0](features) + alpha * heads[1](features)
            torch.testing.assert_close(between(features), expected, rtol=1e-5, atol=1e-5)
    cache = CacheHead(
        weight, torch.tensor(1.0), features, torch.eye(5, 3), torch.tensor(1.0), torch.tensor(1.0)
    )
    with pytest.raises(ConfigError, match="CacheHead is not linear"):
        interpolate_weights(first, cache, 0.5)  # pyright: ignore


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan")])
def test_an_alpha_outside_is_refused_before_anything_is_trained(
    model: CLIP, colours: Path, tmp_path: Path, alpha
) -> None:
    pairs, names = colours
    for call in (
        lambda: interpolate_weights(model, model, alpha),
        lambda: finetune(model, pairs, tmp_path, class_names=names, alpha=alpha),
        lambda: finetune_captions(model, pairs, tmp_path, alpha=alpha),
    ):
        with pytest.raises(ConfigError, match=f"alpha must be from 0.* not {alpha}"):
            call()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("other", [nn.Linear(3, 2), nn.Linear(2, 3, bias=False)])
def test_interpolation_refuses_other_weights(other) -> None:
    with pytest.raises(ConfigError, match="two modules of the same weights"):
        interpolate_weights(nn.Linear(2, 3), other, 0.5)


# The whole of it


@pytest.fixture
def zero_shot(model: CLIP, colours: Path) -> LinearHead:
    return LinearHead.from_zero_shot(zero_shot_weights(model, colours[1]), model.logit_scale)


def test_learns_colours_and_leaves_the_model_alone(
    model: CLIP, colours: Path, unseen, zero_shot: CosineHead, tmp_path: Path
) -> None:
    pairs, names = colours
    before, given = state(model), accuracy(model, zero_shot, unseen)
    config = replace(QUICK, steps=20, warm_up=2)
    classifier = finetune(model, pairs, tmp_path, class_names=names, batch_size=16, alpha=1.0, config=config)
    tuned = classifier.model
    assert accuracy(tuned, classifier.head, unseen) == 1 > given + 0.3
    assert classifier.labels == names and classifier.predict(unseen.files[0]).label == "blue"
    assert_same(state(model), before)
    assert all(p.requires_grad for p in model.parameters())
    assert not any(module.training for module in classifier.modules())
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 20 and rows[-1]["loss"] < 0.3
    assert torch.equal(tuned.logit_scale, model.logit_scale)
    assert_same(tuned.text.state_dict(), model.text.state_dict())
    assert not torch.equal(tuned.visual.conv1.weight, model.visual.conv1.weight)  # pyright: ignore


def test_what_is_saved_is_a_classifier(model: CLIP, colours: Path, unseen, tmp_path: Path) -> None:
    pairs, names = colours
    classifier = finetune(model, pairs, tmp_path, class_names=names, batch_size=8, config=QUICK)
    loaded = ImageClassifier.load(tmp_path, device="cpu")
    assert loaded.labels == names == ["blue", "dark red", "green", "white"]
    assert loaded.prompts == [[f"a photo of a {name}."] for name in names]
    about = {"method": "finetune", "pictures": 32, "counts": [8] * 4, "alpha": 0.5}
    assert loaded.provenance.items() >= about.items() and loaded.provenance == classifier.provenance
    assert_same(state(loaded), state(classifier))
    assert torch.equal(loaded.probabilities(unseen.files), classifier.probabilities(unseen.files))
    assert not (tmp_path / "labels.json").exists()
    with pytest.raises(
        ConfigError, match="fitted by finetune"
    ):  # its logits are no longer those of cosines
        loaded.add_classes(["yellow"])
    loaded.fit(pairs.files, pairs.labels)  # with the tower as it was tuned, from the names again
    assert (
        loaded.provenance["method"] == "anchored"
        and accuracy(loaded.model, loaded.head, unseen) > 0.9
    )


def test_alpha_0_is_zero_shot_and_alpha_1_is_what_was_trained(
    model: CLIP, colours: Path, unseen, tmp_path: Path
) -> None:
    pairs, names = colours
    start = ImageClassifier.zero_shot(model, names)
    old = finetune(model, pairs, tmp_path / "0", class_names=names, batch_size=8, alpha=0, config=QUICK)
    assert_same(state(old.model), state(model))
    weight = start.zero_shot_head.weight.detach()
    scale = fit_head(
        embed_images(model, pairs.files), torch.tensor(pairs.labels), start.zero_shot_head
    )[0].scale
    torch.testing.assert_close(
        old.head.weight, scale * weight, rtol=1e-6, atol=0
    )  # as sure as the fit is
    assert not old.head.bias.any()  # pyright: ignore
    assert [p.label for p in old.predict(unseen.files)] == [
        p.label for p in start.predict(unseen.files)
    ]
    new = finetune(model, pairs, tmp_path / "1", class_names=names, batch_size=8, alpha=1, config=QUICK)
    trained = torch.load(tmp_path / "1" / "run" / "checkpoint.pt", weights_only=True)["task"]
    assert_same(_named("model", new.model) | _named("head", new.head), trained)
    half = finetune(model, pairs, tmp_path / "half", class_names=names, batch_size=8, alpha=0.5, config=QUICK)
    for name, value in half.head.state_dict().items():
        middle = (old.head.state_dict()[name] + new.head.state_dict()[name]) / 2
        torch.testing.assert_close(value, middle, rtol=1e-5, atol=1e-5)
    proj: list[Any] = [m.visual.proj for m in (model, new.model, half.model)]
    torch.testing.assert_close(proj[2], (proj[0] + proj[1]) / 2, rtol=1e-5, atol=1e-6)
    assert not torch.equal(proj[0], proj[1])


def _named(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}.{k}": v for k, v in module.state_dict().items()}


def test_no_epochs_train_the_head_alone(
    model: CLIP, colours: Path, zero_shot: CosineHead, tmp_path: Path
) -> None:
    pairs, names = colours
    classifier = finetune(model, pairs, tmp_path, class_names=names, epochs=0, alpha=1)
    assert_same(state(classifier.model), state(model))
    anchored = ImageClassifier.zero_shot(model, names).fit(
        embed_images(model, pairs.files), pairs.labels
    )
    assert_same(state(classifier.head), state(anchored.head))
    assert accuracy(model, classifier.head, pairs) > accuracy(model, zero_shot, pairs)
    assert (
        not (tmp_path / "run" / "checkpoint.pt").exists()
        and (tmp_path / "head.safetensors").exists()
    )


def test_templates_make_the_zero_shot_head(model: CLIP, colours: Path, tmp_path: Path) -> None:
    pairs, names = colours
    classifier = finetune(model, pairs, tmp_path, class_names=names, templates="stl10", epochs=0, alpha=0)
    assert classifier.prompts[1] == ["a photo of a dark red.", "a photo of the dark red."]
    assert torch.equal(classifier.zero_shot_head.weight, zero_shot_weights(model, names, "stl10"))


def test_broken_pictures_are_skipped(model: CLIP, colours: Path, tmp_path: Path) -> None:
    """In both stages."""
    pairs, names = colours
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    files = [*pairs.files]
    files[3] = broken
    sound = [i for i in range(len(pairs)) if i != 3]
    more = Pairs(files, pairs.captions, pairs.labels)
    head = finetune(model, more, tmp_path / "head", class_names=names, epochs=0, alpha=1)
    fitted = finetune(model, pairs.select(sound), tmp_path / "sound", class_names=names, epochs=0, alpha=1)
    assert_same(state(head.head), state(fitted.head))
    assert head.provenance["counts"] == [7, 8, 8, 8]
    finetune(model, more, tmp_path / "tower", class_names=names, epochs=1, batch_size=32)
    assert (
        json.loads((tmp_path / "tower" / "run" / "log.jsonl").read_text().splitlines()[-1])[
            "skipped"
        ]
        == 1
    )


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
    colours: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    width: int,
    given: Any,
    expected: Any,
) -> None:
    """Of the text tower, unless it is given."""
    asked = []

    def trainer(task, batches, config, *others, **options):
        asked.append(config)
        raise InterruptedError("asked")

    monkeypatch.setattr("clipkit.training.finetune.Trainer", trainer)
    model.config = replace(model.config, text=replace(model.config.text, width=width))
    pairs, names = colours
    for tune in (
        lambda: finetune(model, pairs, tmp_path, class_names=names, epochs=2, lr=given),
        lambda: finetune_captions(model, pairs, tmp_path, epochs=2, lr=given),
    ):
        with pytest.raises(InterruptedError, match="asked"):
            tune()
    assert [config.lr for config in asked] == pytest.approx([expected] * 2)


def test_blocks_lock_the_rest_of_the_tower(model: CLIP, colours: Path, tmp_path: Path) -> None:
    pairs, names = colours
    tuned = finetune(model, pairs, tmp_path, class_names=names, epochs=1, batch_size=8, blocks=1, alpha=1).model
    changed = {
        k for k, v in tuned.state_dict().items() if not torch.equal(v, model.state_dict()[k])
    }
    assert changed and all(
        k.startswith(("visual.transformer.resblocks.1.", "visual.ln_post", "visual.proj"))
        for k in changed
    )
    assert all(p.requires_grad for p in tuned.parameters())


def test_half_precision_models_are_tuned_in_float32(
    model: CLIP, colours: Path, tmp_path: Path
) -> None:
    pairs, names = colours
    half = copy.deepcopy(model).half()
    before = state(half)
    classifier = finetune(half, pairs, tmp_path / "a", class_names=names, batch_size=8, alpha=1, config=QUICK)
    tuned = classifier.model
    assert tuned.dtype == classifier.head.weight.dtype == torch.float32
    assert accuracy(tuned, classifier.head, pairs) > 0.9
    trained = torch.load(tmp_path / "a" / "run" / "checkpoint.pt", weights_only=True)["task"]
    assert torch.equal(tuned.visual.proj, trained["model.visual.proj"])  # pyright: ignore
    captions = finetune_captions(half, pairs, tmp_path / "b", batch_size=8, alpha=1, config=QUICK)
    assert captions.dtype == torch.float32
    assert_same(state(half), before)


def test_a_run_goes_on_from_its_checkpoint(model: CLIP, colours: Path, tmp_path: Path) -> None:
    """A second call finds all steps done, and gives the same classifier."""
    pairs, names = colours
    first = finetune(model, pairs, tmp_path, class_names=names, batch_size=8, config=QUICK)
    second = finetune(model, pairs, tmp_path, class_names=names, batch_size=8, config=QUICK)
    assert_same(state(first), state(second))


def test_a_batch_larger_than_the_data_is_all_of_it(
    model: CLIP, colours: Path, tmp_path: Path
) -> None:
    pairs, names = colours
    few = pairs.select(range(0, 32, 8))
    finetune(model, few, tmp_path, class_names=names, epochs=2)
    assert json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])["step"] == 2


def test_task_is_the_cross_entropy_of_the_head(model: CLIP, zero_shot: CosineHead) -> None:
    images, labels = torch.randn(6, 3, 32, 32), torch.tensor([0, 1, 2, 3, 0, 1])
    loss = ClassificationTask(model, zero_shot)(images, labels)
    with torch.no_grad():
        logits = (
            zero_shot(nn.functional.normalize(model.encode_image(images), dim=-1)).double().numpy()
        )
    expected = np.mean(
        [np.log(np.exp(row).sum()) - row[i] for row, i in zip(logits, labels, strict=True)]
    )
    assert loss.item() == pytest.approx(expected, abs=1e-5) and not model.logit_scale.requires_grad


@pytest.mark.parametrize(
    ("options", "names", "error", "message"),
    [
        ({}, ["only", "three", "names"], DataError, "a class name for each label"),
        ({"batch_size": 0}, None, DataError, "batch_size 0"),
        ({"epochs": -1}, None, ConfigError, "steps must be a positive integer, not -4"),
        ({"blocks": 3}, None, ConfigError, "3 of them cannot be trained"),
        ({"workers": -1}, None, DataError, "workers .* not -1"),
        ({"templates": ("no place",)}, None, ConfigError, "no place"),
    ],
)
def test_refuses_impossible_options(
    model: CLIP,
    colours: Path,
    tmp_path: Path,
    options: dict[str, Any],
    names: list[str],
    error: type[Exception],
    message: str,
) -> None:
    pairs, own = colours
    with pytest.raises(error, match=message):
        finetune(model, pairs, tmp_path, class_names=names or own, **({"batch_size": 8} | options))
    with pytest.raises(DataError, match="pictures with labels"):
        finetune(model, Pairs(pairs.files, pairs.captions), own, tmp_path)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, DataError, "batch_size 0"),
        ({"epochs": 0}, ConfigError, "steps must be a positive integer, not 0"),
    ],
)
def test_captions_refuse_impossible_options(
    model: CLIP,
    colours: Path,
    tmp_path: Path,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        finetune_captions(model, colours[0], tmp_path, **options)


# Captions


def recalls(model: CLIP, pairs: Pairs) -> tuple[float, float]:
    images, texts = (
        embed_images(model, pairs.files),
        embed_texts(model, [c[0] for c in pairs.captions]),
    )
    return recall_at_k(images, texts), recall_at_k(texts, images)


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pairs, Pairs]:
    """Two colours side by side, captioned in their order: three pictures of each of 16 to train on, one held out."""
    train, test = (tmp_path_factory.mktemp(name) for name in ("train", "test"))
    return read_table(caption_table(train, each=3)), read_table(caption_table(test, seed=900))


def test_captions_improve_retrieval(model: CLIP, halves, tmp_path: Path) -> None:
    train, test = halves
    before, given = recalls(model, test), state(model)
    config = TrainConfig(steps=150, lr=2e-3, warm_up=10, weight_decay=0.1, save_every=0)
    tuned = finetune_captions(model, train, tmp_path, batch_size=16, alpha=1, config=config)
    after = recalls(tuned, test)
    assert max(before) <= 0.25 and min(after) >= 0.7, (before, after)
    assert_same(state(model), given)
    assert not tuned.training
    assert_same(state(CLIP.from_pretrained(Path(tmp_path) / "model", device="cpu")), state(tuned))


def test_captions_interpolate_with_the_start(model: CLIP, halves, tmp_path: Path) -> None:
    tuned = [
        finetune_captions(model, halves[0], tmp_path / str(a), epochs=1, batch_size=16, alpha=a)
        for a in (0, 1, 0.5)
    ]
    assert_same(state(tuned[0]), state(model))
    for old, new, half in zip(*(m.state_dict().values() for m in tuned), strict=True):
        torch.testing.assert_close(half, (old + new) / 2, rtol=1e-5, atol=1e-6)
    assert not torch.equal(tuned[1].text.text_projection, model.text.text_projection)  # pyright: ignore
