"""Write a word on an image, as the typographic attack does (Goh et al., Multimodal Neurons, 2021).

CLIP reads: an apple with a note that says "iPod" is an iPod to it.
"""

import functools
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, get_args

from clipkit.classify.labels import find_classes
from clipkit.classify.metric_inputs import is_number
from clipkit.errors import ConfigError, DataError
from clipkit.inspect.corruptions import Sample, check_severities
from clipkit.prompts import as_words

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

Place: TypeAlias = Literal[
    "top left",
    "top",
    "top right",
    "left",
    "center",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
]

_MARGIN = 0.04  # of the square, between its edge and the text
_STROKE = 0.1  # of the height of letters: the black line around them
_LEADING = 1.6  # from line to line, in heights of capital letters
_DESCENT = 0.35  # what letters such as g have below the baseline, in heights of capital letters
_SHRINK = 0.9  # of the letters, until a text has room
_TRIAL = 200.0  # pixels, a size to measure a font by


@dataclass(frozen=True)
class TypographicAttack:
    """Write the name of a wrong class on an image; severities are heights of capital letters.

    Letters are white with a black line around them. They lie in the square in the middle of the
    image, which is what CLIP's preprocessing keeps. A text that is too wide is broken at spaces;
    one that has no room then is written smaller than asked.

    Args:
        severities: heights, above 0, at most 1, in lengths of the short side.
        label: the class whose name is written; images of that class are not measured then. None
            writes the name of another class on each image, drawn at random, the same at every
            severity.
        word: any text in place of a name, on all images. It shows how much of the harm is done by
            covering pixels.
        place: where in the square: "top left", "top", "center", "bottom right" and so on.
        font: a TrueType or OpenType file; by default the one that comes with Pillow, which has
            the letters of English, and takes accents away.
        name: for tables and figures.

    Raises:
        ConfigError: if a value is impossible; when it is called, if the font cannot be used.
        DataError: when it is called, if there is no class of the name `label`.

    Example:
        TypographicAttack(label="dog", place="top", severities=(0.1,))
        TypographicAttack(word="qwertz", name="control")
    """

    severities: Sequence[float] = (0.04, 0.06, 0.08, 0.12, 0.16)
    label: str | None = None
    word: str | None = None
    place: Place = "bottom"
    font: str | os.PathLike[str] | None = None
    name: str = "text"

    @property
    def unit(self) -> str:
        """Return what severities are, in words."""
        return "height of letters / short side"

    def __post_init__(self) -> None:
        check_severities(self.name, self.severities, 0, 1)
        if self.label is not None and self.word is not None:
            raise ConfigError(
                f"{self.name} writes label={self.label!r:.60} or word={self.word!r:.60}: pass one"
            )
        if self.word is not None and not (isinstance(self.word, str) and self.word.strip()):
            raise ConfigError(f"{self.name} needs a word to write, not {self.word!r:.60}")
        _check_place(self.name, self.place)

    def __call__(self, image: "Image", severity: float, sample: Sample, /) -> "Image":
        target = self.target(sample)
        text = self.word if target is None else as_words(sample.class_names[target])
        return write(image, text or "", severity, place=self.place, font=self.font)

    def target(self, sample: Sample) -> int | None:
        """Return the class whose name is written; None for a word of the caller's.

        It draws from `sample.random` where no label was given.
        """
        if self.word is not None:
            return None
        if self.label is not None:
            return find_classes([self.label], sample.class_names)[self.label]
        shift = int(sample.random.integers(1, len(sample.class_names)))
        return (sample.label + shift) % len(sample.class_names)

    def check(self, class_names: Sequence[str]) -> None:
        """Raise `ConfigError` unless there is something to write for classes of these names.

        Raises:
            ConfigError: if there is no wrong class, no class of that name, or no font that can be
                used; or if the font has no sign for a letter.
        """
        texts = [as_words(name) for name in class_names] if self.word is None else [self.word]
        if self.label is not None:
            try:
                find_classes([self.label], class_names)
            except DataError as error:
                raise ConfigError(f"{self.name}: {error}") from error
            texts = [as_words(self.label)]
        elif self.word is None and len(class_names) < 2:
            raise ConfigError(
                f"{self.name} writes the name of a wrong class, and {class_names[0]!r:.60} is the "
                "only one: pass word="
            )
        font = load_font(_TRIAL, self.font)
        for text in texts:
            _writable(text, font)


