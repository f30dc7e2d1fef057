"""clipkit.data.labelled: class folders, tables of captions, and what is wrong with them."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from clipkit.data.labelled import Pairs, read_folder, read_table
from clipkit.errors import DataError
from tests.helpers.toy_data import color_folders


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return color_folders(tmp_path_factory.mktemp("colors"), each=5)


@pytest.fixture
def pairs(folder: Path) -> Pairs:
    """20 images of 4 classes; three captions each, no two alike."""
    read = read_folder(folder)
    captions = [
        [f"{file.parent.name} {file.stem} {word}" for word in ("x", "y", "z")]
        for file in read.files
    ]
    return Pairs(read.files, captions, read.labels, read.class_names)


# Pairs


def test_repr_is_short(pairs: Pairs) -> None:
    assert repr(pairs) == "Pairs(20 images, 60 captions, 4 classes)"
    assert repr(Pairs(pairs.files, pairs.captions)) == "Pairs(20 images, 60 captions)"
    without_names = Pairs(pairs.files[:1], [["a"]], [3])
    assert repr(without_names) == "Pairs(1 image, 1 caption, 1 class)"


def test_select_keeps_what_belongs_together(pairs: Pairs) -> None:
    some = pairs.select([7, 2])
    assert some.files == [pairs.files[7], pairs.files[2]]
    assert some.captions == [pairs.captions[7], pairs.captions[2]]
    assert some.labels == [1, 0]
    assert some.class_names == pairs.class_names
    bare = Pairs(pairs.files, pairs.captions).select([7])
    assert bare.labels is None
    assert bare.class_names is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"captions": [["a"]]}, "2 files must have as many lists of captions, not 1"),
        ({"labels": [0]}, "2 files must have as many labels, not 1"),
        ({"labels": [0, 2]}, "from 0 through 2 class names, but run from 0 to 2"),
        ({"labels": [-1, 1]}, "from 0 through 2 class names, but run from -1 to 1"),
    ],
)
def test_refuses_what_does_not_belong_together(values: dict[str, Any], message: str) -> None:
    sound: dict[str, Any] = {
        "files": [Path("a.png"), Path("b.png")],
        "captions": [["a"], ["b"]],
        "labels": [0, 1],
        "class_names": ["a", "b"],
    }
    Pairs(**sound)
    with pytest.raises(DataError, match=message):
        Pairs(**(sound | values))


def test_split_holds_out_a_random_share(pairs: Pairs) -> None:
    rest, held = pairs.split(6)
    assert len(rest) == 14
    assert len(held) == 6
    assert sorted(rest.files + held.files) == sorted(pairs.files)
    assert held.files == pairs.split(6)[1].files != pairs.split(6, seed=1)[1].files
    for part in (rest, held):
        assert part.class_names == pairs.class_names
        for file, captions, label in zip(part.files, part.captions, part.labels or [], strict=True):
            index = pairs.files.index(file)
            assert captions == pairs.captions[index]
            assert pairs.labels
            assert label == pairs.labels[index]


# Folders and tables


def test_folders_become_classes(tmp_path: Path) -> None:
    (tmp_path / "golden_retriever" / "deep").mkdir(parents=True)
    (tmp_path / "cat").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    for name in (
        "golden_retriever/b.JPG",
        "golden_retriever/deep/a.webp",
        "cat/1.png",
        "notes/readme.txt",
        "loose.png",
    ):
        (tmp_path / name).touch()
    pairs = read_folder(tmp_path, ["a {}.", "{} here"])
    assert pairs.class_names == ["cat", "golden_retriever"]
    assert pairs.labels == [0, 1, 1]
    assert [str(f.relative_to(tmp_path)) for f in pairs.files] == [
        "cat/1.png", "golden_retriever/b.JPG", "golden_retriever/deep/a.webp"
    ]  # fmt: skip
    assert pairs.captions[0] == ["a cat.", "cat here"]
    assert pairs.captions[2][1] == "golden retriever here"


@pytest.mark.parametrize("inside", ["", "empty", ".hidden", "loose.png"])
def test_a_folder_without_images_in_folders_is_an_error(tmp_path: Path, inside: str) -> None:
    if inside == "loose.png":
        (tmp_path / inside).touch()
    else:
        (tmp_path / inside).mkdir(exist_ok=True)
    if inside == ".hidden":
        (tmp_path / inside / "image.png").touch()
    with pytest.raises(DataError, match="holds no folders of images"):
        read_folder(tmp_path)


def test_a_folder_that_does_not_exist_is_said_to_not_exist(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no folder .*missing"):
        read_folder(tmp_path / "missing")


def test_csv_with_a_byte_order_mark_quotes_and_newlines(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    rows = [
        ("filepath", "id", "title"),
        ("a.png", 1, 'two\nlines, and a "quote"'),
        ("sub/ü.png", 2, "ümlaut"),
    ]
    with table.open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows(rows)
    pairs = read_table(table)
    assert pairs.files == [tmp_path / "a.png", tmp_path / "sub/ü.png"]
    assert pairs.labels is None
    assert pairs.captions == [['two\nlines, and a "quote"'], ["ümlaut"]]


def test_tsv_with_commas(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("image\ttext\r\na.png\tred, green\r\n/b.png\tblue\r\n")
    pairs = read_table(tmp_path / "t.tsv")
    assert pairs.files == [tmp_path / "a.png", Path("/b.png")]
    assert pairs.captions == [["red, green"], ["blue"]]


def test_jsonl_with_several_captions_and_rows_of_one_path(tmp_path: Path) -> None:
    rows = [
        {"file_name": "a.png", "captions": ["one", "two"]},
        {"file_name": "b.png", "caption": "other"},
        {"file_name": "a.png", "text": "three"},
    ]
    (tmp_path / "t.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    pairs = read_table(tmp_path / "t.jsonl")
    assert pairs.files == [tmp_path / "a.png", tmp_path / "b.png"]
    assert pairs.captions == [["one", "two", "three"], ["other"]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "t.csv",
            "picture,caption\na.png,x\n",
            "row 1 of .*t.csv needs a path .*filepath.*'picture': 'a.png'",
        ),
        ("t.csv", "path,words\na.png,x\n", "row 1 of .* a caption .*title.* 'words': 'x'"),
        ("t.csv", "path,caption\na.png,x\nb.png\n", "row 2 of .*'b.png'"),
        (
            "t.csv",
            "path,caption\na.png,a dog, running\n",
            "row 1 of .* in quotes if there are commas .* running",
        ),
        ("t.csv", "path,caption\na.png,x\nb.png,  \n", "row 2 of .*'b.png'"),
        ("t.csv", "path,caption\n,x\n", "row 1 of"),
        ("t.csv", "path,caption\n", "holds no rows"),
        ("t.csv", "", "holds no rows"),
        ("t.csv", b"path,caption\na.png,\xff\xfe\n", "cannot read .*t.csv: .*utf-8"),
        ("t.csv", "path,caption\na.png," + 200_000 * "x", "cannot read .*t.csv: .*limit"),
        (
            "t.jsonl",
            '{"path": "a", "caption": "x"}\n{"path": ',
            r"row 2 of .* but is '\{\"path\": '",
        ),
        ("t.jsonl", '["a", "x"]', r"row 1 of .* but is \['a', 'x'\]"),
        ("t.jsonl", '{"path": 5, "caption": "x"}', "row 1 of .* 5"),
        ("t.jsonl", '{"path": "a", "captions": []}', r"row 1 of .* \[\]"),
        ("t.jsonl", '{"path": "a", "captions": ["x", 7]}', "row 1 of .* 7"),
        ("t.jsonl", '{"path": "a", "caption": null}', "row 1 of .* None"),
        ("t.txt", "path,caption\na.png,x\n", "t.txt is no .csv, .tsv or .jsonl file"),
    ],
)
def test_bad_tables_say_what_is_wrong(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    table = tmp_path / name
    table.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        read_table(table)


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read .*nothing.csv"):
        read_table(tmp_path / "nothing.csv")
