"""Files of arrays: written as safetensors, mapped, and refused where they are damaged."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from clipkit.errors import DataError, OutputError
from clipkit.search.arrays import Arrays, map_arrays, write_arrays


@pytest.fixture
def arrays() -> Arrays:
    return {
        "half": np.arange(6, dtype=np.float16).reshape(2, 3),
        "single": np.array([0.5, -1], np.float32),
        "count": np.array([[1], [-(2**40)]], np.int64),
        "bytes": np.frombuffer(b"abc", np.uint8),
        "none": np.empty((0, 4), np.float16),
    }


def test_arrays_come_back(arrays: Arrays, tmp_path: Path) -> None:
    write_arrays(arrays, tmp_path / "a.safetensors")
    found = map_arrays(tmp_path / "a.safetensors")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_the_files_are_safetensors(arrays: Arrays, tmp_path: Path) -> None:
    write_arrays(arrays, tmp_path / "a.safetensors")
    found = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


def test_what_is_mapped_cannot_be_changed(arrays: Arrays, tmp_path: Path) -> None:
    write_arrays(arrays, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="read-only"):
        map_arrays(tmp_path / "a.safetensors")["half"][0, 0] = 1


def test_a_transposed_array_is_written_in_its_own_order(tmp_path: Path) -> None:
    turned = np.arange(6, dtype=np.float32).reshape(2, 3).transpose()
    write_arrays({"turned": turned}, tmp_path / "a.safetensors")
    np.testing.assert_array_equal(map_arrays(tmp_path / "a.safetensors")["turned"], turned)


@pytest.mark.parametrize("length", [0, 4, 9, 60, -1])
def test_a_file_that_is_cut_is_a_typed_error(length: int, arrays: Arrays, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_arrays(arrays, path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DataError, match=r"a\.safetensors is damaged: "):
        map_arrays(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [(b'"F16"', b'"F99"'), (b"[0,", b"[9,"), (b'"shape"', b'"shabe"'), (b"[2,3]", b"[2,4]")],
)
def test_a_header_that_is_wrong_is_a_typed_error(
    old: bytes, new: bytes, arrays: Arrays, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    write_arrays({"half": arrays["half"]}, path)
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))
    with pytest.raises(DataError, match="is damaged"):
        map_arrays(path)


def test_a_missing_file_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.safetensors is missing"):
        map_arrays(tmp_path / "none.safetensors")


def test_a_place_that_cannot_be_written_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is a file, not a folder"):
        write_arrays({}, tmp_path / "file" / "a.safetensors")


def test_a_folder_that_was_removed_does_not_come_back(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"the folder .*index' was removed while it was written"):
        write_arrays({}, tmp_path / "index" / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_arrays_are_written_from_their_own_memory(tmp_path: Path) -> None:
    features = np.ones((8192, 1024), np.float16)  # 16 MB
    tracemalloc.start()
    try:
        write_arrays({"features": features}, tmp_path / "a.safetensors")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20
    np.testing.assert_array_equal(map_arrays(tmp_path / "a.safetensors")["features"], features)


def test_every_array_begins_where_its_numbers_can_be_mapped(arrays: Arrays, tmp_path: Path) -> None:
    write_arrays(arrays | {"odd": np.zeros(3, np.uint8)}, tmp_path / "a.safetensors")
    for array in map_arrays(tmp_path / "a.safetensors").values():
        assert array.flags.aligned


def test_an_error_while_arrays_are_written_leaves_the_old_file(
    arrays: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    write_arrays(arrays, path)
    before = path.read_bytes()

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OutputError, match="No space left on device. Free some space"):
        write_arrays({"half": arrays["half"]}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
