"""clipkit.encode.store: processes that share work if asked to, and never otherwise."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from clipkit import CLIP, ImageClassifier
from clipkit.encode.embed import embed_images
from clipkit.encode.features import Features
from clipkit.encode.store import extract_features, load_features
from clipkit.errors import DataError
from tests.helpers.models import make_small_tokenizer
from tests.helpers.processes import launch
from tests.helpers.toy_data import toy_config
from tests.helpers.toy_extraction import (
    IMAGES,
    Files,
    assert_same_features,
    be_one_of_two,
    counting,
    toy_model,
)

pytestmark = pytest.mark.usefixtures("small_chunks")


@dataclass
class Results:
    """Hold what one of two processes got."""

    encoded: list[int]  # images that this process encoded, each time
    once: Features  # of all images, without a file
    again: Features  # with a file, after both were cut short
    read: Features  # from the finished file
    few: Features  # of two images: a single chunk, so that one process has nothing to do
    parts: list[Path]  # files of chunks that were left
    refusals: list[str]  # messages where the processes asked for different things
    alone: Features | None  # what the first process extracted while the other did not take part


def extract_together(images: Path, out: Path, rank: int) -> dict[str, Any]:
    """Extract features as one of two processes."""
    options: dict[str, Any] = {"batch_size": 3, "shared": True}
    first = counting()
    once = extract_features(first, Files(images), **options)
    with pytest.raises(MemoryError, match="no memory"):
        extract_features(counting(most=5 if rank == 0 else 4), Files(images), out=out, **options)
    # Otherwise one may go on while the other still writes. torchrun would not let that happen.
    dist.barrier()
    second = counting()
    return {
        "once": once,
        "again": extract_features(second, Files(images), out=out, **options),
        "encoded": [first.encoded, second.encoded],
        "read": extract_features(counting(most=0), Files(images), out=out, **options),
        "few": extract_features(toy_model(), Files(images).files[:2], **options),
        "parts": list(out.parent.glob("*.parts")),
    }


def ask_for_different_things(images: Path, rank: int) -> list[str]:
    """Return the messages with which each of three calls is refused."""
    messages: list[str] = []
    changes: list[dict[str, Any]] = [
        {"model": toy_model(seed=rank)},
        {"images": Files(images).files[rank:]},
        {"normalize": rank == 0},
    ]
    for change in changes:
        given: dict[str, Any] = {"model": toy_model(), "images": Files(images), "shared": True}
        with pytest.raises(DataError, match="the processes hold") as caught:
            extract_features(**(given | change))
        messages.append(str(caught.value))
    return messages


def work_alone(images: Path, out: Path) -> Features:
    """Do all that needs images, while the other process does not take part."""
    rows = [(file, i % 2) for i, file in enumerate(Files(images).files[:4])]
    model = CLIP(toy_config(), make_small_tokenizer()).eval()
    assert len(embed_images(model, [file for file, _ in rows])) == 4
    ImageClassifier.zero_shot(model, ["cat", "dog"]).fit(rows)
    return extract_features(model, rows, out=out)


def work(rank: int, images: Path, folder: Path) -> None:
    """Be one of two processes, and keep the results for the parent."""
    be_one_of_two(rank, folder, seconds=120)
    results = Results(
        **extract_together(images, folder / "features.safetensors", rank),
        refusals=ask_for_different_things(images, rank),
        alone=work_alone(images, folder / "alone.safetensors") if rank == 0 else None,
    )
    dist.barrier()
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder in which two processes worked."""
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def results(folder: Path, place: Path) -> list[Results]:
    """Return what each of two processes got."""
    multiprocessing.spawn(work, (folder, place), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    return [torch.load(place / f"{rank}.pt", weights_only=False) for rank in range(2)]


def test_two_processes_give_what_one_gives(
    folder: Path, place: Path, results: list[Results]
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = extract_features(toy_model(), Files(folder), batch_size=3)
        few = extract_features(toy_model(), Files(folder).files[:2], batch_size=3)
    finally:
        torch.set_num_threads(threads)
    assert len(few) == 2
    for got in results:
        for features in (got.once, got.again, got.read):
            assert_same_features(features, whole)
        assert_same_features(got.few, few)
        assert got.parts == []
    assert_same_features(load_features(place / "features.safetensors"), whole)


def test_each_process_encodes_its_share(results: list[Results]) -> None:
    """Chunks hold 4, 3, 4 and 2 images. The first process takes the first and the third.

    The first time with a file, it does not finish the third.
    """
    assert [got.encoded for got in results] == [[8, 4], [5, 2]]


def test_processes_that_share_must_ask_for_the_same(results: list[Results]) -> None:
    for got in results:
        assert len(got.refusals) == 3
        for message in got.refusals:
            assert message.startswith("the processes hold different models or images")


def test_one_process_of_a_group_may_work_alone(place: Path, results: list[Results]) -> None:
    alone = results[0].alone
    assert alone is not None
    assert len(alone) == 4
    assert_same_features(load_features(place / "alone.safetensors"), alone)


def test_a_group_of_one_shares_with_itself(folder: Path, tmp_path: Path) -> None:
    model = counting()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        shared = extract_features(model, folder, batch_size=3, shared=True)
    finally:
        dist.destroy_process_group()
    assert model.encoded == IMAGES - 1
    assert_same_features(shared, extract_features(toy_model(), folder, batch_size=3))


UNDER_TORCHRUN = """
import sys, clipkit
import torch.distributed as dist
from clipkit import distributed
model = clipkit.CLIP.from_pretrained("tiny", device="cpu")
alone = clipkit.extract_features(model, sys.argv[1], batch_size=2)
started = dist.is_initialized()
distributed.start(model.device)
together = clipkit.extract_features(model, sys.argv[1], batch_size=2, shared=True)
with open(f"{sys.argv[2]}/{distributed.rank()}", "w") as file:
    print(started, len(alone.paths), distributed.world_size(), len(together.paths), file=file)
"""


def test_under_torchrun_no_group_is_started(folder: Path, tmp_path: Path) -> None:
    launch(2, ["-c", UNDER_TORCHRUN, str(folder), str(tmp_path)])
    readable = str(IMAGES - 1)
    for rank in range(2):
        words = (tmp_path / str(rank)).read_text().split()
        assert words == ["False", readable, "2", readable]
