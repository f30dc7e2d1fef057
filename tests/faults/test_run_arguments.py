"""What training takes: pairs in batches, counts within bounds, and a seed for each step."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from clipkit import (
    CLIP,
    Pairs,
    Trainer,
    finetune,
    finetune_captions,
    load_features,
    read_folder,
    read_pairs,
    read_table,
)
from clipkit.errors import ConfigError, DataError, OutputError
from clipkit.training.batches import Batch, PairBatches
from clipkit.training.losses import sigmoid_loss
from clipkit.training.run import RunConfig
from clipkit.training.tasks import ContrastiveTask
from tests.helpers.run_files import write_run_file
from tests.helpers.toy_data import color_folders
from tests.helpers.training_worker import quick_config, run, toy_batches, toy_model


# Kind R: a contrastive batch of one.
def one_pair(step: int) -> Iterator[Batch]:
    for batch in toy_batches(step):
        images, tokens = batch.inputs
        yield Batch((images[:1], tokens[:1]))


def test_a_contrastive_batch_of_one_pair_is_refused(place: Path, toy: CLIP) -> None:
    with pytest.raises(ConfigError, match="batch_size is 1, but .* at least 2"):
        RunConfig.read(write_run_file(place, {"batch_size": 1}))
    files = sorted((place / "images").rglob("*.png"))
    pairs = Pairs(files, [["a"]] * len(files))
    with pytest.raises(DataError, match="single pair has a loss of 0.*at least 2"):
        finetune_captions(toy, pairs, place / "out", batch_size=1)
    with pytest.raises(DataError, match="single pair has a loss of 0.*at least 2"):
        finetune_captions(toy, pairs.select([0]), place / "out")
    batches = PairBatches(pairs, 1, toy.preprocess, toy.tokenizer)
    with pytest.raises(DataError, match="single pair has a loss of 0"):
        Trainer(toy, batches, quick_config(), place / "out", device="cpu")
    with pytest.raises(DataError, match="single pair has a loss of 0"):
        run(place / "run", one_pair)
    task = ContrastiveTask(toy, sigmoid_loss)  # a single pair has a loss there
    Trainer(task, batches, quick_config(steps=1), place / "sigmoid", device="cpu").fit()


def test_a_share_of_one_pair_is_part_of_a_batch(toy: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = toy.tokenizer(["a"])
    images = torch.zeros(1, 3, 32, 32)
    with pytest.raises(DataError, match="single pair"):
        ContrastiveTask(toy)(images, pair)
    monkeypatch.setattr("clipkit.distributed.world_size", lambda: 2)
    assert ContrastiveTask(toy)(images, pair).isfinite()


# Kind D: what only says where images are.
@pytest.mark.parametrize("pairs", ["photos", Path("photos"), None, [("a.png", 0)]])
def test_fine_tuning_says_how_images_are_read(pairs: Any, toy: CLIP, tmp_path: Path) -> None:
    for tune in (finetune, finetune_captions):
        with pytest.raises(ConfigError, match=r"takes Pairs, .*clipkit.read_pairs\(FOLDER\)"):
            tune(toy, pairs, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": torch.nn.Linear(2, 2)}, "trains a CLIP or a Task, not a Linear"),
        ({"batches": [1, 2]}, "a function from a step .* not a list"),
        ({"config": {"steps": 2}}, "must be a clipkit.TrainConfig, not a dict"),
        ({"evaluate": "accuracy"}, "evaluate must be a function of the model, not a str"),
    ],
)
def test_arguments_of_a_trainer_are_checked(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"task": toy_model(), "batches": toy_batches, "config": quick_config()}
    with pytest.raises(ConfigError, match=message):
        Trainer(**(given | change), out=tmp_path, device="cpu")
    for out in (None, 5, "", b"run"):
        with pytest.raises(OutputError, match="it is no path"):
            Trainer(**given, out=out, device="cpu")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("given", [None, 5, b"photos", ["photos"]])
@pytest.mark.parametrize(
    "read", [read_folder, read_table, read_pairs, load_features, RunConfig.read]
)
def test_what_is_no_path_is_said_to_be_none(read: Callable[[Any], object], given: Any) -> None:
    with pytest.raises((DataError, ConfigError), match=r"must be a path, not"):
        read(given)


@pytest.mark.parametrize("size", ["8", 2.5, -1])
def test_a_batch_size_is_a_count(size: Any, toy: CLIP, tmp_path: Path) -> None:
    files = sorted(color_folders(tmp_path / "images", each=1).rglob("*.png"))
    pairs = Pairs(files, [["a"]] * 4, [0, 1, 2, 3], ["a", "b", "c", "d"])
    for tune in (finetune, finetune_captions):
        with pytest.raises(DataError, match="batch_size .* must be an integer of at least 1"):
            tune(toy, pairs, tmp_path / "out", batch_size=size)


@pytest.mark.parametrize("name", ["steps", "seed", "warm_up", "save_every", "micro_batch"])
def test_counts_beyond_all_bounds_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be at most"):
        quick_config(**{name: 10**40})


# Kind Z: what no test noticed.
def test_every_step_of_every_process_has_a_seed_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainers = [
        Trainer(toy_model(), toy_batches, quick_config(seed=seed), tmp_path, device="cpu")
        for seed in (0, 1)
    ]
    monkeypatch.setattr("clipkit.distributed.world_size", lambda: 3)
    drawn: list[float] = []
    for trainer in trainers:
        for step in range(4):
            trainer.state.counters.step = step
            for rank in range(3):
                monkeypatch.setattr("clipkit.distributed.rank", lambda rank=rank: rank)
                trainer._seed()
                drawn.append(torch.rand(()).item())
                trainer._seed()
                assert torch.rand(()).item() == drawn[-1]
    assert len(set(drawn)) == 2 * 4 * 3
