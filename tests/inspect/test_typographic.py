"""Words are written where, how large and what they are said to be."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFont

from clipkit.errors import ConfigError
from clipkit.inspect import TypographicAttack, write
from clipkit.inspect.corruptions import Sample, sample_of

NAMES = ["cat", "dog", "red_panda"]
RED = (255, 0, 0)  # a ground that letters, white with a black line, differ from


def sample(index: int = 0, label: int = 0) -> Sample:
    return sample_of(index, label, NAMES, name="text")


def ground(width: int = 300, height: int = 200) -> Image.Image:
    return Image.new("RGB", (width, height), RED)


def written(image: Image.Image) -> NDArray[np.bool_]:
    """Return where an image is not red, (h, w)."""
    return np.any(np.asarray(image) != RED, axis=2)


def white(image: Image.Image) -> NDArray[np.bool_]:
    """Return where an image is white, (h, w): letters without the line around them."""
    return np.all(np.asarray(image) > 200, axis=2)


def box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of what is True."""
    rows, columns = mask.nonzero()
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


@pytest.mark.parametrize("height", [0.1, 0.2, 0.3])
def test_severity_is_the_height_of_capital_letters(height: float) -> None:
    _, top, _, bottom = box(white(write(ground(), "H", height)))
    assert bottom - top == pytest.approx(height * 200, abs=2)


def test_letters_are_as_large_in_a_portrait_as_in_a_landscape() -> None:
    heights = [
        box(white(write(ground(*size), "H", 0.2)))[3]
        - box(white(write(ground(*size), "H", 0.2)))[1]
        for size in ((300, 200), (200, 300), (200, 200))
    ]
    assert len(set(heights)) == 1


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (200, 200)])
@pytest.mark.parametrize(
    ("place", "horizontal", "vertical"),
    [
        ("top left", 0, 0),
        ("top", 1, 0),
        ("top right", 2, 0),
        ("left", 0, 1),
        ("center", 1, 1),
        ("right", 2, 1),
        ("bottom left", 0, 2),
        ("bottom", 1, 2),
        ("bottom right", 2, 2),
    ],
)
def test_the_place_is_in_the_square_that_preprocessing_keeps(
    place: Any, horizontal: int, vertical: int, size: tuple[int, int]
) -> None:
    left, top, right, bottom = box(written(write(ground(*size), "dog", 0.1, place=place)))
    side = min(size)
    x, y = (size[0] - side) // 2, (size[1] - side) // 2
    assert x <= left < right <= x + side
    assert y <= top < bottom <= y + side
    third = side / 3
    assert x + horizontal * third <= (left + right) / 2 <= x + (horizontal + 1) * third
    assert y + vertical * third <= (top + bottom) / 2 <= y + (vertical + 1) * third


def test_long_texts_are_broken_at_spaces() -> None:
    one = box(white(write(ground(), "HHHH", 0.15)))
    two = box(white(write(ground(), "HHHH HHHH HHHH", 0.15)))
    assert two[3] - two[1] > 2 * (one[3] - one[1])


@pytest.mark.parametrize("text", ["x" * 60, "word " * 40])
def test_a_text_without_room_is_written_smaller(text: str) -> None:
    left, top, right, bottom = box(written(write(ground(), text, 0.3, place="center")))
    assert 54 <= left < right <= 246
    assert 4 <= top < bottom <= 196


def test_underscores_become_spaces() -> None:
    attack = TypographicAttack(label="red_panda")
    found = attack(ground(), 0.1, sample())
    assert np.array_equal(np.asarray(found), np.asarray(write(ground(), "red panda", 0.1)))


def test_a_wrong_class_is_drawn_for_each_image_and_is_the_same_at_every_severity() -> None:
    attack = TypographicAttack()
    targets = [attack.target(sample(index, index % 3)) for index in range(300)]
    assert all(target != index % 3 for index, target in enumerate(targets))
    counts = [targets.count(target) for target in range(3)]
    assert min(counts) > 70
    target = attack.target(sample(5))
    assert target is not None
    name = NAMES[target].replace("_", " ")
    for severity in (0.1, 0.2):
        found = np.asarray(attack(ground(), severity, sample(5)))
        assert np.array_equal(found, np.asarray(write(ground(), name, severity)))


