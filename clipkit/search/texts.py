"""Keep features of texts beside an index: a text that was asked before needs no model."""

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from clipkit.errors import ClipkitError, DataError
from clipkit.search.arrays import map_arrays, write_arrays
from clipkit.search.store import Floats

TEXTS = "texts"  # the folder, with a file for each text

_MOST = 4096  # texts that are kept: about 9 MB at D = 512
_LEFT = 3072  # of them when there are more, so that room is not made for each new one


class TextCache:
    """Keep the features of texts in files.

    Each file is written as one, so several processes may read and write at a time. Where nothing
    can be written, nothing is kept. Of thousands of texts the oldest go.

    Args:
        folder: of the index.
        width: of the features, D.
    """

    def __init__(self, folder: Path, width: int) -> None:
        self._folder = folder / TEXTS
        self._width = width

    def get(self, prompts: Sequence[str]) -> Floats | None:
        """Return the mean feature of prompts, (D,), or None if they were not asked before."""
        path = self._path(prompts)
        if not path.exists():
            return None
        with suppress(DataError):
            feature = map_arrays(path).get("feature")
            if feature is not None and feature.shape == (self._width,):
                return np.array(feature, np.float32)
        return None

    def put(self, prompts: Sequence[str], feature: Floats) -> None:
        """Keep the mean feature of prompts, (D,)."""
        with suppress(ClipkitError, OSError):
            self._folder.mkdir(exist_ok=True)  # not where the whole index was removed
            write_arrays({"feature": feature}, self._path(prompts))
            self._make_room()

    def _make_room(self) -> None:
        """Remove the oldest files if there are too many. Another process may do so, too."""
        if len(os.listdir(self._folder)) <= _MOST:
            return
        times: list[tuple[int, str]] = []
        for file in os.scandir(self._folder):
            with suppress(OSError):
                times.append((file.stat().st_mtime_ns, file.path))
        for _, path in sorted(times)[:-_LEFT]:
            with suppress(OSError):
                os.unlink(path)

    def _path(self, prompts: Sequence[str]) -> Path:
        key = json.dumps(list(prompts)).encode()
        return self._folder / f"{hashlib.sha256(key).hexdigest()[:32]}.safetensors"
