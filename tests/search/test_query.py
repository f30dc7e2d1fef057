"""Queries: weights, signs, images and quotes."""

from pathlib import Path
from typing import Any, cast

import pytest
from PIL import Image

from clipkit.errors import ConfigError
from clipkit.search.query import Term, read_query


@pytest.mark.parametrize(
    ("query", "terms"),
    [
        ("a cat in jeans", [Term("a cat in jeans")]),
        ("t-shirt", [Term("t-shirt")]),
        ("a t-shirt+jeans", [Term("a t-shirt+jeans")]),
        ("cat + dog", [Term("cat"), Term("dog")]),
        ("cat - dog", [Term("cat"), Term("dog", -1)]),
        ("- dog + cat", [Term("dog", -1), Term("cat")]),
        ("+ cat", [Term("cat")]),
        ("2 * dog - .5*indoor", [Term("dog", 2), Term("indoor", -0.5)]),
        ("3 cats", [Term("3 cats")]),
        ("2 * rex.jpg + b/c.PNG", [Term(Path("rex.jpg"), 2), Term(Path("b/c.PNG"))]),
        ('"black + white" - "rex.jpg"', [Term("black + white"), Term("rex.jpg", -1)]),
        ('1.5 * "a * b"', [Term("a * b", 1.5)]),
        ('the "wild" west', [Term('the "wild" west')]),
        ("ver. 2.0", [Term("ver. 2.0")]),
    ],
)
def test_texts_are_parsed(query: str, terms: list[Term]) -> None:
    assert read_query(query) == terms


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("", "a term of the query is empty"),
        ("  ", "a term of the query is empty"),
        ("cat - ", "a term of the query is empty"),
        ("cat + - dog", "there is no term between two signs"),
        ('cat - ""', "the quotes of the query hold no text"),
        ("0 * cat", "a weight must be from 0.00001 to 1,000,000"),
        ("9999999 * cat", "a weight must be from 0.00001 to 1,000,000"),
        ([Term("cat", float("nan"))], "a weight must be from"),
        ([Term("cat", cast("float", "2"))], "a weight must be from"),
        (3, "a text, a path, an image or a list of Terms"),
        (None, "a text, a path, an image or a list of Terms"),
        ([], "a text, a path, an image or a list of Terms"),
        (["cat"], "a text, a path, an image or a list of Terms"),
    ],
)
def test_what_is_no_query_is_a_typed_error(query: Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        read_query(query)


def test_paths_images_and_terms_are_taken_as_they_are() -> None:
    image = Image.new("RGB", (2, 2))
    assert read_query(Path("a cat")) == [Term(Path("a cat"))]
    assert read_query(image) == [Term(image)]
    assert read_query([Term("a - b", 2)]) == [Term("a - b", 2)]


def test_the_path_of_a_file_is_no_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_query("cat - Copy.jpg") == [Term("cat"), Term(Path("Copy.jpg"), -1)]
    Path("cat - Copy.jpg").touch()
    assert read_query("cat - Copy.jpg") == [Term(Path("cat - Copy.jpg"))]
