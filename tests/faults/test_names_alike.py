"""Names that give two classes the same prompts: refused if by mistake, told if by WordNet."""

import logging

import pytest

from clipkit import ImageClassifier
from clipkit.classify.labels import find_classes
from clipkit.errors import ConfigError, DataError
from clipkit.prompts import render


def test_names_that_differ_in_underscores_alone_are_refused() -> None:
    with pytest.raises(ConfigError, match="'a_b' and 'a b' differ in underscores and spaces"):
        ImageClassifier.zero_shot("tiny", ["a_b", "c", "a b"])
    classifier = ImageClassifier.zero_shot("tiny", ["c", "d"])
    with pytest.raises(ConfigError, match="'a_b' and 'a b' differ in underscores and spaces"):
        classifier.add_classes(["a_b", "a b"])
    assert classifier.labels == ["c", "d"]


def test_a_mapping_says_what_is_meant() -> None:
    labels, prompts = render({"a_b": "a b", "a b": "a b"})
    assert labels == ["a_b", "a b"]
    assert prompts[0] == prompts[1]


@pytest.mark.parametrize("names", [["n02084071", "dog"], ["n02012849", "n03126707", "crane bird"]])
def test_a_name_beside_its_wordnet_id_is_told(
    names: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "clipkit"):
        render(names)
    assert "zero-shot cannot tell them apart" in caplog.text
    assert repr(names[0]) in caplog.text


def test_the_nearest_class_is_named() -> None:
    message = r"called 'coffe'; its classes are 'coffee', 'tea'\. Did you mean 'coffee'\?$"
    with pytest.raises(DataError, match=message):
        find_classes(["coffe", "tea"], ["coffee", "tea"])
    with pytest.raises(DataError, match="its classes are 'coffee', 'tea'$"):
        find_classes(["zebra"], ["coffee", "tea"])


def test_names_that_differ_are_told_of_by_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "clipkit"):
        render(["n02084071", "cat", "red_car"])
    assert caplog.text == ""
