"""clipkit.training.run: from a file to a trained model, and what is wrong with the file named."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clipkit import CLIP, ImageClassifier
from clipkit.classify.evaluate import zero_shot
from clipkit.data.labelled import read_folder, read_pairs, read_table
from clipkit.errors import (
    ClipkitError,
    ConfigError,
    DataError,
    ImageError,
    TrainingError,
    UnknownModelError,
)
from clipkit.tokenizer import Tokenizer
from clipkit.training import run
from clipkit.training.batches import Augment
from clipkit.training.config import TrainConfig
from clipkit.training.run import RunConfig, finetune_from, train
from clipkit.training.shards import ShardBatches
from tests.helpers.toy_data import caption_table, color_folders, toy_config, two_colors

TRAIN = {"steps": 6, "lr": 1e-3, "warm_up": 1, "log_every": 1, "save_every": 2}
WHOLE = {"data": "pictures", "out": "run", "batch_size": 8, "train": TRAIN, "init": "start"}


def write(folder: Path, changes: dict[str, Any], name: str = "train.json") -> Path:
    """The file WHOLE with changes; a field of None is left out."""
    values = {key: value for key, value in (WHOLE | changes).items() if value is not None}
    (folder / name).write_text(json.dumps(values))
    return folder / name


def log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture
def model(small_tokenizer: Tokenizer) -> CLIP:
    torch.manual_seed(0)
    return CLIP(toy_config(), small_tokenizer).eval()


@pytest.fixture
def place(tmp_path: Path, model: CLIP) -> Path:
    """What WHOLE asks for: class folders, and a model to start from."""
    color_folders(tmp_path / "pictures", each=6)
    model.save_pretrained(tmp_path / "start")
    return tmp_path


# The file


def test_reads_every_field_and_finds_paths_beside_itself(tmp_path: Path) -> None:
    (tmp_path / "start").mkdir()
    augment, templates = {"area": 0.5, "mirror": True}, ["a {}.", "the {}"]
    extra = {"augment": augment, "templates": templates, "workers": 2, "evaluate": "../held/out"}
    config = RunConfig.read(write(tmp_path, extra))
    assert config == RunConfig(
        data=str(tmp_path / "pictures"),
        out=str(tmp_path / "run"),
        batch_size=8,
        train=TrainConfig(**TRAIN),
        init=str(tmp_path / "start"),
        templates=("a {}.", "the {}"),
        augment=Augment(0.5, True),
        workers=2,
        evaluate=str(tmp_path / "../held/out"),
    )


def test_names_addresses_and_absolute_paths_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()  # where a run may write to
    for field, value in {
        "data": "https://host/{00..11}.tar",
        "out": "/elsewhere/run",
        "evaluate": "/held/out",
    }.items():
        assert getattr(RunConfig.read(write(tmp_path, {field: value})), field) == value
    for name in ("tiny", "ViT-B/32", "laion/some-model", "/no/such/folder"):
        assert RunConfig.read(write(tmp_path, {"init": name})).init == name


def test_a_model_is_a_name_or_a_mapping(tmp_path: Path) -> None:
    config = toy_config()
    for given, expected in (("ViT-B/32", "ViT-B/32"), (config.to_dict(), config)):
        assert RunConfig.read(write(tmp_path, {"init": None, "model": given})).model == expected


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
def test_says_what_is_wrong_with_the_file(tmp_path: Path, changes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RunConfig.read(write(tmp_path, changes))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot read .*x.json as JSON"),
        (b"\xff\xff", "cannot read .*x.json"),
        ("[1]", r"x.json must .* not \[1\]"),
    ],
)
def test_says_that_it_is_no_such_file(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=message):
        RunConfig.read(path)
    with pytest.raises(ConfigError, match="cannot read .*missing.json"):
        RunConfig.read(tmp_path / "missing.json")


# Training


def test_trains_from_class_folders_and_logs_the_evaluation(place) -> None:
    color_folders(place / "held", each=3, seed=700)
    config = RunConfig.read(
        write(
            place,
            {
                "evaluate": "held",
                "train": TRAIN | {"steps": 30, "evaluate_every": 15},
                "batch_size": 4,
            },
        )
    )
    held = read_folder(place / "held")
    names = held.class_names or []
    before = zero_shot(CLIP.from_pretrained(place / "start", device="cpu"), held, names)
    model = train(config, "cpu")
    rows = log(place / "run")
    assert [row["step"] for row in rows] == list(range(1, 31))
    assert [row["step"] for row in rows if "accuracy" in row] == [15, 30]
    assert np.mean([row["loss"] for row in rows[-5:]]) < 0.7 * rows[0]["loss"]
    assert rows[-1]["accuracy"] == zero_shot(model, held, names) > before + 0.3
    loaded = CLIP.from_pretrained(place / "run" / "model", device="cpu")
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())
    assert model.tokenizer.vocab_size == 600  # which came with what it started from


def test_trains_an_architecture_from_random_weights_by_its_seed(place) -> None:
    config = asdict(toy_config(49408, 77)) | {"vision": toy_config().to_dict()["vision"]}
    firsts = []
    for seed in (0, 0, 1):
        out = {"out": f"run{len(firsts)}", "train": TRAIN | {"steps": 2, "seed": seed}}
        train(RunConfig.read(write(place, {"init": None, "model": config} | out)), "cpu")
        firsts.append(log(place / out["out"])[0]["loss"])
    assert firsts[0] == firsts[1] != firsts[2]


def test_a_run_that_stopped_goes_on_to_the_bit(place, monkeypatch: pytest.MonkeyPatch) -> None:
    color_folders(place / "held", each=1)
    changes = {"evaluate": "held", "templates": ["the {}"], "train": TRAIN | {"evaluate_every": 1}}
    whole = train(RunConfig.read(write(place, changes | {"out": "whole"})), "cpu").state_dict()
    config = RunConfig.read(write(place, changes))
    calls = []

    def stop(*arguments):
        calls.append(arguments)
        if len(calls) == 4:  # the checkpoint is that of step 2
            raise KeyboardInterrupt
        return zero_shot(*arguments)

    monkeypatch.setattr(run, "zero_shot", stop)
    with pytest.raises(KeyboardInterrupt):
        train(config, "cpu")
    resumed = train(config, "cpu").state_dict()
    assert len(calls) == 8 and all(call[3] == ("the {}",) for call in calls)
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
    curves = [
        [(row["step"], row["loss"], row["accuracy"]) for row in log(place / name)]
        for name in ("whole", "run")
    ]
    assert curves[0] == curves[1]


def test_augmentation_templates_and_seed_reach_the_batches(place) -> None:
    losses = []
    for i, changes in enumerate(
        ({}, {"augment": {"area": 0.1}}, {"templates": ["{}"]}, {"seed": 1}, {"workers": 2})
    ):
        settings = TRAIN | {"steps": 1, "seed": changes.pop("seed", 0)}
        train(RunConfig.read(write(place, changes | {"out": f"run{i}", "train": settings})), "cpu")
        losses.append(log(place / f"run{i}")[0]["loss"])
    assert len(set(losses[:4])) == 4 and losses[0] == losses[4]


@pytest.mark.parametrize("name", ["x-{000..003}.tar", "x.tar.gz", "x.tgz"])
def test_tar_shards_are_streamed(place, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    asked = []

    def call(self, step):
        asked.append(self)
        raise DataError("asked for shards")

    monkeypatch.setattr(ShardBatches, "__call__", call)
    with pytest.raises(DataError, match="asked for shards"):
        train(RunConfig.read(write(place, {"data": name, "augment": {"area": 0.4}})), "cpu")
    assert (
        asked[0].urls == str(place / name)
        and asked[0].augment == Augment(0.4)
        and asked[0].batch_size == 8
    )


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data": "nowhere"}, DataError, "no file or folder .*nowhere"),
        ({"data": "start"}, DataError, "start holds no folders of images"),
        ({"evaluate": "nowhere"}, DataError, "there is no folder .*nowhere"),
        ({"batch_size": 25}, DataError, "batch_size 25 .* 24 pictures"),
        ({"workers": -1}, DataError, "workers .* not -1"),
        ({"workers": "two"}, DataError, "workers .* not 'two'"),
        ({"init": None, "model": "ViT-B/23"}, UnknownModelError, "ViT-B/23"),
        ({"init": "./missing"}, ClipkitError, "missing"),
        ({"train": TRAIN | {"image_blocks": 5}}, ConfigError, "5 of them cannot be trained"),
    ],
)
def test_says_what_cannot_be_trained(place, changes, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        train(RunConfig.read(write(place, changes)), "cpu")
    assert not (place / "run").exists()


def test_a_folder_of_another_run_is_refused(place) -> None:
    train(RunConfig.read(write(place, {})), "cpu")
    with pytest.raises(TrainingError, match="another run .lr 0.001 there, 0.01 here"):
        train(RunConfig.read(write(place, {"train": TRAIN | {"lr": 0.01}})), "cpu")


# Data and figures


def test_pairs_are_found_in_tables_beside_the_pictures_or_class_folders(place) -> None:
    pairs = read_pairs(place / "pictures", ("{}!",))
    assert pairs.class_names == ["blue", "dark red", "green", "white"] and pairs.captions[0] == ["blue!"]
    table = caption_table(place / "captioned")
    for data in (table, place / "captioned"):
        pairs = read_pairs(data)
        assert len(pairs) == 16 and pairs.class_names is None and pairs.files[0].parent == place / "captioned"
    with pytest.raises(DataError, match="no file or folder .*nowhere"):
        read_pairs(place / "nowhere")


def test_figures_are_those_of_the_held_out_share(place, model: CLIP) -> None:
    figures = finetune_from(
        place / "pictures", place / "run", model, held_out=0.25, epochs=0, batch_size=8, alpha=1.0
    )
    pairs = read_folder(place / "pictures")
    names = pairs.class_names or []
    held = pairs.split(6)[1]
    before, after = figures["accuracy"]
    assert before == zero_shot(model, held, names) and 0 <= before < after <= 1
    classifier = ImageClassifier.load(place / "run", device="cpu")
    right = [
        p.label == names[i]
        for p, i in zip(classifier.predict(held.files), held.labels, strict=True)
    ]
    assert after == pytest.approx(np.mean(right))


def test_captions_are_tuned_and_measured(tmp_path: Path, model: CLIP) -> None:
    caption_table(tmp_path / "data", each=2)
    options: dict[str, Any] = {
        "epochs": 1,
        "batch_size": 8,
        "alpha": 0.0,
        "blocks": None,
        "workers": 0,
    }
    figures = finetune_from(tmp_path / "data", tmp_path / "run", model, held_out=0.5, **options)
    assert list(figures) == [
        f"{way} R@{k}" for way in ("image to text", "text to image") for k in (1, 5)
    ]
    assert all(before == after for before, after in figures.values())  # with alpha 0
    assert figures["image to text R@5"][0] >= figures["image to text R@1"][0]
    assert log(tmp_path / "run" / "run")[-1]["step"] == 2


@pytest.mark.parametrize("held_out", [0, 0.01, 0.99, 1.0, 1.5, -0.1, float("nan")])
def test_a_share_that_leaves_nothing_is_refused(place, model: CLIP, held_out) -> None:
    with pytest.raises(DataError, match=re.escape(f"is {held_out} of 24")):
        finetune_from(place / "pictures", place / "run", model, held_out=held_out)


def test_a_broken_held_out_picture_is_found_before_the_training(
    tmp_path: Path, model: CLIP
) -> None:
    table = caption_table(tmp_path / "data")
    for file in read_table(table).split(4)[1].files:
        file.write_bytes(b"broken")
    with pytest.raises(ImageError, match="cannot read"):
        finetune_from(table, tmp_path / "run", model, held_out=0.25)
    assert not (tmp_path / "run").exists()


def test_a_broken_training_picture_is_skipped_and_counted(tmp_path: Path, model: CLIP) -> None:
    table = caption_table(tmp_path / "data")
    read_table(table).split(4)[0].files[0].write_bytes(b"broken")
    finetune_from(table, tmp_path / "run", model, held_out=0.25, epochs=1, batch_size=12)
    assert log(tmp_path / "run" / "run")[-1]["skipped"] == 1


def test_a_broken_picture_of_a_class_is_skipped_too(place, model: CLIP) -> None:
    pairs = read_folder(place / "pictures")
    pairs.split(6)[0].files[0].write_bytes(b"broken")
    figures = finetune_from(
        place / "pictures", place / "run", model, held_out=0.25, epochs=1, batch_size=18
    )
    assert log(place / "run" / "run")[-1]["skipped"] == 1 and list(figures) == ["accuracy"]
    assert sum(ImageClassifier.load(place / "run", device="cpu").provenance["counts"]) == 17


def test_pictures_of_any_shape_are_trained_on(tmp_path: Path, model: CLIP) -> None:
    table = caption_table(tmp_path)
    for i, size in enumerate([(1, 1), (3, 200), (90, 2)]):
        two_colors((9, 9, 9), (9, 9, 9), seed=i, size=size).save(read_table(table).files[i])
    finetune_from(table, tmp_path / "run", model, held_out=0.25, epochs=1, batch_size=12)
