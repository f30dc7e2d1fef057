"""The command line: remedies that can be taken, outputs checked first, nothing lost or silent.

Kinds: H (streams), I (outputs), S (remedies), X6 (escape codes), Y4, Y6 and Y7 (first contact).
"""

import json
import os
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch
from PIL import Image

from clipkit import CLIP, ImageClassifier, Tokenizer
from clipkit.cli import main
from clipkit.errors import ConfigError
from tests.helpers.toy_data import color_folders, toy_config

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"
CAT = str(PHOTOS / "cat.jpg")
CPU = ["--device", "cpu"]


@pytest.fixture
def toy(tmp_path: Path, small_tokenizer: Tokenizer) -> Path:
    """Return a folder with a small model and class folders."""
    torch.manual_seed(0)
    model = CLIP(toy_config(), small_tokenizer)
    model.save_pretrained(tmp_path / "start")
    color_folders(tmp_path / "images", each=4)
    return tmp_path


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """Return a file of the embedded checkpoint's weights, which does not say what they are."""
    file = tmp_path / "mine.pt"
    torch.save(CLIP.from_pretrained("tiny", device="cpu").state_dict(), file)
    return file


def fit(toy: Path, *options: str) -> int:
    start = ["--model", str(toy / "start"), *CPU, "--method", "cache"]
    return main(["fit", str(toy / "images"), "-o", str(toy / "out"), *start, *options])


# S1: a bare file of weights is used by the options that its error names


def test_an_error_about_bare_weights_names_options(
    bare: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["classify", CAT, "--labels", "cat", "--model", str(bare), *CPU]) == 2
    err = capsys.readouterr().err
    assert "pass --config" in err
    assert "--activation and --head-width" in err
    assert "config=" not in err


