"""Tables of captions as people write them, what is wrong with others, and names of folders."""

import json
import os
from pathlib import Path

import pytest

from clipkit import ImageClassifier
from clipkit.classify.evaluate import classifier_accuracy, zero_shot
from clipkit.clip import CLIP
from clipkit.data.labelled import read_folder, read_pairs, read_table
from clipkit.errors import ConfigError, DataError
from clipkit.training.finetune import finetune
from tests.helpers.toy_data import color_folders

# Kinds P1 to P3: tables that are sound, and were refused.
SOUND = {
    "upper case ending": ("t.CSV", "path,caption\na.png,a dog\n"),
    "upper case ending of JSON": ("t.JSONL", '{"path": "a.png", "caption": "a dog"}'),
    "tabs in a .csv, open_clip's own default": ("t.csv", "filepath\ttitle\na.png\ta dog\n"),
    "tabs in a .csv, with commas": (
        "t.csv",
        "filepath\ttitle, in English\ttext\na.png\t1\ta dog\n",
    ),
    "commas in a .tsv": ("t.tsv", "path,caption\na.png,a dog\n"),
    "semicolons": ("t.csv", "path;caption\na.png;a dog\n"),
    "upper case header": ("t.csv", "Path,CAPTION\na.png,a dog\n"),
    "spaces behind commas": ("t.csv", 'path, caption\na.png, "a dog"\n'),
    "spaces around names": ("t.csv", "path , caption \na.png,a dog\n"),
    "quoted names": ("t.csv", '"Filepath","Title"\n"a.png","a dog"\n'),
    "byte order mark and tabs": ("t.csv", "\ufefffilepath\ttitle\na.png\ta dog\n"),
    "lines of Windows": ("t.csv", "Filepath\tTitle\r\na.png\ta dog\r\n"),
    "upper case names in JSON": ("t.jsonl", '{"Filepath": "a.png", " Title": "a dog"}'),
}


@pytest.mark.parametrize("name", SOUND)
def test_a_table_is_read_as_people_write_it(name: str, tmp_path: Path) -> None:
    file, content = SOUND[name]
    (tmp_path / file).write_text(content, "utf-8", newline="")
    pairs = read_table(tmp_path / file)
    assert pairs.files == [tmp_path / "a.png"]
    assert pairs.captions == [["a dog"]]


def test_commas_and_tabs_in_captions_stay(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("path\tcaption\na.png\tred, green; blue\n")
    (tmp_path / "b.csv").write_text("path,caption\na.png,red;\tgreen\n b.png, blue\n")
    assert read_table(tmp_path / "a.tsv").captions == [["red, green; blue"]]
    pairs = read_table(tmp_path / "b.csv")
    assert pairs.captions == [["red;\tgreen"], [" blue"]]
    assert pairs.files[1].name == " b.png"


# Kind X3: addresses in place of paths.
@pytest.mark.parametrize(
    "path", ["https://host/a.jpg", "pipe:cat a.png", "file:///a.png", "s3://bucket/a.png"]
)
def test_rows_with_addresses_say_what_to_do(path: str, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"path": path, "caption": "x"}))
    with pytest.raises(DataError, match=r"row 1 of .* has an address .*download the images"):
        read_table(tmp_path / "t.jsonl")


def test_a_file_with_a_colon_in_its_name_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "IMG:1.png").touch()
    (tmp_path / "t.csv").write_text("path,caption\nIMG:1.png,a\n12:30.png,b\n./x:y.png,c\n")
    assert len(read_table(tmp_path / "t.csv").files) == 3


# Kind X5: tables, changed.
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", b"[" * 100_000, "row 1 of .* needs a path"),
        ("t.jsonl", b'{"path": ' + b"[" * 900 + b"]" * 900 + b"}", "row 1 of .* needs a path"),
        ("t.jsonl", b'{"path": ' + b"1" * 5000 + b"}", "row 1 of .* needs a path"),
        ("t.jsonl", b'{"path": "a\\u0000b", "caption": "x"}', "row 1 of .* null byte in its path"),
        ("t.jsonl", b'{"path": " ", "caption": "x"}', "row 1 of .* needs a path"),
        ("t.jsonl", b"\xff\xfe{}", "cannot read .*t.jsonl"),
        ("t.csv", b"path,caption\na.png,\xff\n", "cannot read .*t.csv"),
        ("t.csv", b'path,caption\n"a.png,x\n' * 3, "row 3 of .* in quotes"),
        ("t.csv", b"path,caption\n" + b"a," * 50_000 + b"\n", "row 1 of .* in quotes"),
        ("t.csv", b"\0\0\0", "holds no rows|cannot read"),
        ("t.csv", b"path,caption\na\0b.png,x\n", "null byte|cannot read"),
    ],
)
def test_a_damaged_table_is_one_short_typed_error(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_table(tmp_path / name)
    assert len(str(caught.value)) < 1000


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "t.csv")
    with pytest.raises(DataError, match=r"cannot read .*no regular file"):
        read_table(tmp_path / "t.csv")
    for path in (f"{tmp_path}/{'n' * 300}.csv", f"{tmp_path}/a\0.csv"):
        with pytest.raises(DataError, match="cannot read"):
            read_table(path)
        with pytest.raises(DataError, match="no file or folder"):
            read_pairs(path)
    with pytest.raises(DataError, match="no file or folder ''"):
        read_pairs("")


# Kind T: labels from `os.listdir`.
@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return three images of each of four classes, one of which is called dark_red."""
    return color_folders(tmp_path / "photos", each=3)


def test_class_names_are_those_of_the_folders(photos: Path) -> None:
    pairs = read_folder(photos)
    assert pairs.class_names == sorted(os.listdir(photos))
    assert pairs.captions[3] == ["a photo of a dark red."]


def test_labels_of_folders_and_of_listdir_are_the_same(photos: Path, toy: CLIP) -> None:
    pairs = read_folder(photos)
    listed = ImageClassifier.zero_shot(toy, sorted(os.listdir(photos)))
    spaced = ImageClassifier.zero_shot(toy, ["white", "dark red", "green", "blue"])  # as in 0.1.0
    named = ImageClassifier.zero_shot(toy, pairs.class_names or [])
    assert listed.labels == named.labels
    assert listed.prompts == named.prompts
    assert ["a photo of a dark red."] in listed.prompts
    expected = zero_shot(toy, pairs).figures
    for classifier in (listed, spaced, named):
        assert classifier_accuracy(classifier, pairs).figures == expected


def test_fine_tuned_classifiers_have_the_folders_labels(
    photos: Path, toy: CLIP, tmp_path: Path
) -> None:
    classifier = finetune(toy, read_folder(photos), tmp_path / "out", head_only=True)
    assert classifier.labels == ["blue", "dark_red", "green", "white"]
    assert classifier.prompts[1] == ["a photo of a dark red."]
    assert ImageClassifier.load(tmp_path / "out", device="cpu").labels == classifier.labels


def test_folders_that_only_differ_in_underscores_are_refused(photos: Path) -> None:
    (photos / "dark red").mkdir()
    (photos / "dark red" / "0.png").write_bytes((photos / "dark_red" / "00.png").read_bytes())
    with pytest.raises(ConfigError, match="'dark red' and 'dark_red' .* underscores and spaces"):
        read_folder(photos)
