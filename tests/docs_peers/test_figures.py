"""The figures of the explanations are there, are small, can be read, and still can be drawn."""

import runpy
from pathlib import Path
from typing import Any

import pytest

import clipkit

pytest.importorskip("matplotlib")

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SCRIPT: dict[str, Any] = runpy.run_path(str(ROOT / "scripts" / "figures.py"))
FIGURES: dict[str, Any] = SCRIPT["FIGURES"]
SHOWN = 700  # pixels that a page has for a figure
SMALLEST = 10  # pixels of a letter with its room


@pytest.fixture(scope="module")
def model() -> clipkit.CLIP:
    return clipkit.CLIP.from_pretrained("tiny", device="cpu")


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_there_and_small_and_on_a_page(name: str) -> None:
    assert (DOCS / name).stat().st_size <= 60_000
    pages = [page.name for page in DOCS.glob("*.md") if f"]({name})" in page.read_text("utf-8")]
    assert pages != []


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_can_be_drawn_and_read(name: str, model: clipkit.CLIP) -> None:
    from matplotlib.text import Text

    figure = FIGURES[name](model)
    width, _ = figure.get_size_inches()
    texts = [text for text in figure.findobj(Text) if text.get_text().strip()]
    assert texts != []
    pixels = [text.get_fontsize() / 72 * SHOWN / width for text in texts]
    assert min(pixels) >= SMALLEST


def test_strengths_are_read_off_the_page() -> None:
    page = (DOCS / "few_shot.md").read_text("utf-8")
    strengths, gains = SCRIPT["read_strengths"](page)
    assert strengths == sorted(strengths, reverse=True)
    assert len(gains) >= 5
    assert all(len(values) == len(strengths) for values in gains.values())
    assert not any("pairs" in name for name in gains)
    with pytest.raises(SystemExit, match="no table that begins with 'one image a class'"):
        SCRIPT["read_strengths"](page.replace("one image a class", "two"))
