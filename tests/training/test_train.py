"""From a run file to a trained model."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clipkit import CLIP
from clipkit.classify.evaluate import Evaluation, zero_shot
from clipkit.data.labelled import read_folder
from clipkit.errors import (
    ClipkitError,
    ConfigError,
    DataError,
    TrainingError,
    UnknownModelError,
)
from clipkit.training import run
from clipkit.training.batches import Augment
from clipkit.training.run import RunConfig, train
from clipkit.training.shards import ShardBatches
from tests.helpers.models import assert_same_weights
from tests.helpers.run_files import TRAIN, write_run_file
from tests.helpers.toy_data import color_folders, toy_config
from tests.helpers.training_worker import rows_of_log


def read(place: Path, changes: dict[str, Any] | None = None) -> RunConfig:
    return RunConfig.read(write_run_file(place, changes))


def test_trains_from_class_folders_and_logs_the_evaluation(place: Path) -> None:
    held = read_folder(color_folders(place / "held", each=3, seed=700))
    start = CLIP.from_pretrained(place / "start", device="cpu")
    before = zero_shot(start, held).figures["accuracy"]
    settings = TRAIN | {"steps": 30, "evaluate_every": 15}
    model = train(read(place, {"evaluate": "held", "train": settings, "batch_size": 4}), "cpu")
    rows = rows_of_log(place / "run")
    assert [row["step"] for row in rows] == list(range(1, 31))
    assert [row["step"] for row in rows if "accuracy" in row] == [15, 30]
    assert np.mean([row["loss"] for row in rows[-5:]]) < 0.7 * rows[0]["loss"]
    assert rows[-1]["accuracy"] == zero_shot(model, held).figures["accuracy"]
    assert rows[-1]["accuracy"] > before + 0.3
    loaded = CLIP.from_pretrained(place / "run" / "model", device="cpu")
    assert_same_weights(loaded.state_dict(), model.state_dict())
    assert model.tokenizer.vocab_size == 600  # it came with the start


def test_trains_an_architecture_from_random_weights_by_its_seed(place: Path) -> None:
    config = asdict(toy_config(49408, 77)) | {"vision": toy_config().to_dict()["vision"]}
    firsts: list[float] = []
    for number, seed in enumerate((0, 0, 1)):
        out = {"out": f"run{number}", "train": TRAIN | {"steps": 2, "seed": seed}}
        train(read(place, {"init": None, "model": config} | out), "cpu")
        firsts.append(rows_of_log(place / f"run{number}")[0]["loss"])
    assert firsts[0] == firsts[1]
    assert firsts[1] != firsts[2]


def curve(out: Path) -> list[tuple[float, float, float]]:
    return [(row["step"], row["loss"], row["accuracy"]) for row in rows_of_log(out)]


def test_a_run_that_stopped_goes_on_to_the_bit(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    color_folders(place / "held", each=1)
    changes = {"evaluate": "held", "templates": ["the {}"], "train": TRAIN | {"evaluate_every": 1}}
    whole = train(read(place, changes | {"out": "whole"}), "cpu")
    config = read(place, changes)
    templates: list[Any] = []

    def stop(*arguments: Any, **options: Any) -> Evaluation:
        templates.append(options["templates"])
        if len(templates) == 4:  # the checkpoint is that of step 2
            raise KeyboardInterrupt("stopped")
        return zero_shot(*arguments, **options)

    monkeypatch.setattr(run, "zero_shot", stop)
    with pytest.raises(KeyboardInterrupt, match="stopped"):
        train(config, "cpu")
    resumed = train(config, "cpu")
    assert templates == [("the {}",)] * 8
    assert_same_weights(resumed.state_dict(), whole.state_dict())
    assert curve(place / "run") == curve(place / "whole")


def test_a_broken_image_ends_no_evaluation_and_no_resume(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = color_folders(place / "held", each=2)
    sound = read_folder(held).files
    (held / "blue" / "broken.png").write_bytes(b"no image")
    changes = {"evaluate": "held", "train": TRAIN | {"steps": 2, "evaluate_every": 1}}
    train(read(place, changes), "cpu")
    longer = {"evaluate": "held", "train": TRAIN | {"steps": 4, "evaluate_every": 1}}
    model = train(read(place, longer), "cpu")
    rows = rows_of_log(place / "run")
    assert [row["step"] for row in rows if "accuracy" in row] == [1, 2, 3, 4]
    pairs = read_folder(held)
    kept = pairs.select([i for i, file in enumerate(pairs.files) if file in sound])
    assert rows[-1]["accuracy"] == zero_shot(model, kept).figures["accuracy"]
    told = capsys.readouterr().err
    assert "broken.png" in told
    assert told.count("skipped: ") == 2  # once for each of the two runs


def test_augmentation_templates_and_seed_reach_the_batches(place: Path) -> None:
    losses: list[float] = []
    for number, (changes, seed) in enumerate(
        [
            ({}, 0),
            ({"augment": {"area": 0.1}}, 0),
            ({"templates": ["{}"]}, 0),
            ({}, 1),
            ({"workers": 2}, 0),
        ]
    ):
        settings = {"out": f"run{number}", "train": TRAIN | {"steps": 1, "seed": seed}}
        train(read(place, changes | settings), "cpu")
        losses.append(rows_of_log(place / f"run{number}")[0]["loss"])
    assert len(set(losses[:4])) == 4
    assert losses[0] == losses[4]


@pytest.mark.parametrize("name", ["x-{000..003}.tar", "x.tar.gz", "x.tgz"])
def test_tar_shards_are_streamed(place: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    asked: list[ShardBatches] = []

    def call(self: ShardBatches, step: int) -> Any:
        asked.append(self)
        raise DataError("asked for shards")

    monkeypatch.setattr(ShardBatches, "__call__", call)
    with pytest.raises(DataError, match="asked for shards"):
        train(read(place, {"data": name, "augment": {"area": 0.4}}), "cpu")
    assert asked[0].urls == str(place / name)
    assert asked[0].augment == Augment(0.4)
    assert asked[0].batch_size == 8


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data": "nowhere"}, DataError, "no file or folder .*nowhere"),
        ({"data": "start"}, DataError, "start holds no folders of images"),
        ({"evaluate": "nowhere"}, DataError, "there is no folder .*nowhere"),
        ({"batch_size": 25}, DataError, "batch_size 25 .* 24 images"),
        ({"workers": -1}, DataError, "workers .* not -1"),
        ({"workers": "two"}, DataError, "workers .* not 'two'"),
        ({"init": None, "model": "ViT-B/23"}, UnknownModelError, "ViT-B/23"),
        ({"init": "./missing"}, ClipkitError, "missing"),
        ({"train": TRAIN | {"image_blocks": 5}}, ConfigError, "5 of them cannot be trained"),
    ],
)
def test_says_what_cannot_be_trained(
    place: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        train(read(place, changes), "cpu")
    assert not (place / "run").exists()


def test_a_folder_of_another_run_is_refused(place: Path) -> None:
    train(read(place), "cpu")
    with pytest.raises(TrainingError, match="another run .lr 0.001 there, 0.01 here"):
        train(read(place, {"train": TRAIN | {"lr": 0.01}}), "cpu")


def test_a_file_with_the_old_name_of_recompute_goes_on(place: Path) -> None:
    train(read(place), "cpu")
    longer = TRAIN | {"steps": 8, "gradient_checkpointing": True}
    model = train(read(place, {"train": longer}), "cpu")
    assert rows_of_log(place / "run")[-1]["step"] == 8
    assert all(torch.isfinite(p).all() for p in model.parameters())
