"""Test that checkpoints load as they lie about; broken and hostile ones end in one error."""

import bz2
import gzip
import json
import logging
import lzma
import os
import shutil
import struct
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

import clipkit
from clipkit import CLIP
from clipkit.checkpoints import hub
from clipkit.checkpoints.save import FolderLayout
from clipkit.checkpoints.weights import read_weights
from clipkit.errors import (
    CheckpointError,
    ClipkitError,
    ConfigError,
    CorruptCheckpointError,
    UnsupportedCheckpointError,
)
from clipkit.files.locks import holding
from tests.helpers.models import RESNET, VIT, assert_same_weights, random_clip

State = dict[str, Tensor]


def under(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


@pytest.fixture(scope="module")
def state() -> State:
    return random_clip(VIT).state_dict()


def load_saved(saved: Any, folder: Path, config: Any = VIT) -> CLIP:
    torch.save(saved, folder / "saved.pt")
    return clipkit.load(folder / "saved.pt", config=config, device="cpu")[0]


HEAD = {"head.weight": torch.ones(3, 32)}
METRIC = {"val_acc.correct": torch.tensor(3)}
PROMPTS = {"prompt_learner.ctx": torch.ones(4, 64)}


# Kinds K1 to K4: a CLIP at any depth, with anything beside it.
@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": {**under("model.", s), **HEAD}},
        lambda s: {"state_dict": {**under("model.", s), **METRIC}, "epoch": 3},
        lambda s: {**under("clip_model.", s), **PROMPTS},
        lambda s: {**under("module.clip_model.", s), **under("module.", PROMPTS)},
        lambda s: under("net.encoder.backbone.clip.", s),
        lambda s: {"net": s, "acc": 93.2},
        lambda s: {"module": s, "ds_config": {}},
        lambda s: {"weights": {"ema": {"student": under("_orig_mod.", s)}}, "history": [1, 2]},
        lambda s: {"n_averaged": torch.tensor(4), **under("module.", s)},
        lambda s: {**s, **HEAD},
        lambda s: {"model": s, "model_ema": {name: value.clone() for name, value in s.items()}},
        lambda s: [s, {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}],
        lambda s: {"models": [under("module.", s)], "history": [[0.1, 0.2], [0.3]]},
        lambda s: ("run", 3, {"ema": under("model_ema.module.", s)}),
        lambda s: {"ema_model.n_averaged": torch.tensor(4), **under("ema_model.module.", s)},
    ],
)
def test_a_clip_is_found_wherever_it_lies(
    wrap: Callable[[State], Any], state: State, tmp_path: Path
) -> None:
    assert_same_weights(load_saved(wrap(state), tmp_path).state_dict(), state)


def test_what_is_left_aside_is_told(
    state: State, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "clipkit"):
        load_saved({**under("clip.", state), **HEAD}, tmp_path)
    assert "took the CLIP under 'clip'" in caplog.text
    assert "head.weight" in caplog.text


def test_a_mask_beside_a_clip_does_not_prune_it(state: State, tmp_path: Path) -> None:
    beside = {"decoder.mask_token": torch.ones(2), "decoder.mask_head.weight": torch.ones(2)}
    loaded = load_saved({**under("clip.", state), **beside}, tmp_path)
    assert_same_weights(loaded.state_dict(), state)


def test_two_clips_that_differ_are_an_error_that_lists_both(state: State, tmp_path: Path) -> None:
    other = {name: value + 1 for name, value in state.items()}
    with pytest.raises(
        UnsupportedCheckpointError, match="2 CLIPs that differ: 'model', 'model_ema'. Keep the one"
    ):
        load_saved({"model": state, "model_ema": other}, tmp_path)


# Kind K5: numbers of NumPy.
@pytest.mark.parametrize(
    "number", [numpy.float64(0.93), numpy.float32(1), numpy.int64(3), numpy.bool_(True)]
)
def test_numbers_of_numpy_are_harmless(number: Any, state: State, tmp_path: Path) -> None:
    saved = {"state_dict": state, "best_acc": number}
    assert_same_weights(load_saved(saved, tmp_path).state_dict(), state)


