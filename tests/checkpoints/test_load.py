"""Load every layout to one model: whole, damaged, hostile and missing files."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import clipkit
from clipkit import CLIP
from clipkit.data.preprocess import Preprocess
from clipkit.errors import (
    CheckpointNotFoundError,
    ConfigError,
    CorruptCheckpointError,
    UnknownModelError,
    UnsafeCheckpointError,
)
from clipkit.files import write_weights
from tests.helpers.hub_server import HubServer
from tests.helpers.model_files import (
    FOR_ALL,
    FOR_VIT,
    Write,
    read_files,
    write_clipkit,
    write_open_clip_bin,
    write_training_checkpoint,
)
from tests.helpers.models import assert_same


@pytest.mark.parametrize("write", FOR_ALL)
def test_every_layout(clip: CLIP, tmp_path: Path, write: Write) -> None:
    check_folder_and_file(clip, write, tmp_path)


@pytest.mark.parametrize("write", FOR_VIT)
def test_every_layout_of_transformers(vit: CLIP, tmp_path: Path, write: Write) -> None:
    check_folder_and_file(vit, write, tmp_path)


def check_folder_and_file(model: CLIP, write: Write, folder: Path) -> None:
    weights = write(model, folder)
    loaded, preprocess = clipkit.load(folder, "cpu")
    assert_same(loaded, model)
    assert preprocess == model.preprocess
    assert not any(module.training for module in loaded.modules())
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert all(value.is_contiguous() for value in loaded.state_dict().values())
    # JSON beside a file of no published name might be of other weights.
    config = model.config if write is write_training_checkpoint else None
    assert_same(CLIP.from_pretrained(str(weights), config=config, device="cpu"), model)


def test_old_batch_norms_without_counters(resnet: CLIP, tmp_path: Path) -> None:
    path = write_clipkit(resnet, tmp_path)
    state = {
        name: value
        for name, value in resnet.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    write_weights(state, path)
    loaded = CLIP.from_pretrained(tmp_path, device="cpu").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
    assert loaded["visual.bn1.num_batches_tracked"] == 0


def test_embedded_checkpoint() -> None:
    model, preprocess = clipkit.load("tiny", "cpu")
    assert model.dtype == torch.float32
    assert model.vocab_size == 49408
    assert model.context_length == 77
    assert preprocess == model.preprocess
    assert model.config.vision.resolution == (96, 96)
    assert preprocess == Preprocess((96, 96), model.config.preprocess)
    assert CLIP.from_pretrained("tiny", device="cpu").config == model.config


def test_options_reach_the_hub(hub: HubServer, vit: CLIP, tmp_path: Path) -> None:
    vit.save_pretrained(tmp_path / "saved")
    name = "someone/private"
    hub.add_repo(name, read_files(tmp_path / "saved"), token="hf_secret", revision="v2")
    hub.add_repo(name, {}, token="hf_secret")
    cache = tmp_path / "cache"
    model, _ = clipkit.load(name, "cpu", revision="v2", token="hf_secret", cache_dir=cache)
    assert_same(model, vit)
    hub.stop()
    model = CLIP.from_pretrained(
        name,
        device="cpu",
        revision="v2",
        token="hf_secret",
        cache_dir=cache,
        local_files_only=True,
    )
    assert_same(model, vit)


def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"there is no file or folder '.*/none\.pt'"):
        clipkit.load(tmp_path / "none.pt")
    with pytest.raises(UnknownModelError, match="did you mean .*ViT-B/32"):
        clipkit.load("ViT-B/33")


def test_jit_is_declined() -> None:
    with pytest.raises(
        ConfigError, match=r"jit=True asks for TorchScript.*torch\.compile\(model\)"
    ):
        clipkit.load("tiny", "cpu", True)


def test_truncated_files(vit: CLIP, openai_archive: Path, tmp_path: Path) -> None:
    for write in (write_clipkit, write_open_clip_bin):
        path = write(vit, tmp_path)
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(
            CorruptCheckpointError,
            match=rf"{path.name} \([\d,]+ bytes\) cannot be read as .*Delete it",
        ):
            CLIP.from_pretrained(path, device="cpu")
    (tmp_path / "cut.pt").write_bytes(openai_archive.read_bytes()[:5000])
    with pytest.raises(
        CorruptCheckpointError, match=r"cut\.pt \(5,000 bytes\) cannot be read as a torch archive"
    ):
        CLIP.from_pretrained(tmp_path / "cut.pt", device="cpu")
    (tmp_path / "empty.pt").touch()
    with pytest.raises(CorruptCheckpointError, match=r"empty\.pt \(0 bytes\) is empty"):
        CLIP.from_pretrained(tmp_path / "empty.pt", device="cpu")


class Evil:
    """Pickle as a call that makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("name", ["open_clip_pytorch_model.bin", "model.safetensors", "epoch_1.pt"])
def test_malicious_pickle_runs_nothing(vit: CLIP, tmp_path: Path, name: str) -> None:
    torch.save(vit.state_dict() | {"extra": Evil(tmp_path / "owned")}, tmp_path / name)
    with pytest.raises(
        UnsafeCheckpointError,
        match=r"asks for \w+\.mkdir, which weights do not need; nothing .*was run",
    ):
        CLIP.from_pretrained(tmp_path / name, device="cpu")
    assert not (tmp_path / "owned").exists()


def test_state_dicts_of_something_else(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "linear.pt")
    with pytest.raises(
        CorruptCheckpointError,
        match=r"linear\.pt: these are not the weights of a CLIP: bias, weight",
    ):
        CLIP.from_pretrained(tmp_path / "linear.pt", device="cpu")
