"""Labels of images that can have several each: every form that is read, and what is refused."""

from typing import Any

import numpy as np
import pytest
import torch

from clipkit.classify.several import has_several, read_several
from clipkit.errors import DataError

NAMES = ["cat", "red_car", "dog"]
MATRIX = [[True, False, True], [False, False, False], [False, True, False]]


@pytest.mark.parametrize(
    "labels",
    [
        torch.tensor(MATRIX),
        np.array(MATRIX),
        [["cat", "dog"], [], ["red car"]],
        (("dog", "cat", "cat"), (), ("red_car",)),
        [{"cat", "dog"}, set[str](), frozenset({"red car"})],
        [[np.str_("cat"), "dog"], [], ["red car"]],
    ],
)
def test_every_form_is_read(labels: Any) -> None:
    assert has_several(labels)
    truth = read_several(labels, NAMES)
    assert truth.dtype == torch.bool
    assert truth.tolist() == MATRIX


@pytest.mark.parametrize(
    "labels",
    [
        ["cat", "dog"],
        [0, 1],
        torch.tensor([0, 1]),
        np.array([0, 1]),
        [],
        (),
        None,
        "cat",
        iter([1]),
    ],
)
def test_one_label_for_each_image_is_no_matrix(labels: Any) -> None:
    assert not has_several(labels)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.eye(3), r"booleans \(N, 3\), not torch.float32: cast numbers by labels > 0"),
        (np.eye(3, dtype=int), r"booleans \(N, 3\), not int64"),
        (torch.ones(2, 4, dtype=torch.bool), r"each of the 3 classes, not shape \(2, 4\)"),
        ([["cat"], "dog"], "each image needs a list of names .* not 'dog'"),
        ([["cat"], [1]], r"each image needs a list of names .* not \[1\]"),
        ([["cat"], None], "each image needs a list of names .* not None"),
        ([["cat"], ["bird"]], "no class of this classifier is called 'bird'"),
    ],
)
def test_what_is_refused(labels: Any, message: str) -> None:
    assert has_several(labels)
    with pytest.raises(DataError, match=message):
        read_several(labels, NAMES)


def test_arrays_that_tensors_cannot_share_are_read() -> None:
    fixed = np.array(MATRIX)
    fixed.flags.writeable = False
    assert read_several(fixed, NAMES).tolist() == MATRIX
    reversed_columns = np.array(MATRIX)[:, ::-1]
    assert read_several(reversed_columns, NAMES).tolist() == [row[::-1] for row in MATRIX]


@pytest.mark.parametrize("dtype", [object, str])
def test_arrays_of_names_are_refused(dtype: type) -> None:
    names = np.array([["cat", "dog", "cat"]] * 2, dtype=dtype)
    with pytest.raises(DataError, match="not .*: cast numbers .* names as a list of lists"):
        read_several(names, NAMES)