# Kind K6: our own files of training.
def test_runs_of_our_own_load(state: State, tmp_path: Path) -> None:
    other = {name: value + 1 for name, value in state.items()}
    saved = {
        "config": {"epochs": 1},
        "identity": [VIT.to_dict(), "", ""],
        "task": under("model.", other),
        "optimizers": [{"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}],
        "average": {"n_averaged": torch.tensor(2), **under("module.model.", state)},
        "step": 4,
    }
    run = tmp_path / "run"
    run.mkdir()
    torch.save(saved, run / "checkpoint.pt")
    shutil.copy(run / "checkpoint.pt", tmp_path / "best.pt")
    for path in (run, tmp_path / "best.pt"):  # told by its content, whatever its name
        stopped, _ = clipkit.load(path, device="cpu")
        assert stopped.config == VIT
        assert_same_weights(stopped.state_dict(), state)
    ended = random_clip(VIT)
    ended.logit_scale.data.fill_(2.0)
    ended.save_pretrained(run / "model")
    loaded, _ = clipkit.load(run, device="cpu")
    assert loaded.logit_scale.item() == 2.0


# Kind K7: sound files of other formats.
@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.gguf", b"GGUF\x03\0\0\0" + bytes(20), "a GGUF file"),
        ("a.h5", b"\x89HDF\r\n\x1a\n" + bytes(20), "an HDF5 file"),
        ("a.tflite", b"\x1c\0\0\0TFL3" + bytes(20), "a TensorFlow Lite model"),
        ("a.onnx", b"\x08\x07\x12\x07pytorch", "an ONNX graph"),
        ("a.npy", b"\x93NUMPY\x01\0", "a NumPy array"),
        ("a.pt.gz", gzip.compress(b"weights", mtime=0), "compressed with gzip"),
        ("a.pt.bz2", bz2.compress(b"weights"), "compressed with bzip2"),
        ("a.pt.xz", lzma.compress(b"weights"), "compressed with xz"),
        ("a.msgpack", b"\x81\xa1a\x01", "a Flax checkpoint"),
        ("a.pdf", b"%PDF-1.7", "a PDF document"),
        ("a.parquet", b"PAR1" + bytes(20), "a Parquet table"),
        ("a.index", bytes(20), "an index of a TensorFlow checkpoint"),
    ],
)
def test_other_formats_are_named(name: str, content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnsupportedCheckpointError, match=f"{reason}.*clipkit reads safetensors"):
        clipkit.load(tmp_path / name)


def test_folders_of_other_libraries_are_named(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text('[{"idx": 0, "path": "0_Own"}, {"path": "1_Pool"}]')
    with pytest.raises(UnsupportedCheckpointError, match="sentence-transformers.*has a config"):
        clipkit.load(tmp_path)
    (tmp_path / "0_Own").mkdir()
    (tmp_path / "0_Own" / "config.json").write_text("{}")
    with pytest.raises(UnsupportedCheckpointError, match="sentence-transformers.*load '.*/0_Own'"):
        clipkit.load(tmp_path)
    (tmp_path / "modules.json").unlink()
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(UnsupportedCheckpointError, match="PEFT.*merge_and_unload"):
        clipkit.load(tmp_path)


# Kind K8: counters in half precision.
def test_counters_in_half_precision_are_fine(tmp_path: Path) -> None:
    state = {name: value.half() for name, value in random_clip(RESNET).state_dict().items()}
    loaded = load_saved(state, tmp_path, RESNET).state_dict()
    assert loaded["visual.bn1.num_batches_tracked"].dtype == torch.int64
    assert loaded["visual.bn1.num_batches_tracked"] == 7


# Kinds X2, X4, X10: what a file announces is bounded before it is built.
def bomb(size: int) -> bytes:
    return b"\x80\x05\x96" + struct.pack("<Q", size) + b"."


@pytest.mark.parametrize("data", [bomb(4 << 30), bomb(10), b"\x80\x05" + b"\x96" * 1000])
def test_byte_arrays_in_pickles_are_not_made(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "bomb.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match="bomb.pt"):
        clipkit.load(tmp_path / "bomb.pt")
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("a/data.pkl", data)
    with pytest.raises(CheckpointError, match="zip.pt"):
        clipkit.load(tmp_path / "zip.pt")


@pytest.mark.parametrize("name", ["a/DATA.PKL", "a/more", "a/Version"])
def test_compressed_and_doubled_members_are_refused(
    name: str, state: State, tmp_path: Path
) -> None:
    torch.save(state, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, bytes(50_000_000))
    with pytest.raises(CorruptCheckpointError, match="compressed|two records|data.pkl"):
        clipkit.load(tmp_path / "a.pt", config=VIT)


def test_tensors_that_claim_more_than_the_file_holds_are_refused(tmp_path: Path) -> None:
    weights = {"visual.conv1.weight": torch.zeros(1).expand(1 << 40)}
    torch.save(weights, tmp_path / "a.pt")
    with pytest.raises(CorruptCheckpointError, match="reaches beyond its record"):
        clipkit.load(tmp_path / "a.pt", config=VIT)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("odd", ["sparse", "quantized", "float8", "complex"])
def test_tensors_that_are_not_dense_numbers_are_refused(
    odd: str, state: State, tmp_path: Path
) -> None:
    tensor = state["text.text_projection"]
    makers: dict[str, Callable[[], Tensor]] = {
        "sparse": lambda: tensor.to_sparse(),
        "quantized": lambda: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
        "float8": lambda: tensor.to(torch.float8_e4m3fn),
        "complex": lambda: tensor.to(torch.complex64),
    }
    with pytest.raises(CheckpointError, match="saved.pt"):
        load_saved({**state, "text.text_projection": makers[odd]()}, tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.pt")
    with pytest.raises(CorruptCheckpointError, match="no regular file"):
        clipkit.load(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b'{"a":' * 3000),
        ("config.json", b"\xff\xfe"),
        ("config.json", b'{"model_type": "clip", "vision_config": 5}'),
        ("merges.txt", b"\xff\xfe\xfd"),
    ],
)
def test_broken_documents_are_typed_errors(name: str, content: bytes, tmp_path: Path) -> None:
    random_clip(VIT).save_pretrained(tmp_path)
    if name == "merges.txt":
        config = (tmp_path / "config.json").read_text()
        (tmp_path / "config.json").write_text('{"tokenizer": "merges.txt",' + config.strip()[1:])
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ClipkitError, match=name):
        clipkit.load(tmp_path, device="cpu")


