"""Load in another dtype, on another device and at another resolution, and change nothing else."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import clipkit
from clipkit import CLIP
from clipkit.checkpoints import load as load_module
from clipkit.checkpoints.resize import resize_positions
from clipkit.checkpoints.weights import read_weights
from clipkit.data.preprocess import Preprocess
from clipkit.errors import ConfigError
from clipkit.files import sha256
from tests.helpers.model_files import (
    Write,
    write_clipkit,
    write_open_clip,
    write_transformers,
)
from tests.helpers.models import assert_same
from tests.helpers.openai_style import two_rows_of_tokens


@pytest.mark.parametrize("write", [write_clipkit, write_open_clip, write_transformers])
def test_what_was_read_is_neither_changed_nor_kept(
    vit: CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write
) -> None:
    write(vit, tmp_path)
    seen: dict[str, Tensor] = {}
    copies: dict[str, Tensor] = {}

    def read(path: Path, *, mapped: bool) -> dict[str, Tensor]:
        assert not mapped  # the file is the caller's, who may write over it
        seen.update(read_weights(path))
        copies.update({name: value.clone() for name, value in seen.items()})
        return seen

    monkeypatch.setattr(load_module, "read_weights", read)
    random_state = torch.get_rng_state()
    CLIP.from_pretrained(tmp_path, device="cpu")
    assert torch.equal(torch.get_rng_state(), random_state)  # nothing was initialized
    assert seen.keys() == copies.keys()
    assert all(torch.equal(seen[name], value) for name, value in copies.items())
    assert not any(value.requires_grad for value in seen.values())

    resized = CLIP.from_pretrained(tmp_path, resolution=64, device="cpu")
    assert resized.visual.resolution == (64, 64)
    assert all(torch.equal(seen[name], value) for name, value in copies.items())


def test_training_does_not_reach_the_file(vit: CLIP, tmp_path: Path) -> None:
    path = write_clipkit(vit, tmp_path)
    digest = sha256(path)
    model = CLIP.from_pretrained(tmp_path, device="cpu")
    images = torch.randn(2, 3, 48, 48)
    image_features = model.encode_image(images)
    text_features = model.encode_text(two_rows_of_tokens())
    clipkit.clip_loss(image_features, text_features, model.logit_scale).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter += 1
    assert sha256(path) == digest
    assert_same(CLIP.from_pretrained(tmp_path, device="cpu"), vit)


def test_copies_and_pickles(clip: CLIP, tmp_path: Path) -> None:
    clip.save_pretrained(tmp_path)
    model = CLIP.from_pretrained(tmp_path, device="cpu")
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_same(other, clip)
        assert not other.training
        addresses = {parameter.data_ptr() for parameter in model.parameters()}
        assert addresses.isdisjoint({parameter.data_ptr() for parameter in other.parameters()})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype(clip: CLIP, tmp_path: Path, dtype: torch.dtype) -> None:
    write_clipkit(clip, tmp_path)
    model, _ = clipkit.load(tmp_path, "cpu", dtype=dtype)
    assert model.dtype == dtype
    for name, value in clip.state_dict().items():
        # exp(logit_scale) would lose its third digit.
        kept = name == "logit_scale" or not value.is_floating_point()
        assert torch.equal(model.state_dict()[name], value if kept else value.to(dtype)), name


def test_half_precision_files_become_float32_on_the_cpu(vit: CLIP, tmp_path: Path) -> None:
    vit.save_pretrained(tmp_path, dtype=torch.bfloat16)
    model = CLIP.from_pretrained(tmp_path, device="cpu")
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    expected = vit.state_dict()["visual.proj"].bfloat16().float()
    assert torch.equal(model.state_dict()["visual.proj"], expected)


@pytest.mark.parametrize("dtype", [torch.int8, "float16"])
def test_dtypes_that_are_none(vit: CLIP, tmp_path: Path, dtype: Any) -> None:
    write_clipkit(vit, tmp_path)
    with pytest.raises(ConfigError, match=f"dtype must be torch.float32, .*, not .*{dtype}"):
        CLIP.from_pretrained(tmp_path, dtype=dtype, device="cpu")
    with pytest.raises(ConfigError, match="dtype must be torch.float32"):
        vit.save_pretrained(tmp_path / "saved", dtype=dtype)
    assert not (tmp_path / "saved").exists()


def test_device(vit: CLIP, tmp_path: Path) -> None:
    write_clipkit(vit, tmp_path)
    model = CLIP.from_pretrained(tmp_path, device=torch.device("meta"))
    assert {value.device.type for value in model.state_dict().values()} == {"meta"}


@pytest.mark.gpu
def test_default_dtype_on_cuda(vit: CLIP, tmp_path: Path) -> None:
    for stored, expected in (
        (None, torch.float16),
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.bfloat16),
    ):
        vit.save_pretrained(tmp_path, dtype=stored)
        model = CLIP.from_pretrained(tmp_path)
        assert model.device.type == "cuda"
        assert model.dtype == expected
        assert {p.device.type for p in model.parameters()} == {"cuda"}
        features = model.encode_image(torch.zeros(1, 3, 48, 48))
        assert features.device.type == "cuda"
        assert features.dtype == expected
        assert CLIP.from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize(
    ("which", "resolution", "grid"),
    [
        ("vit", 80, (5, 5)),
        ("vit", (32, 64), (2, 4)),
        ("vit", (100, 17), (6, 1)),
        ("resnet", 128, (4, 4)),
        ("resnet", (96, 160), (3, 5)),
    ],
)
def test_resolution(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    which: str,
    resolution: Any,
    grid: tuple[int, int],
) -> None:
    original: CLIP = request.getfixturevalue(which)
    write_clipkit(original, tmp_path)
    model, preprocess = clipkit.load(tmp_path, "cpu", resolution=resolution)
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    assert model.config.vision.resolution == (height, width)
    assert model.visual.resolution == (height, width)
    assert preprocess == Preprocess((height, width), original.config.preprocess)
    assert model.visual.input_resolution == resolution
    key = "visual.attnpool.positional_embedding"
    if which == "vit":
        key = "visual.positional_embedding"
    before = original.state_dict()[key]
    after = model.state_dict()[key]
    assert torch.equal(after, resize_positions(before, original.config.vision.grid, grid))
    assert torch.equal(after[0], before[0])
    assert len(after) == 1 + grid[0] * grid[1]
    for name, value in original.state_dict().items():
        assert name == key or torch.equal(model.state_dict()[name], value), name
    features = model.encode_image(torch.randn(2, 3, height, width))
    assert features.shape == (2, 32)
    assert features.isfinite().all()

    model.save_pretrained(str(tmp_path / "resized"))
    assert_same(CLIP.from_pretrained(tmp_path / "resized", device="cpu"), model)


def test_the_same_resolution_changes_nothing(clip: CLIP, tmp_path: Path) -> None:
    write_clipkit(clip, tmp_path)
    resolution = clip.config.vision.resolution
    assert_same(CLIP.from_pretrained(tmp_path, resolution=resolution, device="cpu"), clip)


@pytest.mark.parametrize("resolution", [0, -64, (64,), "64", (64, 8)])
def test_impossible_resolutions(clip: CLIP, tmp_path: Path, resolution: Any) -> None:
    write_clipkit(clip, tmp_path)
    with pytest.raises(ConfigError, match="resolution|larger than"):
        CLIP.from_pretrained(tmp_path, resolution=resolution, device="cpu")


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_here(device: str) -> None:
    with pytest.raises(ConfigError, match=f"there is no device '{device}' here"):
        clipkit.load("tiny", device)
