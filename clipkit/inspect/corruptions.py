"""Corrupt images in ways that cameras, files and passers-by do: masks, noise, blur, JPEG.

Everything here takes an image as it was read and returns another one, before a model prepares it.
That is where real images go bad: a file is compressed, and a lens is out of focus, before anybody
resizes. What preprocessing makes of the damage is a part of what a classifier is worth.
"""

import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from clipkit.classify.metric_inputs import check_seed, is_count, is_number
from clipkit.errors import ConfigError, ImageError

if TYPE_CHECKING:
    from PIL.Image import Image

# The mean color that CLIP's preprocessing subtracts, so that what is masked is near 0 to the tower.
MEAN_COLOR = (123, 117, 104)

_ROWS = 256  # of an image that get noise at a time, to need little memory beside it
_LONGEST = 65500  # pixels of a side of a JPEG (libjpeg's JPEG_MAX_DIMENSION)


@dataclass(frozen=True)
class Sample:
    """Hold what a corruption may know of an image beside its pixels.

    Attributes:
        random: gives the same numbers for an image at every severity, so that these can be
            compared, and whatever images are beside it in a batch.
        label: the index of the right class.
        class_names: C names.

    Example:
        sample = Sample(np.random.default_rng(0), label=0, class_names=["cat", "dog"])
        covered = Masking()(image, 0.5, sample)
    """

    random: "np.random.Generator"  # which NumPy imports when it is first asked for
    label: int
    class_names: Sequence[str]


class Corruption(Protocol):
    """Describe what `robustness` measures: a name, severities with a unit, and how to corrupt.

    `name` and `unit` are for tables and figures; `severities` are what is measured, in that order.
    The call takes an RGB image, which it leaves as it is, and returns one in mode RGB.

    Example:
        class Darker:
            name, unit, severities = "darker", "share of the light", (0.5, 0.25)

            def __call__(self, image, severity, sample):
                return image.point(lambda level: level * severity)
    """

    @property
    def name(self) -> str: ...
    @property
    def unit(self) -> str: ...
    @property
    def severities(self) -> Sequence[float]: ...

    def __call__(self, image: "Image", severity: float, sample: Sample, /) -> "Image": ...


def sample_of(
    index: int, label: int, class_names: Sequence[str], *, name: str = "", seed: int = 0
) -> Sample:
    """Return what a corruption may know of an image; its numbers depend on nothing but these.

    Args:
        index: the place of the image among all.
        label, class_names: as in `Sample`.
        name: of the corruption, so that each draws numbers of its own.
        seed: of all that is drawn.

    Raises:
        ConfigError: if the place or the seed is no integer of at least 0.

    Example:
        noisy = GaussianNoise()(image, 25.0, sample_of(0, 0, ["cat", "dog"]))
    """
    check_seed("sample_of", seed)
    if isinstance(index, bool) or not (is_count(index) or index == 0):
        raise ConfigError(
            f"sample_of needs the place of an image, an integer of at least 0, not {index!r:.60}"
        )
    source = np.random.default_rng([seed, zlib.crc32(name.encode("utf-8", "surrogatepass")), index])
    return Sample(source, label, class_names)


@dataclass(frozen=True)
class Masking:
    """Cover square patches of an image, drawn at random; severities are shares of the patches.

    The patches of a lower share are among those of a higher one.

    Args:
        severities: shares, above 0, at most 1. Rounded to whole patches.
        patches: how many lie along the short side. The long side has as many as fit best.
        color: of the cover, red, green and blue in 0-255; by default the mean that CLIP subtracts.
        name: for tables and figures.

    Raises:
        ConfigError: if a value is impossible.

    Example:
        corruptions = [clipkit.inspect.Masking((0.25, 0.5), patches=7)]
        clipkit.inspect.robustness(classifier, images, labels, corruptions=corruptions)
    """

    severities: Sequence[float] = (0.1, 0.25, 0.5, 0.75, 0.9)
    patches: int = 14
    color: tuple[int, int, int] = MEAN_COLOR
    name: str = "masking"

    @property
    def unit(self) -> str:
        """Return what severities are, in words."""
        return "share of patches"

    def __post_init__(self) -> None:
        check_severities(self.name, self.severities, 0, 1)
        if not is_count(self.patches):
            raise ConfigError(f"{self.name} needs patches of at least 1, not {self.patches!r:.60}")
        check_color(self.name, self.color)

    def __call__(self, image: "Image", severity: float, sample: Sample, /) -> "Image":
        from PIL import Image

        width, height = image.size
        side = min(width, height) / self.patches
        columns, rows = _edges(width, side), _edges(height, side)
        count = (len(columns) - 1) * (len(rows) - 1)
        covered = sample.random.permutation(count)[: round(severity * count)]
        pixels = np.array(image)  # (h, w, 3), a copy
        for patch in cast("list[int]", covered.tolist()):
            row, column = divmod(patch, len(columns) - 1)
            top, bottom = rows[row], rows[row + 1]
            pixels[top:bottom, columns[column] : columns[column + 1]] = self.color
        return Image.fromarray(pixels)


