"""Weight files of every kind: whole, damaged and hostile. Only these tests use torch.jit, to make archives."""

import io
import json
import os
import pickle
import random
import stat
import struct
import sys
import tracemalloc
import types
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch._utils import _rebuild_tensor_v2

from clipkit.checkpoints.weights import read_weights, shard_names, unwrap_state_dict
from clipkit.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    UnsafeCheckpointError,
)
from clipkit.files import sha256, write_weights


class ToyBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2)
        self.ln_1 = nn.LayerNorm(8)
        self.mlp = nn.Sequential(
            OrderedDict(c_fc=nn.Linear(8, 32), gelu=nn.GELU(), c_proj=nn.Linear(32, 8))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.ln_1(x)


class ToyTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(ToyBlock(), ToyBlock())

    def forward(self, x: Tensor) -> Tensor:
        return self.resblocks(x)


class ToyVision(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(8))
        self.positional_embedding = nn.Parameter(torch.randn(5, 8))
        self.proj = nn.Parameter(torch.randn(4, 8).t())  # not contiguous
        self.conv1 = nn.Conv2d(3, 8, 2, 2, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.transformer = ToyTransformer()

    def forward(self, x: Tensor) -> Tensor:
        return self.transformer(x)


class ToyCLIP(nn.Module):
    """CLIP's names, and OpenAI's mixture of dtypes: float16, LayerNorms and embeddings in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = ToyVision()
        self.transformer = ToyTransformer()
        self.token_embedding = nn.Embedding(16, 8)
        self.logit_scale = nn.Parameter(torch.tensor(2.5))
        self.half()
        for module in self.modules():
            if isinstance(module, nn.LayerNorm | nn.Embedding):
                module.float()
        self.transformer.resblocks[1].mlp = self.transformer.resblocks[
            0
        ].mlp  # shared modules and tensors
        for name, value in (("input_resolution", 224), ("context_length", 77), ("vocab_size", 16)):
            self.register_buffer(name, torch.tensor(value))

    def forward(self, x: Tensor) -> Tensor:
        return self.visual(x) + self.transformer(x)


class ToyScript(nn.Module):
    """Attributes of every sort that an archive may hold beside tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))
        self.layer = nn.Linear(3, 3)
        self.sizes, self.names, self.table, self.eps, self.vocab_size = (
            [1, 2],
            ["a"],
            {"a": 1},
            1e-5,
            16,
        )

    def forward(self, x: Tensor) -> Tensor:
        return (
            self.layer(x) * self.weight
            + self.sizes[0]
            + self.eps
            + self.vocab_size
            + self.table[self.names[0]]
        )


