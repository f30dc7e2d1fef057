"""The command line, run as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from clipkit.cli import main

PHOTOS = Path(__file__).parents[1] / "examples" / "photos"
LABELS = ["cat", "dog", "rocket", "cup of coffee", "bicycle"]


def test_ranks_labels_of_a_real_photo(capsys):
    assert main(["classify", str(PHOTOS / "coffee.jpg"), "--labels", *LABELS]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].endswith("coffee.jpg")
    assert lines[1].split("  ")[1] == "cup of coffee"
    values = [float(line.rsplit(" ", 1)[1].rstrip("%")) for line in lines[1:]]
    assert len(values) == 5 and values == sorted(values, reverse=True) and abs(sum(values) - 100) < 0.05
    assert err.count("tiny") == 1 and "--model" in err


def test_json_of_a_folder_equals_the_library(capsys):
    import clipkit

    assert main(["classify", str(PHOTOS), "--labels", *LABELS, "--json", "--model", "tiny", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert [Path(row["image"]).name for row in rows] == ["cat.jpg", "coffee.jpg", "rocket.jpg"]
    assert err == ""  # the model was named, so there is nothing to say

    model, preprocess = clipkit.load("tiny", "cpu")
    tokens = clipkit.tokenize([f"a photo of a {label}." for label in LABELS])
    for row in rows:
        expected = model(preprocess(row["image"]).unsqueeze(0), tokens)[0].softmax(-1)[0]
        for entry in row["labels"]:
            assert entry["probability"] == pytest.approx(expected[LABELS.index(entry["label"])].item(), abs=1e-5)


def test_a_broken_image_is_reported_and_skipped(tmp_path, capsys):
    (tmp_path / "a.jpg").write_bytes((PHOTOS / "cat.jpg").read_bytes()[:500])
    Image.new("RGB", (40, 40), "red").save(tmp_path / "b.png")
    (tmp_path / "notes.txt").write_text("not an image, not looked at")
    assert main(["classify", str(tmp_path), "--labels", "red", "blue", "--json"]) == 1
    out, err = capsys.readouterr()
    assert [Path(json.loads(line)["image"]).name for line in out.splitlines()] == ["b.png"]
    assert "a.jpg" in err and "skipped" in err


def test_globs_and_repeats_give_each_file_once(capsys):
    arguments = [str(PHOTOS / "*.jpg"), str(PHOTOS / "cat.jpg"), "--labels", "cat", "dog", "--json"]
    assert main(["classify", *arguments]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_more_images_than_one_batch(tmp_path, capsys):
    for i in range(35):
        Image.new("RGB", (8, 8), (7 * i, 0, 0)).save(tmp_path / f"{i:02}.png")
    assert main(["classify", str(tmp_path), "--labels", "a", "b", "--json"]) == 0
    out = capsys.readouterr().out
    assert [Path(json.loads(line)["image"]).name for line in out.splitlines()] == [f"{i:02}.png" for i in range(35)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.jpg", "--labels", "a"], "no image at nowhere.jpg"),
        ([str(PHOTOS / "cat.jpg"), "--labels", "a", "--model", "ViT-B/23"], "ViT-B/32"),
        ([str(PHOTOS / "cat.jpg"), "--labels", "a", "--templates", "no place"], "no place"),
        ([str(PHOTOS / "cat.jpg"), "--labels", "a", "--top", "0"], "--top"),
    ],
)
def test_what_cannot_run_exits_2_with_one_line(arguments, message, capsys):
    assert main(["classify", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_templates_change_the_answer(capsys):
    answers = []
    for templates in (["a photo of a {}."], ["a photo of a {}.", "{}"]):
        main(["classify", str(PHOTOS / "cat.jpg"), "--labels", *LABELS, "--json", "--templates", *templates])
        answers.append(capsys.readouterr().out)
    assert answers[0] != answers[1]


def test_models_lists_every_name(capsys):
    import clipkit

    assert main(["models"]) == 0
    names = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert [name.strip() for name in names] == clipkit.list_models()


def test_python_m_clipkit_is_the_same_program():
    done = subprocess.run([sys.executable, "-m", "clipkit", "models"], capture_output=True, text=True, check=True)
    assert "ViT-L/14@336px" in done.stdout
