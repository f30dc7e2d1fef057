"""Read weight files of every kind, by their bytes and not by their names."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from clipkit.checkpoints.weights import read_weights, shard_names
from clipkit.errors import CheckpointNotFoundError, CorruptCheckpointError
from clipkit.files import sha256, write_weights
from tests.helpers.models import assert_same_weights
from tests.helpers.weight_files import (
    KINDS,
    STATE,
    Save,
    ToyCLIP,
    ToyScript,
    every_kind,
    mapped_file,
    save_legacy,
    save_torchscript,
)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pt", ""])
@pytest.mark.parametrize("save", KINDS[:3])
def test_reads_each_kind_whatever_its_name(save: Save, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    save(path)
    assert_same_weights(read_weights(path), STATE)
    assert_same_weights(read_weights(str(path)), STATE)


def test_traced_clip(tmp_path: Path) -> None:
    expected = save_torchscript(ToyCLIP(), tmp_path / "clip.pt", trace_with=torch.randn(2, 8))
    actual = read_weights(tmp_path / "clip.pt")
    assert {t.dtype for t in actual.values()} == {torch.float16, torch.float32, torch.int64}
    assert_same_weights(actual, expected)
    assert actual["visual.proj"].stride() == (1, 8)
    tied = [actual[f"transformer.resblocks.{i}.mlp.c_fc.weight"] for i in (0, 1)]
    assert tied[0].data_ptr() == tied[1].data_ptr()


def test_scripted_module(tmp_path: Path) -> None:
    path = tmp_path / "toy.safetensors"  # a name that lies
    expected = save_torchscript(ToyScript(), path)
    assert_same_weights(read_weights(path), {**expected, "vocab_size": torch.tensor(16)})


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
@every_kind
def test_weights_are_mapped_where_asked_and_the_file_is_safe_from_writes(
    save: Save, tmp_path: Path
) -> None:
    path = tmp_path / "weights"
    save(path)
    before = sha256(path)
    for tensor in read_weights(path, mapped=True).values():
        if tensor.numel() and tensor.dim():  # TorchScript's plain integers become tensors in memory
            assert mapped_file(tensor) == ("" if save is save_legacy else str(path))
        tensor.zero_()
    assert sha256(path) == before
    assert any(tensor.any() for tensor in read_weights(path).values())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
@every_kind
def test_weights_are_in_memory_where_not_asked_and_no_map_stays_open(
    save: Save, tmp_path: Path
) -> None:
    path = tmp_path / "weights"
    save(path)
    weights = read_weights(path)
    assert weights
    assert str(path) not in Path("/proc/self/maps").read_text()
    before = {name: value.clone() for name, value in weights.items()}
    path.write_bytes(bytes(path.stat().st_size))
    assert_same_weights(weights, before)
    assert any(tensor.any() for tensor in weights.values())


def test_training_checkpoint(tmp_path: Path) -> None:
    state = {"weight": torch.randn(2, 3), "bias": torch.randn(2)}
    optimizer = {
        "state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(2, 3)}},
        "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.98), "fused": None, "params": [0, 1]}],
    }
    prefixed = {f"module.{name}": value for name, value in state.items()}
    content = {"epoch": 3, "name": "run", "state_dict": prefixed, "optimizer": optimizer}
    torch.save(content, tmp_path / "epoch_3.pt")
    assert_same_weights(read_weights(tmp_path / "epoch_3.pt"), state)


@every_kind
def test_saving_over_the_file_that_was_loaded(save: Save, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    save(path)
    weights = read_weights(path)
    before = {name: tensor.clone() for name, tensor in weights.items()}
    write_weights(weights, path)
    assert_same_weights(weights, before)
    assert_same_weights(read_weights(path), before)


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
    assert_same_weights(read_weights(sharded), {"a": torch.ones(2), "b": torch.zeros(3)})


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


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_the_state_of_an_optimizer_is_not_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is twice as large as the weights, and nothing reads it here."""
    path = tmp_path / "epoch.pt"
    torch.save({"model": {"a": torch.ones(3)}, "optimizer": {"exp_avg": torch.ones(5)}}, path)
    contents: list[Any] = []

    def load(*arguments: Any, load: Any = torch.load, **options: Any) -> Any:
        contents.append(load(*arguments, **options))
        return contents[-1]

    monkeypatch.setattr(torch, "load", load)
    weights = read_weights(path)
    assert mapped_file(contents[0]["optimizer"]["exp_avg"]) == str(path)
    assert mapped_file(weights["a"]) == ""
    contents.clear()
    assert str(path) not in Path("/proc/self/maps").read_text()
