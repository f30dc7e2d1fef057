"""`clipkit train` and `clipkit finetune` on small models and images."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from clipkit import CLIP, ImageClassifier
from clipkit.cli import main
from tests.helpers.toy_data import toy_config


def test_train_does_what_the_file_says_and_goes_on(toy: Path) -> None:
    values: dict[str, Any] = {
        "data": "captioned",
        "out": "run",
        "batch_size": 8,
        "init": "start",
        "augment": {"area": 0.5},
    }
    for steps in (2, 3):
        settings = {"steps": steps, "lr": 1e-3, "warm_up": 1, "log_every": 1}
        (toy / "train.json").write_text(json.dumps(values | {"train": settings}))
        assert main(["train", str(toy / "train.json"), "--device", "cpu"]) == 0
        rows = [json.loads(line) for line in (toy / "run" / "log.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == list(range(1, steps + 1))
    before = CLIP.from_pretrained(toy / "start", device="cpu")
    after = CLIP.from_pretrained(toy / "run" / "model", device="cpu")
    assert after.config == toy_config()
    assert not torch.equal(after.logit_scale, before.logit_scale)


def test_finetune_on_class_folders_prints_a_table(
    toy: Path, start: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*start, "--held-out", "0.2", "--epochs", "2", "--batch-size", "8"]
    options += ["--alpha", "1", "--blocks", "1"]
    assert main(["finetune", str(toy / "images"), "-o", str(toy / "out"), *options]) == 0
    head, row, last = capsys.readouterr().out.splitlines()
    assert head.split() == ["on", "held-out", "images", "before", "after"]
    name, before, after = row.split()
    assert name == "accuracy"
    assert float(before[:-1]) % 25 == 0
    assert float(after[:-1]) % 25 == 0
    assert len(head) == len(row)
    assert f"clipkit classify --classifier {toy / 'out'}" in last
    classifier = ImageClassifier.load(toy / "out", device="cpu")
    assert classifier.labels == ["blue", "dark_red", "green", "white"]

    old = CLIP.from_pretrained(toy / "start", device="cpu").state_dict()
    new = CLIP.from_pretrained(toy / "out" / "model", device="cpu").state_dict()
    first = "visual.conv1.weight"
    assert torch.equal(old[first], new[first])  # for only the last block was asked for
    assert not torch.equal(old["visual.proj"], new["visual.proj"])


def test_finetune_of_the_head_alone_leaves_the_towers(toy: Path, start: list[str]) -> None:
    options = [*start, "--held-out", "0.2", "--head-only", "--out", str(toy / "out")]
    assert main(["finetune", str(toy / "images"), *options]) == 0
    old = CLIP.from_pretrained(toy / "start", device="cpu").state_dict()
    new = CLIP.from_pretrained(toy / "out" / "model", device="cpu").state_dict()
    for name, weight in old.items():
        assert torch.equal(weight, new[name]), name


def test_finetune_on_captions_prints_recall_both_ways(
    toy: Path, start: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    table = str(toy / "captioned" / "captions.jsonl")
    options = [*start, "--held-out", "0.25", "--epochs", "1", "--out", str(toy / "out")]
    assert main(["finetune", table, *options]) == 0
    rows = capsys.readouterr().out.splitlines()[1:-1]
    assert [row[:17] for row in rows] == [
        "image to text R@1",
        "image to text R@5",
        "text to image R@1",
        "text to image R@5",
    ]
    assert [row.count("%") for row in rows] == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "{}/missing.json"], "{}/missing.json cannot be read"),
        (["train", "{}/start/config.json"], "has no field"),
        (["finetune", "{}/nowhere"], "no file or folder {}/nowhere"),
        (["finetune", "{}/start"], "start holds no folders of images"),
        (["finetune", "{}/images", "--model", "ViT-B/23"], "ViT-B/23"),
        (
            ["finetune", "{}/images", "--held-out", "1"],
            "--held-out must be a share .* is 1.0 of 20 images: .* --held-out 0.5",
        ),
        (["finetune", "{}/images", "--held-out", "0"], "0.0 of 20 images: .* --held-out 0.5"),
        (["finetune", "{}/images", "--alpha", "2"], "alpha must be .* not 2.0"),
        (["finetune", "{}/captioned", "--alpha", "-1"], "alpha must be .* not -1.0"),
        (["finetune", "{}/images", "--batch-size", "0"], "--batch-size 0"),
        (["finetune", "{}/captioned", "--batch-size", "0"], "--batch-size 0"),
        (["finetune", "{}/images", "--workers", "-1"], "workers .* not -1"),
        (["finetune", "{}/images", "--epochs", "-1"], "must be a positive integer"),
        (["finetune", "{}/captioned", "--epochs", "0"], "must be a positive integer"),
        (["finetune", "{}/images", "--blocks", "9"], "9 of them cannot be trained"),
        (["finetune", "{}/captioned", "--blocks", "1"], "blocks is for class folders"),
        (["finetune", "{}/captioned", "--head-only"], "--head-only is for class folders"),
        (["finetune", "{}/images", "--head-only", "--epochs", "3"], "--head-only .*epochs"),
    ],
)
def test_what_cannot_be_trained_exits_with_2_and_one_line(
    toy: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [argument.replace("{}", str(toy)) for argument in arguments]
    words += ["--device", "cpu"]
    if words[0] == "finetune":
        words += ["--out", str(toy / "out")]
        words += [] if "--model" in words else ["--model", str(toy / "start")]
    assert main(words) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("clipkit: ")
    assert re.search(message.replace("{}", str(toy)), last)
    assert not (toy / "out" / "model").exists()


def test_finetune_of_low_rank_changes_tells_what_was_kept(
    toy: Path, start: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*start, "--held-out", "0.2", "--lora", "2", "--epochs", "1", "--batch-size", "8"]
    assert main(["finetune", str(toy / "images"), "-o", str(toy / "out"), *options]) == 0
    about = ImageClassifier.load(toy / "out", device="cpu").provenance["lora"]
    assert about["rank"] == 2
    assert about["held_out"]["images"] == 16
    assert about["held_out"].keys() == {"images", "zero_shot", "anchored", "low_rank"}
    lines = capsys.readouterr().out.splitlines()
    place = lines.index(f"kept: {about['chosen']} (--lora 2)")
    assert lines[place + 1] == "  accuracy on 16 training images, held out in turn to decide:"
    for line, name in zip(lines[place + 2 :], ("zero_shot", "anchored", "low_rank"), strict=False):
        assert line.split() == [name, f"{about['held_out'][name]['accuracy']:.1%}"]
