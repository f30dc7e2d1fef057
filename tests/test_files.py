"""Write files whole or not at all."""

import stat
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from clipkit.checkpoints.weights import read_weights
from clipkit.files import replacing, replacing_folder, sha256, write_weights
from tests.helpers.models import assert_same_weights
from tests.helpers.weight_files import STATE


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(tmp_path / "abc") == expected


def test_write_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "model.safetensors"
    write_weights({**STATE, "visual.tied": STATE["visual.ids"]}, path)
    assert_same_weights(read_weights(path), {**STATE, "visual.tied": STATE["visual.ids"]})
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert list(path.parent.iterdir()) == [path]
    (tmp_path / "plain").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize("old", [None, b"old weights"])
def test_failed_write_leaves_what_was_there(
    old: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    path = tmp_path / "model.safetensors"
    if old:
        path.write_bytes(old)
    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="no space left"):
        write_weights(STATE, path)
    assert [(p, p.read_bytes()) for p in tmp_path.iterdir()] == ([(path, old)] if old else [])


def test_replacing_makes_folders_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "new" / "notes.txt"
    with replacing(path) as partial:
        partial.write_text("first")
        assert not path.exists()
    assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt("no space left")])
def test_an_error_inside_replaces_nothing(error: BaseException, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(type(error), match="no space left"), replacing(tmp_path / "a") as partial:
        partial.write_text("new")
        raise error
    assert (tmp_path / "a").read_text() == "old"
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_an_error_in_one_of_many_replaces_none(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with (
        pytest.raises(OSError, match="no space left"),
        replacing_folder(tmp_path) as fresh,
    ):
        (fresh / "a").write_text("new")
        raise OSError("no space left")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old"}
