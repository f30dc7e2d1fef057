"""clipkit.data.pictures: one order of images, names and labels, wherever they come from."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    Subset,
    TensorDataset,
)
from torchvision.datasets import FakeData, ImageFolder

from clipkit import CLIP
from clipkit.data import pictures
from clipkit.data.pictures import ImageSet, list_images
from clipkit.encode.embed import embed_images
from clipkit.encode.store import extract_features
from clipkit.errors import ConfigError, DataError, ImageError
from tests.helpers.noise import as_tensor, noise
from tests.helpers.toy_data import color_folders, toy_config, within


@pytest.fixture(scope="module")
def model() -> CLIP:
    torch.manual_seed(0)
    return CLIP(toy_config()).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of twelve images in four folders, beside what only looks like an image."""
    folder = color_folders(tmp_path_factory.mktemp("colors"), each=3)
    (folder / "blue" / "00.png").rename(folder / "blue" / "00.PNG")
    (folder / "blue" / "notes.txt").write_text("not an image")
    (folder / "folder.png").mkdir()
    return folder


@pytest.fixture(scope="module")
def expected(model: CLIP, folder: Path) -> torch.Tensor:
    return embed_images(model, list_images(folder))


def test_the_working_directory_is_meant_by_a_dot_alone(
    model: CLIP, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert len(list_images(".")) == 12
    assert len(extract_features(model, Path())) == 12
    with pytest.raises(DataError, match="an empty text names no folder"):
        embed_images(model, "")


def test_an_empty_path_in_a_list_is_a_broken_image(model: CLIP) -> None:
    with pytest.raises(ImageError, match="cannot find the image at the path ''"):
        embed_images(model, [""])


def test_a_folder_is_the_list_of_its_images(model: CLIP, folder: Path, expected: Tensor) -> None:
    for given in (folder, str(folder)):
        result = extract_features(model, given)
        assert torch.equal(result.features, expected)
        assert result.paths == [str(path) for path in list_images(folder)]
        assert torch.equal(embed_images(model, given), expected)


def test_a_data_set_gives_labels(model: CLIP, folder: Path, expected: Tensor) -> None:
    """torchvision takes class folders in the same order."""
    (folder / "folder.png").rmdir()  # torchvision would take it for a class
    data = ImageFolder(folder)
    result = extract_features(model, data, batch_size=5)
    (folder / "folder.png").mkdir()
    torch.testing.assert_close(result.features, expected, rtol=1e-5, atol=1e-6)
    assert result.labels is not None
    assert result.labels.tolist() == data.targets
    assert result.labels.dtype == torch.int64
    assert result.paths == [str(i) for i in range(12)]
    some = extract_features(model, Subset(data, [7, 2]))
    torch.testing.assert_close(some.features, expected[[7, 2]], rtol=1e-5, atol=1e-6)
    assert some.labels is not None
    assert some.labels.tolist() == [data.targets[i] for i in (7, 2)]


class Items(Dataset[Any]):
    """Give any items, as a data set that is no list. An error among them is raised."""

    def __init__(self, *items: object) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> object:
        item = self.items[index]
        if isinstance(item, Exception):
            raise item
        return item


@pytest.mark.parametrize("is_list", [True, False], ids=["list", "data set"])
def test_items_of_many_kinds(model: CLIP, folder: Path, expected: Tensor, is_list: bool) -> None:
    files = list_images(folder)
    image = Image.open(files[2])
    pixels = as_tensor(Image.open(files[3]))
    kinds = [files[0], str(files[1]), image, pixels]
    result = extract_features(model, kinds if is_list else Items(*kinds))
    # Tensors are resized a little differently.
    torch.testing.assert_close(result.features, expected[:4], rtol=0, atol=1e-2)
    torch.testing.assert_close(result.features[:3], expected[:3], rtol=1e-5, atol=1e-6)
    assert result.labels is None
    assert result.paths == [str(files[0]), str(files[1]), "2", "3"]


@pytest.mark.parametrize(
    ("second", "labels"),
    [
        ([5, True, torch.tensor(7)], [5, 1, 7]),
        (["cat", "dog", "cow"], None),
        ([["a", "b"], ["c"], []], None),
        ([{"boxes": 1}, None, ()], None),
        ([0.5, 1.5, 2.5], None),
        ([torch.tensor([1, 0]), torch.tensor([0, 1]), torch.tensor([1, 1])], None),
        ([torch.tensor(0.5), torch.tensor(1.5), torch.tensor(2.5)], None),
    ],
)
def test_labels_are_integers_or_left_out(
    model: CLIP, folder: Path, second: list[Any], labels: list[int] | None
) -> None:
    files = list_images(folder)[:3]
    items = [(file, label, "more") for file, label in zip(files, second, strict=True)]
    result = extract_features(model, Items(*items))
    assert (None if result.labels is None else result.labels.tolist()) == labels
    assert len(result.features) == 3


def test_labels_of_some_are_no_labels(model: CLIP, folder: Path) -> None:
    files = list_images(folder)
    assert extract_features(model, Items((files[0], 1), files[1]), batch_size=1).labels is None


def test_labels_of_broken_images_go_with_them(
    model: CLIP, folder: Path, expected: Tensor, tmp_path: Path
) -> None:
    files = list_images(folder)
    (tmp_path / "broken.png").write_bytes(b"nothing")
    broken = (tmp_path / "broken.png", 8)
    items = [
        (files[0], 3),
        broken,
        OSError("no such thing"),
        (files[1], 4),
        SyntaxError("broken PNG file"),
        broken,
    ]
    for batch_size in (1, 2, 6):
        result = extract_features(model, Items(*items), batch_size=batch_size)
        torch.testing.assert_close(result.features, expected[:2], rtol=1e-5, atol=1e-6)
        assert result.labels is not None
        assert result.labels.tolist() == [3, 4]
        assert result.paths == [str(files[0]), str(files[1])]
        assert [name for name, _ in result.skipped] == [str(broken[0]), "2", "4", str(broken[0])]
        assert [why for _, why in result.skipped][1:3] == ["no such thing", "broken PNG file"]


def test_mistakes_are_not_taken_for_broken_images(model: CLIP, folder: Path) -> None:
    """A mistake in all items alike ends the work, with the words of the preprocessing."""
    file = list_images(folder)[0]
    for item, error, message in [
        (torch.randn(3, 32, 32), ImageError, "if they are normalized already"),
        ({"photo": file}, DataError, "must have its image under 'image' or 'img'"),
        (KeyError("no column 'image'"), KeyError, "no column"),
        (AssertionError("a bug"), AssertionError, "a bug"),
    ]:
        with pytest.raises(error, match=message):
            extract_features(model, Items(file, item, file))


def test_mistakes_of_the_transform_are_raised(model: CLIP, folder: Path) -> None:
    def divide_by_zero(image: Image.Image) -> Tensor:
        return torch.zeros(3, 32, 32) + 1 / 0

    with pytest.raises(ZeroDivisionError, match="division"):
        extract_features(model, list_images(folder)[:1], transform=divide_by_zero)


def prepared(model: CLIP) -> Dataset[Any]:
    return FakeData(10, (3, 40, 36), num_classes=4, transform=model.preprocess)


@pytest.mark.parametrize(
    ("options", "order"),
    [
        ({"batch_size": 4}, range(10)),
        ({"batch_size": 3, "drop_last": True}, range(9)),
        ({"batch_sampler": [[7, 1], [3], [0, 2, 5]]}, [7, 1, 3, 0, 2, 5]),
    ],
)
def test_a_loader_gives_order_batches_and_labels(
    model: CLIP, options: dict[str, Any], order: Sequence[int]
) -> None:
    data = prepared(model)
    result = extract_features(model, DataLoader(data, **options))
    features: list[Tensor] = []
    labels: list[Tensor] = []
    for images, targets in DataLoader(data, **options):
        with torch.no_grad():
            features.append(F.normalize(model.encode_image(images), dim=-1))
        labels.append(targets)
    torch.testing.assert_close(result.features, torch.cat(features), rtol=1e-5, atol=1e-6)
    assert result.labels is not None
    assert torch.equal(result.labels, torch.cat(labels))
    assert result.paths == [str(i) for i in order]


def test_a_shuffling_loader_says_which_is_which(model: CLIP) -> None:
    data = prepared(model)
    plain = extract_features(model, DataLoader(data, batch_size=10))
    shuffled = extract_features(model, DataLoader(data, batch_size=4, shuffle=True, num_workers=2))
    order = [int(name) for name in shuffled.paths]
    assert sorted(order) == list(range(10)) != order
    torch.testing.assert_close(shuffled.features, plain.features[order], rtol=1e-5, atol=1e-6)
    assert plain.labels is not None
    assert shuffled.labels is not None
    assert torch.equal(shuffled.labels, plain.labels[order])


def first_alone(rows: list[tuple[Tensor, int]]) -> tuple[Tensor, str]:
    return torch.stack([row[0] for row in rows]), "nothing else"


def test_a_loader_without_labels_and_with_its_own_collating(model: CLIP) -> None:
    data = prepared(model)
    both = extract_features(model, DataLoader(data, batch_size=10)).features
    alone = extract_features(model, DataLoader(data, batch_size=10, collate_fn=first_alone))
    images = TensorDataset(torch.stack([data[i][0] for i in range(10)]))
    bare = extract_features(model, DataLoader(images, batch_size=10))
    for result in (alone, bare):
        assert result.labels is None
        assert torch.equal(result.features, both)


def test_a_loader_skips_what_its_data_set_cannot_read(model: CLIP) -> None:
    data = prepared(model)
    items = Items(data[0], OSError("cannot identify image file"), data[2], ImageError("too thin"))
    result = extract_features(model, DataLoader(items, batch_size=2))
    assert result.paths == ["0", "2"]
    assert result.labels is not None
    assert result.labels.tolist() == [data[0][1], data[2][1]]
    assert result.skipped == [("1", "cannot identify image file"), ("3", "too thin")]


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        yield from range(3)


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(Stream(), batch_size=2),
        DataLoader(TensorDataset(torch.zeros(4, 3, 32, 32)), batch_size=None),
        DataLoader(
            Items(1, 2, 3), sampler=DistributedSampler(Items(1, 2, 3), num_replicas=2, rank=0)
        ),
    ],
    ids=["stream", "no batches", "sampler of ranks"],
)
def test_loaders_that_cannot_be_shared_out_are_refused(
    model: CLIP, loader: DataLoader[Any]
) -> None:
    with within(5), pytest.raises(ConfigError, match="must know its batches by index"):
        extract_features(model, loader)


