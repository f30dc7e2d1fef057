"""What a command line speaks of: labels and images from files and standard input, WordNet ids."""

import io
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from clipkit import CLIP, ImageClassifier, Tokenizer
from clipkit.cli import main
from clipkit.commands.inputs import read_labels, read_paths
from clipkit.commands.model_choice import load_model, read_tokenizer
from clipkit.commands.model_options import ModelChoice
from clipkit.errors import ConfigError, DataError
from clipkit.prompts import name_ids, prompt_set, wordnet_name

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"
CAT = str(PHOTOS / "cat.jpg")
ROCKET = str(PHOTOS / "rocket.jpg")


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> io.BytesIO:
    """Return what the command reads as standard input."""
    content = io.BytesIO()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(content))
    return content


def fill(stdin: io.BytesIO, content: bytes) -> None:
    stdin.write(content)
    stdin.seek(0)


def images_in(out: str) -> list[str]:
    return [json.loads(line)["image"] for line in out.splitlines()]


def labels_in(out: str) -> set[str]:
    return {entry["label"] for entry in json.loads(out.splitlines()[0])["labels"]}


@pytest.mark.parametrize(
    "content",
    [
        b"cat\ncup of coffee\n\n  rocket \n",
        b"\xef\xbb\xbfcat\r\ncup of coffee\r\nrocket",
        b'["cat", "cup of coffee", "rocket"]',
        b' \n["cat",\n"cup of coffee", "rocket"]',
    ],
)
def test_labels_come_from_a_file(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "labels"
    file.write_bytes(content)
    assert read_labels(None, str(file)) == ["cat", "cup of coffee", "rocket"]


def test_labels_come_from_standard_input(stdin: io.BytesIO) -> None:
    fill(stdin, "\u732b\n\u72ac\n".encode())
    assert read_labels(None, "-") == ["\u732b", "\u72ac"]


def test_labels_with_names_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "labels.json"
    file.write_text('{"pet": ["cat", "kitten"], "start": "rocket"}')
    options = ["--labels-file", str(file), "--json", "--device", "cpu"]
    assert main(["classify", CAT, ROCKET, *options]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["labels"][0]["label"] for row in rows] == ["pet", "start"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no labels"),
        (b"\n \n", "holds no labels"),
        (b"[]", "must hold labels"),
        (b"[1, 2]", "must hold labels"),
        (b"{}", "must hold labels"),
        (b'{"cat": 3}', "must hold labels"),
        (b'{"cat": ["kitten", ""]}', "must hold labels"),
        (b'{"cat": []}', "must hold labels"),
        (b'["cat"', "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"caf\xe9\n", "not text in UTF-8"),
    ],
)
def test_what_holds_no_labels_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "labels"
    file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_labels(None, str(file))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["cat", " "], "a label is empty"),
        (["cat", "dog", "cat"], "label cat is given more than once"),
    ],
)
def test_labels_that_tell_nothing_apart_are_refused(labels: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_labels(labels, None)


def test_labels_come_from_one_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave one out"):
        read_labels(["cat"], str(tmp_path / "labels"))


def test_lists_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere cannot be read: No such file"):
        read_paths(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="is no file"):
        read_paths(str(tmp_path))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)  # nobody writes to it, so reading would last for ever
    with pytest.raises(DataError, match="is no file"):
        read_labels(None, str(pipe))


@pytest.mark.parametrize(
    ("content", "paths"),
    [
        (b"a.jpg\nb c.jpg\n", ["a.jpg", "b c.jpg"]),
        (b"a.jpg\r\n\r\nb.jpg", ["a.jpg", "b.jpg"]),
        (b"a\nb.jpg\0c.jpg\0", ["a\nb.jpg", "c.jpg"]),
        (b"caf\xe9.jpg\n", ["caf\udce9.jpg"]),
    ],
)
def test_lists_of_images(content: bytes, paths: list[str], stdin: io.BytesIO) -> None:
    fill(stdin, content)
    assert read_paths("-") == paths


def test_an_empty_list_is_an_error(stdin: io.BytesIO) -> None:
    with pytest.raises(DataError, match="standard input is empty"):
        read_paths("-")


def test_images_from_a_list_come_in_its_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "list.txt"
    file.write_text(f"{ROCKET}\n{CAT}\nnowhere.jpg\n")
    options = ["--labels", "cat", "rocket", "--json", "--device", "cpu"]
    assert main(["classify", "--images-from", str(file), *options]) == 1
    out, err = capsys.readouterr()
    assert images_in(out) == [ROCKET, CAT]
    assert "no image at nowhere.jpg" in err


