"""clipkit.encode.store: work that goes on where it was cut short, and files that are refused."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader

import clipkit
from clipkit import CLIP
from clipkit.data.pictures import ImageSet, list_images
from clipkit.encode import feature_files
from clipkit.encode.embed import embed_images
from clipkit.encode.store import extract_features, load_features
from clipkit.errors import ConfigError, CorruptCheckpointError, DataError
from tests.helpers.toy_data import toy_config, two_colors
from tests.helpers.toy_extraction import (
    BROKEN,
    IMAGES,
    Files,
    assert_same_features,
    counting,
    toy_model,
)

pytestmark = pytest.mark.usefixtures("small_chunks")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Return the path of a file of features that is not there yet."""
    return tmp_path / "features.safetensors"


def test_a_file_holds_what_is_returned_and_is_read_without_encoding(
    folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "features.safetensors"
    whole = extract_features(toy_model(), Files(folder), batch_size=3)
    assert whole.paths == [str(folder / f"{i:02}.png") for i in range(IMAGES) if i != BROKEN]
    expected = embed_images(toy_model(), [Path(path) for path in whole.paths])
    torch.testing.assert_close(whole.features, expected)
    assert [name for name, _ in whole.skipped] == [str(folder / f"{BROKEN:02}.png")]

    model = counting()
    assert_same_features(extract_features(model, Files(folder), out=out, batch_size=3), whole)
    assert model.encoded == IMAGES - 1
    assert_same_features(load_features(out), whole)
    written = out.stat()
    again = extract_features(counting(most=0), Files(folder), out=str(out), batch_size=7)
    assert_same_features(again, whole)
    assert out.stat().st_ino == written.st_ino
    assert out.stat().st_mtime_ns == written.st_mtime_ns
    assert [file.name for file in out.parent.iterdir()] == ["features.safetensors"]


def test_a_file_can_be_read_by_others(folder: Path, out: Path) -> None:
    whole = extract_features(toy_model(), Files(folder), out=out)
    tensors = load_file(out)
    assert whole.labels is not None
    assert torch.equal(tensors["features"], whole.features)
    assert torch.equal(tensors["labels"], whole.labels)


@pytest.mark.parametrize("most", [0, 3, 4, 5, 12])
def test_goes_on_after_an_error(folder: Path, out: Path, most: int) -> None:
    """Chunks that were whole are not encoded again, and the result is the same to the bit."""
    with pytest.raises(MemoryError, match="no memory"):
        extract_features(counting(most), folder, out=out, batch_size=3)
    assert not out.exists()
    model = counting()
    result = extract_features(model, folder, out=out, batch_size=3)
    chunks = [4, 3, 4, 2]  # one image of the second is broken
    kept = sum(size for i, size in enumerate(chunks) if sum(chunks[: i + 1]) <= most)
    assert model.encoded == IMAGES - 1 - kept
    assert_same_features(result, extract_features(toy_model(), folder, batch_size=3))
    assert_same_features(result, load_features(out))
    assert not list(out.parent.glob("*.parts"))


def test_goes_on_when_all_but_the_whole_is_written(
    folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = feature_files.write_weights

    def full(tensors: dict[str, Tensor], path: Path) -> None:
        if path == out:
            raise OSError("no space left on the disk")
        write(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr(feature_files, "write_weights", full)
        with pytest.raises(OSError, match="no space left"):
            extract_features(counting(), folder, out=out)
    result = extract_features(counting(most=0), folder, out=out)
    assert_same_features(result, extract_features(toy_model(), folder))
    assert out.exists()
    assert not list(out.parent.glob("*.parts"))


KILLED = """
import sys, torch
from pathlib import Path
from clipkit.data import pictures
from clipkit.encode.store import extract_features
from tests.helpers.toy_extraction import CHUNK, Files, toy_model
torch.set_num_threads(int(sys.argv[3]))
pictures.CHUNK = CHUNK
extract_features(toy_model(), Files(Path(sys.argv[1]), stop_at=9), out=sys.argv[2], batch_size=3)
"""


def test_goes_on_after_a_kill(folder: Path, out: Path) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), str(out), str(torch.get_num_threads())],
        env=os.environ | {"PYTHONPATH": str(Path(clipkit.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    parts = sorted(file.name for file in out.with_name(out.name + ".parts").iterdir())
    assert parts == [".lock", "0-4.safetensors", "4-8.safetensors"]
    model = counting()
    result = extract_features(model, Files(folder), out=out, batch_size=3)
    assert model.encoded == IMAGES - 8
    assert_same_features(result, extract_features(toy_model(), Files(folder), batch_size=3))
    assert not list(out.parent.glob("*.parts"))


def altered(model: CLIP) -> CLIP:
    """Change one weight by next to nothing."""
    with torch.no_grad():
        model.visual.get_parameter("proj")[3, 5] += 1e-6
    return model


def mirrored(image: Any) -> Tensor:
    return toy_model().preprocess(image).flip(-1)


@pytest.mark.parametrize("finished", [True, False], ids=["whole", "part"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": altered(toy_model())}, "other weights:"),
        ({"model": toy_model().half()}, "other weights:"),
        ({"transform": mirrored}, "other images or transform:"),
        ({"precision": "bfloat16"}, "other precision:"),
        ({"normalize": False}, "other normalize:"),
        ({"model": altered(toy_model()), "normalize": False}, "other weights and other normalize:"),
    ],
)
def test_refuses_files_of_other_features(
    folder: Path, out: Path, finished: bool, change: dict[str, Any], message: str
) -> None:
    if finished:
        extract_features(toy_model(), folder, out=out)
    else:
        with pytest.raises(MemoryError, match="no memory"):
            extract_features(counting(most=5), folder, out=out)
    before = {path: path.read_bytes() for path in out.parent.rglob("*.safetensors")}
    to_delete = out.name if finished else f"{out.name}.parts"
    given: dict[str, Any] = {"model": toy_model(), "images": folder, "out": out} | change
    match = f"was made with {message} delete .*/{to_delete}, or name another file$"
    with pytest.raises(DataError, match=match):
        extract_features(**given)
    assert {path: path.read_bytes() for path in out.parent.rglob("*.safetensors")} == before
    extract_features(toy_model(), folder, out=out)


@pytest.mark.parametrize("change", [{"activation": "quick_gelu"}, {"head_width": 32}])
def test_what_is_made_of_the_weights_counts_too(
    folder: Path, out: Path, change: dict[str, Any]
) -> None:
    config = toy_config()
    extract_features(toy_model(), folder, out=out)
    torch.manual_seed(0)
    other = CLIP(replace(config, vision=replace(config.vision, **change)))
    assert torch.equal(other.visual.get_parameter("proj"), toy_model().visual.get_parameter("proj"))
    with pytest.raises(DataError, match="made with other weights"):
        extract_features(other, folder, out=out)


def fingerprints(lists: list[list[Any]], batch_size: int) -> list[str]:
    transform = toy_model().preprocess
    return [ImageSet(images, transform, batch_size).fingerprint() for images in lists]


def test_other_images_are_told_apart(folder: Path) -> None:
    """By name, order, number or pixels. Only the first, the middle and the last are prepared."""
    files = [file for file in list_images(folder) if file.stem != f"{BROKEN:02}"][:6]
    images = [two_colors((9 * i, 0, 0), (0, 0, 9 * i), seed=i) for i in range(6)]
    pixels = [torch.full((3, 32, 32), i / 9) for i in range(6)]
    halves = [image.bfloat16() for image in pixels]
    lists: list[list[Any]] = [
        files,
        files[:5],
        files[::-1],
        [files[0], files[2], files[1], *files[3:]],
        [*files[:4], files[0], files[5]],
        images,
        [images[0], images[2], images[1], *images[3:]],
        pixels,
        [pixels[0], pixels[2], pixels[1], *pixels[3:]],
        halves,
        [(file, i) for i, file in enumerate(files)],
        [(file, i // 2) for i, file in enumerate(files)],
    ]
    known = fingerprints(lists, batch_size=3)
    assert len(set(known)) == len(lists)
    assert known == fingerprints(lists, batch_size=2)


def test_a_file_of_another_size_is_told_apart(folder: Path, out: Path) -> None:
    files = [file for file in list_images(folder) if file.stem != f"{BROKEN:02}"][:6]
    extract_features(toy_model(), files, out=out)
    whole = files[1].read_bytes()
    files[1].write_bytes(b"broken since")
    try:
        with pytest.raises(DataError, match="other images or transform"):
            extract_features(toy_model(), files, out=out)
    finally:
        files[1].write_bytes(whole)
    extract_features(counting(most=0), files, out=out)


class Prepared(Files):
    """Give prepared images with labels that count from `first`."""

    first = 0

    def __getitem__(self, index: int) -> Any:
        return toy_model().preprocess(self.files[index]), self.first + index


def test_loaders_go_on_too_unless_they_shuffle(folder: Path, out: Path) -> None:
    data = Prepared(folder)
    whole = extract_features(toy_model(), DataLoader(data, batch_size=3))
    with pytest.raises(MemoryError, match="no memory"):
        extract_features(counting(most=8), DataLoader(data, batch_size=3), out=out)
    model = counting()
    result = extract_features(model, DataLoader(data, batch_size=3), out=out)
    assert_same_features(result, whole)
    assert model.encoded == IMAGES - 1 - 7
    shuffled = DataLoader(data, batch_size=3, sampler=[0, 2, 1, *range(3, IMAGES)])
    relabeled = Prepared(folder)
    relabeled.first = 1
    for other in (shuffled, DataLoader(relabeled, batch_size=3)):
        with pytest.raises(DataError, match="other images or transform"):
            extract_features(toy_model(), other, out=out)


def test_a_list_that_is_broken_at_the_samples(folder: Path, tmp_path: Path, out: Path) -> None:
    """Lazy images that turn out broken are skipped like any others."""
    whole = (folder / "00.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with Image.open(tmp_path / "cut.png") as cut:
        images = [cut, folder / "01.png", tmp_path / "none.png"]
        result = extract_features(toy_model(), images, out=out)
    assert result.paths == [str(folder / "01.png")]
    assert [name for name, _ in result.skipped] == ["0", str(images[2])]
    assert_same_features(load_features(out), result)


def test_nothing_but_broken_images_leaves_no_file(tmp_path: Path, out: Path) -> None:
    with pytest.raises(DataError, match="none of 1 image can be read"):
        extract_features(toy_model(), [tmp_path / "none.png"], out=out)
    assert not out.exists()


def test_leaves_files_of_others_alone(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    save_file({"features": torch.zeros(2, 3)}, out)
    before = out.read_bytes()
    calls: list[Callable[[], object]] = [
        lambda: extract_features(toy_model(), folder, out=out),
        lambda: load_features(out),
    ]
    for call in calls:
        with pytest.raises(
            DataError, match="model.safetensors was not written by extract_features"
        ):
            call()
    assert out.read_bytes() == before
    out.write_bytes(before[:50])
    with pytest.raises(CorruptCheckpointError, match="Delete it"):
        extract_features(toy_model(), folder, out=out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "half"}, "precision must be"),
        ({"shared": True}, "shared=True .* there is none"),
        ({"out": ""}, "out must name a .safetensors file"),
    ],
)
def test_nothing_is_written_where_arguments_are_wrong(
    folder: Path, out: Path, options: dict[str, Any], message: str
) -> None:
    given: dict[str, Any] = {"model": toy_model(), "images": folder, "out": out} | options
    with pytest.raises(ConfigError, match=message):
        extract_features(**given)
    assert not list(out.parent.iterdir())
