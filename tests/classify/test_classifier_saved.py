"""clipkit.classify.classifier: folders that are saved and loaded."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from clipkit import CLIP, ImageClassifier, Preprocess, PreprocessConfig
from clipkit.classify.few_shot import METHODS
from clipkit.classify.head_files import read_head_file
from clipkit.classify.heads import CacheHead, CosineHead, LinearHead
from clipkit.classify.saved_heads import load_head, save_head
from clipkit.errors import CheckpointNotFoundError, ConfigError, CorruptCheckpointError
from clipkit.prompts import TEMPLATES
from tests.helpers.toy_classifier import EXTENDED, NAMES, fitted, state_of

pytestmark = pytest.mark.usefixtures("quick_fits")

Few = tuple[Tensor, Tensor]

OLD = Path(__file__).parents[1] / "compat" / "v0_1_0"


@pytest.mark.parametrize("method", ["zero_shot", *METHODS])
def test_what_is_loaded_is_what_was_saved(
    toy: CLIP, few: Few, images: Tensor, tmp_path: Path, method: str
) -> None:
    classifier = fitted(toy, few, method)
    classifier.save(tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"model", "head.safetensors", "zero_shot.safetensors"}
    loaded = ImageClassifier.load(tmp_path / "out", device="cpu")
    assert state_of(loaded) == state_of(classifier)
    assert not any(module.training for module in loaded.modules())
    with torch.no_grad():
        assert torch.equal(loaded(images), classifier(images))
    for each in (loaded, classifier):
        if method in EXTENDED:
            each.add_classes(["yellow"])
        each.fit(*few)
    assert state_of(loaded) == state_of(classifier)


def test_a_folder_can_be_saved_into_again(toy: CLIP, few: Few, tmp_path: Path) -> None:
    fitted(toy, few, "cache").save(tmp_path)
    loaded = ImageClassifier.load(tmp_path, device="cpu").add_classes(["yellow"])
    loaded.save(tmp_path)
    again = ImageClassifier.load(tmp_path, device="cpu")
    assert state_of(again) == state_of(loaded)
    assert again.labels[-1] == "yellow"
    assert isinstance(again.head, CacheHead)


def test_a_mixed_up_folder_is_refused(toy: CLIP, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    classifier = ImageClassifier.zero_shot(toy, NAMES)
    classifier.save(first)
    ImageClassifier.zero_shot(toy, NAMES[::-1]).save(second)
    start = first / "zero_shot.safetensors"
    whole = start.read_bytes()

    def check_refused(message: str, error: type[Exception] = CorruptCheckpointError) -> None:
        with pytest.raises(error, match=message):
            ImageClassifier.load(first, device="cpu")

    start.write_bytes((second / "zero_shot.safetensors").read_bytes())
    check_refused("zero_shot.safetensors and head.safetensors are not of one classifier")
    save_head(classifier.head.to_linear(), start, NAMES, {"prompts": classifier.prompts})
    check_refused("not of one classifier")
    save_head(classifier.head, start, NAMES)  # no prompts
    check_refused("not of one classifier")
    start.write_bytes(whole[:-9])
    check_refused("zero_shot.safetensors")
    start.unlink()
    check_refused("zero_shot.safetensors", CheckpointNotFoundError)
    start.write_bytes(whole)
    other = CosineHead(torch.eye(4, 7), torch.tensor(1.0))
    save_head(other, start, NAMES, {"prompts": classifier.prompts})
    save_head(other, first / "head.safetensors", NAMES)
    check_refused("features of width 32 need heads of that width, not 7", ConfigError)
    (first / "head.safetensors").unlink()
    check_refused("head.safetensors", CheckpointNotFoundError)


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="nowhere"):
        ImageClassifier.load(tmp_path / "nowhere")


def test_a_file_tells_what_its_head_is(toy: CLIP, few: Few, tmp_path: Path) -> None:
    fitted(toy, few, "anchored").save(tmp_path)
    head, labels, provenance = load_head(tmp_path / "head.safetensors")
    assert isinstance(head, LinearHead)
    assert labels == ["blue", "dark red", "green", "white"]
    assert provenance["method"] == "anchored"
    assert provenance["counts"] == [7, 5, 5, 5]
    assert head.scale is not None
    assert head.scale > 0


# Options of loading


def test_device_and_dtype_are_passed_on(toy: CLIP, tmp_path: Path) -> None:
    ImageClassifier.zero_shot(toy, NAMES).save(tmp_path)
    half = ImageClassifier.load(tmp_path, device="cpu", dtype=torch.float16)
    assert half.model.dtype == torch.float16
    assert {value.dtype for value in half.head.state_dict().values()} == {torch.float32}
    with pytest.raises(ConfigError, match="warp9"):
        ImageClassifier.load(tmp_path, device="warp9")
    unknown: Any = {"color": "red"}
    with pytest.raises(TypeError, match="unexpected keyword argument 'color'"):
        ImageClassifier.load(tmp_path, **unknown)


def test_another_resolution_is_passed_on(toy: CLIP, tmp_path: Path) -> None:
    ImageClassifier.zero_shot(toy, NAMES).save(tmp_path)
    larger = ImageClassifier.load(tmp_path, device="cpu", resolution=48)
    assert larger.model.visual.resolution == (48, 48)
    with torch.no_grad():
        assert larger(torch.randn(2, 3, 48, 48)).shape == (2, 4)


# Preprocessing


class Brighter(nn.Module):
    """Prepare images in another way."""

    def forward(self, image: Any) -> Tensor:
        return torch.full((3, 32, 32), 0.5)


def another_preprocess() -> Preprocess:
    config = PreprocessConfig(mean=(0.1, 0.2, 0.3), std=(0.3, 0.2, 0.1), resize_mode="squash")
    return Preprocess((32, 32), config)


@pytest.fixture
def own_model(toy: CLIP, tmp_path: Path) -> CLIP:
    """Return a copy of the toy model, whose preprocessing may be set."""
    toy.save_pretrained(tmp_path / "own")
    return CLIP.from_pretrained(tmp_path / "own", device="cpu")


def test_a_preprocess_is_saved_with_the_classifier(
    own_model: CLIP, color_folder: Path, tmp_path: Path
) -> None:
    own_model.preprocess = another_preprocess()
    classifier = ImageClassifier.zero_shot(own_model, NAMES)
    classifier.save(tmp_path / "out")
    loaded = ImageClassifier.load(tmp_path / "out", device="cpu")
    assert loaded.model.preprocess == another_preprocess()
    expected = classifier.probabilities(color_folder)
    assert torch.equal(loaded.probabilities(color_folder), expected)


@pytest.mark.parametrize("kind", ["module", "function"])
def test_code_cannot_be_saved_and_is_asked_for(own_model: CLIP, tmp_path: Path, kind: str) -> None:
    module = Brighter()
    preprocess: Any = module if kind == "module" else lambda image: module(image)
    own_model.preprocess = preprocess
    ImageClassifier.zero_shot(own_model, NAMES).save(tmp_path / "out")
    with pytest.raises(ConfigError, match="preprocess="):
        ImageClassifier.load(tmp_path / "out", device="cpu")
    loaded = ImageClassifier.load(tmp_path / "out", device="cpu", preprocess=preprocess)
    assert loaded.model.preprocess is preprocess


# Templates


@pytest.mark.parametrize(
    "templates", [TEMPLATES, ("the {}", "{}"), {"blue": ("a {}",), "yellow": ("my {}", "{}")}]
)
def test_templates_are_saved(toy: CLIP, tmp_path: Path, templates: Any) -> None:
    classifier = ImageClassifier.zero_shot(toy, ["blue"], templates)
    classifier.save(tmp_path)
    loaded = ImageClassifier.load(tmp_path, device="cpu")
    assert loaded.templates == templates
    loaded.add_classes(["yellow"])
    assert loaded.prompts == classifier.add_classes(["yellow"]).prompts


@pytest.mark.parametrize(
    "templates", [[str.upper], ["a {}", str.upper], {"blue": ["{}"], "yellow": [str.upper]}]
)
def test_functions_are_not_saved_and_asked_for(toy: CLIP, tmp_path: Path, templates: Any) -> None:
    classifier = ImageClassifier.zero_shot(toy, ["blue"], templates)
    classifier.save(tmp_path)
    loaded = ImageClassifier.load(tmp_path, device="cpu")
    assert loaded.prompts == classifier.prompts
    assert loaded.templates is None
    with pytest.raises(ConfigError, match="functions cannot be saved.*: pass templates"):
        loaded.add_classes(["yellow"])
    assert loaded.add_classes(["yellow"], [str.upper]).prompts[-1] == ["YELLOW"]


# Version 0.1.0


def old_classifier(folder: Path, prompts: list[list[str]] | None = None) -> Path:
    """Copy a classifier that version 0.1.0 saved, if asked with other prompts."""
    shutil.copytree(OLD / "classifier_anchored", folder)
    shutil.copytree(OLD / "vit", folder / "model")
    if prompts is not None:
        path = folder / "zero_shot.safetensors"
        head, labels, about = load_head(path)
        assert "templates" not in about
        save_head(head, path, labels, {"prompts": prompts})
    return folder


def test_old_prompts_may_show_the_templates(tmp_path: Path) -> None:
    names = ["cat", "dog", "red car"]
    default = [[f"a photo of a {name}."] for name in names]
    loaded = ImageClassifier.load(old_classifier(tmp_path / "a", default), device="cpu")
    assert loaded.templates == TEMPLATES
    loaded.add_classes(["bus"])
    assert loaded.prompts[-1] == ["a photo of a bus."]


def test_other_old_prompts_show_nothing(tmp_path: Path) -> None:
    names = ["cat", "dog", "red car"]
    pets = [[f"a photo of a {name}, a type of pet."] for name in names]
    for folder, prompts in ((tmp_path / "a", pets), (tmp_path / "b", None)):
        loaded = ImageClassifier.load(old_classifier(folder, prompts), device="cpu")
        assert loaded.templates is None
        with pytest.raises(ConfigError, match="clipkit 0.1.0 did not save them.*pass templates"):
            loaded.add_classes(["bus"])


def test_the_scale_of_an_old_head_is_found(tmp_path: Path) -> None:
    folder = old_classifier(tmp_path / "a")
    with safe_open(folder / "head.safetensors", "pt") as file:
        about = json.loads(file.metadata()["clipkit"])
    assert "scale" not in about
    loaded = ImageClassifier.load(folder, device="cpu")
    assert loaded.head.scale == pytest.approx(about["provenance"]["scale"])
    loaded.save(tmp_path / "again")
    again = read_head_file(tmp_path / "again" / "head.safetensors")
    assert again.scale == about["provenance"]["scale"]


def test_old_words_for_images_are_read(tmp_path: Path) -> None:
    loaded = ImageClassifier.load(old_classifier(tmp_path / "a"), device="cpu")
    assert loaded.provenance["images"] == 12
    assert "pictures" not in loaded.provenance
