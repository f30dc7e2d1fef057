"""Resample position embeddings, alone and in whole models through `load`."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import clipkit
from clipkit.checkpoints.resize import resize_positions
from clipkit.clip import CLIP
from clipkit.config import CLIPConfig, ResNetConfig, TextConfig, ViTConfig
from clipkit.data.preprocess import Preprocess
from clipkit.errors import ConfigError
from tests.helpers.random_weights import assert_distinct, randomize, some_images, some_tokens

TEXT = TextConfig(width=64, layers=1, activation="gelu", vocab_size=40, context_length=8)
VIT = CLIPConfig(
    embed_dim=24,
    vision=ViTConfig(
        resolution=(32, 32), patch_size=8, width=32, layers=2, activation="gelu", head_width=16
    ),
    text=TEXT,
)
RESNET = CLIPConfig(
    embed_dim=24,
    vision=ResNetConfig(resolution=(64, 64), layers=(1, 1, 1, 1), width=8, head_width=64),
    text=TEXT,
)


def grid_of(positions: Tensor, size: tuple[int, int]) -> Tensor:
    return positions[1:].unflatten(0, size)  # (1 + rows x columns, W) -> (rows, columns, W)


def from_grid(grid: Tensor) -> Tensor:
    return torch.cat([torch.full((1, grid.shape[2]), 9.0), grid.flatten(0, 1)])


def test_the_same_size_gives_the_very_same_tensor() -> None:
    positions = torch.randn(1 + 6, 4)
    assert resize_positions(positions, (2, 3), (2, 3)) is positions


@pytest.mark.parametrize(
    ("old", "new"), [((4, 4), (7, 5)), ((3, 5), (2, 2)), ((6, 2), (1, 9)), ((2, 3), (3, 2))]
)
def test_the_first_is_kept_and_a_constant_stays(old: tuple[int, int], new: tuple[int, int]) -> None:
    positions = from_grid(torch.tensor([1.0, -2.0]).expand(*old, 2))
    resized = resize_positions(positions, old, new)
    assert resized.shape == (1 + new[0] * new[1], 2)
    assert torch.equal(resized[0], positions[0])
    assert torch.allclose(grid_of(resized, new), torch.tensor([1.0, -2.0]), atol=1e-6)


def test_rows_stay_rows() -> None:
    """A ramp over the rows stays one over the rows, and a ramp away from the edges."""
    rows = torch.arange(8.0)[:, None, None].expand(8, 4, 1)
    columns = torch.arange(4.0)[None, :, None].expand(8, 4, 1)
    resized = grid_of(
        resize_positions(from_grid(torch.cat([rows, columns], 2)), (8, 4), (16, 6)), (16, 6)
    )
    assert torch.allclose(resized[..., 0], resized[:, :1, 0].expand(16, 6), atol=1e-5)
    assert torch.allclose(resized[..., 1], resized[:1, :, 1].expand(16, 6), atol=1e-5)
    # The centers of the new rows lie here among the old ones.
    middles = (torch.arange(16) + 0.5) / 2 - 0.5
    assert torch.allclose(resized[4:12, 0, 0], middles[4:12], atol=1e-5)
    assert (resized[:, 0, 0].diff() > 0).all()
    assert (resized[0, :, 1].diff() > 0).all()


def test_shrinking_averages() -> None:
    """A checkerboard has no place in a third of its resolution.

    Without anti-aliasing some of its squares would be picked.
    """
    board = (torch.arange(15)[:, None] + torch.arange(15)) % 2 * 2.0 - 1
    resized = grid_of(resize_positions(from_grid(board[..., None]), (15, 15), (5, 5)), (5, 5))
    assert resized[1:4, 1:4].abs().max() < 0.01


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_is_kept_and_the_argument_unchanged(dtype: torch.dtype) -> None:
    positions = torch.randn(1 + 12, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = positions.clone()
    resized = resize_positions(positions, (3, 4), (5, 6))
    assert resized.dtype == dtype
    assert torch.equal(positions, before)
    expected = resize_positions(positions.float(), (3, 4), (5, 6))
    assert torch.equal(resized, torch.cat([positions[:1].float(), expected[1:]]).to(dtype))


@pytest.mark.parametrize(
    ("config", "size", "grid"),
    [
        (VIT, 48, (6, 6)),
        (VIT, (24, 56), (3, 7)),
        (VIT, (33, 39), (4, 4)),  # the same grid: nothing is resampled
        (RESNET, 96, (3, 3)),
        (RESNET, (64, 128), (2, 4)),
    ],
)
def test_load_at_another_resolution(
    tmp_path: Path, config: CLIPConfig, size: int | tuple[int, int], grid: tuple[int, int]
) -> None:
    model = randomize(CLIP(config))
    model.save_pretrained(str(tmp_path))
    resized, preprocess = clipkit.load(tmp_path, "cpu", resolution=size)
    sides = (size, size) if isinstance(size, int) else size
    assert resized.config.vision.resolution == sides
    assert resized.visual.resolution == sides
    assert preprocess == Preprocess(sides, config.preprocess)
    assert resized.config.vision.grid == grid
    key = "positional_embedding" if config is VIT else "attnpool.positional_embedding"
    found = resized.visual.state_dict()
    old = model.visual.state_dict()
    assert torch.equal(found[key], resize_positions(old[key], config.vision.grid, grid))
    assert all(torch.equal(found[name], old[name]) for name in old if name != key)
    images = some_images(4, sides)
    features = resized.encode_image(images, normalize=True)
    assert_distinct(features)
    assert features.shape == (4, 24)
    tokens = some_tokens(3, 8, 40)
    assert torch.equal(resized.encode_text(tokens), model.encode_text(tokens))


def test_an_impossible_resolution_is_refused(tmp_path: Path) -> None:
    CLIP(VIT).save_pretrained(str(tmp_path))
    with pytest.raises(ConfigError, match=r"patch_size 8 is larger than resolution \(7, 32\)"):
        clipkit.load(tmp_path, "cpu", resolution=(7, 32))
    with pytest.raises(ConfigError, match="resolution must be a positive integer"):
        clipkit.load(tmp_path, "cpu", resolution=0)