@dataclass(frozen=True)
class GaussianNoise:
    """Add noise to each channel of each pixel; severities are standard deviations in levels.

    A level is 1 of 0-255. The default ones are those of ImageNet-C (1903.12261). There images have
    224 px: noise of a large image is averaged away when it is resized, so the same levels do less.

    Args:
        severities: standard deviations, above 0.
        name: for tables and figures.

    Raises:
        ConfigError: if a value is impossible.

    Example:
        corruptions = [clipkit.inspect.GaussianNoise((20, 40))]
        clipkit.inspect.robustness(classifier, images, labels, corruptions=corruptions)
    """

    severities: Sequence[float] = (20, 31, 46, 66, 97)
    name: str = "noise"

    @property
    def unit(self) -> str:
        """Return what severities are, in words."""
        return "standard deviation, of 255 levels"

    def __post_init__(self) -> None:
        check_severities(self.name, self.severities, 0)

    def __call__(self, image: "Image", severity: float, sample: Sample, /) -> "Image":
        from PIL import Image

        pixels = np.array(image)  # (h, w, 3), a copy
        for start in range(0, len(pixels), _ROWS):
            rows = pixels[start : start + _ROWS]
            noise: NDArray[np.float32] = sample.random.standard_normal(rows.shape, np.float32)
            noise *= np.float32(severity)
            noise += rows
            pixels[start : start + _ROWS] = np.rint(noise).clip(0, 255)
        return Image.fromarray(pixels)


@dataclass(frozen=True)
class Blur:
    """Blur by a Gaussian; severities are its standard deviation relative to the short side.

    Of 0.01 an image of 224 x 300 px is blurred by 2.24 px. The default ones are about those of
    ImageNet-C (1903.12261).

    Args:
        severities: standard deviations, above 0, in lengths of the short side.
        name: for tables and figures.

    Raises:
        ConfigError: if a value is impossible.

    Example:
        corruptions = [clipkit.inspect.Blur((0.01, 0.02))]
        clipkit.inspect.robustness(classifier, images, labels, corruptions=corruptions)
    """

    severities: Sequence[float] = (0.005, 0.01, 0.015, 0.02, 0.03)
    name: str = "blur"

    @property
    def unit(self) -> str:
        """Return what severities are, in words."""
        return "radius / short side"

    def __post_init__(self) -> None:
        check_severities(self.name, self.severities, 0, 1)

    def __call__(self, image: "Image", severity: float, sample: Sample, /) -> "Image":
        from PIL.ImageFilter import GaussianBlur

        # Pillow's radius is the standard deviation.
        return image.filter(GaussianBlur(severity * min(image.size)))


@dataclass(frozen=True)
class Jpeg:
    """Compress by JPEG as Pillow does, with halved color; severities are qualities, 1 to 95.

    Lower ones are worse. The default ones are those of ImageNet-C (1903.12261). Blocks of 8 x 8
    pixels show less in a large image, which is resized.

    Args:
        severities: qualities, whole numbers of 1 to 95.
        name: for tables and figures.

    Raises:
        ConfigError: if a value is impossible.
        ImageError: when it is called, for an image with more pixels a side than a JPEG can have.

    Example:
        corruptions = [clipkit.inspect.Jpeg((50, 10))]
        clipkit.inspect.robustness(classifier, images, labels, corruptions=corruptions)
    """

    severities: Sequence[float] = (25, 18, 15, 10, 7)
    name: str = "JPEG"

    @property
    def unit(self) -> str:
        """Return what severities are, in words."""
        return "quality"

    def __post_init__(self) -> None:
        check_severities(self.name, self.severities, 0, 95)
        for quality in self.severities:
            if quality != int(quality):
                raise ConfigError(f"{self.name} needs whole numbers as qualities, not {quality!r}")

    def __call__(self, image: "Image", severity: float, sample: Sample, /) -> "Image":
        from PIL import Image

        if max(image.size) > _LONGEST:
            raise ImageError(
                f"its {image.width} x {image.height} pixels are more than the {_LONGEST:,} that a "
                "side of a JPEG can have: leave Jpeg out of the corruptions"
            )
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(severity), subsampling="4:2:0")
        compressed = Image.open(file)
        compressed.load()
        return compressed


def check_severities(
    name: str, severities: Sequence[float], above: float, most: float = float("inf")
) -> None:
    """Raise `ConfigError` unless there are severities, all different, above one number, up to one.

    Example:
        >>> check_severities("blur", (0.1, 0.2), 0, 1)
    """
    given: object = severities
    if not isinstance(given, list | tuple) or not given:
        raise ConfigError(
            f"{name} needs severities, such as severities=(0.1, 0.2), not {severities!r:.60}"
        )
    limits = f"above {above:g}" if most == float("inf") else f"above {above:g}, at most {most:g}"
    for severity in severities:
        if not is_number(severity) or not above < severity <= most or severity == float("inf"):
            raise ConfigError(f"{name} needs severities {limits}, not {severity!r:.60}")
    if len(set(severities)) < len(severities):
        raise ConfigError(f"{name} has a severity twice: {list(severities)}")


def check_color(name: str, color: tuple[int, int, int]) -> None:
    """Raise `ConfigError` unless a color is three whole numbers of 0 to 255."""
    given: object = color
    if (
        not isinstance(given, list | tuple)
        or len(color) != 3
        or not all(value == 0 or (is_count(value) and value <= 255) for value in color)
    ):
        raise ConfigError(f"{name} needs a color of three integers of 0 to 255, not {color!r:.60}")


def _edges(length: int, side: float) -> list[int]:
    """Return where patches of about a side begin along a length, and where the last one ends."""
    count = max(1, min(length, round(length / side)))
    return [round(length * place / count) for place in range(count + 1)]