def write(
    image: "Image",
    text: str,
    height: float,
    *,
    place: Place = "bottom",
    font: str | os.PathLike[str] | None = None,
) -> "Image":
    """Return a copy of an image with a text on it.

    Args:
        image: in mode RGB.
        text: words.
        height: of capital letters, in lengths of the short side, above 0. It is less where the text
            has no room.
        place, font: as in `TypographicAttack`.

    Raises:
        ConfigError: if the font cannot be used, there is no text, or the height or the place is
            impossible.

    Example:
        write(Image.open("apple.jpg"), "iPod", 0.15).save("attacked.png")
    """
    from PIL import ImageDraw

    if not isinstance(cast("object", text), str) or not text.strip():
        raise ConfigError(f"write needs a text, such as 'iPod', not {text!r:.60}")
    if not is_number(height) or not 0 < height < float("inf"):
        raise ConfigError(f"write needs a height above 0, such as 0.1, not {height!r:.60}")
    _check_place("write", place)
    written = image.copy()
    side = min(image.size)
    block = _fit(_writable(text, load_font(_TRIAL, font)), height * side, side, font)
    left, top = _corner(image.size, block, place)
    pen = ImageDraw.Draw(written)
    for number, line in enumerate(block.lines):
        slack = block.width - block.font.getlength(line)
        pen.text(
            (left + slack * _share_before(place, "left", "right"), top + block.baseline(number)),
            line,
            font=block.font,
            fill="white",
            stroke_width=max(1, round(_STROKE * block.height)),
            stroke_fill="black",
            anchor="ls",  # the point is where the baseline begins
        )
    return written


def _check_place(name: str, place: object) -> None:
    """Raise `ConfigError` unless a place is one of those that there are."""
    if place not in get_args(Place):
        places = ", ".join(get_args(Place))
        raise ConfigError(f"{name} needs a place of {places}, not {place!r:.60}")


@functools.lru_cache(maxsize=64)
def load_font(size: float, path: str | os.PathLike[str] | None = None) -> "FreeTypeFont":
    """Return a font of a size in pixels: one of a file, or the one that comes with Pillow.

    Raises:
        ConfigError: if the file is no font, or Pillow is without fonts of any size.

    Example:
        load_font(24.0).getlength("iPod")
    """
    from PIL import ImageFont

    try:
        if path is not None:
            return ImageFont.truetype(path, size)
        font = ImageFont.load_default(size)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot use {path!r} as a font: {error}") from error
    except (ImportError, TypeError) as error:
        raise ConfigError(
            "writing needs Pillow 10.1 or newer with FreeType: pip install --upgrade Pillow, or "
            f"pass font=, the path of a font ({error})"
        ) from error
    return cast("FreeTypeFont", font)


@dataclass(frozen=True)
class _Block:
    """Hold lines of a text, and how large they are in pixels."""

    lines: list[str]
    font: "FreeTypeFont"
    height: float  # of capital letters

    @property
    def width(self) -> float:
        return max(map(self.font.getlength, self.lines))

    @property
    def whole_height(self) -> float:
        return self.baseline(len(self.lines) - 1) + _DESCENT * self.height

    def baseline(self, number: int) -> float:
        """Return how far below the top of the block the baseline of a line lies."""
        return self.height * (1 + _LEADING * number)


def _fit(text: str, height: float, side: float, path: str | os.PathLike[str] | None) -> _Block:
    """Return a text in lines that have room in a square, the letters no higher than asked."""
    capitals = -load_font(_TRIAL, path).getbbox("H", anchor="ls")[1] / _TRIAL  # of the font's size
    room = side * (1 - 2 * _MARGIN)
    while True:
        font = load_font(max(1.0, round(2 * height / capitals) / 2), path)
        block = _Block(_break(text, font, room), font, height)
        if max(block.width, block.whole_height) <= room or height <= 1:
            return block
        height *= _SHRINK


def _break(text: str, font: "FreeTypeFont", room: float) -> list[str]:
    """Return the words of a text in as few lines as their width needs."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= room:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _corner(size: tuple[int, int], block: _Block, place: Place) -> tuple[float, float]:
    """Return the upper left corner of a block in an image of (width, height)."""
    side = min(size)
    inset = side * _MARGIN
    first, second = (length / 2 - side / 2 + inset for length in size)  # the square's own corner
    right = side - 2 * inset - block.width
    below = side - 2 * inset - block.whole_height
    return (
        first + right * _share_before(place, "left", "right"),
        second + below * _share_before(place, "top", "bottom"),
    )


def _share_before(place: Place, first: str, last: str) -> float:
    """Return how much of the free length lies before the text: 0, 1, or one half."""
    words = place.split()
    if first in words:
        return 0.0
    return 1.0 if last in words else 0.5


def _writable(text: str, font: "FreeTypeFont") -> str:
    """Return a text in letters that a font has: without their accents, if it has them only so.

    Raises:
        ConfigError: if there is a letter that it has neither so nor so.
    """
    missing = _ink("\U0010ffff", font)  # no font has a sign for it, so it shows the one for none
    written = ""
    for letter in text:
        plain = unicodedata.normalize("NFKD", letter)[0]
        found = [one for one in (letter, plain) if one.isspace() or _ink(one, font) != missing]
        if not found:
            raise ConfigError(
                f"the font {font.getname()[0]!r} has no sign for {letter!r} of {text!r:.60}: pass "
                "TypographicAttack(font=...), the path of a font that has, or leave the attack out"
            )
        written += found[0]
    return written


def _ink(letter: str, font: "FreeTypeFont") -> tuple[tuple[int, int], bytes]:
    """Return the size and the pixels of a letter."""
    mask: Any = font.getmask(letter)  # it is a buffer, which its type does not say
    return mask.size, bytes(mask)