def test_a_loader_takes_no_transform(model: CLIP) -> None:
    with pytest.raises(ConfigError, match="no transform beside it"):
        extract_features(model, DataLoader(prepared(model)), transform=model.preprocess)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            TensorDataset(torch.zeros(4, 3, 32, 32, dtype=torch.uint8)),
            r"torch.uint8 of \(2, 3, 32, 32\)",
        ),
        (Items({"image": 1}, {"image": 2}), "not dict"),
        (Items("a", "b"), "begins with one, not str"),
    ],
)
def test_refuses_batches_that_are_not_prepared(
    model: CLIP, rows: Dataset[Any], message: str
) -> None:
    with pytest.raises(DataError, match=f"a batch of 2 prepared images must .*{message}"):
        extract_features(model, DataLoader(rows, batch_size=2))


def test_refuses_collating_that_loses_rows(model: CLIP) -> None:
    def all_but_one(rows: list[Any]) -> Any:
        return first_alone(rows[1:])

    loader = DataLoader(prepared(model), batch_size=4, collate_fn=all_but_one)
    with pytest.raises(
        DataError, match=r"a batch of 4 prepared images .* not torch.float32 of \(3, 3, 32, 32\)"
    ):
        extract_features(model, loader)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": []}, "at least one image, and there is none in []"),
        (
            {"images": DataLoader(TensorDataset(torch.zeros(1, 3)), batch_size=2, drop_last=True)},
            "there is none in <",
        ),
        *(
            ({"batch_size": value}, f"batch_size must be an integer from 1 on, not {value!r}")
            for value in (0, None, "4", 2.5, True)
        ),
        *(
            ({"workers": value}, f"workers must be an integer from 0 on, not {value!r}")
            for value in (-1, None, "2", 0.0, False)
        ),
    ],
)
def test_refuses_impossible_arguments(model: CLIP, options: dict[str, Any], message: str) -> None:
    options = {"images": [noise()]} | options
    with pytest.raises(ConfigError, match=re.escape(message)):
        extract_features(model, **options)


def test_chunks_and_batches_cover_all_in_order(
    model: CLIP, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "CHUNK", 5)
    chunks = ImageSet(Items(*range(12)), model.preprocess, 2).chunks
    assert {key: [list(batch) for batch in batches] for key, batches in chunks.items()} == {
        (0, 5): [[0, 1], [2, 3], [4]],
        (5, 10): [[5, 6], [7, 8], [9]],
        (10, 12): [[10, 11]],
    }


def test_items_are_known_again_in_another_process(tmp_path: Path) -> None:
    """The digest is made of what items are, and not of where they lie in memory."""
    file = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(file)
    rows: list[Any] = [{"image": str(file)}, (str(file), None), (str(file), "cat"), {"img": file}]
    first = ImageSet(rows, lambda image: torch.zeros(3, 4, 4)).fingerprint()
    copies: list[Any] = [dict(rows[0]), (str(file), None), (str(file), "cat"), dict(rows[3])]
    assert ImageSet(copies, lambda image: torch.zeros(3, 4, 4)).fingerprint() == first
