"""The gallery lists every figure of the pages, and its script draws what it says."""

import re
from pathlib import Path

import pytest
from PIL import Image

import clipkit
from scripts import gallery

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "gallery.md").read_text("utf-8")
FILES = sorted(path.name for path in (ROOT / "docs").iterdir() if path.suffix in (".png", ".jpg"))
pytest.importorskip("matplotlib")


@pytest.mark.parametrize("name", FILES)
def test_every_figure_is_in_the_gallery(name: str) -> None:
    assert f"]({name})" in PAGE


def test_commands_are_of_scripts_that_are_there() -> None:
    scripts = set(re.findall(r"python ((?:scripts|examples|tests)/[\w/]+\.py)", PAGE))
    assert len(scripts) > 5
    assert [script for script in scripts if not (ROOT / script).is_file()] == []


def test_what_the_script_draws_is_shown() -> None:
    shown = set(re.findall(r"\]\(([\w.]+)\)", PAGE))
    assert set(gallery.FIGURES) - shown == set()


@pytest.mark.parametrize(
    "name", ["gallery_attention.png", "gallery_few_shot.png", "gallery_robustness.png"]
)
def test_figures_are_drawn_small_enough(name: str, tmp_path: Path) -> None:
    gallery.write(gallery.FIGURES[name](), tmp_path / name)
    assert (tmp_path / name).stat().st_size <= gallery.LARGEST
    with Image.open(tmp_path / name) as image:
        assert image.width > 400


def test_a_figure_that_does_not_fit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "LARGEST", 10)
    with pytest.raises(ValueError, match=r"a\.png does not fit into 10 bytes"):
        gallery.write(Image.new("RGB", (9, 9)), tmp_path / "a.png")


def test_the_views_of_a_vision_transformer_are_drawn() -> None:
    vision = clipkit.ViTConfig(
        resolution=(64, 64), patch_size=16, width=64, layers=2, activation="quick_gelu"
    )
    text = clipkit.TextConfig(width=64, layers=1, activation="quick_gelu")
    model = clipkit.CLIP(clipkit.CLIPConfig(embed_dim=32, vision=vision, text=text)).eval()
    titles = [axes.get_title() for axes in gallery.vit_views(model).axes]
    assert titles == ["filters of the patches", "alike positions", "how far each head looks"]
