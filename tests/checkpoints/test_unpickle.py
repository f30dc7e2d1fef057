"""Read pickles and archives as data: hostile ones run nothing and exhaust nothing."""

import os
import pickle
import shutil
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn
from torch._utils import _rebuild_tensor_v2

from clipkit.checkpoints.weights import read_weights
from clipkit.errors import CorruptCheckpointError, UnsafeCheckpointError
from tests.helpers.models import assert_same_weights
from tests.helpers.pickles import Call, Storage, as_module, tensor_of, write_archive


def test_handmade_archive_is_read(script_class: Any, tmp_path: Path) -> None:
    inner = as_module(script_class, w=tensor_of(Storage(4), 1, (2,), (2,)), flag=True, nothing=None)
    root = as_module(
        script_class,
        layer=inner,
        none=tensor_of(Storage(0), 0, (0, 3), (3, 1)),
        input_resolution=224,
    )
    write_archive(tmp_path / "a.pt", root, {"byteorder": b"little"})
    expected = {
        "layer.w": torch.tensor([2.0, 4.0]),
        "none": torch.zeros(0, 3),
        "input_resolution": torch.tensor(224),
    }
    assert_same_weights(read_weights(tmp_path / "a.pt"), expected)
    write_archive(tmp_path / "a.pt", root, {"byteorder": b"big"})
    with pytest.raises(CorruptCheckpointError, match="other byte order"):
        read_weights(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "tensor",
    [
        tensor_of(Storage(5)),  # the record has four
        tensor_of(Storage(10**15)),
        tensor_of(Storage(2**62)),
        tensor_of(Storage(4), size=(5,)),
        tensor_of(Storage(4), size=(2, 2), stride=(3, 1)),
        tensor_of(Storage(4), offset=1),
        tensor_of(Storage(4), offset=4, size=(), stride=()),
        tensor_of(Storage(4), offset=2**63, size=(1,)),
    ],
)
def test_archive_tensor_beyond_its_record(tensor: Call, script_class: Any, tmp_path: Path) -> None:
    write_archive(tmp_path / "a.pt", as_module(script_class, w=tensor))
    with pytest.raises(CorruptCheckpointError, match=r"reaches beyond its record data/0"):
        read_weights(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "tensor",
    [
        tensor_of(Storage(-1), size=(0,)),
        tensor_of(Storage("4")),
        tensor_of(Storage(4.0)),
        tensor_of(Storage(4), offset=-1),
        tensor_of(Storage(4), size=(-1,)),
        tensor_of(Storage(4), stride=(-1,)),
        tensor_of(Storage(4), size=(2, 2)),
        tensor_of(Storage(4), size=4, stride=1),
        tensor_of(Storage(4, key="9")),
        tensor_of(Storage(4, key="../../etc/passwd")),
        tensor_of(Storage(4, dtype=torch.ComplexFloatStorage)),
        tensor_of(Storage(4, dtype="float")),
        tensor_of("no storage"),
        Call(_rebuild_tensor_v2),
        tensor_of(Storage(4), size=(2**32, 2**32, 1), stride=(0, 0, 1)),
    ],
)
def test_archive_with_a_malformed_tensor(tensor: Call, script_class: Any, tmp_path: Path) -> None:
    write_archive(tmp_path / "a.pt", as_module(script_class, w=tensor))
    with pytest.raises(
        CorruptCheckpointError, match=r"a\.pt \([\d,]+ bytes\) cannot be read as a torch archive"
    ):
        read_weights(tmp_path / "a.pt")


def test_archive_record_header_that_lies(script_class: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    write_archive(path, as_module(script_class, w=tensor_of(Storage(4))))
    content = bytearray(path.read_bytes())
    start = content.index(b"toy/data/0") - 30
    for position, value, message in (
        (start, b"XX", "is malformed"),
        (start + 28, b"\xff\xff", "reaches beyond"),
    ):
        path.write_bytes(content[:position] + value + content[position + 2 :])
        with pytest.raises(CorruptCheckpointError, match=message):
            read_weights(path)


def test_archive_compressed_record(script_class: Any, tmp_path: Path) -> None:
    write_archive(tmp_path / "a.pt", as_module(script_class, w=tensor_of(Storage(10**6))))
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as old,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w") as new,
    ):
        for name in old.namelist():
            if name != "toy/data/0":
                new.writestr(name, old.read(name))
        new.writestr("toy/data/0", b"\0" * 4 * 10**6, zipfile.ZIP_DEFLATED)
    with pytest.raises(CorruptCheckpointError, match="data/0 is compressed"):
        read_weights(tmp_path / "bomb.pt")


