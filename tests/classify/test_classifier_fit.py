"""clipkit.classify.classifier: fits from features and images; nothing fails half-way."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from clipkit import CLIP, ImageClassifier
from clipkit.classify.few_shot import METHODS, fit_head
from clipkit.classify.fit_support import OPTIONS
from clipkit.classify.heads import WeightedPromptHead
from clipkit.classify.seen import SEEN
from clipkit.errors import ConfigError, DataError
from tests.helpers.toy_classifier import (
    NAMES,
    QUICK,
    RAGGED,
    ColoredImages,
    assert_close,
    head_logits,
    state_of,
)
from tests.helpers.toy_data import two_colors

pytestmark = pytest.mark.usefixtures("quick_fits")

Few = tuple[Tensor, Tensor]


def accuracy_on(classifier: ImageClassifier, few: Few) -> float:
    features, labels = few
    predicted = head_logits(classifier, features).argmax(dim=1)
    return (predicted == labels).double().mean().item()


def fit_state(toy: CLIP, *given: Any, **options: Any) -> list[Any]:
    """Return the state of a new classifier that was fitted on this, but how it knows the images.

    Files have marks that images without a file have not.
    """
    classifier = ImageClassifier.zero_shot(toy, NAMES).fit(*given, strength=1, **options)
    assert classifier.provenance.pop(SEEN)
    return state_of(classifier)


# Labels


def test_labels_are_indices_or_names(toy: CLIP, few: Few) -> None:
    features, labels = few
    forms: list[Any] = [
        labels,
        labels.tolist(),
        labels.numpy(),
        list(labels),
        [NAMES[i] for i in labels],
        np.array([NAMES[i] for i in labels]),
        labels.int(),
        labels.to(torch.uint8),
    ]
    logits: list[Tensor] = []
    for form in forms:
        classifier = ImageClassifier.zero_shot(toy, NAMES)
        assert classifier.fit(features, form, strength=1) is classifier
        assert not classifier.training
        assert classifier.provenance["method"] == "anchored"
        assert classifier.provenance["counts"] == [7, 5, 5, 5]
        logits.append(head_logits(classifier, features))
    for other in logits[1:]:
        assert torch.equal(other, logits[0])
    assert (logits[0].argmax(dim=1) == labels).double().mean() > 0.9
    start = ImageClassifier.zero_shot(toy, NAMES)
    assert not torch.equal(logits[0], head_logits(start, features))


def test_a_class_may_have_no_images(classifier: ImageClassifier, few: Few) -> None:
    features, labels = few
    classifier.fit(features[labels < 2], labels[labels < 2])
    assert classifier.provenance["counts"] == [7, 5, 0, 0]
    assert head_logits(classifier, features).shape == (22, 4)


# Images


def test_images_are_fitted_as_their_features_are(toy: CLIP, color_folder: Path) -> None:
    files = sorted(color_folder.rglob("*.png"))
    labels = [i // 2 for i in range(8)]
    expected = fit_state(toy, toy.embed_images(files, batch_size=3), labels)
    for given in (color_folder, str(color_folder), files, list(map(str, files))):
        assert fit_state(toy, given, labels, batch_size=3) == expected
    given = list(zip(files, labels, strict=True))
    assert fit_state(toy, given, batch_size=3) == expected
    array = toy.embed_images(files, batch_size=3).numpy()
    assert fit_state(toy, array, labels) == expected


def test_a_data_set_may_come_with_labels(toy: CLIP) -> None:
    labels = [i // 2 for i in range(8)] * 2
    data = ColoredImages(labels)
    at_once = toy.embed_images(data, batch_size=64)
    in_parts = toy.embed_images(data, batch_size=5)
    assert fit_state(toy, data) == fit_state(toy, at_once, labels)
    assert fit_state(toy, data, batch_size=5, workers=1) == fit_state(toy, in_parts, labels)
    shifted = [(i + 1) % 4 for i in labels]  # labels that are passed go before its own
    assert fit_state(toy, data, shifted) == fit_state(toy, at_once, shifted)


class Rows(ColoredImages):
    """Images in mappings, as data sets of the hub give them."""

    def __getitem__(self, index: int) -> Any:
        image, label = super().__getitem__(index)
        return {"image": image, "label": label}


def test_collections_of_every_form_take_labels(toy: CLIP, color_folder: Path) -> None:
    files = sorted(color_folder.rglob("*.png"))
    labels = [i // 2 for i in range(8)]
    expected = fit_state(toy, files, labels)
    assert fit_state(toy, (file for file in files), labels) == expected
    assert fit_state(toy, np.array([str(file) for file in files]), labels) == expected
    assert fit_state(toy, [file.read_bytes() for file in files], labels) == expected
    assert fit_state(toy, files, iter(labels)) == expected
    shifted = [(i + 1) % 4 for i in labels]
    features = toy.embed_images(ColoredImages(labels))
    assert fit_state(toy, Rows(labels), shifted) == fit_state(toy, features, shifted)
    assert fit_state(toy, Rows(labels)) == fit_state(toy, features, labels)


@pytest.fixture
def partly_broken(color_folder: Path, tmp_path: Path) -> tuple[list[Path], list[int], list[int]]:
    """Return twelve files, their labels, and the positions of the eight that can be read."""
    files: list[Path] = []
    labels: list[int] = []
    sound: list[int] = []
    for label, name in enumerate(NAMES):
        folder = color_folder / name.replace(" ", "_")
        broken = tmp_path / f"broken-{label}.png"
        if label % 2:  # of both kinds: damaged and missing
            broken.write_bytes(b"damaged")
        sound += [len(files) + 1, len(files) + 2]
        files += [broken, folder / "00.png", folder / "01.png"]
        labels += [label] * 3
    return files, labels, sound


@pytest.mark.parametrize("how", ["labels beside", "labels in tuples", "labels of a data set"])
def test_broken_images_are_skipped_with_their_labels(
    toy: CLIP, partly_broken: tuple[list[Path], list[int], list[int]], how: str
) -> None:
    files, labels, sound = partly_broken
    classifier = ImageClassifier.zero_shot(toy, NAMES)
    message = r"4 of 12 images cannot be read and are left out; the first: .*broken-0\.png"
    with pytest.warns(UserWarning, match=message) as warnings:
        if how == "labels beside":
            classifier.fit(files, labels, strength=1, batch_size=5)
        elif how == "labels in tuples":
            pairs = list(zip(files, labels, strict=True))
            classifier.fit(pairs, strength=1, batch_size=5)
        else:
            classifier.fit(OwnLabels(files, labels), strength=1, batch_size=5)
    assert warnings[0].filename == __file__  # it points at the caller
    skipped = classifier.provenance.pop("skipped")
    broken = [i for i in range(12) if i not in sound]
    assert [name for name, _ in skipped] == [str(files[i]) for i in broken]
    for name, problem in skipped:
        assert name in problem
    readable = [files[i] for i in sound]
    expected = ImageClassifier.zero_shot(toy, NAMES)
    expected.fit(readable, [labels[i] for i in sound], strength=1)
    assert classifier.provenance == expected.provenance
    # Batches of another size have features of other rounding, and a fit ends a little elsewhere.
    assert_close(classifier.head.to_linear().weight, expected.head.to_linear().weight, atol=5e-3)


class OwnLabels(torch.utils.data.Dataset[Any]):
    """Give paths with their labels."""

    def __init__(self, files: list[Path], labels: list[int]) -> None:
        self.files = files
        self.labels = labels

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Path, int]:
        return self.files[index], self.labels[index]


class PreparedFiles(OwnLabels):
    """Give prepared images."""

    def __init__(self, files: list[Path], toy: CLIP) -> None:
        super().__init__(files, [])
        self.preprocess = toy.preprocess

    def __getitem__(self, index: int) -> Any:
        return self.preprocess(self.files[index])


def test_a_data_loader_takes_labels_in_its_order(toy: CLIP, color_folder: Path) -> None:
    files = sorted(color_folder.rglob("*.png"))
    labels = [i // 2 for i in range(8)]
    order = [7, 1, 6, 2, 5, 3, 4, 0]
    loader = DataLoader(PreparedFiles(files, toy), sampler=order, batch_size=64)
    expected = fit_state(toy, [files[i] for i in order], [labels[i] for i in order])
    assert fit_state(toy, loader, [labels[i] for i in order]) == expected
    with pytest.raises(DataError, match="8 images must have as many labels, not 7"):
        fit_state(toy, loader, labels[1:])


def test_labels_beside_a_data_loader_with_broken_images_are_refused(
    classifier: ImageClassifier, partly_broken: tuple[list[Path], list[int], list[int]]
) -> None:
    files, labels, _ = partly_broken
    loader = DataLoader(PreparedFiles(files, classifier.model), batch_size=5)
    before = state_of(classifier)
    with pytest.raises(DataError, match=r"4 images of the DataLoader .*broken-0\.png"):
        classifier.fit(loader, labels)
    assert state_of(classifier) == before


# What goes wrong


def test_what_cannot_work_is_said_before_anything_is_encoded(
    toy: CLIP, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = ImageClassifier.zero_shot(toy, NAMES)
    two = [two_colors((200, 30, 30), (30, 30, 200), seed) for seed in range(2)]
    monkeypatch.setattr(CLIP, "encode_image", lambda *_: pytest.fail("encoded in vain"))
    wrong: Any = "best"
    with pytest.raises(ConfigError, match="method must be one of"):
        classifier.fit(two, [0, 1], wrong)
    with pytest.raises(DataError, match="4 images must have as many labels, not 3"):
        classifier.fit([*two, *two], [0, 1, 1])
    with pytest.raises(DataError, match="2 images must have as many labels, not 3"):
        classifier.fit(ColoredImages([0, 1], labeled=False), [0, 1, 1])


def bad_fits() -> dict[str, tuple[Any, Any, type[Exception], str]]:
    zeros = [0] * 7
    labels = [*zeros, 1]
    features = torch.eye(8, 32)
    unknown = ["blue"] * 6 + ["violet", "ochre"]
    unlabeled = ColoredImages(labels, labeled=False)
    integers = "integers from 0 to 3, not "
    return {
        "names": (features, unknown, DataError, "no class .* is called 'ochre', 'violet'"),
        "one name": (features, "blue", DataError, "not the single text 'blue'"),
        "count": (features, zeros, DataError, "label for each image, not 7 for"),
        "names' count": (features, ["blue"] * 9, DataError, "label for each image, not 9 for"),
        "none": (features[:0], [], DataError, r"one at least, not \(0,\) labels"),
        "two axes": (features, torch.tensor([labels]).T, DataError, r"not of shape \(8, 1\)"),
        "fractions": (features, [0.5, *zeros], DataError, "number 0 is 0.5"),
        "too high": (features, [4, *zeros], DataError, f"{integers}.* 4"),
        "negative": (features, [-1, *zeros], DataError, f"{integers}.* -1"),
        "too high beside images": (unlabeled, [4, *zeros], DataError, f"{integers}.* 4"),
        "no labels": (features, None, DataError, "features need labels"),
        "no labels with images": (unlabeled, None, DataError, "without labels: pass labels"),
        "images": (torch.zeros(8, 3, 32, 32), labels, DataError, r"not \(8, 3, 32, 32\): see"),
        "width": (torch.eye(8, 31), labels, ConfigError, r"shape \(N, 32\), not \(8, 31\)"),
        "not finite": (features / 0, labels, DataError, "not finite"),
        "all missing": (["nowhere.png"] * 8, labels, DataError, "none of 8 .*nowhere.png"),
        "no images": ([], [], ConfigError, "at least one image"),
    }


@pytest.mark.parametrize("case", bad_fits())
def test_a_fit_that_fails_changes_nothing(classifier: ImageClassifier, few: Few, case: str) -> None:
    given, labels, error, message = bad_fits()[case]
    before = state_of(classifier.fit(*few))
    with pytest.raises(error, match=message):
        classifier.fit(given, labels)
    assert state_of(classifier) == before


def test_methods_and_options_that_do_not_exist_are_refused(
    classifier: ImageClassifier, few: Few
) -> None:
    before = state_of(classifier)
    fit: Any = classifier.fit
    message = "method must be one of anchored, .*, not 'best'"
    with pytest.raises(ConfigError, match=message):
        fit(*few, "best")
    with pytest.raises(TypeError, match="unexpected keyword argument 'depth'"):
        fit(*few, depth=3)
    with pytest.raises(ConfigError, match="strength must be above 0, .*, not 0"):
        fit(*few, strength=0)
    assert state_of(classifier) == before


def test_a_single_class_is_refused(toy: CLIP, few: Few) -> None:
    single = ImageClassifier.zero_shot(toy, ["blue"])
    with pytest.raises(ConfigError, match="a single class"):
        single.fit(few[0], [0] * 22)


# Methods


def padded_prompts(toy: CLIP, prompts: list[list[str]]) -> Tensor:
    """Return the features of all prompts (C, K, 32), zeros where a class has fewer than K."""
    # All at once, as the classifier does: the fit amplifies noise of the last bit.
    rows = iter(toy.embed_texts([text for own in prompts for text in own]))
    captions = torch.zeros(len(prompts), max(map(len, prompts)), 32)
    for c, own in enumerate(prompts):
        for k in range(len(own)):
            captions[c, k] = next(rows)
    return captions


@pytest.mark.parametrize("method", METHODS)
def test_every_method_starts_from_zero_shot_and_ends_the_same(
    toy: CLIP, few: Few, method: Any
) -> None:
    features, labels = few
    options = QUICK.get(method, {})
    classifier = ImageClassifier.zero_shot(toy, RAGGED, ["a {}.", "{}"])
    start = copy.deepcopy(classifier.zero_shot_head)
    classifier.fit(features, labels.flip(0)).fit(features, labels, method, seed=3, **options)
    extra: dict[str, Any] = {}
    if method == "prompt_weights":
        assert [len(own) for own in classifier.prompts] == [6, 2, 4, 2]
        extra["captions"] = padded_prompts(toy, classifier.prompts)
        assert isinstance(classifier.head, WeightedPromptHead)
        assert_close(classifier.head.captions, extra["captions"])
    head, chosen = fit_head(features, labels, start, method, seed=3, **options, **extra)
    assert type(classifier.head) is type(head)
    assert not classifier.head.training
    assert_close(head_logits(classifier, features), head(features))
    given = {OPTIONS: options} if options else {}
    assert classifier.provenance.keys() == {*chosen, "counts", SEEN, *given}
    assert classifier.provenance.get(OPTIONS, {}) == options
    assert classifier.provenance["method"] == method
    assert torch.equal(classifier.zero_shot_head.weight, start.weight)
    again = ImageClassifier.zero_shot(toy, RAGGED, ["a {}.", "{}"])
    again.fit(features, labels, method, seed=3, **options)
    assert torch.equal(head_logits(classifier, features), head_logits(again, features))
    if method not in QUICK:
        zero_shot = ImageClassifier.zero_shot(toy, RAGGED, ["a {}.", "{}"])
        assert accuracy_on(classifier, few) > accuracy_on(zero_shot, few)


def test_an_option_of_another_method_is_refused(classifier: ImageClassifier, few: Few) -> None:
    before = state_of(classifier)
    with pytest.raises(ConfigError, match="alpha"):
        classifier.fit(*few, "anchored", alpha=1.0)
    assert state_of(classifier) == before
