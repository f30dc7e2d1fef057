"""The file that `clipkit train` reads: what it says, and what is wrong with it."""

from pathlib import Path
from typing import Any

import pytest

from clipkit.errors import ConfigError
from clipkit.training.batches import Augment
from clipkit.training.config import TrainConfig
from clipkit.training.run import RunConfig
from tests.helpers.run_files import TRAIN, write_run_file
from tests.helpers.toy_data import toy_config


def test_reads_every_field_and_finds_paths_beside_itself(tmp_path: Path) -> None:
    (tmp_path / "start").mkdir()
    changes = {
        "augment": {"area": 0.5, "mirror": True},
        "templates": ["a {}.", "the {}"],
        "workers": 2,
        "evaluate": "../held/out",
    }
    assert RunConfig.read(write_run_file(tmp_path, changes)) == RunConfig(
        data=str(tmp_path / "images"),
        out=str(tmp_path / "run"),
        batch_size=8,
        train=TrainConfig.from_dict(TRAIN),
        init=str(tmp_path / "start"),
        templates=("a {}.", "the {}"),
        augment=Augment(0.5, True),
        workers=2,
        evaluate=str(tmp_path / "../held/out"),
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data", "https://host/{00..11}.tar"),
        ("out", "/elsewhere/run"),
        ("evaluate", "/held/out"),
        ("init", "tiny"),
        ("init", "ViT-B/32"),
        ("init", "laion/some-model"),
        ("init", "/no/such/folder"),
    ],
)
def test_names_addresses_and_absolute_paths_stay_as_they_are(
    name: str, value: str, tmp_path: Path
) -> None:
    (tmp_path / "tiny").mkdir()  # where a run may write to
    config = RunConfig.read(write_run_file(tmp_path, {name: value}))
    assert getattr(config, name) == value


def test_a_model_is_a_name_or_a_mapping(tmp_path: Path) -> None:
    config = toy_config()
    for given, expected in (("ViT-B/32", "ViT-B/32"), (config.to_dict(), config)):
        file = write_run_file(tmp_path, {"init": None, "model": given})
        assert RunConfig.read(file).model == expected


def test_a_file_of_0_1_0_is_read(tmp_path: Path) -> None:
    file = write_run_file(tmp_path, {"train": TRAIN | {"gradient_checkpointing": True}})
    assert RunConfig.read(file).train == TrainConfig.from_dict(TRAIN | {"recompute": True})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 3}, r"no field \['batch'\]"),
        ({"data": None}, "missing .*'data'"),
        ({"train": None}, "missing .*'train'"),
        ({"data": 5}, "data must be a text, not 5"),
        ({"out": ["x"]}, r"out must be a text, not \['x'\]"),
        ({"evaluate": True}, "evaluate must be a text, not True"),
        ({"batch_size": 0}, "batch_size must be a positive integer, not 0"),
        ({"batch_size": "8"}, "batch_size must be a positive integer, not '8'"),
        ({"init": None}, "either model.* or init"),
        ({"model": "ViT-B/32"}, "either model.* or init"),
        ({"init": 7}, "init must be a text, not 7"),
        ({"init": None, "model": 7}, "model must be .* not 7"),
        ({"init": None, "model": {"embed_dim": 32}}, "CLIPConfig.* missing .*vision"),
        ({"train": 4}, "train must be an object, not 4"),
        ({"train": {}}, "TrainConfig.* missing .*'steps'"),
        ({"train": {"steps": 5, "rate": 1}}, r"TrainConfig has no field \['rate'\]"),
        ({"train": {"steps": 0}}, "TrainConfig.steps .* not 0"),
        ({"train": {"steps": 5, "lr": "high"}}, "TrainConfig.lr .* not 'high'"),
        ({"train": {"steps": 5, "precision": "half"}}, "TrainConfig.precision .* not 'half'"),
        ({"augment": 0.5}, "augment must be an object, not 0.5"),
        ({"augment": {"crop": 1}}, r"Augment has no field \['crop'\]"),
        ({"augment": {"area": 2}}, "area=2"),
        ({"templates": "a photo of a {}."}, "templates must be a list .* not 'a photo of a {}.'"),
        ({"templates": []}, r"templates must be a list .* not \[\]"),
        ({"templates": ["{}", "no place"]}, "'no place'"),
        ({"templates": [5]}, r"not \[5\]"),
    ],
)
def test_says_what_is_wrong_with_the_file(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        RunConfig.read(write_run_file(tmp_path, changes))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "x.json is not JSON"),
        (b"\xff\xff", "x.json is not text in UTF-8"),
        (b"[1]", "x.json must hold a JSON object, not list"),
        (None, "x.json cannot be read: No such file"),
    ],
)
def test_says_that_it_is_no_such_file(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        RunConfig.read(tmp_path / "x.json")
