"""Extract features of few images in small chunks, count what is encoded, and stop in the middle."""

import os
import signal
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Dataset

from clipkit import CLIP
from clipkit.data import pictures
from clipkit.data.pictures import list_images
from clipkit.encode.features import Features
from tests.helpers.toy_data import toy_config, two_colors

IMAGES = 14
BROKEN = 5  # the index of one that cannot be read
CHUNK = 4  # images: four chunks, the last of two


def make_images(folder: Path) -> Path:
    """Fill a folder with images of different sizes, one of them broken."""
    for i in range(IMAGES):
        image = two_colors((17 * i, 0, 90), (0, 16 * i, 30), seed=i, size=(30 + i, 40))
        image.save(folder / f"{i:02}.png")
    (folder / f"{BROKEN:02}.png").write_bytes(b"broken")
    return folder


def toy_model(seed: int = 0) -> CLIP:
    """Return a small model with random weights, in eval mode."""
    torch.manual_seed(seed)
    return CLIP(toy_config()).eval()


class Files(Dataset[tuple[Path, int]]):
    """Give the paths in a folder with labels, and kill the process at an index."""

    def __init__(self, folder: Path, stop_at: int = -1) -> None:
        self.files = list_images(folder)
        self.stop_at = stop_at

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Path, int]:
        if index == self.stop_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.files[index], index % 3


class Counting(CLIP):
    """Count the images that are encoded, and fail after so many."""

    encoded = 0
    most = IMAGES

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        self.encoded += len(image)
        if self.encoded > self.most:
            raise MemoryError("no memory left")
        return super().encode_image(image, normalize)


def counting(most: int = IMAGES) -> Counting:
    """Return the model of `toy_model`, which fails after `most` images."""
    torch.manual_seed(0)
    model = Counting(toy_config()).eval()
    model.most = most
    return model


def assert_same_features(actual: Features, expected: Features) -> None:
    """Fail unless features, labels, paths and skipped images are the same to the bit."""
    assert torch.equal(actual.features, expected.features)
    assert actual.paths == expected.paths
    assert actual.skipped == expected.skipped
    if expected.labels is None:
        assert actual.labels is None
    else:
        assert actual.labels is not None
        assert torch.equal(actual.labels, expected.labels)


def be_one_of_two(rank: int, place: Path, seconds: float) -> None:
    """Join a group of two processes that meet in a folder, and cut images into small chunks.

    Whoever waits in vain for the other fails after some seconds.
    """
    torch.set_num_threads(1)
    pictures.CHUNK = CHUNK
    dist.init_process_group(
        "gloo",
        init_method=f"file://{place}/group",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=seconds),
    )
