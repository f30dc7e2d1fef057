"""Test that labels of every form mean one thing, or are refused before any work.

Kinds E (labels looked at element by element), T (underscores) and S6 (features as NumPy rows).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clipkit import CLIP, ImageClassifier, fit_head, sample_shots
from clipkit.classify.labels import class_indices, find_classes, read_labels
from clipkit.encode.features import Features
from clipkit.errors import ConfigError, DataError
from tests.helpers.models import make_small_tokenizer
from tests.helpers.toy_classifier import NAMES, toy_features, toy_model


@pytest.fixture(scope="module")
def model() -> CLIP:
    return toy_model(make_small_tokenizer())


class Column:
    """A column of a table: looked up by the names of its rows, iterated in their order."""

    iloc = None

    def __init__(self, values: list[Any]) -> None:
        self.values = values

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values)

    def __getitem__(self, name: int) -> Any:
        raise KeyError(name)


class Table(Column):
    """A table of several columns, which is iterated by their names."""

    columns = ("a", "b")


NUMBERS = [2, 0, 1, 2]

INTEGERS: dict[str, Any] = {
    "list": NUMBERS,
    "tuple": tuple(NUMBERS),
    "generator": (number for number in NUMBERS),
    "column": Column(NUMBERS),
    "tensor": torch.tensor(NUMBERS),
    "small tensor": torch.tensor(NUMBERS, dtype=torch.uint8),
    "unsigned tensor": torch.tensor(NUMBERS, dtype=torch.uint16),
    "array": np.array(NUMBERS),
    "small array": np.array(NUMBERS, dtype=np.int8),
    "unsigned array": np.array(NUMBERS, dtype=np.uint64),
    "reversed array": np.array(NUMBERS[::-1])[::-1],
    "array of objects": np.array(NUMBERS, dtype=object),
    "NumPy numbers": list(np.array(NUMBERS, dtype=np.int32)),
    "tensors": list(torch.tensor(NUMBERS)),
}

WORDS = ["red car", "cat", "red car"]
TEXTS: dict[str, Any] = {
    "list": WORDS,
    "generator": (word for word in WORDS),
    "column": Column(WORDS),
    "array": np.array(WORDS),
    "array of objects": np.array(WORDS, dtype=object),
    "NumPy texts": list(np.array(WORDS)),
}

# What no label can be, and what is said of it.
WRONG: dict[str, tuple[Any, str]] = {
    "one-hot": (torch.eye(4, dtype=torch.int64), r"of shape \(4, 4\): one-hot .* argmax\(1\)"),
    "one-hot array": (np.eye(4, dtype=int), r"of shape \(4, 4\)"),
    "column vector": (torch.zeros(4, 1, dtype=torch.int64), r"of shape \(4, 1\)"),
    "number": (torch.tensor(1), r"of shape \(\)"),
    "array of a number": (np.array(1), r"of shape \(\)"),
    "rows": ([[0], [1], [0], [1]], r"number 0 is \[0\]"),
    "mask": (torch.tensor([True, False, True, False]), r"not torch.bool: cast them to int64"),
    "mask array": (np.array([True, False, True, False]), r"not bool"),
    "booleans": ([True, False, True, False], r"number 0 is True"),
    "NumPy booleans": ([0, np.True_, 1, 0], r"number 1 is np.True_"),
    "fractions": ([0, 0.5, 1, 0], r"number 1 is 0.5"),
    "floats": (torch.tensor([0.0, 1.0, 0.0, 1.0]), r"not torch.float32"),
    "float array": (np.array([0.0, 1.0, np.nan, 1.0]), r"not float64"),
    "complex": (torch.tensor([0j, 1j, 0j, 1j]), r"not torch.complex64"),
    "None": ([0, None, 1, 0], r"number 1 is None"),
    "all None": ([None] * 4, r"number 0 is None"),
    "mixed": ([0, "cat", 1, 0], r"number 1 is 'cat' and number 0 is 0"),
    "mixed the other way": (["cat", 0, 1, 0], r"number 0 is 'cat' and number 1 is 0"),
    "gaps among names": (["cat", float("nan"), "cat", "dog"], r"number 1 is nan"),
    "bytes": ([b"cat"] * 4, r"number 0 is b'cat'"),
    "one text": ("cats", r"not the single text 'cats'"),
    "mapping": ({"a": 0, "b": 1, "c": 0, "d": 1}, r"not a dict: pass a list in the order"),
    "set": ({0, 1, 2, 3}, r"not a set"),
    "table": (Table(NUMBERS), r"not a Table"),
    "an object": (object(), r"not <object"),
    "an integer": (4, r"not 4"),
    "tensors of several numbers": ([torch.zeros(2)] * 4, r"number 0 is tensor"),
    "too large for any class": ([2**70, 0, 1, 0], r"number 0 is 1180"),
}


@pytest.mark.parametrize("form", INTEGERS)
def test_integers_of_every_form_are_read(form: str) -> None:
    found = read_labels(INTEGERS[form])
    assert isinstance(found, Tensor)
    assert found.dtype == torch.int64
    assert found.tolist() == NUMBERS


@pytest.mark.parametrize("form", TEXTS)
def test_names_of_every_form_are_read(form: str) -> None:
    assert read_labels(TEXTS[form]) == WORDS


@pytest.mark.parametrize("form", WRONG)
def test_what_is_no_label_is_refused_everywhere(
    model: CLIP, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, message = WRONG[form]
    message = f"labels must be a row of integers or of names, one for each image, .*{message}"
    features = torch.eye(4, 32)
    classifier = ImageClassifier.zero_shot(model, NAMES)
    monkeypatch.setattr(CLIP, "encode_image", lambda *_: pytest.fail("encoded in vain"))
    with pytest.raises(DataError, match=message):
        classifier.fit(features, labels)
    with pytest.raises(DataError, match=message):
        classifier.fit(["a.png", "b.png", "c.png", "d.png"], labels)
    with pytest.raises(DataError, match=message):
        fit_head(features, labels, classifier.zero_shot_head)
    with pytest.raises(ConfigError, match=message):
        sample_shots(labels, 1)


def test_labels_beyond_the_classes_are_refused() -> None:
    for labels in ([0, 4], [-1, 0], torch.tensor([9, 0]), np.array([0, 2**63], dtype=np.uint64)):
        with pytest.raises(DataError, match=r"integers from 0 to 3, not from|number 1 is 9223"):
            class_indices(labels, NAMES)
    with pytest.raises(DataError, match="no class .* is called 'ochre', 'violet'; its .* 'blue'"):
        class_indices(["violet", "blue", "ochre"], NAMES)


@pytest.mark.parametrize("shots", [2.0, 0, -1, None, True, "2", [1], float("nan")])
def test_shots_are_a_positive_integer(shots: Any) -> None:
    with pytest.raises(ConfigError, match="at least one shot, not 2 and "):
        sample_shots([0, 1], shots)


def test_shots_may_be_a_number_of_numpy() -> None:
    shots: Any = np.int64(2)
    assert sample_shots([0, 1, 1, 1], shots).equal(sample_shots([0, 1, 1, 1], 2))


def test_draws_tell_which_classes_have_fewer_images(caplog: pytest.LogCaptureFixture) -> None:
    """Kind Y7: `shots=20` of 10."""
    assert len(sample_shots(["cat", "dog", "dog", "dog"], 2)) == 3
    assert caplog.messages == ["fewer than 2 images, so all are taken: cat (1)"]
    caplog.clear()
    sample_shots(range(8), 2)
    shown = "0 (1), 1 (1), 2 (1), 3 (1), 4 (1) and 3 more"
    assert caplog.messages == [f"fewer than 2 images, so all are taken: {shown}"]
    caplog.clear()
    assert len(sample_shots(["cat", "dog"], 1)) == 2
    assert caplog.messages == []


# Kind T


def test_a_space_is_as_good_as_an_underscore() -> None:
    labels = ["golden_retriever", "red car", "cat"]
    for names in (["golden retriever", "red_car"], ["golden_retriever", "red car"]):
        assert class_indices(names, labels).tolist() == [0, 1]


def test_a_name_of_two_classes_is_refused_unless_it_is_spelled_like_one() -> None:
    labels = ["a_b c", "a b_c"]
    assert find_classes(["a_b c"], labels) == {"a_b c": 0}
    assert find_classes(["a b_c"], labels) == {"a b_c": 1}
    message = "'a b c' may be any of the classes 'a_b c', 'a b_c': spell it like one"
    with pytest.raises(DataError, match=message):
        find_classes(["a b c"], labels)


def test_labels_keep_their_underscores_and_prompts_have_spaces(model: CLIP) -> None:
    classifier = ImageClassifier.zero_shot(model, ["red_car", "cat"], ["a {}"])
    assert classifier.labels == ["red_car", "cat"]
    assert classifier.prompts == [["a red car"], ["a cat"]]
    spaced = ImageClassifier.zero_shot(model, ["red car", "cat"], ["a {}"])
    assert torch.equal(classifier.zero_shot_head.weight, spaced.zero_shot_head.weight)
    whole = ImageClassifier.zero_shot(model, ["a red_car"], None)
    assert whole.prompts == [["a red_car"]]
    with pytest.raises(ConfigError, match="has classes of that name already: red car"):
        classifier.add_classes(["red car"])


def test_names_of_every_form_make_a_classifier(model: CLIP) -> None:
    expected = ImageClassifier.zero_shot(model, ["cat", "dog"])
    forms: list[Any] = [
        np.array(["cat", "dog"]),
        Column(["cat", "dog"]),
        (name for name in ("cat", "dog")),
        {"cat": 0, "dog": 1}.keys(),
        ("cat", "dog"),
    ]
    for names in forms:
        found = ImageClassifier.zero_shot(model, names)
        assert found.labels == ["cat", "dog"]
        assert torch.equal(found.zero_shot_head.weight, expected.zero_shot_head.weight)
    wrong: list[Any] = [np.array([]), b"cat", iter(()), frozenset(["cat"]), 5]
    for names in wrong:
        with pytest.raises(ConfigError, match="class_names must be a non-empty list"):
            ImageClassifier.zero_shot(model, names)


def test_a_fit_takes_either_spelling(model: CLIP) -> None:
    features = torch.eye(4, 32)
    labels = ["golden_retriever", "red car"]
    start = (model, labels, ["a {}"])
    expected = ImageClassifier.zero_shot(*start).fit(features, [0, 1, 0, 1], "gaussian")
    names = ["golden retriever", "red_car"] * 2
    found = ImageClassifier.zero_shot(*start).fit(features, names, "gaussian")
    assert torch.equal(found.probabilities(features), expected.probabilities(features))


# Kind S6


def forms_of(features: Tensor) -> dict[str, Any]:
    return {
        "array": features.numpy(),
        "half array": features.double().numpy(),
        "rows of NumPy": list(features.numpy()),
        "rows of tensors": list(features),
        "tuple of rows": tuple(features),
        "lists": features.tolist(),
        "Features": Features(features, None, [str(i) for i in range(len(features))], []),
    }


@pytest.mark.parametrize("form", forms_of(torch.eye(2)))
def test_features_of_every_form_are_features(model: CLIP, form: str) -> None:
    features, labels = toy_features()
    expected = ImageClassifier.zero_shot(model, NAMES).fit(features, labels, "gaussian")
    given = forms_of(features)[form]
    found = ImageClassifier.zero_shot(model, NAMES).fit(given, labels.numpy(), "gaussian")
    probabilities = expected.probabilities(features)
    torch.testing.assert_close(found.probabilities(given), probabilities, rtol=0, atol=1e-6)
    predictions = found.predict(given)
    assert [one.path for one in predictions] == [None] * 22
    assert [NAMES.index(one.label) for one in predictions] == probabilities.argmax(dim=1).tolist()


def test_extracted_features_bring_their_labels(model: CLIP) -> None:
    features, labels = toy_features()
    paths = [str(i) for i in range(22)]
    expected = ImageClassifier.zero_shot(model, NAMES).fit(features, labels, "gaussian")
    skipped = [("x.png", "broken")]
    found = ImageClassifier.zero_shot(model, NAMES)
    found.fit(Features(features, labels, paths, skipped), method="gaussian")
    assert torch.equal(found.probabilities(features), expected.probabilities(features))
    assert found.provenance["skipped"] == [["x.png", "broken"]]
    with pytest.raises(DataError, match="integers from 0 to 1, not from 0 to 3"):
        ImageClassifier.zero_shot(model, NAMES[:2]).fit(Features(features, labels, paths, []))


def test_rows_of_different_widths_are_refused(model: CLIP) -> None:
    rows = [torch.eye(32)[0].numpy(), torch.eye(31)[0].numpy()]
    with pytest.raises(DataError, match=r"features must have one width, not \[31, 32\]"):
        ImageClassifier.zero_shot(model, NAMES).fit(rows, [0, 1])