@pytest.mark.parametrize("config", ["tiny", "{}/saved/config.json", "{}/own.json"])
def test_bare_weights_are_used_from_the_command_line(
    config: str, bare: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = CLIP.from_pretrained("tiny", device="cpu")
    model.save_pretrained(tmp_path / "saved")
    (tmp_path / "own.json").write_text(json.dumps(model.config.to_dict()))
    options = ["--model", str(bare), "--config", config.replace("{}", str(tmp_path))]
    labels = ["--labels", "cat", "dog", "--json", *CPU]
    assert main(["classify", CAT, *labels, *options]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = ImageClassifier.zero_shot(model, ["cat", "dog"]).predict(CAT).top()
    assert [entry["label"] for entry in found["labels"]] == [label for label, _ in expected]


@pytest.mark.parametrize("command", ["classify", "fit", "eval", "finetune"])
def test_every_command_that_loads_a_model_passes_all_options_on(
    command: str, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, object] = {}

    def take(name: str, **options: object) -> None:
        given.update(options, model=name)
        raise ConfigError("enough")

    monkeypatch.setattr(CLIP, "from_pretrained", take)
    words = {
        "--model": "mine.pt",
        "--config": "ViT-B/32",
        "--activation": "gelu",
        "--head-width": "16",
        "--revision": "main",
        "--cache-dir": "cache",
        "--tokenizer": str(toy / "added.json"),
        "--device": "cpu",
    }
    (toy / "added.json").write_text('{"<cat>": 49408}')
    out = ["-o", str(toy / "out")] if command in ("fit", "finetune") else []
    labels = ["--labels", "cat"] if command == "classify" else []
    data = str(toy / "images")
    assert main([command, data, *out, *labels, *chain.from_iterable(words.items())]) == 2
    del given["dtype"]
    tokenizer = given.pop("tokenizer")
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.added_tokens == {"<cat>": 49408}
    assert given == {
        "model": "mine.pt",
        "config": "ViT-B/32",
        "activation": "gelu",
        "head_width": 16,
        "revision": "main",
        "cache_dir": Path("cache"),
        "device": "cpu",
    }


def test_a_hub_model_that_is_not_cached_names_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    options = ["--cache-dir", str(tmp_path), "--revision", "main"]
    assert main(["classify", CAT, "--labels", "a", "--model", "nobody/nothing", *options]) == 2
    assert "cache_dir" not in capsys.readouterr().err


def test_options_of_a_model_beside_a_classifier_are_refused_by_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--classifier", "pets", "--config", "tiny", "--templates", "a {}"]
    assert main(["classify", CAT, *options]) == 2
    assert "leave --config and --templates out" in capsys.readouterr().err


# S5: a template without a place for the name


@pytest.mark.parametrize("template", ["a photo of a", "photo", "a photo of a {"])
def test_a_template_without_braces_is_told_of_them(
    template: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--templates", template, "--model", "tiny", *CPU]
    assert main(["classify", CAT, "--labels", "cat", *options]) == 2
    err = capsys.readouterr().err
    assert "lacks {} where the class name goes" in err
    assert "`clipkit prompts`" in err


# H3: what a stream's encoding cannot hold does not end the output


def test_labels_that_an_encoding_lacks_lose_nothing(tmp_path: Path) -> None:
    for name in ("\u732b.jpg", "b.jpg"):
        shutil.copy(CAT, tmp_path / name)
    command = [sys.executable, "-m", "clipkit", "classify", str(tmp_path)]
    command += ["--labels", "\u732b", "caf\u00e9", *CPU]
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run(command, capture_output=True, env=environment, timeout=120)
    lines = done.stdout.decode("cp1252").splitlines()
    assert done.returncode == 0, done.stderr
    assert len(lines) == 6
    assert lines[0].endswith("b.jpg")
    assert lines[3].endswith("\\u732b.jpg")


# X6: escape codes in names


def test_escape_codes_in_names_are_shown_not_sent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(CAT, tmp_path / "a\x1b[2J.jpg")
    (tmp_path / "b\x1b[31m\n.jpg").write_bytes(b"broken")
    labels = ["--labels", "cat\x1b]0;x\x07", "dog"]
    assert main(["classify", str(tmp_path), *labels, *CPU]) == 1
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    assert "a\\x1b[2J.jpg" in out
    assert "cat\\x1b]0;x\\x07" in out
    assert "b\\x1b[31m\\n.jpg" in err


# I: outputs are checked before the work


@pytest.mark.parametrize("command", ["fit", "finetune"])
@pytest.mark.parametrize("kind", ["file", "below a file", "foreign"])
def test_an_impossible_output_is_refused_before_the_work(
    command: str,
    kind: str,
    toy: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = toy / "out"
    if kind == "foreign":
        out.mkdir()
        (out / "thesis.txt").write_text("mine")
    else:
        out.write_text("mine")
        out = out / "inside" if kind == "below a file" else out

    def no_work(*arguments: object, **options: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(CLIP, "from_pretrained", no_work)
    start = ["--model", str(toy / "start"), *CPU]
    assert main([command, str(toy / "images"), "-o", str(out), *start]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert str(toy / "out") in lines[0]


def test_train_checks_its_output_before_the_work(
    toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (toy / "file").write_text("mine")
    values = {"data": "images", "out": "file", "batch_size": 4, "init": "start"}
    (toy / "run.json").write_text(json.dumps(values | {"train": {"steps": 1}}))
    assert main(["train", str(toy / "run.json"), *CPU]) == 2
    assert capsys.readouterr().err.startswith("clipkit: cannot write")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_under_the_output_ends_with_one_line() -> None:
    command = [sys.executable, "-m", "clipkit", "prompts"]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, env=buffered, timeout=120
        )
    assert done.returncode == 2
    assert done.stderr == "clipkit: [Errno 28] No space left on device\n"


# Y7: what is replaced, empty, loose or too few is told


def test_a_replaced_classifier_is_told(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(toy) == 0
    assert "replace" not in capsys.readouterr().err
    assert fit(toy) == 0
    assert f"This will replace the classifier in {toy / 'out'}" in capsys.readouterr().err


def test_empty_classes_loose_images_and_few_shots_are_told(
    toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (toy / "images" / "empty").mkdir()
    (toy / "images" / ".hidden").mkdir()
    Image.new("RGB", (8, 8)).save(toy / "images" / "loose.png")
    (toy / "images" / "green" / "00.png").unlink()
    assert fit(toy, "--shots", "4") == 0
    err = capsys.readouterr().err
    assert "no images, so no class: empty\n" in err
    assert "in no class folder, so left out: loose.png\n" in err
    assert "fewer than 4 images, so all are taken: green (3)\n" in err


@pytest.mark.parametrize("command", ["fit", "eval", "finetune"])
def test_a_folder_that_does_not_exist_is_said_not_to(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = [] if command == "eval" else ["-o", str(tmp_path / "out")]
    assert main([command, str(tmp_path / "nowhere"), *out]) == 2
    err = capsys.readouterr().err
    assert "there is no " in err
    assert str(tmp_path / "nowhere") in err


# Y4: nobody measures on what was fitted


def test_images_of_the_fit_are_not_measured_by_what_was_fitted(
    toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(toy, "--shots", "3") == 0
    fitted = ["--classifier", str(toy / "out"), *CPU]
    assert main(["eval", str(toy / "images"), *fitted]) == 0
    out = capsys.readouterr().out
    assert "was fitted on 12 of these 16 images, so it was measured on the other 4 alone" in out
    assert "\n4 images, 4 classes\n" in out
    unseen = color_folders(toy / "unseen", each=2, seed=900)
    assert main(["eval", str(unseen), *fitted]) == 0
    assert "Held out: measured on 8 images" in capsys.readouterr().out


# Y6: the first words that a user tries


def test_the_bare_program_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out, err = capsys.readouterr()
    assert "clipkit classify photo.jpg --labels" in out
    assert err == ""


def test_an_image_behind_the_labels_is_told_how_to_write_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["classify", "--labels", "cat", "cup of coffee", CAT]) == 2
    err = capsys.readouterr().err
    assert f"clipkit classify {CAT} --labels cat 'cup of coffee'" in err
    assert len(err.splitlines()) == 1


def test_labels_named_like_folders_are_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "dog").write_text("a file, and no image")
    monkeypatch.chdir(tmp_path)
    assert main(["classify", CAT, "--labels", "cat", "dog", *CPU]) == 0
    assert "--labels" not in capsys.readouterr().err


def test_a_revision_that_would_be_ignored_is_refused(
    toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for model in ([], ["--model", str(toy / "start")]):
        assert main(["classify", CAT, "--labels", "a", "--revision", "main", *model]) == 2
        assert "--revision is of hub repositories" in capsys.readouterr().err


def test_a_folder_with_a_run_beside_other_files_is_no_result(
    toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (toy / "out" / "run").mkdir(parents=True)
    (toy / "out" / "photo.jpg").write_bytes(b"mine")
    assert fit(toy) == 2
    assert "holds other files (photo.jpg)" in capsys.readouterr().err


def test_a_run_file_with_bare_weights_is_told_the_way_on(
    toy: Path, bare: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"data": "images", "out": "run", "batch_size": 4, "init": str(bare)}
    (toy / "run.json").write_text(json.dumps(values | {"train": {"steps": 1}}))
    assert main(["train", str(toy / "run.json"), *CPU]) == 2
    err = capsys.readouterr().err
    assert f"clipkit.CLIP.from_pretrained({str(bare)!r}, config=...)" in err
    assert 'give "init": "start"' in err


# H: streams that are closed


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_closed_stream_ends_no_command(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, name, None)  # as Python has it where the shell closed it
    assert main(["classify", CAT, "--labels", "cat", "dog", "--json", *CPU]) == 0
    out, err = capsys.readouterr()
    assert out.count("image") == (1 if name == "stderr" else 0)
    assert "tiny" not in out
    assert err == "" or name == "stdout"


def test_a_single_label_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", CAT, "--labels", "cat,dog", "--model", "tiny", *CPU]) == 0
    err = capsys.readouterr().err
    assert "the only label, 'cat,dog', gets 100 % whatever the image shows" in err
    assert "separated by spaces" in err


def test_a_classifier_given_as_a_model_is_told_that_its_head_is_left_out(
    toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Y3: whoever writes --model where --classifier is right gets other figures."""
    assert fit(toy) == 0
    capsys.readouterr()
    assert main(["eval", str(toy / "images"), "--model", str(toy / "out"), *CPU]) == 0
    assert "only its model is used here: --classifier" in capsys.readouterr().err
    command = ["classify", CAT, "--classifier", str(toy / "out" / "model"), *CPU]
    assert main(command) == 2
    assert "give --labels, and --model" in capsys.readouterr().err
