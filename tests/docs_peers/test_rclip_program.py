"""Run rclip's own program beside clipkit's, as the page "Coming from rclip" writes both.

The weights that rclip downloads are replaced by the towers of a small model with random weights,
exported to the files that rclip looks for. Nothing of rclip is replaced.
"""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import clipkit
from clipkit.errors import TokenizerError

PAGE = Path(__file__).parents[2] / "docs" / "from_rclip.md"
CODE = re.compile(r"`([^`]+)`")
NAME = re.compile(r"[\w.-]+\.(?:png|jpg)")
# rclip leaves out images of the query, which `clipkit search` lists. The page says so.
QUERY_IMAGES = {"cat.jpg", "pool.jpg"}


def commands() -> list[tuple[str, str]]:
    """Return the pairs of commands in the first table of the page."""
    rows = PAGE.read_text("utf-8").partition("|---|---|\n")[2].partition("\n\n")[0]
    pairs: list[tuple[str, str]] = []
    for row in rows.splitlines():
        cells = [cell.replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
        theirs, ours = (CODE.search(cell) for cell in cells)
        if theirs and ours and "none" not in cells[0] + cells[1]:
            pairs.append((theirs[1], ours[1]))
    return pairs


@dataclass(frozen=True)
class World:
    """Hold a folder for both programs.

    Attributes:
        folder: holds `photos`, the folder of the images.
        data: rclip's folder of data, with the towers.
        model: the same model as clipkit loads it.
    """

    folder: Path
    data: Path
    model: Path

    def run(self, command: str, place: str = "photos") -> str:
        """Run a line of the shell in a folder, and return what it prints."""
        variables = {
            "PATH": f"{self.data / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(Path(clipkit.__file__).parents[1]),
            "RCLIP_DATADIR": str(self.data),
            "OMP_NUM_THREADS": "1",
        }
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder / place,
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def names(self, command: str, place: str = "photos") -> list[str]:
        """Return the names of the images that a command prints, in its order."""
        return NAME.findall(self.run(command, place))

    def vectors(self) -> dict[str, NDArray[np.float32]]:
        """Return what rclip has kept of the photos, by their names."""
        rows = sqlite3.connect(self.data / "db.sqlite3").execute(
            "SELECT filepath, vector FROM images WHERE deleted IS NULL AND filepath LIKE ?",
            (f"{self.folder / 'photos'}/%",),
        )
        return {Path(path).name: np.frombuffer(vector, np.float32) for path, vector in rows}


def write_tower(model: clipkit.CLIP, tower: Any, path: Path) -> None:
    """Write a tower as ONNX, with the name of the input that rclip gives."""
    onnx = pytest.importorskip("onnx")
    model.export_tower(path, tower=tower)
    program = onnx.load(path)
    old = program.graph.input[0].name
    program.graph.input[0].name = "input"
    for node in program.graph.node:
        node.input[:] = ["input" if name == old else name for name in node.input]
    onnx.save(program, path)


def write_programs(folder: Path) -> None:
    """Write the commands `rclip`, `clipkit`, and an `xdg-open` that prints what it would open."""
    folder.mkdir()
    python = f'exec "{sys.executable}" -W ignore -m'
    lines = {name: f'{python} {name} "$@"' for name in ("rclip", "clipkit")}
    for name, line in {**lines, "xdg-open": 'echo "$1"'}.items():
        (folder / name).write_text(f"#!/bin/bash\n{line}\n")
        (folder / name).chmod(0o755)


def noise(number: int) -> Image.Image:
    """Return an image of few colored squares, which no other number has."""
    pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((280 + 20 * (number % 3), 260), Image.Resampling.NEAREST)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Make the model, its towers, and seven photos of which clipkit has an index."""
    download = pytest.importorskip("rclip.model_download")
    open_clip = pytest.importorskip("open_clip")
    root = tmp_path_factory.mktemp("rclip")
    torch.manual_seed(0)
    vision = clipkit.ViTConfig(
        resolution=(256, 256), patch_size=32, width=64, layers=2, activation="gelu"
    )
    text = clipkit.TextConfig(width=64, layers=2, activation="gelu")
    model = clipkit.CLIP(clipkit.CLIPConfig(embed_dim=512, vision=vision, text=text)).eval()
    model.save_pretrained(root / "model")
    towers = root / "data" / download.MODEL_SUBDIR
    towers.mkdir(parents=True)
    write_tower(model, "image", towers / download.VISUAL_ONNX)
    write_tower(model, "text", towers / download.TEXTUAL_ONNX)
    vocabulary = root / "data" / download.TOKENIZER_VOCAB
    vocabulary.parent.mkdir()
    shutil.copy(Path(open_clip.__file__).parent / vocabulary.name, vocabulary)
    write_programs(root / "data" / "bin")
    (root / "photos" / "thumbnails").mkdir(parents=True)
    names = ["cat.jpg", "pool.jpg", "a.png", "b.png", "c.png", "d.png", "thumbnails/small.png"]
    for number, name in enumerate(names):
        noise(number).save(root / "photos" / name)
    world = World(root, root / "data", root / "model")
    world.run(f"clipkit index photos --model {world.model}", ".")
    return world


@pytest.fixture
def world(made: World, tmp_path: Path) -> World:
    """Copy the photos and clipkit's index, so that a test may change them."""
    shutil.copytree(made.folder / "photos", tmp_path / "photos")
    return World(tmp_path, made.data, made.model)


@pytest.mark.parametrize(("theirs", "ours"), commands())
def test_both_commands_of_a_row_find_the_same(world: World, theirs: str, ours: str) -> None:
    world.run("rclip cat")
    photos = world.folder / "photos"
    noise(20).save(photos / "late.png")
    if "--include-hidden" in ours:
        noise(21).save(photos / ".hidden.png")
    place = "." if "photos" in ours else "photos"
    found, expected = world.names(ours, place), world.names(theirs, place)
    assert len(expected) >= 5
    if "-n 5" not in ours:
        assert ("late.png" in found) == ("--no-update" not in ours)
        assert ("small.png" in found) == ("--exclude" not in ours)
        assert (".hidden.png" in found) == ("--include-hidden" in ours)
    if "cat.jpg" in ours or "pool.jpg" in ours:  # an image of the query
        found = [name for name in found if name not in QUERY_IMAGES or name in expected]
    assert found == expected


def test_the_page_has_rows_to_run() -> None:
    assert len(commands()) == 10
    assert all("rclip" in theirs and "clipkit" in ours for theirs, ours in commands())
    options = " ".join(ours for _, ours in commands())
    assert {"--no-update", "--exclude", "--include-hidden", "--html", "-0"} <= set(options.split())


def test_options_of_rclip_in_the_page_exist() -> None:
    parser: Any = pytest.importorskip("rclip.utils.helpers").init_arg_parser()
    known: set[str] = set(parser._option_string_actions)
    text = PAGE.read_text("utf-8").replace("\\|", "|")
    lines = [code.partition(" | ")[0] for code in CODE.findall(text) if "rclip " in code]
    named = {option for line in lines for option in re.findall(r" (--?[a-z-]+|[+-])(?= |$)", line)}
    assert named - known == set()
    assert {"-t", "-f", "-n", "-p", "+", "-", "--exclude-dir"} <= named
    assert parser.get_default("top") == 10


def test_rclip_reads_files_as_the_page_says(world: World) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    photos = world.folder / "photos"
    noise(30).save(photos / "plain.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    noise(30).save(photos / "turned.png", exif=turned)
    clear = noise(31).convert("RGBA")
    clear.putalpha(0)
    clear.save(photos / "clear.png")
    noise(31).save(photos / "opaque.png")
    noise(32).save(photos / "photo.heic")
    noise(33).save(photos / "photo.avif")
    whole = (photos / "cat.jpg").read_bytes()
    (photos / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    world.run("rclip cat")
    theirs = world.vectors()
    assert theirs["cat.jpg"].shape == (512,)
    assert np.array_equal(theirs["turned.png"], theirs["plain.png"])
    assert np.array_equal(theirs["clear.png"], theirs["opaque.png"])
    assert theirs.keys() & {"photo.heic", "photo.avif", "cut.jpg"} == {"photo.heic", "cut.jpg"}

    model = clipkit.CLIP.from_pretrained(world.model, device="cpu")
    ours = model.embed_images([photos / name for name in ("cat.jpg", "turned.png", "clear.png")])
    assert np.abs(ours[0].numpy() - theirs["cat.jpg"]).max() < 1e-5
    assert np.abs(ours[1].numpy() - theirs["turned.png"]).max() > 1e-3
    assert np.abs(ours[2].numpy() - theirs["clear.png"]).max() > 1e-3
    found = world.run("clipkit search cat -n 20 -f 2>&1")
    assert {"photo.heic", "photo.avif"} <= set(found.splitlines())
    assert "skipped: cut.jpg" in found


def test_rclip_knows_renamed_files_by_their_content(world: World) -> None:
    world.run("rclip cat")
    kept = world.vectors()["a.png"]
    photos = world.folder / "photos"
    (photos / "a.png").rename(photos / "renamed.png")
    tower = next(world.data.rglob("visual.onnx"))
    content = tower.read_bytes()
    tower.write_bytes(b"nothing can be encoded")
    try:
        world.run("rclip cat")
    finally:
        tower.write_bytes(content)
    assert "a.png" not in world.vectors()
    assert np.array_equal(world.vectors()["renamed.png"], kept)


def test_rclip_cuts_long_texts_without_a_word(made: World) -> None:
    tokenizer = pytest.importorskip("rclip.utils.tokenizer")
    long = "a photo of a cat " * 40
    vocabulary = next(made.data.rglob("bpe_simple_vocab_16e6.txt.gz"))
    theirs: NDArray[np.int64] = tokenizer.SimpleTokenizer(str(vocabulary))([long])
    assert np.array_equal(theirs, clipkit.tokenize([long], truncate=True).numpy())
    with pytest.raises(TokenizerError, match="more than context_length=77"):
        clipkit.tokenize([long])
