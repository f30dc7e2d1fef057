"""Figures of groups agree with scikit-learn, and their gap is judged against chance."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    recall_score,
)

from clipkit.classify.metrics import by_group, wilson_interval
from clipkit.errors import ConfigError


def drawn(images: int = 400, seed: int = 0) -> tuple[list[int], list[int], list[str]]:
    """Return predictions, labels and groups, of which "night" is often wrong."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 5, images)
    groups = random.choice(["day", "night", "dusk"], images)
    wrong = random.random(images) < np.where(groups == "night", 0.5, 0.1)
    predicted = np.where(wrong, random.integers(0, 5, images), labels)
    return predicted.tolist(), labels.tolist(), groups.tolist()


def test_figures_agree_with_scikit_learn() -> None:
    predicted, labels, groups = drawn()
    found = by_group(predicted, labels, groups, 6)
    assert {row.group for row in found.rows} == {"day", "night", "dusk"}
    for row in found.rows:
        own = [place for place, group in enumerate(groups) if group == row.group]
        truth, answers = [labels[i] for i in own], [predicted[i] for i in own]
        assert row.images == len(own)
        assert row.accuracy == pytest.approx(accuracy_score(truth, answers), abs=1e-12)
        expected = confusion_matrix(truth, answers, labels=range(6))
        assert row.confusion.tolist() == expected.tolist()
        present = sorted(set(truth))
        recall = recall_score(truth, answers, labels=present, average="macro")
        assert row.balanced_accuracy == pytest.approx(recall, abs=1e-12)
        hits = round(row.accuracy * row.images)
        assert row.interval == wilson_interval(hits, row.images)
    assert found.accuracy == pytest.approx(accuracy_score(labels, predicted), abs=1e-12)


def test_the_spread_is_that_of_the_rows() -> None:
    found = by_group(*drawn())
    assert [row.accuracy for row in found.rows] == sorted(row.accuracy for row in found.rows)
    assert found.worst == "night"
    assert found.best == found.rows[-1].group
    assert found.gap == found.rows[-1].accuracy - found.rows[0].accuracy


def test_small_groups_are_marked_and_not_judged() -> None:
    predicted, labels, groups = drawn()
    found = by_group([*predicted, 0, 0], [*labels, 1, 1], [*groups, "noon", "noon"])
    assert found.rows[0].group == "noon"
    assert [row.group for row in found.rows if row.is_small] == ["noon"]
    assert found.worst == "night"
    assert found.gap == by_group(predicted, labels, groups).gap
    assert "noon        2      0.0%" in str(found)
    assert str(found).count("(few images)") == 1


def test_small_groups_are_judged_where_all_are_small() -> None:
    found = by_group([0, 1, 1, 1], [0, 1, 1, 0], ["a", "a", "b", "b"])
    assert (found.worst, found.best, found.gap) == ("b", "a", 0.5)
    assert all(row.is_small for row in found.rows)


def test_few_says_what_is_small() -> None:
    groups = ["a"] * 3 + ["b"] * 2
    found = by_group([0] * 5, [0, 0, 0, 1, 1], groups, few=3)
    assert [row.group for row in found.rows if row.is_small] == ["b"]


def test_the_gap_by_chance_is_that_of_random_groupings() -> None:
    """It is exceeded by 5 % of shuffles, which NumPy does here image by image."""
    predicted, labels, groups = drawn()
    found = by_group(predicted, labels, groups)
    right, names = np.equal(predicted, labels), np.array(groups)
    random = np.random.default_rng(7)
    gaps: list[float] = []
    for _ in range(2000):
        shuffled = random.permutation(right)
        shares = [shuffled[names == name].mean() for name in ("day", "night", "dusk")]
        gaps.append(max(shares) - min(shares))
    assert found.chance_gap == pytest.approx(np.quantile(gaps, 0.95), abs=0.012)
    assert found.gap > found.chance_gap


def test_groups_without_a_difference_stay_below_chance() -> None:
    random = np.random.default_rng(1)
    labels = random.integers(0, 2, 1000)
    predicted = np.where(random.random(1000) < 0.2, 1 - labels, labels)
    gaps = [
        by_group(predicted, labels, np.random.default_rng(seed).integers(0, 4, 1000).tolist())
        for seed in range(40)
    ]
    assert sum(found.gap > found.chance_gap for found in gaps) <= 6


