"""Whatever is damaged in an index is told, and nothing of the rest is lost."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipkit.cli import main
from clipkit.errors import ClipkitError, ConfigError, DataError
from clipkit.search import Index
from clipkit.search.manifest import MANIFEST
from tests.search.conftest import ColorModel, names

Damage = Callable[[bytes], bytes]


def with_values(**changes: Any) -> Damage:
    """Return what gives a manifest other values."""
    return lambda content: json.dumps(json.loads(content) | changes).encode()


def without(name: str) -> Damage:
    """Return what takes a value out of a manifest."""

    def damage(content: bytes) -> bytes:
        values = json.loads(content)
        del values[name]
        return json.dumps(values).encode()

    return damage


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


MANIFESTS: list[tuple[str, Damage, str]] = [
    ("empty", lambda _: b"", "is not JSON"),
    ("cut off", half, "is not JSON"),
    ("zeros", lambda content: bytes(len(content)), "is not JSON"),
    ("binary", lambda _: bytes(range(256)), "is not text in UTF-8"),
    ("a list", lambda _: b"[]", "must hold a JSON object, not list"),
    ("null", lambda _: b"null", "must hold a JSON object, not NoneType"),
    ("nothing in it", lambda _: b"{}", "is not the manifest of an index"),
    ("another version", with_values(version=2), "is of version 2, and this clipkit reads 1"),
    ("no version", without("version"), "is of version None, and this clipkit reads 1"),
    ("no entries", without("entries"), r"is damaged: .*'entries'"),
    ("no features", without("features"), r"is damaged: .*'features'"),
    ("fractions", with_values(width=8.0), "a count is no positive integer"),
    ("null for a count", with_values(state=None), "a count is no positive integer"),
    ("null for a name", with_values(entries=None), "a name is no text"),
    ("null for a list", with_values(features=None), "a name is no text"),
    ("a number for a folder", with_values(root=3), "a name is no text"),
    ("a text for patterns", with_values(exclude="*.gif"), "a name is no text"),
    ("a file above", with_values(features=["../a.safetensors"]), "outside its folder"),
    ("a missing file", with_values(features=["features-7.safetensors"]), "-7.* is missing"),
    ("the wrong file", with_values(features=["model.safetensors"]), "holds no float16 features"),
]


@pytest.mark.parametrize(
    ("damage", "problem"), [row[1:] for row in MANIFESTS], ids=[row[0] for row in MANIFESTS]
)
def test_a_damaged_manifest_is_told_and_nothing_else_is_lost(
    damage: Damage, problem: str, folder: Path
) -> None:
    index = Index.build(folder, ColorModel())
    manifest = index.folder / MANIFEST
    sound = manifest.read_bytes()
    manifest.write_bytes(damage(sound))
    before = contents(index.folder)
    for work in works(index, folder):
        with pytest.raises(DataError, match=problem):
            work()
    assert contents(index.folder) == before
    manifest.write_bytes(sound)
    model = ColorModel()
    assert len(Index.build(folder, model)) == 9
    assert model.encoded == 4  # by which it is known again


@pytest.mark.parametrize("kind", ["features", "entries"])
@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (None, "is missing"),
        (lambda _: b"", "is damaged"),
        (half, "is damaged"),
        (lambda content: content[:-1], "is damaged"),
        (lambda content: bytes(len(content)), "is damaged"),
        (lambda content: b"\xff" * len(content), "is damaged"),
    ],
    ids=["missing", "empty", "half", "a byte short", "zeros", "binary"],
)
def test_a_damaged_file_is_told_and_nothing_else_is_lost(
    damage: Damage | None, problem: str, kind: str, folder: Path
) -> None:
    index = Index.build(folder, ColorModel())
    features = index.features
    (path,) = index.folder.glob(f"{kind}-*.safetensors")
    sound = path.read_bytes()
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(sound))
    before = contents(index.folder)
    for work in works(index, folder):
        with pytest.raises(DataError, match=f"{path.name}.*{problem}"):
            work()
    assert contents(index.folder) == before
    path.write_bytes(sound)
    np.testing.assert_array_equal(Index.open(folder).features, features)


@pytest.mark.parametrize("damage", [None, b"", b"\xff" * 200])
def test_a_damaged_look_at_the_model_is_told(damage: bytes | None, folder: Path) -> None:
    index = Index.build(folder, ColorModel())
    path = index.folder / "model.safetensors"
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    with pytest.raises(DataError, match=r"model\.safetensors is (missing|damaged)"):
        Index.build(folder, ColorModel())
    assert len(Index.open(folder)) == 9


@pytest.mark.parametrize("command", ["index", "search", "similar", "duplicates"])
def test_commands_tell_of_a_damaged_manifest(
    command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = Index.build(folder, ColorModel()).folder / MANIFEST
    manifest.write_bytes(b"")
    query = {"search": ["red"], "similar": [str(folder / "red" / "0.png")]}.get(command, [])
    capsys.readouterr()
    assert main([command, *query, str(folder)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    (line,) = told.err.splitlines()
    assert f"{manifest} is not JSON" in line


@pytest.mark.parametrize("name", [MANIFEST, "features-2.safetensors", "entries-2.safetensors"])
@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 200])
def test_what_to_do_about_damage_is_told(name: str, content: bytes, folder: Path) -> None:
    (Index.build(folder, ColorModel()).folder / name).write_bytes(content)
    with pytest.raises(DataError, match="build the index again"):
        Index.open(folder)


@pytest.mark.parametrize("name", ["features-2.safetensors", "entries-2.safetensors"])
def test_what_to_do_about_a_missing_file_is_told(name: str, folder: Path) -> None:
    (Index.build(folder, ColorModel()).folder / name).unlink()
    with pytest.raises(DataError, match="build the index again"):
        Index.open(folder)


def test_an_image_that_was_deleted_is_found_until_the_next_update(folder: Path) -> None:
    index = Index.build(folder, ColorModel())
    index.search("red")
    (folder / "red" / "0.png").unlink()
    reader = Index.open(folder)
    assert "red/0.png" in names(reader.search("red", k=3).paths)
    assert names(reader.similar(folder / "red" / "0.png", k=2).paths) == ["red/1.png", "red/2.png"]
    assert index.update().removed == 1
    assert "red/0.png" not in names(index.search("red", k=9).paths)
    with pytest.raises(ClipkitError, match=r"0\.png"):
        index.similar(folder / "red" / "0.png")


def test_images_that_are_deleted_while_an_index_is_built_are_left_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = Index.scan

    def scan_and_delete(self: Index, images: list[str] | None = None) -> object:
        found = scan(self, images)
        for path in folder.glob("red/*.png"):
            path.unlink()
        return found

    monkeypatch.setattr(Index, "scan", scan_and_delete)
    index = Index.build(folder, ColorModel())
    monkeypatch.undo()
    assert len(index) == 6
    assert [names([path])[0] for path, _ in index.skipped] == [f"red/{n}.png" for n in range(3)]
    assert {problem for _, problem in index.skipped} == {"No such file or directory"}
    assert index.update().removed == 3
    assert index.skipped == []


def test_an_index_of_images_that_are_all_gone_is_kept(folder: Path) -> None:
    index = Index.build(folder, ColorModel())
    features = index.features
    for path in folder.glob("*/*.png"):
        path.unlink()
    with pytest.raises((DataError, ConfigError), match=r"holds no image any more|there is none in"):
        Index.build(folder, ColorModel())
    np.testing.assert_array_equal(Index.open(folder).features, features)


def works(index: Index, folder: Path) -> list[Callable[[], object]]:
    """Return what reads and writes an index."""
    return [
        lambda: Index.open(folder),
        index.update,
        lambda: Index.build(folder, ColorModel()),
        lambda: Index.open(folder, store="usearch"),
    ]


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of all files of a folder."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}