def test_layers_without_end_are_refused_before_they_are_built(tmp_path: Path) -> None:
    random_clip(VIT).save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"layers": 2', '"layers": 1000000000'))
    with pytest.raises(ClipkitError, match="layers"):
        clipkit.load(tmp_path, device="cpu")


# Kind X1: an attribute of a pickled OrderedDict that hides its method.
def test_an_attribute_called_items_is_no_method(state: State, tmp_path: Path) -> None:
    class Odd:
        def __reduce__(self) -> Any:
            return OrderedDict, (), {"items": 5}, None, iter(state.items())

    torch.save({"state_dict": Odd()}, tmp_path / "odd.pt")
    loaded, _ = clipkit.load(tmp_path / "odd.pt", config=VIT, device="cpu")
    assert_same_weights(loaded.state_dict(), state)


# Kind X13: what a killed download left.
def test_what_a_killed_download_left_is_removed_and_a_live_one_stays(tmp_path: Path) -> None:
    file = tmp_path / "ViT-B-32.pt"
    partial = tmp_path / "ViT-B-32.pt.1234.partial"
    other = tmp_path / "RN50.pt.1234.partial"
    partial.touch()
    other.touch()
    with holding(tmp_path / ".ViT-B-32.pt.lock"), hub._alone(file):
        assert partial.exists()  # another process downloads
    with hub._alone(file):
        assert not partial.exists()
    assert [path.name for path in tmp_path.iterdir()] == [other.name]


def test_a_zip_of_other_things_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("cat.jpg", b"cat")
    with pytest.raises(UnsupportedCheckpointError, match="is a zip archive without weights"):
        clipkit.load(tmp_path / "photos.zip")


def test_the_length_of_a_safetensors_header_is_no_magic(tmp_path: Path) -> None:
    """Its first bytes count the header, and may read "BM" as a bitmap's do."""
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    header = header.ljust(int.from_bytes(b"BM", "little"))
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert path.read_bytes().startswith(b"BM")
    assert read_weights(path)["a"].tolist() == [0.0]


# Kind X13: sizes that no CLIP has, in any layout.


@pytest.mark.parametrize("size", [-1, 0, 10**9, 2**62, 10**30, 1e308, True, "64", None, [1]])
@pytest.mark.parametrize("layout", ["clipkit", "open_clip", "transformers"])
def test_impossible_sizes_are_refused_quickly(
    layout: FolderLayout, size: Any, tmp_path: Path
) -> None:
    random_clip(VIT).save_pretrained(tmp_path, layout=layout)
    name = "open_clip_config.json" if layout == "open_clip" else "config.json"
    text = (tmp_path / name).read_text()
    values = json.loads(text)
    for key in ("width", "hidden_size", "layers", "image_size", "resolution", "patch_size"):
        if f'"{key}"' not in text:
            continue
        changed = json.loads(text)
        for section in (changed, *changed.values(), *sections_of(changed)):
            if isinstance(section, dict) and key in section:
                section[key] = size
        assert changed != values
        (tmp_path / name).write_text(json.dumps(changed))
        start = time.monotonic()
        with pytest.raises(ClipkitError, match="."):
            clipkit.load(tmp_path, device="cpu")
        assert time.monotonic() - start < 1


def sections_of(values: dict[str, Any]) -> list[Any]:
    """Return the dicts two levels below the top."""
    return [
        inner for value in values.values() if isinstance(value, dict) for inner in value.values()
    ]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "0", '"a"', "null"])
def test_impossible_statistics_in_a_file_are_refused(number: str, tmp_path: Path) -> None:
    random_clip(VIT).save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace("0.2,", f"{number},", 1))
    with pytest.raises(ConfigError, match="PreprocessConfig.std must be"):
        clipkit.load(tmp_path, device="cpu")


def test_a_model_beside_the_modules_of_sentence_transformers_is_loaded(tmp_path: Path) -> None:
    clipkit.CLIP.from_pretrained("tiny", device="cpu").save_pretrained(tmp_path)
    (tmp_path / "modules.json").write_text('[{"idx": 0, "path": ""}]')
    assert clipkit.CLIP.from_pretrained(tmp_path, device="cpu").config.embed_dim == 256