def test_a_pickle_outside_the_folder_is_not_the_archives(script_class: Any, tmp_path: Path) -> None:
    """Torch reads the one in the folder, and another reader must not see another model."""
    path = tmp_path / "a.pt"
    write_archive(path, as_module(script_class, w=tensor_of(Storage(4))))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("data.pkl", pickle.dumps({"other": 1}, 2))
    assert_same_weights(read_weights(path), {"w": torch.arange(1.0, 5.0)})


def test_archive_that_nests_without_end(script_class: Any, tmp_path: Path) -> None:
    cycle = script_class()
    cycle.again = cycle
    doubled = script_class()
    for _ in range(60):  # 2**60 paths
        doubled = as_module(script_class, a=doubled, b=doubled)
    for root in (cycle, doubled):
        write_archive(tmp_path / "a.pt", root)
        with pytest.raises(CorruptCheckpointError, match="nest without end"):
            read_weights(tmp_path / "a.pt")


def test_archive_cannot_change_the_reader(script_class: Any, tmp_path: Path) -> None:
    # BUILD with slots sets the attribute "size" of what is on the stack.
    change = b"N}X\x04\x00\x00\x00sizeK\x01s\x86b."
    for target in (
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"c__torch__\nModule\n",
        b"ccollections\nOrderedDict\n",
    ):
        write_archive(tmp_path / "a.pt", b"\x80\x02" + target + change)
        with pytest.raises(CorruptCheckpointError, match="cannot be read as a torch archive"):
            read_weights(tmp_path / "a.pt")
    write_archive(tmp_path / "a.pt", as_module(script_class, w=tensor_of(Storage(4))))
    assert_same_weights(read_weights(tmp_path / "a.pt"), {"w": torch.arange(1.0, 5.0)})


def test_archive_with_a_huge_memo_index_takes_no_memory(tmp_path: Path) -> None:
    write_archive(tmp_path / "a.pt", b"\x80\x02Nr" + struct.pack("<I", 2 * 10**7) + b".")
    tracemalloc.start()
    try:
        with pytest.raises(CorruptCheckpointError, match="holds no tensors"):
            read_weights(tmp_path / "a.pt")
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


def write_raw(path: Path, root: Any, protocol: int) -> None:
    path.write_bytes(pickle.dumps(root, protocol))


def write_zip(path: Path, root: Any, protocol: int) -> None:
    torch.save(root, path, pickle_protocol=protocol)


def write_legacy(path: Path, root: Any, protocol: int) -> None:
    torch.save(root, path, pickle_protocol=protocol, _use_new_zipfile_serialization=False)


def write_script(path: Path, root: Any, protocol: int) -> None:
    write_archive(path, root, protocol=protocol)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("write", [write_raw, write_zip, write_legacy, write_script])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_code_in_a_pickle_is_refused_and_does_not_run(
    write: Callable[[Path, Any, int], None], protocol: int, suffix: str, tmp_path: Path
) -> None:
    marker = tmp_path / "ran"
    spell = f"open({str(marker)!r}, 'w')"
    system: Any = vars(os)["system"]
    gadgets = {
        f"{system.__module__}.system": Call(system, f"touch {marker}"),
        "(builtins|__builtin__).eval": Call(eval, spell),
        "(builtins|__builtin__).exec": Call(exec, spell),
        "(builtins|__builtin__).getattr": Call(getattr, "", "join"),
        r"torch\.serialization\.load": Call(torch.load, str(tmp_path / "other.pt"), None, None),
        r"torch\.hub\.load": Call(torch.hub.load, str(tmp_path), "x"),
        r"torch\.jit\._serialization\.load": Call(torch.jit.load, "x.pt"),
        "numpy.*": Call(numpy.load, "x"),
        "shutil.rmtree": Call(shutil.rmtree, str(tmp_path / "nothing")),
    }
    path = tmp_path / f"evil{suffix}"
    for name, gadget in gadgets.items():
        for root in (gadget, {"state_dict": {"w": torch.Size([1])}, "optimizer": [gadget]}):
            write(path, root, protocol)
            with pytest.raises(
                UnsafeCheckpointError,
                match=rf"evil\{suffix} asks for {name}, .*nothing of it was run",
            ):
                read_weights(path)
    assert not marker.exists()
    eval(spell).close()  # the spell does work
    assert marker.exists()


@pytest.mark.parametrize("new", [True, False])
def test_whole_pickled_module_says_what_to_do(new: bool, tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "model.pt", _use_new_zipfile_serialization=new)
    with pytest.raises(
        UnsafeCheckpointError,
        match=r"torch\.nn\.modules\.linear\.Linear, .*save its state_dict\(\)",
    ):
        read_weights(tmp_path / "model.pt")
