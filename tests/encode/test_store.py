"""Files of features: work that goes on where it was cut short, what is refused, and several processes as one."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, Dataset

import clipkit
from clipkit import CLIP
from clipkit.data import pictures
from clipkit.data.pictures import list_images
from clipkit.encode import store as features
from clipkit.encode.embed import Features, embed_images
from clipkit.encode.store import extract_features, load_features
from clipkit.errors import ConfigError, CorruptCheckpointError, DataError
from tests.helpers.processes import launch
from tests.helpers.toy_data import picture, toy_config

PICTURES, BROKEN = 14, 5
CHUNK = 4  # pictures: four chunks, the last of two


def toy_model(seed: int = 0) -> CLIP:
    torch.manual_seed(seed)
    return CLIP(toy_config()).eval()


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pictures, "CHUNK", CHUNK)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(PICTURES):
        picture((17 * i, 0, 90), (0, 16 * i, 30), seed=i, size=(30 + i, 40)).save(
            folder / f"{i:02}.png"
        )
    (folder / f"{BROKEN:02}.png").write_bytes(b"broken")
    return folder


class Files(Dataset):
    """Of a folder, with labels; at an index it stops, in one way or another."""

    def __init__(self, folder: Path, stop_at: int = -1) -> None:
        self.files, self.stop_at = list_images(folder), stop_at

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Path, int]:
        if index == self.stop_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.files[index], index % 3


class Counting(CLIP):
    """Counts the pictures that it encodes, and fails after so many."""

    encoded, most = 0, PICTURES

    def encode_image(self, images: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        self.encoded += len(images)
        if self.encoded > self.most:
            raise MemoryError("no memory left")
        return super().encode_image(images, normalize)


def counting(most: int = PICTURES) -> Counting:
    torch.manual_seed(0)
    model = Counting(toy_config()).eval()
    model.most = most
    return model


def assert_same(one: Features, other: Features) -> None:
    assert (
        torch.equal(one.features, other.features)
        and one.paths == other.paths
        and one.skipped == other.skipped
    )
    assert (one.labels is None) == (other.labels is None)
    assert one.labels is None or other.labels is None or torch.equal(one.labels, other.labels)


def test_a_file_holds_what_is_returned_and_is_read_without_encoding(
    folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "features.safetensors"
    whole = extract_features(toy_model(), Files(folder), batch_size=3)
    assert whole.paths == [str(folder / f"{i:02}.png") for i in range(PICTURES) if i != BROKEN]
    torch.testing.assert_close(
        whole.features, embed_images(toy_model(), [Path(path) for path in whole.paths])
    )
    assert [name for name, _ in whole.skipped] == [str(folder / f"{BROKEN:02}.png")]
    model = counting()
    assert_same(extract_features(model, Files(folder), out=out, batch_size=3), whole)
    assert model.encoded == PICTURES - 1
    assert_same(load_features(out), whole)
    written = out.stat()
    assert_same(
        extract_features(counting(most=0), Files(folder), out=str(out), batch_size=7), whole
    )
    assert out.stat().st_ino == written.st_ino and out.stat().st_mtime_ns == written.st_mtime_ns
    tensors = load_file(out)  # for others to read
    assert torch.equal(tensors["features"], whole.features) and torch.equal(
        tensors["labels"], whole.labels
    )
    assert [file.name for file in out.parent.iterdir()] == ["features.safetensors"]


@pytest.mark.parametrize("most", [0, 3, 4, 5, 12])
def test_goes_on_after_an_error(folder: Path, tmp_path: Path, most) -> None:
    """Chunks that were whole are not encoded again, and the result is the same to the bit."""
    out = tmp_path / "features.safetensors"
    with pytest.raises(MemoryError, match="no memory"):
        extract_features(counting(most), folder, out=out, batch_size=3)
    assert not out.exists()
    model = counting()
    result = extract_features(model, folder, out=out, batch_size=3)
    chunks = [4, 3, 4, 2]  # one picture of the second is broken
    kept = sum(size for i, size in enumerate(chunks) if sum(chunks[: i + 1]) <= most)
    assert model.encoded == PICTURES - 1 - kept
    assert_same(result, extract_features(toy_model(), folder, batch_size=3))
    assert_same(result, load_features(out))
    assert not list(tmp_path.glob("*.parts"))


def test_goes_on_when_all_but_the_whole_is_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, write = tmp_path / "features.safetensors", features.write_weights

    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if path == out:
            raise OSError("no space left on the disk")
        write(tensors, path)

    monkeypatch.setattr(features, "write_weights", full)
    with pytest.raises(OSError, match="no space left"):
        extract_features(counting(), folder, out=out)
    monkeypatch.undo()
    monkeypatch.setattr(pictures, "CHUNK", CHUNK)
    assert_same(
        extract_features(counting(most=0), folder, out=out), extract_features(toy_model(), folder)
    )
    assert out.exists() and not list(tmp_path.glob("*.parts"))


KILLED = """
import sys, torch
from pathlib import Path
from tests.encode.test_store import CHUNK, Files, extract_features, pictures, toy_model
torch.set_num_threads(int(sys.argv[3]))
pictures.CHUNK = CHUNK
extract_features(toy_model(), Files(Path(sys.argv[1]), stop_at=9), out=sys.argv[2], batch_size=3)
"""


def test_goes_on_after_a_kill(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "features.safetensors"
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(clipkit.__file__).parents[1])])
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), str(out), str(torch.get_num_threads())],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert sorted(file.name for file in out.with_name(out.name + ".parts").iterdir()) == [
        "0-4.safetensors", "4-8.safetensors"
    ]  # fmt: skip
    model = counting()
    result = extract_features(model, Files(folder), out=out, batch_size=3)
    assert model.encoded == PICTURES - 8
    assert_same(result, extract_features(toy_model(), Files(folder), batch_size=3))
    assert not list(tmp_path.glob("*.parts"))


def altered(model: CLIP) -> CLIP:
    with torch.no_grad():
        model.visual.get_parameter("proj")[3, 5] += 1e-6
    return model


@pytest.mark.parametrize("finished", [True, False], ids=["whole", "part"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": altered(toy_model())}, "other weights:"),
        ({"model": toy_model().half()}, "other weights:"),
        (
            {"transform": lambda image: toy_model().preprocess(image).flip(-1)},
            "other images or transform:",
        ),
        ({"precision": "bfloat16"}, "other precision:"),
        ({"normalize": False}, "other normalize:"),
        ({"model": altered(toy_model()), "normalize": False}, "other weights and other normalize:"),
    ],
)
def test_refuses_files_of_other_features(
    folder: Path, tmp_path: Path, finished, change: Any, message: str
) -> None:
    out = tmp_path / "features.safetensors"
    if finished:
        extract_features(toy_model(), folder, out=out)
    else:
        with pytest.raises(MemoryError, match="no memory"):
            extract_features(counting(most=5), folder, out=out)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    remedy = (
        "features.safetensors, or name"
        if finished
        else "features.safetensors.parts, or name another file"
    )
    with pytest.raises(DataError, match=f"was made with {message} delete .*/{remedy}"):
        extract_features(**({"model": toy_model(), "images": folder, "out": out} | change))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")} == before
    extract_features(toy_model(), folder, out=out)


@pytest.mark.parametrize("change", [{"activation": "quick_gelu"}, {"head_width": 32}])
def test_what_is_made_of_the_weights_counts_too(folder: Path, tmp_path: Path, change: Any) -> None:
    out, config = tmp_path / "features.safetensors", toy_config()
    extract_features(toy_model(), folder, out=out)
    torch.manual_seed(0)
    other = CLIP(replace(config, vision=replace(config.vision, **change)))
    assert torch.equal(other.visual.get_parameter("proj"), toy_model().visual.get_parameter("proj"))
    with pytest.raises(DataError, match="made with other weights"):
        extract_features(other, folder, out=out)


def test_other_pictures_are_told_apart(folder: Path, tmp_path: Path) -> None:
    """By name, order, number, size or pixels; the probes are the first, the middle and the last one."""
    files = [file for file in list_images(folder) if file.stem != f"{BROKEN:02}"][:6]
    images = [picture((9 * i, 0, 0), (0, 0, 9 * i), seed=i) for i in range(6)]
    pixels = [torch.full((3, 32, 32), i / 9) for i in range(6)]
    lists: list[list[Any]] = [
        files, files[:5], files[::-1], [files[0], files[2], files[1], *files[3:]], [*files[:4], files[0], files[5]],
        images, [images[0], images[2], images[1], *images[3:]],
        pixels, [pixels[0], pixels[2], pixels[1], *pixels[3:]],
        [(file, i) for i, file in enumerate(files)], [(file, i // 2) for i, file in enumerate(files)],
    ]  # fmt: skip
    out, model = tmp_path / "features.safetensors", toy_model()
    digests = [pictures.ImageSet(images, model.preprocess, 3).digest() for images in lists]
    assert len(set(digests)) == len(lists)
    assert digests == [
        pictures.ImageSet(images, toy_model().preprocess, 2).digest() for images in lists
    ]

    extract_features(model, files, out=out)
    small = files[1].read_bytes()
    files[1].write_bytes(b"broken since")
    try:
        with pytest.raises(DataError, match="other images or transform"):
            extract_features(model, files, out=out)
    finally:
        files[1].write_bytes(small)
    extract_features(counting(most=0), files, out=out)


def test_loaders_go_on_too_unless_they_shuffle(folder: Path, tmp_path: Path) -> None:
    class Prepared(Files):
        first = 0

        def __getitem__(self, index: int) -> Any:
            return toy_model().preprocess(self.files[index]), self.first + index

    out, data = tmp_path / "features.safetensors", Prepared(folder)
    whole = extract_features(toy_model(), DataLoader(data, batch_size=3))
    with pytest.raises(MemoryError, match="no memory"):
        extract_features(counting(most=8), DataLoader(data, batch_size=3), out=out)
    model = counting()
    assert_same(extract_features(model, DataLoader(data, batch_size=3), out=out), whole)
    assert model.encoded == PICTURES - 1 - 7
    shuffled, relabelled = [0, 2, 1, *range(3, PICTURES)], Prepared(folder)
    relabelled.first = 1
    for other in (
        DataLoader(data, batch_size=3, sampler=shuffled),
        DataLoader(relabelled, batch_size=3),
    ):
        with pytest.raises(DataError, match="other images or transform"):
            extract_features(toy_model(), other, out=out)


def test_a_list_that_is_broken_at_the_probes(folder: Path, tmp_path: Path) -> None:
    """Nor are lazy pictures that turn out broken more than skipped."""
    from PIL import Image

    whole = (folder / "00.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "features.safetensors"
    with Image.open(tmp_path / "cut.png") as cut:
        images = [cut, folder / "01.png", tmp_path / "none.png"]
        result = extract_features(toy_model(), images, out=out)
    assert result.paths == [str(folder / "01.png")] and [name for name, _ in result.skipped] == [
        "0",
        str(images[2]),
    ]
    assert_same(load_features(out), result)
    with pytest.raises(DataError, match="none of 1 images can be read"):
        extract_features(toy_model(), [tmp_path / "none.png"], out=tmp_path / "other.safetensors")
    assert not (tmp_path / "other.safetensors").exists()


def test_leaves_files_of_others_alone(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    save_file({"features": torch.zeros(2, 3)}, out)
    before = out.read_bytes()
    for call in (
        lambda: extract_features(toy_model(), folder, out=out),
        lambda: load_features(out),
    ):
        with pytest.raises(
            DataError, match="model.safetensors was not written by extract_features"
        ):
            call()
    assert out.read_bytes() == before
    out.write_bytes(before[:50])
    with pytest.raises(CorruptCheckpointError, match="Delete it"):
        extract_features(toy_model(), folder, out=out)


def test_nothing_is_written_where_arguments_are_wrong(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="precision must be"):
        extract_features(
            toy_model(), folder, out=tmp_path / "features.safetensors", precision="half"
        )
    assert not list(tmp_path.iterdir())


def work(rank: int, world: int, images: Path, folder: Path) -> None:
    """One of the processes; what it got is kept for the parent."""
    torch.set_num_threads(1)
    pictures.CHUNK = CHUNK
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    results, out = [], folder / "features.safetensors"
    model = counting()
    results += [extract_features(model, Files(images), batch_size=3, shared=True), model.encoded]
    with pytest.raises(MemoryError, match="no memory"):
        extract_features(
            counting(most=5 if rank == 0 else 4), Files(images), batch_size=3, out=out, shared=True
        )
    dist.barrier()  # else one may go on while the other still writes, which torchrun would not let happen
    model = counting()
    options: dict[str, Any] = {"batch_size": 3, "out": out, "shared": True}
    results += [extract_features(model, Files(images), **options), model.encoded]
    results += [extract_features(counting(most=0), Files(images), **options)]
    results += [
        extract_features(toy_model(), Files(images).files[:2], batch_size=3, shared=True),
        list(folder.glob("*.parts")),
    ]
    for other in (
        {"model": toy_model(seed=rank)},
        {"images": Files(images).files[rank:]},
        {"normalize": rank == 0},
    ):
        with pytest.raises(DataError, match="the processes hold different models or images"):
            extract_features(
                **({"model": toy_model(), "images": Files(images), "shared": True} | other)
            )
    if rank == 0:  # alone, as the one that writes may want to
        results.append(embed_images(toy_model(), Files(images).files[:4]))
    dist.barrier()
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


ALONE = """
import sys, clipkit
model = clipkit.CLIP.from_pretrained("tiny", device="cpu")
from clipkit import distributed
distributed.start(model.device)
found = clipkit.extract_features(model, sys.argv[1], batch_size=2, shared=True)
with open(f"{sys.argv[2]}/{distributed.rank()}", "w") as file:
    print(distributed.rank(), distributed.world_size(), len(found.paths), file=file)