def test_all_right_has_no_gap() -> None:
    found = by_group([0, 1], [0, 1], torch.tensor([4, 7]), few=1)
    assert found.gap == 0
    assert found.chance_gap == 0
    assert [row.group for row in found.rows] == ["4", "7"]


def test_groups_that_print_alike_are_not_merged() -> None:
    with pytest.raises(ConfigError, match="print alike, 1 and '1': give them names that differ"):
        by_group([0, 1, 1], [0, 1, 0], [1, "1", 1])
    missing = float("nan"), float("nan")  # which differ from themselves
    assert [row.images for row in by_group([0, 1], [0, 1], missing).rows] == [2]


def test_figures_are_plain_values() -> None:
    found = by_group(*drawn())
    values = json.loads(json.dumps(found.to_dict()))
    assert values["worst"] == "night"
    assert values["rows"][0]["confusion"] == found.rows[0].confusion.tolist()
    assert repr(found).startswith("Groups(3 groups: worst night, best d")


def test_names_that_act_on_a_terminal_are_escaped() -> None:
    found = by_group([0, 0], [0, 1], ["\x1b[2J", "b"])
    assert "\x1b" not in str(found) + repr(found)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["a"], "a group for each of 2 images, not 1"),
        ("ab", "the group of each image, not 'ab'"),
        (3, "the group of each image, not 3"),
    ],
)
def test_groups_that_do_not_fit_are_refused(groups: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        by_group([0, 1], [0, 1], groups)


def test_names_of_classes_are_as_good_as_numbers() -> None:
    predicted, labels, groups = drawn()
    names = ["ant", "bee", "cat", "dog", "eel"]
    texts, truth = [names[place] for place in predicted], [names[place] for place in labels]
    expected, found = by_group(predicted, labels, groups), by_group(texts, truth, groups)
    assert str(found) == str(expected)
    assert found.class_names == names
    assert expected.class_names is None
    for row, other in zip(found.rows, expected.rows, strict=True):
        assert torch.equal(row.confusion, other.confusion)
    assert json.loads(json.dumps(found.to_dict()))["class_names"] == names


def test_names_have_the_order_that_is_given() -> None:
    order = ["dog", "cow", "cat"]
    for predicted in (["cat", "dog"], np.array(["cat", "dog"]), [2, 0]):
        found = by_group(predicted, ["cat", "cat"], ["a", "a"], order)
        assert found.class_names == order
        assert found.rows[0].confusion.tolist() == [[0, 0, 0], [0, 0, 0], [1, 0, 1]]


@pytest.mark.parametrize(
    ("predicted", "classes", "message"),
    [
        ([0, 1], None, "labels are names where the others are numbers: pass names of both"),
        (["cow", "cat"], ["cat", "dog"], "'cow' is none of the 2 classes"),
        ([0, 2], ["cat", "dog"], "classes of 0 to 1, not 2"),
        (["cat", "cat"], ["cat", "cat"], r"a class twice: \['cat', 'cat'\]"),
        (["cat", "cat"], [], r"as names that differ, not \[\]"),
        (["cat", "cat"], "cat", "as names that differ, not 'cat'"),
        (["cat", "cat"], 2, "not classes=2: leave it out, or pass a list of names"),
    ],
)
def test_names_that_do_not_fit_are_refused(predicted: Any, classes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        by_group(predicted, ["cat", "dog"], ["a", "b"], classes)


def test_seeds_that_numpy_does_not_take_are_refused() -> None:
    with pytest.raises(
        ConfigError, match="by_group needs a seed, an integer of at least 0, not -1"
    ):
        by_group([0, 1], [0, 1], ["a", "b"], seed=-1)


def test_classes_beyond_the_count_are_refused() -> None:
    with pytest.raises(ConfigError, match="classes of 0 to 1, not 2"):
        by_group([0, 2], [0, 1], ["a", "b"], 2)
    with pytest.raises(ConfigError, match="few as an integer of 1 to inf, not 0"):
        by_group([0, 1], [0, 1], ["a", "b"], few=0)
    with pytest.raises(
        ConfigError, match="classes as an integer of at least 1, or as names that differ, not 2.5"
    ):
        by_group([0, 1], [0, 1], ["a", "b"], 2.5)  # pyright: ignore[reportArgumentType]