def test_the_class_and_the_word_can_be_chosen() -> None:
    assert TypographicAttack(label="dog").target(sample()) == 1
    assert TypographicAttack(word="dog").target(sample()) is None
    found = TypographicAttack(word="qwertz", place="top")(ground(), 0.1, sample())
    assert np.array_equal(
        np.asarray(found), np.asarray(write(ground(), "qwertz", 0.1, place="top"))
    )


def test_the_image_stays_as_it_is() -> None:
    image = ground()
    TypographicAttack()(image, 0.1, sample())
    assert not written(image).any()


def test_accents_are_taken_away_where_the_font_has_none() -> None:
    plain = np.asarray(write(ground(), "cafe", 0.1))
    assert np.array_equal(np.asarray(write(ground(), "caf\u00e9", 0.1)), plain)


def test_letters_without_a_sign_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'Aileron' has no sign for '\u732b'.*pass Typo.*font="):
        TypographicAttack().check(["cat", "\u732b"])
    TypographicAttack(label="cat").check(["cat", "\u732b"])  # only "cat" is written
    with pytest.raises(ConfigError, match="has no sign for '\u732b'"):
        write(ground(), "\u732b", 0.1)


def test_a_font_of_the_callers_is_taken() -> None:
    import matplotlib

    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    found = np.asarray(write(ground(), "d\u00f6g", 0.1, font=file))
    assert not np.array_equal(found, np.asarray(write(ground(), "dog", 0.1, font=file)))
    _, top, _, bottom = box(white(write(ground(), "H", 0.3, font=file)))
    assert bottom - top == pytest.approx(60, abs=2)
    assert not np.array_equal(found, np.asarray(write(ground(), "d\u00f6g", 0.1)))


def test_a_file_that_is_no_font_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "font.ttf"
    file.write_text("no font")
    with pytest.raises(ConfigError, match="cannot use .*font.ttf.* as a font"):
        TypographicAttack(font=file).check(NAMES)


def test_pillow_without_freetype_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(size: float | None = None) -> None:
        raise ImportError("The _imagingft C module is not installed")

    monkeypatch.setattr(ImageFont, "load_default", without)
    with pytest.raises(ConfigError, match=r"Pillow 10.1 or newer.*_imagingft"):
        write(ground(), "dog", 0.123456)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"severities": (2.0,)}, "text needs severities above 0, at most 1, not 2.0"),
        ({"label": "dog", "word": "cat"}, "label='dog' or word='cat': pass one"),
        ({"word": "  "}, "a word to write, not '  '"),
        ({"place": "middle"}, "a place of top left, top, .*, not 'middle'"),
    ],
)
def test_impossible_attacks_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TypographicAttack(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": ""}, "write needs a text, such as 'iPod', not ''"),
        ({"text": " "}, "write needs a text, such as 'iPod', not ' '"),
        ({"text": None}, "write needs a text, such as 'iPod', not None"),
        ({"place": "zz"}, "write needs a place of top left, .*, not 'zz'"),
        ({"height": -1}, "write needs a height above 0, such as 0.1, not -1"),
        ({"height": float("nan")}, "write needs a height above 0, .* not nan"),
        ({"height": "big"}, "write needs a height above 0, .* not 'big'"),
    ],
)
def test_what_cannot_be_written_is_refused(options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"text": "dog", "height": 0.1, **options}
    with pytest.raises(ConfigError, match=message):
        write(ground(), **given)


def test_classes_that_are_not_there_are_refused() -> None:
    with pytest.raises(ConfigError, match="text: no class of this classifier is called 'bird'"):
        TypographicAttack(label="bird").check(NAMES)
    with pytest.raises(ConfigError, match="'cat' is the only one: pass word="):
        TypographicAttack().check(["cat"])
    TypographicAttack(word="dog").check(["cat"])
