"""`clipkit search`, `similar`, `duplicates` and `index`."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import clipkit
from clipkit import commands
from clipkit.cli import main
from clipkit.commands import indexes
from clipkit.search import Index
from tests.helpers.figures import PHOTOS
from tests.helpers.searching import found_by
from tests.helpers.searching import indexed as indexed
from tests.helpers.searching import photos as photos


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the whole model be out of reach."""

    def fail(choice: object) -> None:
        raise AssertionError("the whole model was loaded")

    monkeypatch.setattr(commands, "load_model", fail)


def test_a_first_search_builds_the_index(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(PHOTOS / "cat.jpg", tmp_path)
    assert main(["search", "a cat", str(tmp_path), "--device", "cpu"]) == 0
    captured = capsys.readouterr()
    assert str(tmp_path / "cat.jpg") in captured.out
    assert f"Indexing the images in {tmp_path}" in captured.err
    assert Index.open(tmp_path).manifest.model == "tiny"


def test_the_best_comes_first(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = found_by(["search", "a photo of a cat", str(photos)], capsys)
    assert found[0] == "cat.jpg"
    assert len(found) == 3
    assert found_by(["search", "a photo of a cat", str(photos), "-n", "1"], capsys) == ["cat.jpg"]


def test_a_known_query_waits_for_no_torch(photos: Path) -> None:
    program = (
        "import sys; from clipkit.cli import main\n"
        f"code = main(['search', 'a photo of a cat', {str(photos)!r}, '-f', '-n', '1'])\n"
        "print(code, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{photos / 'cat.jpg'}\n0 False\n"
    assert done.stderr == ""


def test_a_new_text_loads_the_text_tower_alone(
    photos: Path, no_model: None, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["search", "a cup of coffee", str(photos), "--device", "cpu", "-n", "1"]
    assert found_by(arguments, capsys) == ["coffee.jpg"]


def test_an_image_of_the_folder_needs_no_model(
    photos: Path, no_model: None, capsys: pytest.CaptureFixture[str]
) -> None:
    cat = str(photos / "cat.jpg")
    assert found_by(["search", cat, str(photos)], capsys)[0] == "cat.jpg"
    similar = found_by(["similar", cat, str(photos)], capsys)
    assert sorted(similar) == ["coffee.jpg", "rocket.jpg"]


def test_new_images_are_found_at_the_next_search(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(photos / "cat.jpg", photos / "copy.jpg")
    (photos / "rocket.jpg").rename(photos / "renamed.jpg")
    (photos / "coffee.jpg").unlink()
    old = found_by(["search", "a photo of a cat", str(photos), "--no-update"], capsys)
    assert "rocket.jpg" in old
    assert main(["search", "a photo of a cat", str(photos), "--paths", "--device", "cpu"]) == 0
    captured = capsys.readouterr()
    names = [Path(line).name for line in captured.out.splitlines()]
    assert names[2:] == ["renamed.jpg"]
    assert set(names[:2]) == {"cat.jpg", "copy.jpg"}
    assert "Updated the index: 1 added, 1 renamed, 1 removed." in captured.err


def test_what_is_left_out_is_remembered(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exclude = ["--exclude", "cat*", "--exclude", "rocket.jpg", "--device", "cpu"]
    assert found_by(["search", "a photo of a cat", str(photos), *exclude], capsys) == ["coffee.jpg"]
    assert found_by(["search", "a photo of a cat", str(photos)], capsys) == ["coffee.jpg"]


def test_an_index_may_lie_elsewhere(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.move(photos / ".clipkit", tmp_path / "moved")
    place = tmp_path / "index"
    arguments = [str(photos), "--index", str(place), "--device", "cpu"]
    assert found_by(["search", "a photo of a cat", *arguments], capsys)[0] == "cat.jpg"
    assert (place / "manifest.json").exists()
    assert not (photos / ".clipkit").exists()


def test_an_index_elsewhere_knows_its_folder(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = str(tmp_path / "index")
    assert main(["index", str(photos), "--index", place, "--device", "cpu"]) == 0
    arguments = ["search", str(photos / "cat.jpg"), "--index", place, "-n", "1"]
    assert found_by(arguments, capsys) == ["cat.jpg"]
    (tmp_path / "other").mkdir()
    assert main(["search", "cat", str(tmp_path / "other"), "--index", place]) == 2
    assert "leave the folder out, or give another --index" in capsys.readouterr().err


def test_a_threshold_shows_all_above_it_and_says_if_there_is_none(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    query = ["search", "a photo of a cat", str(photos)]
    assert found_by([*query, "--threshold", "0.5"], capsys) == ["cat.jpg"]
    assert main([*query, "--threshold", "3"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "No image is that near to 'a photo of a cat'." in captured.err


def test_a_pattern_narrows_the_search(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query = ["search", "a photo of a cat", str(photos), "--where", "*o*"]
    assert sorted(found_by(query, capsys)) == ["coffee.jpg", "rocket.jpg"]


def test_what_was_not_found_is_told_with_its_reason(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", "a photo of a cat", str(photos), "--where", "none*"]) == 1
    assert (
        "No path matches --where 'none*'. Paths of this index are such as 'cat.jpg' and "
        "'rocket.jpg'." in capsys.readouterr().err
    )
    for photo in photos.glob("*.jpg"):
        photo.write_bytes(b"no image")
    assert main(["search", "a photo of a cat", str(photos), "--device", "cpu"]) == 1
    assert "No image can be searched." in capsys.readouterr().err


def test_another_model_is_an_error_though_nothing_is_new(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = clipkit.CLIP.from_pretrained("tiny", device="cpu")
    with torch.no_grad():
        for weight in other.visual.parameters():
            weight.copy_(weight.flip(0))
    monkeypatch.setattr(commands, "load_model", lambda choice: other)
    assert main(["index", str(photos), "--model", "tiny"]) == 0
    assert main(["search", "a photo of a cat", str(photos), "--model", "ViT-B/32"]) == 2
    assert "was made by another model" in capsys.readouterr().err


def test_an_index_may_be_a_link(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.move(photos / ".clipkit", tmp_path / "elsewhere")
    (photos / ".clipkit").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    query = ["search", "a photo of a cat", str(photos), "-n", "1"]
    assert found_by(query, capsys) == ["cat.jpg"]


def test_queries_come_from_standard_input(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"a photo of a cat\n\n{photos / 'rocket.jpg'}\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    found = found_by(["search", "-", str(photos), "-n", "1"], capsys)
    assert found == ["cat.jpg", "rocket.jpg"]


def test_several_queries_are_told_apart_and_a_bad_one_stops_no_other(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"none.jpg\na photo of a cat\n{photos / 'rocket.jpg'}\n"
    for options in ([], ["--json"]):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        capsys.readouterr()
        arguments = ["search", "-", str(photos), "-n", "1", "--device", "cpu"]
        assert main([*arguments, *options]) == 1
        captured = capsys.readouterr()
        assert "clipkit: skipped: none.jpg: cannot find the image" in captured.err
        lines = captured.out.splitlines()
        if options:
            queries = [json.loads(line)["query"] for line in lines]
        else:
            queries = [line.split("\t")[0] for line in lines]
        assert queries == ["a photo of a cat", str(photos / "rocket.jpg")]


@pytest.mark.parametrize("command", ["search", "index"])
def test_an_index_that_cannot_be_written_is_searched_as_it_was(
    command: str,
    photos: Path,
    no_model: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copy(photos / "cat.jpg", photos / "copy.jpg")
    query = ["a photo of a cat"] if command == "search" else []
    monkeypatch.setattr("os.access", lambda path, mode: not mode & os.W_OK)  # as for no root
    code = main([command, *query, str(photos), "--device", "cpu"])
    captured = capsys.readouterr()
    if command == "index":
        assert code == 2
        assert captured.out == ""
    else:
        assert code == 0
        assert "the index is searched as it was, since cannot write" in captured.err
        assert len(captured.out.splitlines()) == 3


def test_a_first_search_where_nothing_can_be_written_names_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(PHOTOS / "cat.jpg", tmp_path)
    monkeypatch.setattr("os.access", lambda path, mode: not mode & os.W_OK)  # as for no root
    assert main(["search", "a cat", str(tmp_path)]) == 2
    assert ": --index DIR keeps the index elsewhere" in capsys.readouterr().err


def test_what_was_left_out_can_be_taken_in_again(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    query = ["search", "a photo of a cat", str(photos), "--device", "cpu"]
    assert len(found_by([*query, "--exclude", "cat*"], capsys)) == 2
    assert len(found_by([*query, "--exclude", ""], capsys)) == 3


def test_a_folder_of_other_files_is_no_place_for_an_index(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(photos / ".clipkit")
    before = sorted(photos.iterdir())
    arguments = ["search", "a cat", str(photos), "--index", str(photos), "--device", "cpu"]
    assert main(arguments) == 2
    assert "holds other files, such as" in capsys.readouterr().err
    assert sorted(photos.iterdir()) == before


def test_results_as_json_and_for_xargs(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query = ["search", "a photo of a cat", str(photos), "-n", "2"]
    assert main([*query, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows[0]["path"] == str(photos / "cat.jpg")
    assert rows[0]["cosine"] > rows[1]["cosine"]
    assert rows[0]["z"] > rows[1]["z"]
    assert main([*query, "-0"]) == 0
    paths = capsys.readouterr().out.split("\0")
    assert paths[0] == str(photos / "cat.jpg")
    assert paths[-1] == ""
    assert len(paths) == 3


def test_a_contact_sheet(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = tmp_path / "sheet.html"
    assert main(["search", "a photo of a cat", str(photos), "--html", str(sheet)]) == 0
    assert f"Wrote {sheet}." in capsys.readouterr().err
    page = sheet.read_text("utf-8")
    assert "a photo of a cat" in page
    assert "3 of 3 images" in page


def test_duplicates(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(photos / "cat.jpg", photos / "copy.jpg")
    assert main(["duplicates", str(photos), "--threshold", "1", "--paths"]) == 0
    out = capsys.readouterr().out
    assert out.split() == [str(photos / "cat.jpg"), str(photos / "copy.jpg")]
    sheet = tmp_path / "sheet.html"
    assert main(["duplicates", str(photos), "--html", str(sheet)]) == 0
    assert sheet.exists()


def test_index_tells_what_it_holds_and_what_is_broken(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["index", str(photos)]) == 0
    assert capsys.readouterr().out == f"{photos / '.clipkit'}: 3 images, 0 files unreadable\n"
    (photos / "broken.jpg").write_bytes(b"no image")
    assert main(["index", str(photos), "--device", "cpu"]) == 1
    captured = capsys.readouterr()
    assert captured.out == f"{photos / '.clipkit'}: 3 images, 1 file unreadable\n"
    assert f"clipkit: skipped: {photos / 'broken.jpg'}: " in captured.err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["search", "cat", "none"], "there is no folder or file 'none'"),
        (["search", "cat", "{photos}", "-n", "0"], "--top must be at least 1, not 0"),
        (["search", "", "{photos}"], "a term of the query is empty"),
        (["search", "none.jpg", "{photos}"], "cannot find the image at the path 'none.jpg'"),
        (["search", "cat", "{empty}"], "needs at least one image, and there is none in"),
        (["search", "cat", "{empty}", "--no-update"], "there is no index in"),
        (
            ["search", "cat", "{photos}", "--no-update", "--exclude", "a"],
            "--exclude and --include-hidden change the index: leave --no-update out",
        ),
        (["search", "cat " * 99, "{photos}"], "the query cannot be used: "),
        (["duplicates", "{photos}", "--threshold", "2"], "--threshold must be above 0"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    arguments: list[str],
    problem: str,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"photos": photos, "empty": tmp_path / "empty"}
    words = [word.format(**places) for word in arguments]
    assert main([*words, "--device", "cpu"]) == 2
    (line,) = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("clipkit: ")
    ]
    assert problem in line


def test_an_index_without_the_name_of_its_model_asks_for_it(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = photos / ".clipkit" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"tiny"', '""'))
    assert main(["search", "a photo of a cat", str(photos)]) == 2
    assert "does not say of which model it is: give --model NAME" in capsys.readouterr().err


def test_workers_are_a_number_or_auto(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["index", "--workers", "none"])
    assert "none is no number of threads, nor 'auto'" in capsys.readouterr().err
    assert indexes._workers_of("3") == 3


@pytest.mark.parametrize(
    "command", [["search", "a photo of a cat"], ["duplicates"], ["similar", "cat.jpg"]]
)
def test_a_sheet_takes_no_place_of_a_photo(
    command: list[str], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = photos / "cat.jpg"
    before = photo.read_bytes()
    assert main([*command, str(photos), "--html", str(photo)]) == 2
    captured = capsys.readouterr()
    assert "--html writes a page, so its file ends in .html, not 'cat.jpg'" in captured.err
    assert captured.out == ""
    assert photo.read_bytes() == before


def test_a_place_where_no_sheet_can_be_is_told_before_the_search(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = photos / "cat.jpg" / "sheet.html"
    assert main(["search", "a photo of a cat", str(photos), "--html", str(place)]) == 2
    assert capsys.readouterr().out == ""


def test_that_there_are_no_duplicates_is_told(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["duplicates", str(photos), "--threshold", "1"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "No images look alike by a cosine of 1 or more." in captured.err
