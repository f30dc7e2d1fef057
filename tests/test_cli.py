"""The command line, run as a user runs it."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from clipkit import CLIP, ImageClassifier, sample_shots
from clipkit.classify import metrics
from clipkit.classify.few_shot import METHODS
from clipkit.cli import main
from clipkit.data.labelled import read_folder
from clipkit.tokenizer import Tokenizer
from tests.helpers.toy_data import caption_table, colour_folders, toy_config

PHOTOS = Path(__file__).parents[1] / "examples" / "photos"
LABELS = ["cat", "dog", "rocket", "cup of coffee", "bicycle"]


def test_ranks_labels_of_a_real_photo(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", str(PHOTOS / "coffee.jpg"), "--labels", *LABELS]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].endswith("coffee.jpg")
    assert lines[1].split("  ")[1] == "cup of coffee"
    values = [float(line.rsplit(" ", 1)[1].rstrip("%")) for line in lines[1:]]
    assert (
        len(values) == 5
        and values == sorted(values, reverse=True)
        and abs(sum(values) - 100) < 0.05
    )
    assert err.count("tiny") == 1 and "--model" in err


def test_json_of_a_folder_equals_the_library(capsys: pytest.CaptureFixture[str]) -> None:
    import clipkit

    assert (
        main(
            [
                "classify",
                str(PHOTOS),
                "--labels",
                *LABELS,
                "--json",
                "--model",
                "tiny",
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert [Path(row["image"]).name for row in rows] == ["cat.jpg", "coffee.jpg", "rocket.jpg"]
    assert err == ""  # the model was named, so there is nothing to say

    model, preprocess = clipkit.load("tiny", "cpu")
    tokens = clipkit.tokenize([f"a photo of a {label}." for label in LABELS])
    for row in rows:
        expected = model(preprocess(row["image"]).unsqueeze(0), tokens)[0].softmax(-1)[0]
        for entry in row["labels"]:
            assert entry["probability"] == pytest.approx(
                expected[LABELS.index(entry["label"])].item(), abs=1e-5
            )


def test_a_broken_image_is_reported_and_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jpg").write_bytes((PHOTOS / "cat.jpg").read_bytes()[:500])
    Image.new("RGB", (40, 40), "red").save(tmp_path / "b.png")
    (tmp_path / "notes.txt").write_text("not an image, not looked at")
    assert main(["classify", str(tmp_path), "--labels", "red", "blue", "--json"]) == 1
    out, err = capsys.readouterr()
    assert [Path(json.loads(line)["image"]).name for line in out.splitlines()] == ["b.png"]
    assert "a.jpg" in err and "skipped" in err


def test_globs_and_repeats_give_each_file_once(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(PHOTOS / "*.jpg"), str(PHOTOS / "cat.jpg"), "--labels", "cat", "dog", "--json"]
    assert main(["classify", *arguments]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_more_images_than_one_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(35):
        Image.new("RGB", (8, 8), (7 * i, 0, 0)).save(tmp_path / f"{i:02}.png")
    assert main(["classify", str(tmp_path), "--labels", "a", "b", "--json"]) == 0
    out = capsys.readouterr().out
    assert [Path(json.loads(line)["image"]).name for line in out.splitlines()] == [
        f"{i:02}.png" for i in range(35)
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.jpg", "--labels", "a"], "no image at nowhere.jpg"),
        ([str(PHOTOS / "cat.jpg"), "--labels", "a", "--model", "ViT-B/23"], "ViT-B/32"),
        ([str(PHOTOS / "cat.jpg"), "--labels", "a", "--templates", "no place"], "no place"),
        ([str(PHOTOS / "cat.jpg"), "--labels", "a", "--top", "0"], "--top"),
        ([str(PHOTOS / "cat.jpg")], "give --labels to choose from, or a --classifier"),
        ([str(PHOTOS / "cat.jpg"), "--classifier", "x", "--labels", "a"], "leave --labels out"),
        (
            [str(PHOTOS / "cat.jpg"), "--classifier", "x", "--model", "tiny"],
            "leave --model and --templates out",
        ),
        (
            [str(PHOTOS / "cat.jpg"), "--classifier", "x", "--templates", "{}"],
            "leave --model and --templates out",
        ),
        ([str(PHOTOS / "cat.jpg"), "--classifier", "no/where"], "no/where"),
    ],
)
def test_what_cannot_run_exits_2_with_one_line(
    arguments, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["classify", *arguments]) == 2
    out, err = capsys.readouterr()
    assert message in err and not out


@pytest.fixture
def toy(tmp_path: Path, small_tokenizer: Tokenizer) -> Path:
    """A folder with a small model, class folders and captioned pictures."""
    torch.manual_seed(0)
    CLIP(toy_config(), small_tokenizer).save_pretrained(tmp_path / "start")
    colour_folders(tmp_path / "pictures", each=5)
    caption_table(tmp_path / "captioned")
    return tmp_path


def start(toy: Path) -> list[str]:
    return ["--model", str(toy / "start"), "--device", "cpu"]


def test_fit_tells_what_it_made_and_classify_uses_it(
    toy, capsys: pytest.CaptureFixture[str]
) -> None:
    unseen, out = colour_folders(toy / "unseen", each=3, seed=700), str(toy / "out")
    assert main(["fit", str(toy / "pictures"), "-o", out, *start(toy)]) == 0
    *rows, last = capsys.readouterr().out.splitlines()
    said = dict(row.split() for row in rows)
    assert (
        list(said) == ["classes", "pictures", "method", "strength"]
        and float(said.pop("strength")) > 0
    )
    assert said == {"classes": "4", "pictures": "20", "method": "anchored"}
    assert f"clipkit classify --classifier {out} IMAGE" in last
    classifier, pairs = ImageClassifier.load(out, device="cpu"), read_folder(unseen)
    names = pairs.class_names
    assert classifier.labels == names and classifier.provenance["counts"] == [5, 5, 5, 5]

    fitted = ["--classifier", out, "--device", "cpu"]
    assert main(["classify", str(unseen / "dark_red"), *fitted, "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 9 and [line.split("  ")[1] for line in lines[1::3]] == ["dark red"] * 3
    assert main(["classify", str(unseen), *fitted, "--json"]) == 0
    rows = [json.loads(row) for row in capsys.readouterr().out.splitlines()]
    assert [row["image"] for row in rows] == list(map(str, pairs.files))
    for row, expected in zip(rows, classifier.predict(pairs.files), strict=True):
        assert [
            (e["label"], pytest.approx(e["probability"])) for e in row["labels"]
        ] == expected.top(4)


@pytest.mark.parametrize("method", ["zero_shot", "gaussian"])
def test_eval_prints_the_figures_of_a_classifier(
    toy, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    unseen = colour_folders(toy / "unseen", each=3, seed=700)
    pairs = read_folder(unseen)
    names = pairs.class_names
    assert names
    options, classifier = (
        start(toy),
        ImageClassifier.zero_shot(CLIP.from_pretrained(toy / "start", device="cpu"), names),
    )
    if method != "zero_shot":
        classifier.fit(
            pairs.files[::3], pairs.labels[::3], method, alpha=1e-6
        )  # so little that it still errs
        classifier.save(toy / "out")
        options = ["--classifier", str(toy / "out"), "--device", "cpu"]
    probabilities, labels = classifier.probabilities(pairs.files), torch.tensor(pairs.labels)
    predicted = probabilities.argmax(dim=1)
    right = (predicted == labels).double()
    confused = metrics.most_confused(metrics.confusion_matrix(predicted, labels, 4))
    assert 0 < right.mean() < 1 and confused
    expected = {
        "top-1": right.mean().item(),
        "mean per class": right.view(4, 3).mean().item(),
        "calibration error": metrics.expected_calibration_error(probabilities, labels),
    }
    assert main(["eval", str(unseen), *options, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures.pop("most confused") == [
        [names[i], names[j], pytest.approx(iou)] for i, j, iou in confused
    ]
    assert figures == pytest.approx({"pictures": 12, "classes": 4} | expected)
    assert main(["eval", str(unseen), *options]) == 0
    table = [row.strip().rsplit(maxsplit=1) for row in capsys.readouterr().out.splitlines()]
    assert " ".join(table[0]) == "12 pictures, 4 classes"
    assert table[1:4] == [[name, f"{value:.2%}"] for name, value in expected.items()]
    assert table[5:] == [[f"{names[i]}, {names[j]}", f"{iou:.2%}"] for i, j, iou in confused]


def test_eval_tells_the_top_5_of_more_than_five_classes(
    toy, capsys: pytest.CaptureFixture[str]
) -> None:
    unseen = colour_folders(toy / "unseen", each=3, seed=700)
    for name in ("other", "another"):
        shutil.copytree(unseen / "dark_red", unseen / name)
    pairs = read_folder(unseen)
    names = pairs.class_names
    assert names
    classifier = ImageClassifier.zero_shot(CLIP.from_pretrained(toy / "start", device="cpu"), names)
    probabilities = classifier.probabilities(pairs.files)
    assert main(["eval", str(unseen), *start(toy), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["top-5"] == metrics.top_k_accuracy(probabilities, torch.tensor(pairs.labels), 5)
    assert figures["top-1"] < figures["top-5"]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_fitted(toy, capsys: pytest.CaptureFixture[str], method: str) -> None:
    assert (
        main(
            ["fit", str(toy / "pictures"), "-o", str(toy / "out"), "--method", method, *start(toy)]
        )
        == 0
    )
    assert re.search(rf"^method +{method}$", capsys.readouterr().out, re.M)
    assert ImageClassifier.load(toy / "out", device="cpu").provenance["method"] == method


def test_shots_are_drawn_by_the_seed(toy) -> None:
    pairs = read_folder(toy / "pictures")
    names = pairs.class_names
    assert names
    heads = []
    for seed in ("1", "1", "2"):
        options = [
            "--shots",
            "2",
            "--seed",
            seed,
            "--templates",
            "stl10",
            "--method",
            "random_linear",
            *start(toy),
        ]
        assert main(["fit", str(toy / "pictures"), "-o", str(toy / "out"), *options]) == 0
        classifier = ImageClassifier.load(toy / "out", device="cpu")
        assert classifier.provenance["counts"] == [2, 2, 2, 2]
        chosen = sample_shots(torch.tensor(pairs.labels), 2, int(seed)).tolist()
        by_hand = ImageClassifier.zero_shot(classifier.model, names, "stl10")
        images, labels = zip(*[(pairs.files[i], pairs.labels[i]) for i in chosen], strict=True)
        by_hand.fit(images, labels, "random_linear", seed=int(seed))
        assert torch.equal(classifier.head.weight, by_hand.head.weight)  # pyright: ignore
        assert classifier.prompts == by_hand.prompts and len(classifier.prompts[0]) == 2
        heads.append(classifier.head.weight)
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_a_classifier_may_know_more_classes_in_another_order(
    toy, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["white", "ochre", "blue", "green", "dark red"]
    classifier = ImageClassifier.zero_shot(CLIP.from_pretrained(toy / "start", device="cpu"), names)
    pairs = read_folder(toy / "pictures")
    folders = pairs.class_names
    assert folders
    classifier.fit(pairs.files, [folders[i] for i in pairs.labels])
    classifier.save(toy / "out")
    assert (
        main(
            [
                "eval",
                str(toy / "pictures"),
                "--classifier",
                str(toy / "out"),
                "--device",
                "cpu",
                "--json",
            ]
        )
        == 0
    )
    figures = json.loads(capsys.readouterr().out)
    right = [
        p.label == folders[i]
        for p, i in zip(classifier.predict(pairs.files), pairs.labels, strict=True)
    ]
    assert figures["classes"] == 5 and figures["top-1"] == sum(right) / 20 > 0.9


def test_broken_pictures_of_class_folders_are_reported(
    toy, capsys: pytest.CaptureFixture[str]
) -> None:
    (toy / "pictures" / "blue" / "01.png").write_bytes(b"broken")
    assert main(["fit", str(toy / "pictures"), "-o", str(toy / "out"), *start(toy)]) == 0
    assert re.search(r"^clipkit: skipped: .*blue/01.png", capsys.readouterr().err, re.M)
    assert ImageClassifier.load(toy / "out", device="cpu").provenance["counts"] == [4, 5, 5, 5]
    assert (
        main(["eval", str(toy / "pictures"), "--classifier", str(toy / "out"), "--device", "cpu"])
        == 0
    )
    out, err = capsys.readouterr()
    assert out.startswith("19 pictures, 4 classes\n") and "skipped" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["fit", "{}/pictures", "--method", "best"],
            "method must be one of anchored, .* not 'best'",
        ),
        (["fit", "{}/pictures", "--shots", "0"], "at least one shot, not 20 and 0"),
        (["fit", "{}/nowhere"], "nowhere holds no folders of pictures"),
        (["fit", "{}/one"], "a single class"),
        (["fit", "{}/broken"], "none of 2 images can be read"),
        (["fit", "{}/pictures", "--model", "ViT-B/23"], "ViT-B/23"),
        (["fit", "{}/pictures", "--templates", "no place"], "no place"),
        (["eval", "{}/nowhere"], "nowhere holds no folders of pictures"),
        (
            ["eval", "{}/pictures", "--classifier", "{}/known"],
            "no class for these folders of .*: blue, dark red",
        ),
        (
            ["eval", "{}/pictures", "--classifier", "{}/known", "--model", "tiny"],
            "leave --model and --templates out",
        ),
        (
            ["eval", "{}/pictures", "--classifier", "{}/known", "--templates", "the {}"],
            "leave --model and --templates",
        ),
        (["eval", "{}/pictures", "--classifier", "{}/start"], "head.safetensors"),
    ],
)
def test_what_cannot_be_fitted_exits_2_with_one_line(
    toy, arguments, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    known = ImageClassifier.zero_shot(
        CLIP.from_pretrained(toy / "start", device="cpu"), ["green", "white"]
    )
    known.save(toy / "known")
    for path in ("one/a", "broken/a", "broken/b"):
        (toy / path).mkdir(parents=True)
        (toy / path / "x.png").write_bytes(b"broken")
    Image.new("RGB", (40, 40), "red").save(toy / "one" / "a" / "x.png")
    arguments = [argument.replace("{}", str(toy)) for argument in arguments]
    arguments += ["--device", "cpu"] + (["-o", str(toy / "out")] if arguments[0] == "fit" else [])
    arguments += (
        [] if {"--model", "--classifier"} & {*arguments} else ["--model", str(toy / "start")]
    )
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert err.splitlines()[-1].startswith("clipkit: ") and re.search(message, err) and not out
    assert not (toy / "out").exists()


def test_train_does_what_the_file_says_and_goes_on(toy) -> None:
    values = {
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
    model = CLIP.from_pretrained(toy / "run" / "model", device="cpu")
    assert model.config == toy_config() and not torch.equal(
        model.logit_scale, CLIP.from_pretrained(toy / "start", device="cpu").logit_scale
    )


def test_finetune_on_class_folders_prints_a_table(toy, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--model",
        str(toy / "start"),
        "--held-out",
        "0.2",
        "--epochs",
        "2",
        "--batch-size",
        "8",
    ]
    options += ["--alpha", "1", "--blocks", "1", "--device", "cpu"]
    assert main(["finetune", str(toy / "pictures"), "-o", str(toy / "out"), *options]) == 0
    head, row, last = capsys.readouterr().out.splitlines()
    assert head.split() == ["on", "held-out", "pictures", "before", "after"]
    name, before, after = row.split()
    assert (
        name == "accuracy"
        and float(before[:-1]) % 25 == float(after[:-1]) % 25 == 0
        and len(head) == len(row)
    )
    assert str(toy / "out" / "model") in last
    assert ImageClassifier.load(toy / "out", device="cpu").labels == [
        "blue",
        "dark red",
        "green",
        "white",
    ]
    start, tuned = (
        CLIP.from_pretrained(toy / name, device="cpu").state_dict()
        for name in ("start", "out/model")
    )
    assert torch.equal(
        start["visual.conv1.weight"], tuned["visual.conv1.weight"]
    )  # for only a block was asked for
    assert not torch.equal(start["visual.proj"], tuned["visual.proj"])


def test_finetune_on_captions_prints_recall_both_ways(
    toy, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        "--model",
        str(toy / "start"),
        "--held-out",
        "0.25",
        "--epochs",
        "1",
        "--device",
        "cpu",
    ]
    assert (
        main(
            [
                "finetune",
                str(toy / "captioned" / "captions.jsonl"),
                "--out",
                str(toy / "out"),
                *options,
            ]
        )
        == 0
    )
    rows = capsys.readouterr().out.splitlines()[1:-1]
    assert [row[:17] for row in rows] == [
        f"{a} to {b} R@{k}" for a, b in (("image", "text"), ("text", "image")) for k in (1, 5)
    ]
    assert all(row.count("%") == 2 for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "{}/missing.json"], "cannot read {}/missing.json"),
        (["train", "{}/start/config.json"], "has no field"),
        (["finetune", "{}/nowhere"], "no file or folder {}/nowhere"),
        (["finetune", "{}/start"], "start holds no folders of pictures"),
        (["finetune", "{}/pictures", "--model", "ViT-B/23"], "ViT-B/23"),
        (
            ["finetune", "{}/pictures", "--held-out", "1"],
            "held_out must be a share .* is 1.0 of 20",
        ),
        (["finetune", "{}/pictures", "--alpha", "2"], "alpha must be .* not 2.0"),
        (["finetune", "{}/captioned", "--alpha", "-1"], "alpha must be .* not -1.0"),
        (["finetune", "{}/pictures", "--batch-size", "0"], "batch_size 0"),
        (["finetune", "{}/captioned", "--batch-size", "0"], "batch_size 0"),
        (["finetune", "{}/pictures", "--workers", "-1"], "workers .* not -1"),
        (["finetune", "{}/pictures", "--epochs", "-1"], "steps must be a positive integer"),
        (["finetune", "{}/captioned", "--epochs", "0"], "steps must be a positive integer"),
        (["finetune", "{}/pictures", "--blocks", "9"], "9 of them cannot be trained"),
    ],
)
def test_what_cannot_be_trained_exits_2_with_one_line(
    toy, arguments, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [argument.replace("{}", str(toy)) for argument in arguments]
    if arguments[0] == "finetune":
        arguments += ["--out", str(toy / "out"), "--device", "cpu"]
        arguments += [] if "--model" in arguments else ["--model", str(toy / "start")]
    assert main(arguments) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("clipkit: ") and re.search(message.replace("{}", str(toy)), err)
    assert not (toy / "out" / "model").exists()


def test_templates_change_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    answers = []
    for templates in (["a photo of a {}."], ["a photo of a {}.", "{}"]):
        main(
            [
                "classify",
                str(PHOTOS / "cat.jpg"),
                "--labels",
                *LABELS,
                "--json",
                "--templates",
                *templates,
            ]
        )
        answers.append(capsys.readouterr().out)
    assert answers[0] != answers[1]


def test_a_prompt_set_brings_its_templates(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--labels", *LABELS, "--templates", "imagenet", "--json", "--device", "cpu"]
    assert main(["classify", str(PHOTOS / "cat.jpg"), *options]) == 0
    row = json.loads(capsys.readouterr().out)
    model = CLIP.from_pretrained("tiny", device="cpu")
    classifier = ImageClassifier.zero_shot(model, LABELS, "imagenet")
    assert len(classifier.prompts[0]) == 80
    expected = classifier.predict(PHOTOS / "cat.jpg").top()
    assert [
        (e["label"], pytest.approx(e["probability"], abs=1e-6)) for e in row["labels"]
    ] == expected


def test_models_lists_every_name(capsys: pytest.CaptureFixture[str]) -> None:
    import clipkit

    assert main(["models"]) == 0
    names = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert [name.strip() for name in names] == clipkit.list_models()


def test_python_m_clipkit_is_the_same_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "clipkit", "models"], capture_output=True, text=True, check=True
    )
    assert "ViT-L/14@336px" in done.stdout
