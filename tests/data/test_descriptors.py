"""Descriptors from files of two kinds, and files that are neither."""

import json
from pathlib import Path
from typing import Any

import pytest

from clipkit import CLIP, ImageClassifier, read_descriptors
from clipkit.errors import ConfigError, DataError

CUPL = {
    "golden retriever": ["A golden retriever is a large dog.", "It has golden fur."],
    "Tench": ["A tench is a freshwater fish.", "A tench is a freshwater fish."],
}
DCLIP = {
    "Tench": ["a freshwater fish", "long body ", "has fins", "often olive green"],
    "golden retriever": ["golden fur"],
}


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(values: Any) -> Path:
        path = tmp_path / "texts.json"
        path.write_text(values if isinstance(values, str) else json.dumps(values))
        return path

    return write


def test_sentences_are_prompts_as_they_are(write: Any) -> None:
    found = read_descriptors(write(CUPL), ["tench", "golden_retriever"])
    assert found == {
        "tench": ["A tench is a freshwater fish."],
        "golden_retriever": CUPL["golden retriever"],
    }
    assert list(found) == ["tench", "golden_retriever"]


def test_features_go_behind_the_name(write: Any) -> None:
    assert read_descriptors(write(DCLIP), ["tench"])["tench"] == [
        "tench, which is a freshwater fish",
        "tench, which has long body",
        "tench, which has fins",
        "tench, which often olive green",
    ]


def test_the_kind_can_be_said(write: Any) -> None:
    path = write(DCLIP)
    assert read_descriptors(path, ["Golden Retriever"], sentences=True) == {
        "Golden Retriever": ["golden fur"]
    }
    found = read_descriptors(write(CUPL), ["tench"], sentences=False)
    assert found == {"tench": ["tench, which is A tench is a freshwater fish."]}


def test_all_of_a_file(write: Any) -> None:
    assert list(read_descriptors(write(DCLIP))) == ["Tench", "golden retriever"]


def test_names_of_labels_and_wordnet_ids(write: Any) -> None:
    found = read_descriptors(write(DCLIP), {"fish": ["a carp", "tench"], "dog": "golden retriever"})
    assert found["fish"][1] == "a carp, which has long body"
    assert found["dog"] == ["golden retriever, which has golden fur"]
    by_id = read_descriptors(write(DCLIP), ["n01440764", "n02099601"])
    assert by_id["n01440764"][1] == "tench, which has long body"
    assert by_id["n02099601"] == ["Golden Retriever, which has golden fur"]


def test_a_classifier_takes_the_prompts(write: Any) -> None:
    tiny = CLIP.from_pretrained("tiny", device="cpu")
    prompts = read_descriptors(write(DCLIP), ["golden_retriever", "tench"])
    classifier = ImageClassifier.zero_shot(tiny, prompts, templates=None)
    assert classifier.labels == ["golden_retriever", "tench"]
    assert classifier.prompts == list(prompts.values())


def test_missing_classes_are_named(write: Any) -> None:
    path = write(DCLIP | {"cat": []})
    with pytest.raises(DataError, match="has no texts for 'cat', 'red_fox': add a list of texts"):
        read_descriptors(path, ["cat", "tench", "red_fox"])
    many = [f"class {i}" for i in range(25)]
    with pytest.raises(DataError, match="'class 19' and 5 more: add"):
        read_descriptors(path, many)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "must hold a JSON object from names .* not {}"),
        ({"cat": "whiskers"}, "lists of texts.* not 'whiskers' for 'cat'"),
        ({"cat": [" "]}, r"not \[' '\] for 'cat'"),
        ({"cat": [1]}, r"not \[1\] for 'cat'"),
        (["cat"], "must hold a JSON object, not list"),
        ("no json", "is not JSON"),
    ],
)
def test_other_files_are_refused(write: Any, values: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_descriptors(write(values), ["cat"])


def test_arguments_are_checked(write: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_descriptors(tmp_path / "none.json")
    with pytest.raises(DataError, match="a file of descriptors must be a path"):
        read_descriptors(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="class_names"):
        read_descriptors(write(DCLIP), [])


def test_names_that_differ_in_case_have_the_texts_of_both(tmp_path: Path) -> None:
    """The last one won in silence."""
    file = tmp_path / "texts.json"
    file.write_text('{"Cat": ["fur"], "cat": ["whiskers"], "dog": []}')
    prompts = read_descriptors(file, ["cat"])
    assert prompts == {"cat": ["cat, which has fur", "cat, which has whiskers"]}
    with pytest.raises(DataError, match="has no texts for 'dog'.* the other classes by class_na"):
        read_descriptors(file)
