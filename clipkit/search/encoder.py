"""Say what turns queries and images into features, without importing what does it."""

from collections.abc import Sequence
from typing import Any, Protocol

from clipkit.search.store import Floats


class Encoder(Protocol):
    """Turn texts and images into features of unit length, float32 on the CPU."""

    def texts(self, texts: Sequence[str]) -> Floats:
        """Return the features of texts, (n, D)."""
        ...

    def images(self, images: Sequence[Any]) -> Floats:
        """Return the features of images, (n, D): paths, PIL images or the bytes of files."""
        ...
