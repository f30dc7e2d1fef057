"""Many images in whatever holds them: the rows come in the order in which it is iterated."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from clipkit import Preprocess, PreprocessConfig
from clipkit.data.pictures import ImageSet
from clipkit.errors import ConfigError, DataError

PREPROCESS = Preprocess((4, 4), PreprocessConfig(mean=(0, 0, 0), std=(1, 1, 1)))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return five images; the level of image i is 40 i."""
    folder = tmp_path_factory.mktemp("levels")
    paths = [folder / f"{i}.png" for i in range(5)]
    for i, path in enumerate(paths):
        Image.new("L", (4, 4), 40 * i).save(path)
    return paths


def levels(images: Any) -> list[int]:
    """Return what `ImageSet` reads, as the numbers of the images."""
    found = ImageSet(images, PREPROCESS)
    total = max(stop for _, stop in found.chunks)
    samples: list[Tensor] = [found[i].sample for i in range(total)]
    return [round(sample.mean().item() * 255 / 40) for sample in samples]


class Column:
    """A column of a table as pandas has it: `[i]` looks up the label i, iteration goes by rows."""

    def __init__(self, values: dict[int, Path]) -> None:
        self.values = values
        self.iloc = list(values.values())

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[Path]:
        return iter(self.iloc)

    def __getitem__(self, label: int) -> Path:
        return self.values[label]


def test_columns_come_in_the_order_of_their_rows(files: list[Path]) -> None:
    shuffled = Column({i: files[i] for i in (3, 0, 4, 1, 2)})
    assert levels(shuffled) == [3, 0, 4, 1, 2]


def test_real_columns_come_in_the_order_of_their_rows(files: list[Path]) -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"path": files}).iloc[[3, 0, 4, 1, 2]]
    assert levels(table.path) == [3, 0, 4, 1, 2]
    with pytest.raises(ConfigError, match="the column of a table"):
        ImageSet(table, PREPROCESS)


def test_generators_sets_and_views_are_read(files: list[Path]) -> None:
    assert levels(path for path in reversed(files)) == [4, 3, 2, 1, 0]
    assert sorted(levels(set(files))) == [0, 1, 2, 3, 4]
    assert levels({"a": files[2], "b": files[1]}.values()) == [2, 1]
    assert levels(np.array([str(files[1]), str(files[3])])) == [1, 3]


def test_items_may_be_bytes_and_open_files(files: list[Path]) -> None:
    data = [path.read_bytes() for path in files[:2]]
    assert levels([data[1], data[0]]) == [1, 0]
    assert levels([io.BytesIO(data[1]), bytearray(data[0])]) == [1, 0]


def test_items_may_be_mappings(files: list[Path]) -> None:
    rows = [{"image": Image.open(files[3]), "label": 7}, {"img": files[1], "label": 2}]
    found = ImageSet(rows, PREPROCESS)
    batch = found.collate([found[0], found[1]])
    assert batch.labels is not None
    assert batch.labels.tolist() == [7, 2]


@pytest.mark.parametrize("single", [b"x", io.BytesIO(b"x"), Image.new("L", (4, 4))])
def test_a_single_image_goes_in_a_list(single: Any) -> None:
    with pytest.raises(ConfigError, match="a single image goes in a list"):
        ImageSet(single, PREPROCESS)


@pytest.mark.parametrize("wrong", [5, None, object()])
def test_what_holds_no_images_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="images must be a folder, a list or another collection"):
        ImageSet(wrong, PREPROCESS)


def test_a_mapping_of_images_is_refused(files: list[Path]) -> None:
    with pytest.raises(ConfigError, match=r"list\(mapping\.values\(\)\)"):
        ImageSet({"a": files[0]}, PREPROCESS)


def test_tensors_are_rows(files: list[Path]) -> None:
    assert levels(torch.full((3, 3, 4, 4), 80, dtype=torch.uint8)) == [2, 2, 2]


# Kind C: what is passed is used, or refused.
@pytest.mark.parametrize("container", [list, tuple])
def test_an_item_of_two_images_is_refused(container: Any, files: list[Path]) -> None:
    for row in (files[:2], [str(path) for path in files[:2]], [Image.new("L", (4, 4))] * 2):
        with pytest.raises(DataError, match="not of two images.*Pass all images in one list"):
            ImageSet([container(row)], PREPROCESS)[0]


def test_a_view_of_bytes_is_an_image(files: list[Path]) -> None:
    view = memoryview(files[3].read_bytes())
    assert levels([view]) == levels([files[3]])
