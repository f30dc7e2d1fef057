"""Labels that were made wrong are listed first, judged by heads that did not see the images."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit import ImageClassifier, read_folder
from clipkit.classify.fitting import class_means
from clipkit.classify.suspects import CUT, find_suspects
from clipkit.errors import ConfigError, DataError
from tests.helpers.toy_data import color_folders

Few = tuple[Tensor, Tensor]
FLIPPED = [2, 7, 12]
PROBABILITIES = torch.tensor(
    [
        [0.970, 0.020, 0.010],
        [0.010, 0.980, 0.010],
        [0.600, 0.390, 0.010],
        [0.400, 0.300, 0.300],
        [0.900, 0.095, 0.005],
    ]
)


def test_the_least_likely_label_comes_first() -> None:
    labels = torch.tensor([2, 0, 1, 1, 2])
    found = find_suspects(["a", "b", "c"], PROBABILITIES, labels, cut=1)
    assert [one.index for one in found] == [4, 1, 0, 2, 3]  # by 1/180, 1/98, 1/97, 0.65, 0.75
    first = found[0]
    assert (first.label, first.likelier, first.path) == ("c", "a", None)
    assert first.probability == pytest.approx(0.005)
    assert first.likelier_probability == pytest.approx(0.9)


def test_the_cut_is_a_share_of_the_likeliest_label() -> None:
    labels = torch.tensor([2, 0, 1, 1, 2])
    for cut, expected in ((0.011, [4, 1, 0]), (0.0103, [4, 1]), (0.7, [4, 1, 0, 2])):
        found = find_suspects(["a", "b", "c"], PROBABILITIES, labels, cut=cut)
        assert [one.index for one in found] == expected
    assert CUT == 0.02
    assert [one.index for one in find_suspects(["a", "b", "c"], PROBABILITIES, labels)] == [4, 1, 0]


def test_right_answers_are_never_listed() -> None:
    labels = PROBABILITIES.argmax(dim=1)
    assert find_suspects(["a", "b", "c"], PROBABILITIES, labels, cut=1) == []


def test_numbers_and_paths_are_those_of_the_caller() -> None:
    paths = ["0.jpg", "1.jpg", None, None, "4.jpg"]
    rows = torch.tensor([50, 51, 52, 53, 54])
    labels = torch.tensor([2, 0, 0, 0, 2])
    found = find_suspects(["a", "b", "c"], PROBABILITIES, labels, rows=rows, paths=paths)
    assert [(one.index, one.path) for one in found] == [(54, "4.jpg"), (51, "1.jpg"), (50, "0.jpg")]


@pytest.mark.parametrize("cut", [0, -1, 1.5, True, "0.1", float("nan")])
def test_impossible_cuts_are_refused(classifier: ImageClassifier, few: Few, cut: float) -> None:
    with pytest.raises(ConfigError, match="cut must be a number above 0, at most 1, not"):
        classifier.suspects(*few, cut=cut)


@pytest.fixture
def clear(few: Few) -> Few:
    """Return features (22, 32) of classes that lie further apart, and labels (22,)."""
    features, labels = few
    means, _ = class_means(features, labels, 4)
    return F.normalize(features + means[labels], dim=1), labels


def flipped(few: Few) -> Few:
    """Return the same features, three of which have the label of another class."""
    features, labels = few
    labels = labels.clone()
    labels[FLIPPED] = (labels[FLIPPED] + 1) % 4
    return features, labels


@pytest.mark.parametrize("method", ["anchored", "gaussian"])
def test_wrong_labels_of_the_fit_are_found(
    classifier: ImageClassifier, clear: Few, method: str
) -> None:
    wrong = flipped(clear)
    classifier.fit(*wrong, method)
    found = classifier.suspects(*wrong, cut=0.9)
    assert {one.index for one in found[:3]} == set(FLIPPED)
    for one in found[:3]:
        assert one.likelier == classifier.labels[int(clear[1][one.index])]
        assert one.label == classifier.labels[int(wrong[1][one.index])]


def test_a_head_that_remembers_its_images_is_not_asked(
    classifier: ImageClassifier, clear: Few
) -> None:
    """By itself it believes every label that it was given."""
    wrong = flipped(clear)
    classifier.fit(*wrong, "linear_probe", C=1e6)
    own = find_suspects(classifier.labels, classifier.probabilities(wrong[0]), wrong[1], cut=1)
    assert own == []
    assert set(FLIPPED) <= {one.index for one in classifier.suspects(*wrong, cut=1)}


def test_images_of_a_mix_are_judged_each_in_its_way(
    classifier: ImageClassifier, clear: Few
) -> None:
    features, labels = flipped(clear)
    classifier.fit(features, labels, "gaussian")
    noise = 0.05 * torch.randn(22, 32, generator=torch.Generator().manual_seed(1))
    others = F.normalize(clear[0] + noise, dim=1)
    other_labels = clear[1].clone()
    other_labels[5] = (other_labels[5] + 1) % 4
    mixed = torch.cat([others, features]), torch.cat([other_labels, labels])
    found = classifier.suspects(*mixed, cut=0.5)
    assert {one.index for one in found} >= {5, 24, 29, 34}
    seen = {one.index - 22: one.probability for one in found if one.index >= 22}
    alone = {one.index: one.probability for one in classifier.suspects(features, labels, cut=0.5)}
    assert seen == pytest.approx(alone)
    fresh = {one.index: one.probability for one in found if one.index < 22}
    expected = classifier.probabilities(others)
    for index, probability in fresh.items():
        assert probability == pytest.approx(float(expected[index, other_labels[index]]))


def test_an_image_in_the_wrong_folder_is_found(classifier: ImageClassifier, tmp_path: Path) -> None:
    root = color_folders(tmp_path / "images", each=5)
    moved = root / "white" / "moved.png"
    (root / "green" / "00.png").rename(moved)
    pairs = read_folder(root)
    suspect, *_ = classifier.fit(pairs).suspects(pairs)
    assert suspect.path == str(moved)
    assert (suspect.label, suspect.likelier) == ("white", "green")


def test_what_cannot_be_fitted_again_is_refused(classifier: ImageClassifier, few: Few) -> None:
    classifier.fit(*few)
    classifier.provenance["method"] = "finetune"
    with pytest.raises(DataError, match="cannot be done again without some of them"):
        classifier.suspects(*few)
