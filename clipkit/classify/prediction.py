"""What a classifier says about an image, and about itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from clipkit.config import ResNetConfig, ViTConfig
from clipkit.errors import ConfigError


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """Hold the probabilities of all classes for one image.

    Example:
        prediction = classifier.predict("photo.jpg")
        print(prediction.label, prediction.top(5))

    Attributes:
        labels: C names.
        probabilities: (C,) float32, on the CPU, with the sum 1.
        path: the image's file; None for an image that has none.
    """

    labels: list[str]
    probabilities: Tensor
    path: str | None = None

    @property
    def label(self) -> str:
        """The most probable label."""
        return self.labels[int(self.probabilities.argmax())]

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """Return the k most probable labels with their probabilities, the most probable first.

        Returns:
            k pairs, or C if there are fewer classes.

        Raises:
            ConfigError: if k is below 1.
        """
        if k < 1:
            raise ConfigError(f"top needs k of at least 1, not {k}")
        best = self.probabilities.argsort(descending=True, stable=True)[:k]  # (k,)
        return [(self.labels[int(i)], float(self.probabilities[i])) for i in best]

    def __repr__(self) -> str:
        shown = [f"{label} {probability:.2f}" for label, probability in self.top(2)]
        if len(self.labels) > len(shown):
            shown.append("...")
        place = "" if self.path is None else f"; {self.path}"
        return f"Prediction({', '.join(shown)}{place})"


def describe(
    labels: Sequence[str], provenance: Mapping[str, Any], vision: ViTConfig | ResNetConfig
) -> str:
    """Return a classifier in one line: its classes, how its head was made, and its image tower."""
    classes = "1 class" if len(labels) == 1 else f"{len(labels)} classes"
    shown = [*labels[:3], "..."] if len(labels) > 3 else labels
    made = str(provenance.get("method")).replace("_", " ")
    if counts := provenance.get("counts"):
        made += f" on {sum(counts)} images"
    tower = "ViT" if isinstance(vision, ViTConfig) else "ResNet"
    height, width = vision.resolution
    size = f"{height}" if height == width else f"{height} x {width}"
    return f"ImageClassifier({classes}: {', '.join(shown)}; {made}; {tower} {size} px)"
