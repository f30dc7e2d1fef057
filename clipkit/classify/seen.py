"""Know the images again that a head was fitted on, so that nobody measures it on them unawares.

An image has up to two marks: one of its file, if it has one, and one of its features. Both are
digests, from which no image can be made again.
"""

import hashlib
import os
import stat
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from torch import Tensor

SEEN = "images_seen"  # the name in a classifier's provenance

_KEPT = 4096  # marks of a kind; of more images those with the lowest marks stand for all
_ENDS = 1 << 16  # bytes at either end of a file that are looked at

# Features are rounded, since their last bits depend on the images beside them in a batch. A few
# numbers of a feature tell images apart, and the fewer there are, the rarer one is near a half.
_NUMBERS = 32
_STEP = 1e-3


def marks_of(features: Tensor, paths: Sequence[str | None]) -> list[str]:
    """Return what images are known by: sorted, 4,096 of files and as many of features at most.

    Args:
        features: (N, D), of unit length.
        paths: N paths; None, or a path of no file, for an image that has none.
    """
    of_files = sorted(_marks_of_files(paths) - {""})[:_KEPT]
    return sorted({*of_files, *sorted(set(_marks_of_features(features)))[:_KEPT]})


def count_seen(features: Tensor, paths: Sequence[str | None], marks: object) -> int:
    """Return how many images are among those that `marks_of` made the marks of.

    Of more than 4,096 images only a part is known, and the count is a lower bound.

    Args:
        features, paths: as in `marks_of`.
        marks: from a classifier's provenance; anything else knows no image.
    """
    if not isinstance(marks, list) or not marks:
        return 0
    known = {mark for mark in cast("list[Any]", marks) if isinstance(mark, str) and mark}
    pairs = zip(_marks_of_features(features), paths, strict=True)
    return sum(mark in known or _mark_of_file(path) in known for mark, path in pairs)


def _marks_of_features(features: Tensor) -> list[str]:
    rows = features[:, :_NUMBERS].detach().cpu().double().numpy()  # (N, at most 32)
    steps = np.rint(rows / _STEP).astype(np.int16)
    return [_digest(row.tobytes()) for row in steps]


def _marks_of_files(paths: Sequence[str | None]) -> set[str]:
    return {_mark_of_file(path) for path in paths}


def _mark_of_file(path: str | None) -> str:
    """Return a digest of a file's size, its beginning and its end; empty if it is not read."""
    if path is None:
        return ""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return ""
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            beginning = file.read(_ENDS)
            file.seek(max(_ENDS, size - _ENDS))
            return _digest(f"{size} ".encode(), beginning, file.read(_ENDS))
    except (OSError, ValueError):  # a name may hold what no path can
        return ""


def _digest(*parts: bytes) -> str:
    return hashlib.blake2b(b"".join(parts), digest_size=8).hexdigest()