def save_torchscript(
    module: nn.Module, path: Path, trace_with: Tensor | None = None
) -> dict[str, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        module = module.eval()
        script: Any = (
            torch.jit.script(module)
            if trace_with is None
            else torch.jit.trace(module, trace_with, check_trace=False)
        )
        script.save(str(path))
        return script.state_dict()


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """The same names, dtypes and bits; nothing asks for gradients."""
    assert sorted(actual) == sorted(expected)
    for name, tensor in expected.items():
        assert (actual[name].dtype, actual[name].shape) == (tensor.dtype, tensor.shape), name
        assert not actual[name].requires_grad
        bits = [
            t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (actual[name], tensor)
        ]
        assert torch.equal(*bits), name


def mapped_file(tensor: Tensor) -> str:
    """Name of the file behind the tensor's memory, or "" when it is ordinary memory."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(end, 16) for end in line.split()[0].split("-"))
        if first <= tensor.data_ptr() < last:
            return line.split(maxsplit=5)[5] if "/" in line else ""
    raise LookupError("memory without a mapping")


STATE = {
    "visual.conv1.weight": torch.randn(8, 3, 2, 2).half(),
    "visual.proj": torch.randn(4, 8).t(),
    "token_embedding.weight": torch.tensor([[float("nan"), -0.0, float("inf")]]),
    "logit_scale": torch.tensor(4.6052, dtype=torch.float64),
    "empty": torch.zeros(0, 3),
    "ids": torch.arange(5),
    "bf": torch.randn(3).bfloat16(),
    "mask": torch.tensor([True, False]),
}


def save_safetensors(path: Path) -> None:
    write_weights(STATE, path)


def save_zip(path: Path) -> None:
    torch.save(STATE, path)


def save_legacy(path: Path) -> None:
    torch.save(STATE, path, _use_new_zipfile_serialization=False)


def save_archive(path: Path) -> None:
    save_torchscript(ToyScript(), path)


KINDS = [save_safetensors, save_zip, save_legacy, save_archive]
every_kind = pytest.mark.parametrize("save", KINDS)


# Whole files


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pt", ""])
@pytest.mark.parametrize("save", KINDS[:3])
def test_reads_each_kind_whatever_its_name(
    save: Callable[[Path], None], suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"weights{suffix}"
    save(path)
    assert_same(read_weights(path), STATE)
    assert_same(read_weights(str(path)), STATE)


def test_traced_clip(tmp_path: Path) -> None:
    expected = save_torchscript(ToyCLIP(), tmp_path / "clip.pt", trace_with=torch.randn(2, 8))
    actual = read_weights(tmp_path / "clip.pt")
    assert {t.dtype for t in actual.values()} == {torch.float16, torch.float32, torch.int64}
    assert_same(actual, expected)
    assert actual["visual.proj"].stride() == (1, 8)
    tied = [actual[f"transformer.resblocks.{i}.mlp.c_fc.weight"] for i in (0, 1)]
    assert tied[0].data_ptr() == tied[1].data_ptr()


def test_scripted_module(tmp_path: Path) -> None:
    expected = save_torchscript(ToyScript(), tmp_path / "toy.safetensors")  # a name that lies
    assert_same(
        read_weights(tmp_path / "toy.safetensors"), {**expected, "vocab_size": torch.tensor(16)}
    )


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
@every_kind
def test_weights_are_mapped_and_the_file_is_safe_from_writes(
    save: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "weights"
    save(path)
    before = sha256(path)
    for tensor in read_weights(path).values():
        if tensor.numel() and tensor.dim():  # TorchScript's plain integers become tensors in memory
            assert mapped_file(tensor) == ("" if save is save_legacy else str(path))
        tensor.zero_()
    assert sha256(path) == before
    assert any(tensor.any() for tensor in read_weights(path).values())


def test_training_checkpoint(tmp_path: Path) -> None:
    state = {"weight": torch.randn(2, 3), "bias": torch.randn(2)}
    optimizer = {
        "state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(2, 3)}},
        "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.98), "fused": None, "params": [0, 1]}],
    }
    prefixed = {f"module.{name}": value for name, value in state.items()}
    torch.save(
        {"epoch": 3, "name": "run", "state_dict": prefixed, "optimizer": optimizer},
        tmp_path / "epoch_3.pt",
    )
    assert_same(read_weights(tmp_path / "epoch_3.pt"), state)


# Shards


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    index = tmp_path / "model.safetensors.index.json"
    write_weights({"a": torch.ones(2)}, tmp_path / "model-1.safetensors")
    torch.save({"b": torch.zeros(3)}, tmp_path / "model-2.bin")
    index.write_text(
        json.dumps({"metadata": {}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.bin"}})
    )
    return index


def test_shards(sharded: Path) -> None:
    assert shard_names(sharded) == ["model-1.safetensors", "model-2.bin"]
    assert_same(read_weights(sharded), {"a": torch.ones(2), "b": torch.zeros(3)})


def test_missing_damaged_and_doubled_shards(sharded: Path) -> None:
    write_weights({"b": torch.ones(2)}, sharded.parent / "model-1.safetensors")
    with pytest.raises(CorruptCheckpointError, match="b is in more than one shard"):
        read_weights(sharded)
    (sharded.parent / "model-2.bin").write_bytes(b"")
    with pytest.raises(CorruptCheckpointError, match=r"model-2\.bin \(0 bytes\) is empty"):
        read_weights(sharded)
    (sharded.parent / "model-2.bin").unlink()
    with pytest.raises(
        CheckpointNotFoundError, match=r"lists the shard model-2\.bin, which is not beside it"
    ):
        read_weights(sharded)


@pytest.mark.parametrize("name", ["../secret.bin", "/etc/passwd", "..", "a\\b"])
def test_shards_outside_the_folder(sharded: Path, name: str) -> None:
    sharded.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CorruptCheckpointError, match="a shard lies outside the folder"):
        read_weights(sharded)


@pytest.mark.parametrize(
    "text", ["{}", '{"weight_map": 1}', '{"weight_map": {"a": 1}}', '{"weight_map": ', "[]"]
)
def test_no_index(sharded: Path, text: str) -> None:
    sharded.write_text(text)
    with pytest.raises(CorruptCheckpointError, match="is no index of weight shards"):
        shard_names(sharded)


# Damage


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="There is no file .*nothing.pt"):
        read_weights(tmp_path / "nothing.pt")
    with pytest.raises(FileNotFoundError, match="is a folder; name the weight file in it"):
        read_weights(tmp_path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"\(0 bytes\) is empty\. Delete it and download"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 605\n",
            "git-lfs pointer.* `git lfs pull`",
        ),
        (b"\n<!DOCTYPE html><html>404</html>", "is a web page"),
        (b"<html>", "is a web page"),
        (
            b"just some text that somebody saved",
            "neither safetensors nor anything that torch.save writes",
        ),
        (b'{"model_type": "clip", "projection_dim": 512}', "is no index of weight shards"),
        (
            struct.pack("<Q", 2**62) + b'{"a":1}',
            r"\(15 bytes\) cannot be read as safetensors .*[Hh]eader",
        ),
        (struct.pack("<Q", 90_000_000) + b'{"a":1}', r"cannot be read as safetensors .*[Hh]eader"),
        (pickle.dumps({"a": 1}, 2), "cannot be read as a torch pickle"),
        (pickle.dumps({"a": 1}, 4), "pickle protocol 2"),
        (bytes(range(128, 256)), "cannot be read as a torch pickle"),
    ],
)
def test_no_checkpoint_at_all(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CorruptCheckpointError, match=rf"(?s)model\.safetensors .*{message}"):
        read_weights(tmp_path / "model.safetensors")


SMALL = {"w": torch.ones(2)}


@pytest.mark.parametrize(
    "save",
    [
        lambda path: write_weights(SMALL, path),
        lambda path: torch.save(SMALL, path),
        lambda path: torch.save(SMALL, path, _use_new_zipfile_serialization=False),
        lambda path: write_archive(path, Storage(4)),
    ],
)
def test_truncated_at_any_byte(save: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "weights"
    save(path)
    for length in reversed(range(path.stat().st_size)):
        os.truncate(path, length)
        with pytest.raises(
            CorruptCheckpointError, match=rf"weights \({length:,} bytes\) .*Delete it and download"
        ):
            read_weights(path)


@every_kind
def test_random_damage_raises_our_errors_or_none(
    save: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "weights"
    save(path)
    content = path.read_bytes()
    chance = random.Random(0)
    outcomes = set()
    for _ in range(200):
        damaged = bytearray(content)
        for _ in range(chance.choice([1, 3, 10])):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            outcomes.add(sum(t.numel() for t in read_weights(path).values()) > 0)
        except CheckpointError as error:
            outcomes.add(type(error))
    assert CorruptCheckpointError in outcomes


def test_zip_of_something_else_and_compressed_records(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photos/cat.jpg", b"cat")
    with pytest.raises(CorruptCheckpointError, match=r"a zip file with 0 data\.pkl"):
        read_weights(path)
    torch.save({"w": torch.zeros(100_000)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(CorruptCheckpointError, match="is compressed; save the weights anew"):
        read_weights(path)


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    good = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert sha256(tmp_path / "abc") == good


# Hostile pickles


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> Any:
        return self.function, self.args


class Storage:
    """Pickles as a reference to the record data/`key`."""

    def __init__(self, numel: Any, key: str = "0", dtype: Any = torch.FloatStorage) -> None:
        self.pid = ("storage", dtype, key, "cpu", numel)


class ArchivePickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return getattr(obj, "pid", None) if isinstance(obj, Storage) else None


@pytest.fixture
def script_class(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A class that pickles as TorchScript's do, as `__torch__.Module`."""
    module: Any = types.ModuleType("__torch__")
    module.Module = type("Module", (), {"__module__": "__torch__"})
    monkeypatch.setitem(sys.modules, "__torch__", module)
    return module.Module


def tensor_of(storage: Any, offset: Any = 0, size: Any = (4,), stride: Any = (1,)) -> Call:
    return Call(_rebuild_tensor_v2, storage, offset, size, stride, False, OrderedDict())


def write_archive(
    path: Path, root: Any, records: dict[str, bytes] | None = None, protocol: int = 2
) -> None:
    """A TorchScript archive around `root`, an object or the bytes of its pickle. data/0 has four float32."""
    if not isinstance(root, bytes):
        buffer = io.BytesIO()
        ArchivePickler(buffer, protocol).dump(root)
        root = buffer.getvalue()
    floats = struct.pack("<4f", 1, 2, 3, 4)
    records = {
        "constants.pkl": b"\x80\x02).",
        "version": b"3\n",
        "data/0": floats,
        "data/1": b"\0" * 99,
    } | (records or {})
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {"data.pkl": root, **records}.items():
            archive.writestr(f"toy/{name}", content)


def as_module(cls: Any, **state: Any) -> Any:
    module = cls()
    module.__dict__.update(state)
    return module


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
    assert_same(read_weights(tmp_path / "a.pt"), expected)
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
            new.writestr(name, old.read(name)) if name != "toy/data/0" else None
        new.writestr("toy/data/0", b"\0" * 4 * 10**6, zipfile.ZIP_DEFLATED)
    with pytest.raises(CorruptCheckpointError, match="data/0 is compressed"):
        read_weights(tmp_path / "bomb.pt")


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
    change = b"N}X\x04\x00\x00\x00sizeK\x01s\x86b."  # BUILD with slots: set the attribute "size" of what is on the stack
    for target in (
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"c__torch__\nModule\n",
        b"ccollections\nOrderedDict\n",
    ):
        write_archive(tmp_path / "a.pt", b"\x80\x02" + target + change)
        with pytest.raises(CorruptCheckpointError, match="cannot be read as a torch archive"):
            read_weights(tmp_path / "a.pt")
    write_archive(tmp_path / "a.pt", as_module(script_class, w=tensor_of(Storage(4))))
    assert_same(read_weights(tmp_path / "a.pt"), {"w": torch.arange(1.0, 5.0)})


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
    gadgets = {
        f"{os.system.__module__}.system": Call(os.system, f"touch {marker}"),
        "(builtins|__builtin__).eval": Call(eval, spell),
        "(builtins|__builtin__).exec": Call(exec, spell),
        "(builtins|__builtin__).getattr": Call(getattr, "", "join"),
        r"torch\.serialization\.load": Call(torch.load, str(tmp_path / "other.pt"), None, None),
        r"torch\.hub\.load": Call(torch.hub.load, str(tmp_path), "x"),
        r"torch\.jit\._serialization\.load": Call(torch.jit.load, "x.pt"),
        "numpy.*": Call(__import__("numpy").load, "x"),
        "shutil.rmtree": Call(__import__("shutil").rmtree, str(tmp_path / "nothing")),
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


# State dicts


def test_unwraps_wrappers_and_prefixes() -> None:
    state = {"a.weight": torch.ones(2), "b": torch.zeros(1)}
    for prefix in ("", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."):
        prefixed = {prefix + name: tensor for name, tensor in state.items()}
        for wrapped in (
            prefixed,
            {"state_dict": prefixed, "epoch": 1, "anything": object()},
            {"model": prefixed},
            {"model_state_dict": {"state_dict": prefixed}},
            {**prefixed, "epoch": 4, "optimizer": {}},
        ):
            before = {name: value for name, value in wrapped.items()}
            assert_same(unwrap_state_dict(wrapped), state)
            assert list(wrapped) == list(before) and all(
                wrapped[name] is before[name] for name in before
            )


def test_prefixes_that_are_not_shared_stay() -> None:
    state = {"module.a": torch.ones(2), "b": torch.zeros(1)}
    assert_same(unwrap_state_dict(state), state)


def test_unwraps_parameters_without_copying() -> None:
    weight = nn.Parameter(torch.ones(2))
    unwrapped = unwrap_state_dict({"w": weight})["w"]
    assert (
        type(unwrapped) is Tensor
        and unwrapped.data_ptr() == weight.data_ptr()
        and weight.requires_grad
    )


CYCLE: dict[str, Any] = {}
CYCLE["model"] = CYCLE


@pytest.mark.parametrize(
    ("obj", "message"),
    [
        (torch.ones(1), "holds a Tensor, not a state dict"),
        ([torch.ones(1)], "holds a list"),
        ({}, "holds no tensors"),
        ({"epoch": 1, "optimizer": {}}, "holds no tensors"),
        ({"state_dict": {}}, "holds no tensors"),
        ({"w": torch.ones(1), "note": "hello"}, "entry 'note' that is a str"),
        ({1: torch.ones(1)}, "entry 1 "),
        (CYCLE, "entry 'model' that is a dict"),
    ],
)
def test_no_state_dict(obj: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(CorruptCheckpointError, match=message):
        unwrap_state_dict(obj)
    torch.save(obj, tmp_path / "x.pt")
    with pytest.raises(
        CorruptCheckpointError, match=rf"x\.pt \([\d,]+ bytes\) .*{message}.*state_dict\(\) alone"
    ):
        read_weights(tmp_path / "x.pt")


# Writing


def test_write_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "model.safetensors"
    write_weights({**STATE, "tied": STATE["ids"]}, path)
    assert_same(read_weights(path), {**STATE, "tied": STATE["ids"]})
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
    path.write_bytes(old) if old else None
    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="no space left"):
        write_weights(STATE, path)
    assert [(p, p.read_bytes()) for p in tmp_path.iterdir()] == ([(path, old)] if old else [])


@every_kind
def test_saving_over_the_file_that_was_loaded(save: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "weights"
    save(path)
    weights = read_weights(path)
    before = {name: tensor.clone() for name, tensor in weights.items()}
    write_weights(weights, path)
    assert_same(weights, before)
    assert_same(read_weights(path), before)
