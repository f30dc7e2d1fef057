"""Know the images again that a head was fitted on, so that nobody measures it on them unawares.

An image has up to two marks: a digest of its file's name, size and time, if it has one, and a few
rough numbers of its features. No image can be made again from them.
"""

import hashlib
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipkit.errors import DataError
from clipkit.plurals import number_of

SEEN = "images_seen"  # the name in a classifier's provenance

KEPT = 4096  # marks of a kind; of more images some stand for all
MOST_FILES = 2000  # files that are looked up; a million would take minutes on a network's disk

# Features depend on the precision of the model and on the images beside them in a batch. In float16
# they are up to 0.001 off, in bfloat16 most are up to 0.02; no two images of eight public data sets
# that are no copies of each other are nearer than 0.05. So a mark holds a few projections of a
# feature, each rounded to a byte, and marks that lie as near as the features of one image know it
# again. The mean with the mirror image is 0.04 to 0.2 off, and other images are as near as 0.11
# (1,500 of Caltech-101, the embedded model): no distance knows an image by other views.
_NUMBERS = 16
_STEPS = 64  # for each unit of length
_NEAR = 0.028
_ROWS = 4096  # that are compared at once


def marks_of(features: Tensor, paths: Sequence[str | None]) -> list[str]:
    """Return what images are known by: sorted, 4,096 of features and 2,000 of files at most.

    No file is opened.

    Args:
        features: (N, D), of unit length.
        paths: N paths; None, or a path of no file, for an image that has none.
    """
    of_files = set(_marks_of_files(paths).values())
    return sorted({*of_files, *_some(_marks_of_features(features))})


def count_seen(features: Tensor, paths: Sequence[str | None], marks: object) -> int:
    """Return how many images `marks_of` made the marks of; see `which_seen`."""
    return int(which_seen(features, paths, marks).sum())


def which_seen(features: Tensor, paths: Sequence[str | None], marks: object) -> Tensor:
    """Return which images are among those that `marks_of` made the marks of, (N,) bool.

    Of more than 2,000 images only a part is known, so some that are among them may be missed.

    Args:
        features, paths: as in `marks_of`.
        marks: from a classifier's provenance; anything else knows no image.

    Raises:
        DataError: unless there is a path or None for each image.
    """
    if not isinstance(marks, list) or not marks:
        return torch.zeros(len(features), dtype=torch.bool, device="cpu")
    known = {mark for mark in cast("list[Any]", marks) if isinstance(mark, str) and mark}
    of_files = _marks_of_files(paths)
    if len(paths) != len(features):
        raise DataError(
            f"{number_of(len(features), 'image')} must have as many paths, not {len(paths)}"
        )
    by_file = [of_files.get(path) in known for path in paths]
    return torch.tensor(by_file, dtype=torch.bool, device="cpu") | _are_near(features, known)


def _are_near(features: Tensor, known: set[str]) -> Tensor:
    """Return which features (N, D) are as near to one of the marks as those of one image, (N,)."""
    found = torch.zeros(len(features), dtype=torch.bool, device="cpu")
    marks = _numbers_in(known)  # (M, 16)
    if not len(marks) or not len(features):
        return found
    limit = _limit(marks)
    rows = _numbers_of(features).astype(np.float32)  # (N, 16)
    for start in range(0, len(rows), _ROWS):
        nearest = _squared_distances(rows[start : start + _ROWS], marks).min(axis=1)
        found[start : start + _ROWS] = torch.from_numpy(nearest <= limit)
    return found


def _limit(marks: NDArray[np.float32]) -> float:
    """Return the squared distance up to which numbers are of one of the images with marks (M, 16).

    Where images are all alike, as those of a camera that stands still, it is smaller: half of the
    distance that nine in ten have from the nearest other one.
    """
    limit = _NUMBERS * (_NEAR * _STEPS) ** 2
    if len(marks) < 2:
        return limit
    distances = _squared_distances(marks, marks)
    np.fill_diagonal(distances, np.inf)
    return min(limit, float(np.quantile(distances.min(axis=1), 0.1)) / 4)


def _squared_distances(
    rows: NDArray[np.float32], marks: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the squared distances (N, M) of whole numbers (N, 16) and (M, 16), which are exact."""
    lengths = np.square(rows).sum(axis=1)[:, None] + np.square(marks).sum(axis=1)  # (N, M)
    products = cast("NDArray[np.float32]", np.inner(rows, marks))
    return lengths - 2 * products


def _numbers_of(features: Tensor) -> NDArray[np.int8]:
    """Return the numbers by which features (N, D) are known, (N, 16)."""
    rows = features.detach().float().cpu().numpy()
    # Steps between projections on directions of this length are as large as between features.
    directions = np.random.RandomState(0).standard_normal((rows.shape[1], _NUMBERS))
    steps: NDArray[np.float32] = np.rint(rows @ directions.astype(np.float32) * _STEPS)
    return np.clip(steps, -127, 127).astype(np.int8)


def _numbers_in(marks: set[str]) -> NDArray[np.float32]:
    """Return the numbers of those marks that are of features, (M, 16)."""
    texts = [mark for mark in marks if re.fullmatch(rf"[0-9a-f]{{{2 * _NUMBERS}}}", mark)]
    numbers = np.frombuffer(bytes.fromhex("".join(texts)), dtype=np.int8)
    return numbers.reshape(len(texts), _NUMBERS).astype(np.float32)  # (M * 16,) -> (M, 16)


def _marks_of_features(features: Tensor) -> list[str]:
    return [row.tobytes().hex() for row in _numbers_of(features)]


def _some(marks: list[str]) -> list[str]:
    """Return marks, of more than 4,096 those with the lowest digests, which are like any others."""
    return sorted(set(marks), key=lambda mark: _digest(mark.encode()))[:KEPT]


def _marks_of_files(paths: Sequence[str | None]) -> dict[str | None, str]:
    """Return a mark for each path of a file, of at most 2,000.

    Those whose names have the lowest digests are chosen, so that of the same images the same are.
    """
    chosen = {path: _digest(_own_name(path)) for path in paths if path is not None}
    lowest = sorted(chosen, key=lambda path: (chosen[path], path))[:MOST_FILES]
    marks = {path: _mark_of_file(path) for path in lowest}
    return {path: mark for path, mark in marks.items() if mark}


def _mark_of_file(path: str) -> str:
    """Return a digest of a file's name, size and time of change; empty if there is no such file."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # a name may hold what no path can
        return ""
    if not stat.S_ISREG(found.st_mode):
        return ""
    return _digest(_own_name(path), f" {found.st_size} {int(found.st_mtime)}".encode())


def _own_name(path: str) -> bytes:
    """Return the last parts of a path, such as train/cat/1.jpg: a data set may be moved."""
    return "/".join(Path(os.path.abspath(path)).parts[-3:]).encode(errors="surrogateescape")


def _digest(*parts: bytes) -> str:
    return hashlib.blake2b(b"".join(parts), digest_size=8).hexdigest()
