"""Know the images again that a head was fitted on, so that nobody measures it on them unawares.

An image has up to two marks: one of its file, if it has one, and one of its features. Both are
digests, from which no image can be made again.
"""

import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

SEEN = "images_seen"  # the name in a classifier's provenance

KEPT = 4096  # marks of a kind; of more images those with the lowest marks stand for all
MOST_FILES = 2000  # files that are looked up; a million would take minutes on a network's disk

# Features are rounded, since their last bits depend on the images beside them in a batch. A few
# numbers of a feature tell images apart, and the fewer there are, the rarer one is near a half.
_NUMBERS = 32
_STEP = 1e-3


def marks_of(features: Tensor, paths: Sequence[str | None]) -> list[str]:
    """Return what images are known by: sorted, 4,096 of features and 2,000 of files at most.

    No file is opened.

    Args:
        features: (N, D), of unit length.
        paths: N paths; None, or a path of no file, for an image that has none.
    """
    of_files = set(_marks_of_files(paths).values())
    return sorted({*of_files, *sorted(set(_marks_of_features(features)))[:KEPT]})


def count_seen(features: Tensor, paths: Sequence[str | None], marks: object) -> int:
    """Return how many images `marks_of` made the marks of; see `which_seen`."""
    return int(which_seen(features, paths, marks).sum())


def which_seen(features: Tensor, paths: Sequence[str | None], marks: object) -> Tensor:
    """Return which images are among those that `marks_of` made the marks of, (N,) bool.

    Of more than 2,000 images only a part is known, so some that are among them may be missed.

    Args:
        features, paths: as in `marks_of`.
        marks: from a classifier's provenance; anything else knows no image.
    """
    if not isinstance(marks, list) or not marks:
        return torch.zeros(len(features), dtype=torch.bool)
    known = {mark for mark in cast("list[Any]", marks) if isinstance(mark, str) and mark}
    of_files = _marks_of_files(paths)
    pairs = zip(_marks_of_features(features), paths, strict=True)
    found = [mark in known or of_files.get(path) in known for mark, path in pairs]
    return torch.tensor(found, dtype=torch.bool)


def _marks_of_features(features: Tensor) -> list[str]:
    rows = features[:, :_NUMBERS].detach().cpu().double().numpy()  # (N, at most 32)
    steps = np.rint(rows / _STEP).astype(np.int16)
    return [_digest(row.tobytes()) for row in steps]


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
