"""clipkit.classify.classifier: classes added without fitting, folders saved and loaded, devices and precisions."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit import CLIP, ImageClassifier, zero_shot_weights
from clipkit.classify.few_shot import METHODS
from clipkit.classify.heads import CacheHead, CosineHead, LinearHead, load_head, save_head
from clipkit.errors import CheckpointNotFoundError, ConfigError, CorruptCheckpointError
from clipkit.tokenizer import Tokenizer
from tests.helpers.toy_classifier import (
    NAMES,
    QUICK,
    RAGGED,
    assert_close,
    known,
    logits,
    toy_features,
    toy_model,
)
from tests.helpers.toy_data import colour_folders

MORE = {"yellow": ["yellow", "amber"], "black": "black"}
OWN = ["the {}", "{}"]
EXTENDED = ["zero_shot", "anchored", "prompt_weights", "gaussian", "cache", "cache_finetuned"]
REFUSED = [method for method in METHODS if method not in EXTENDED]


@pytest.fixture(scope="module")
def model(small_tokenizer: Tokenizer) -> CLIP:
    """Not to be changed."""
    return toy_model(small_tokenizer)


@pytest.fixture(scope="module")
def few() -> tuple[Tensor, Tensor]:
    return toy_features()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_folders(tmp_path_factory.mktemp("pictures"), each=2)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def fitted(model: CLIP, few: tuple[Tensor, Tensor], method: str) -> ImageClassifier:
    classifier = ImageClassifier.zero_shot(model, RAGGED, ["a {}."])
    return (
        classifier
        if method == "zero_shot"
        else classifier.fit(*few, method, **QUICK.get(method, {}))
    )


# New classes


@pytest.mark.parametrize("method", EXTENDED)
def test_new_classes_leave_the_logits_of_the_old(model: CLIP, few: Path, method: str) -> None:
    """A new class has the logit that zero-shot gives it, at the temperature of the others."""
    features = few[0]
    classifier = fitted(model, few, method)
    old, provenance = logits(classifier, features), copy.deepcopy(classifier.provenance)
    cosines = features @ zero_shot_weights(model, MORE, OWN).T
    scale = model.logit_scale.exp()
    if method == "anchored":
        scale = provenance["scale"]
    elif method == "prompt_weights":
        scale = classifier.head.logit_scale.exp()  # pyright: ignore
        assert scale.item() == pytest.approx(provenance["scale"]) != model.logit_scale.exp().item()
    assert classifier.add_classes(MORE, OWN) is classifier
    new = logits(classifier, features)
    assert new.shape == (22, 6) and not classifier.head.training
    assert_close(new[:, :4], old, atol=1e-4)
    assert_close(new[:, 4:], scale * cosines, atol=1e-4)
    if "counts" in provenance:
        provenance["counts"] += [0] * len(MORE)
    assert classifier.labels == [*RAGGED, *MORE] and classifier.provenance == provenance
    every = {
        name: [f"a {n}." for n in names]
        for name, names in (RAGGED | {"dark red": ["dark red"]}).items()
    }
    every |= {
        "yellow": ["the yellow", "yellow", "the amber", "amber"],
        "black": ["the black", "black"],
    }
    whole = ImageClassifier.zero_shot(model, every, ["{}"])
    assert_close(classifier.zero_shot_head(features), whole.zero_shot_head(features))
    assert classifier.prompts == whole.prompts
    if method == "zero_shot":
        assert_close(new, whole.head(features))


def test_an_anchored_head_that_stayed_zero_shot_is_zero_shot_of_all_names(
    model: CLIP, few: Path
) -> None:
    classifier = ImageClassifier.zero_shot(model, NAMES).fit(*few, strength=float("inf"))
    classifier.add_classes(["yellow"]).add_classes(["black"])
    whole = zero_shot_weights(model, [*NAMES, "yellow", "black"])
    assert_close(
        logits(classifier, few[0]), classifier.provenance["scale"] * few[0] @ whole.T, atol=1e-4
    )


def test_new_classes_can_be_fitted(model: CLIP, few: Path) -> None:
    features, labels = few
    changed = torch.where(labels == 3, 4, labels)
    first = ImageClassifier.zero_shot(model, NAMES).fit(features, labels).add_classes(["black"])
    first.fit(features, changed, "gaussian", alpha=1)
    second = ImageClassifier.zero_shot(model, [*NAMES, "black"])
    second.fit(features, changed, "gaussian", alpha=1)
    assert_close(logits(first, features), logits(second, features), atol=1e-3)
    assert first.provenance["counts"] == [7, 5, 5, 0, 5]


@pytest.mark.parametrize("method", REFUSED)
def test_a_scale_of_its_own_takes_no_new_classes(model: CLIP, few: Path, method: str) -> None:
    classifier = fitted(model, few, method)
    before = known(classifier)
    with pytest.raises(ConfigError, match=f"fitted by {method} has .* a scale of its own"):
        classifier.add_classes(["yellow"])
    assert known(classifier) == before


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["yellow", "white", "blue"], "classes of that name already: blue, white"),
        ({"white": "snow"}, "already: white"),
        ([], "class_names must be a non-empty list"),
        (["yellow", "yellow"], "more than once"),
    ],
)
def test_names_that_cannot_be_added_change_nothing(
    model: CLIP, few: Path, names: list[str], message: str
) -> None:
    classifier = fitted(model, few, "anchored")
    before = known(classifier)
    with pytest.raises(ConfigError, match=message):
        classifier.add_classes(names)
    assert known(classifier) == before


# Folders


@pytest.mark.parametrize("method", ["zero_shot", *METHODS])
def test_what_is_loaded_is_what_was_saved(
    model: CLIP, few: Path, images: Any, tmp_path: Path, method: str
) -> None:
    classifier = fitted(model, few, method)
    classifier.save(tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "model",
        "head.safetensors",
        "zero_shot.safetensors",
    }
    loaded = ImageClassifier.load(tmp_path / "out", device="cpu")
    assert known(loaded) == known(classifier)
    assert not any(module.training for module in loaded.modules())
    with torch.no_grad():
        assert torch.equal(loaded(images), classifier(images))
    for each in (loaded, classifier):
        if method in EXTENDED:
            each.add_classes(["yellow"], OWN)
        each.fit(few[0], few[1])
    assert known(loaded) == known(classifier)


def test_a_folder_can_be_saved_into_again(model: CLIP, few: Path, tmp_path: Path) -> None:
    fitted(model, few, "cache").save(tmp_path)
    loaded = ImageClassifier.load(tmp_path, device="cpu").add_classes(["yellow"])
    loaded.save(tmp_path)
    again = ImageClassifier.load(tmp_path, device="cpu")
    assert (
        known(again) == known(loaded)
        and again.labels[-1] == "yellow"
        and isinstance(again.head, CacheHead)
    )


def test_a_mixed_up_folder_is_refused(model: CLIP, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    classifier = ImageClassifier.zero_shot(model, NAMES)
    classifier.save(first)
    ImageClassifier.zero_shot(model, NAMES[::-1]).save(second)
    start = first / "zero_shot.safetensors"
    whole = start.read_bytes()

    def refused(message: str, error: type[Exception] = CorruptCheckpointError) -> None:
        with pytest.raises(error, match=message):
            ImageClassifier.load(first, device="cpu")

    start.write_bytes((second / "zero_shot.safetensors").read_bytes())
    refused("zero_shot.safetensors and head.safetensors are not of one classifier")
    save_head(classifier.head.to_linear(), start, NAMES, {"prompts": classifier.prompts})
    refused("not of one classifier")
    save_head(classifier.head, start, NAMES)  # no prompts
    refused("not of one classifier")
    start.write_bytes(whole[:-9])
    refused("zero_shot.safetensors")
    start.unlink()
    refused("zero_shot.safetensors", CheckpointNotFoundError)
    start.write_bytes(whole)
    other = CosineHead(torch.eye(4, 7), torch.tensor(1.0))
    save_head(other, start, NAMES, {"prompts": classifier.prompts})
    save_head(other, first / "head.safetensors", NAMES)
    refused("features of width 32 need heads of that width, not 7", ConfigError)
    (first / "head.safetensors").unlink()
    refused("head.safetensors", CheckpointNotFoundError)
    with pytest.raises(CheckpointNotFoundError, match="nowhere"):
        ImageClassifier.load(tmp_path / "nowhere")


def test_a_file_tells_what_its_head_is(model: CLIP, few: Path, tmp_path: Path) -> None:
    fitted(model, few, "anchored").save(tmp_path)
    head, labels, provenance = load_head(tmp_path / "head.safetensors")
    assert isinstance(head, LinearHead) and labels == list(RAGGED)
    assert (
        provenance["method"] == "anchored"
        and provenance["counts"] == [7, 5, 5, 5]
        and provenance["scale"] > 0
    )


# Devices and precisions


def test_options_of_loading_are_passed_on(model: CLIP, tmp_path: Path) -> None:
    ImageClassifier.zero_shot(model, NAMES).save(tmp_path)
    half = ImageClassifier.load(tmp_path, device="cpu", dtype=torch.float16)
    assert half.model.dtype == torch.float16 and half.head.weight.dtype == torch.float32  # pyright: ignore
    with pytest.raises(ConfigError, match="warp9"):
        ImageClassifier.load(tmp_path, device="warp9")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_have_float32_heads(
    model: CLIP, few: Path, folder: Path, dtype: torch.dtype, tmp_path: Path
) -> None:
    half = ImageClassifier.zero_shot(copy.deepcopy(model).to(dtype), NAMES)
    features = half.embed(folder)
    assert features.dtype == half.head.weight.dtype == torch.float32  # pyright: ignore
    assert_close(features.norm(dim=1), torch.ones(8))
    whole = ImageClassifier.zero_shot(model, NAMES)
    assert_close(half.probabilities(folder), whole.probabilities(folder), atol=0.05)
    half.fit(folder, [i // 2 for i in range(8)]).add_classes(["black"])
    assert half.predict(folder)[0].probabilities.dtype == torch.float32
    half.save(tmp_path)
    loaded = ImageClassifier.load(tmp_path, device="cpu", dtype=dtype)
    assert known(loaded) == known(half) and loaded.model.dtype == dtype
    assert torch.equal(loaded.probabilities(folder), half.probabilities(folder))


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["zero_shot", *METHODS])
def test_cuda_says_the_same(
    model: CLIP, few: Path, folder: Path, method: str, tmp_path: Path
) -> None:
    here = fitted(model, few, method)
    there = fitted(copy.deepcopy(model).cuda(), few, method)
    for each in (here, there):
        if method in EXTENDED:
            each.add_classes(MORE, OWN)
    assert {value.device.type for value in there.state_dict().values()} == {"cuda"}
    assert (
        there.probabilities(few[0]).device.type
        == there.predict(folder)[0].probabilities.device.type
        == "cpu"
    )
    if method != "random_linear":  # whose start is drawn on the device
        assert_close(there.probabilities(few[0]), here.probabilities(few[0]), atol=5e-3)
    there.save(tmp_path)
    options: dict[str, Any] = {"dtype": torch.float32}
    for device in ("cpu", "cuda"):
        loaded = ImageClassifier.load(tmp_path, device=device, **options)
        assert {value.device.type for value in loaded.state_dict().values()} == {device}
        assert_close(
            F.normalize(loaded.probabilities(few[0])),
            F.normalize(there.probabilities(few[0])),
            atol=1e-4,
        )