def test_an_image_from_standard_input_stands_among_others(
    stdin: io.BytesIO, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(stdin, Path(CAT).read_bytes())
    options = ["--labels", "cat", "rocket", "--json", "--device", "cpu"]
    assert main(["classify", ROCKET, "-", *options]) == 0
    out = capsys.readouterr().out
    assert images_in(out) == [ROCKET, "-"]
    assert json.loads(out.splitlines()[1])["labels"][0]["label"] == "cat"


def test_a_broken_image_from_standard_input_is_told(
    stdin: io.BytesIO, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(stdin, b"no image")
    assert main(["classify", "-", "--labels", "cat", "rocket", "--device", "cpu"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "skipped" in err


def test_standard_input_is_one_thing_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", "-", "--labels-file", "-"]) == 2
    assert "is given 2 times" in capsys.readouterr().err


def test_names_too_long_for_the_file_system_lead_nowhere(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--labels", "cat", "rocket", "--json", "--device", "cpu"]
    assert main(["classify", "x" * 5000, CAT, *options]) == 1
    assert images_in(capsys.readouterr().out) == [CAT]


# WordNet ids


def test_the_ids_of_imagenet_have_the_names_of_its_prompt_set() -> None:
    from importlib.metadata import distribution

    listed = distribution("timm").locate_file("timm/data/_info/imagenet_synsets.txt")
    ids = Path(str(listed)).read_text().split()
    assert len(ids) == 1000
    assert [wordnet_name(one) for one in ids] == list(prompt_set("imagenet").class_names)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("n02084071", "dog"),
        ("n01440764", "tench"),
        ("n99999999", None),
        ("dog", None),
        ("n0208407", None),
        ("n020840711", None),
    ],
)
def test_names_of_ids(text: str, name: str | None) -> None:
    assert wordnet_name(text) == name


def test_labels_become_readable_and_stay_different() -> None:
    assert name_ids(["n02084071", "sports_car"]) == {"dog": "dog", "sports_car": "sports car"}
    assert name_ids(["cat", "dog"]) == ["cat", "dog"]
    double = name_ids(["n02084071", "dog"])
    assert list(double) == ["dog (n02084071)", "dog"]


def test_folders_named_by_ids_are_fitted_and_measured_by_name(
    toy: Path, start: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = toy / "ids", str(toy / "out")
    for number, (name, color) in enumerate([("n02084071", "red"), ("n02121620", "blue")]):
        (data / name).mkdir(parents=True)
        for i in range(3):
            image = Image.new("RGB", (32, 32), color)
            image.putpixel((i, number), (0, 0, 0))
            image.save(data / name / f"{i}.png")
    assert main(["fit", str(data), "-o", out, *start, "--method", "cache"]) == 0
    capsys.readouterr()
    fitted = ["--classifier", out, "--device", "cpu"]
    assert main(["classify", str(data), *fitted, "--json"]) == 0
    assert labels_in(capsys.readouterr().out) == {"dog", "cat"}
    assert main(["eval", str(data), *fitted, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["top-1"] == 1
    options = [*start, "--head-only", "--held-out", "0.5"]
    assert main(["finetune", str(data), "-o", str(toy / "tuned"), *options]) == 0
    assert ImageClassifier.load(toy / "tuned", device="cpu").labels == ["dog", "cat"]


def test_labels_that_are_ids_are_classified_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    labels = ["n02123045", "n04266014", "n99999999"]
    assert main(["classify", CAT, "--labels", *labels, "--json", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert labels_in(out) == {"tabby cat", "space shuttle", "n99999999"}
    assert "no noun of the id n99999999" in err


def test_a_tokenizer_is_read_from_its_merges(tmp_path: Path) -> None:
    file = tmp_path / "merges.txt"
    file.write_text("#version: 0.2\nc a\nca t</w>\n")
    tokenizer = read_tokenizer(file, 9)
    assert tokenizer is not None
    assert tokenizer.merges == ("c a", "ca t</w>")
    assert tokenizer.context_length == 9
    assert read_tokenizer(None, 9) is None


@pytest.mark.parametrize("length", [32, 248])
def test_a_tokenizer_makes_rows_as_long_as_the_model_takes_them(
    length: int, tmp_path: Path
) -> None:
    config = CLIP.from_pretrained("tiny", device="cpu").config
    longer = replace(config, text=replace(config.text, context_length=length))
    CLIP(longer).save_pretrained(tmp_path / "model")
    file = tmp_path / "tokens.json"
    file.write_text("{}")
    model = load_model(ModelChoice(model=str(tmp_path / "model"), tokenizer=file, device="cpu"))
    assert model.tokenizer("a dog").shape == (1, length)
    with pytest.raises(ConfigError, match=f"make it with context_length={length}$"):
        model.tokenizer = Tokenizer(context_length=length + 1)
    assert model.tokenizer.context_length == length