"""


def test_under_torchrun_nothing_else_is_to_be_called(folder: Path, tmp_path: Path) -> None:
    launch(2, ["-c", ALONE, str(folder), str(tmp_path)])
    count = len(features.extract_features(toy_model(), folder).paths)
    assert [(tmp_path / str(rank)).read_text().split() for rank in range(2)] == [
        [str(rank), "2", str(count)] for rank in range(2)
    ]


def test_two_processes_give_what_one_gives(folder: Path, tmp_path: Path) -> None:
    multiprocessing.spawn(work, (2, folder, tmp_path), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = extract_features(toy_model(), Files(folder), batch_size=3)
        few = extract_features(toy_model(), Files(folder).files[:2], batch_size=3)
    finally:
        torch.set_num_threads(threads)
    assert len(few.paths) == 2  # a single chunk: the second process has none
    encoded = []
    for rank in range(2):
        once, first, again, second, read, small, parts, *_ = torch.load(
            tmp_path / f"{rank}.pt", weights_only=False
        )
        for result in (once, again, read):
            assert_same(result, whole)
        assert_same(small, few)
        assert parts == []
        encoded.append((first, second))
    # Chunks hold 4, 3, 4, 2; of those the first process takes the first and the third, which it does not finish.
    assert encoded == [(8, 4), (5, 2)]
    assert_same(load_features(tmp_path / "features.safetensors"), whole)
