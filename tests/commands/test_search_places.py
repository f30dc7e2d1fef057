"""`clipkit search` as programs drive it, and where images, models and settings are looked for."""

import io
import json
import os
import shutil
from pathlib import Path

import pytest

from clipkit import commands
from clipkit.cli import main
from clipkit.search import Index, scan
from tests.helpers.searching import found_by
from tests.helpers.searching import indexed as indexed
from tests.helpers.searching import photos as photos


class Asking(io.BytesIO):
    """Standard input that takes what was printed whenever a line of it is read."""

    def __init__(self, lines: bytes, capsys: pytest.CaptureFixture[str]) -> None:
        super().__init__(lines)
        self.answers: list[str] = []
        self._capsys = capsys

    def readline(self, size: int | None = -1, /) -> bytes:
        self.answers.append(self._capsys.readouterr().out)
        return super().readline(size)


def test_a_query_is_answered_before_the_next_is_read(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asking = Asking(f"a photo of a cat\n{photos / 'rocket.jpg'}\n".encode(), capsys)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(asking))
    assert main(["search", "-", str(photos), "-n", "1", "--json"]) == 0
    before, *answers = asking.answers
    assert before == ""
    found = [Path(json.loads(answer)["path"]).name for answer in answers]
    assert found == ["cat.jpg", "rocket.jpg"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"\n \n", "standard input is empty, where queries should be"),
        (b"caf\xe9\n", "standard input is not text in UTF-8"),
    ],
)
def test_lines_that_are_no_queries_are_one_line_of_an_error(
    content: bytes,
    problem: str,
    photos: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert main(["search", "-", str(photos)]) == 2
    assert f"clipkit: {problem}" in capsys.readouterr().err


def test_a_sheet_of_several_queries_is_an_error_before_any_is_answered(
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\nb\n")))
    assert main(["search", "-", str(photos), "--html", str(tmp_path / "sheet.html")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "--html shows the results of one query: give one" in captured.err


@pytest.mark.parametrize("command", ["search", "similar"])
def test_an_image_of_a_query_is_looked_for_in_the_folder_too(
    command: str,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (photos / "trips").mkdir()
    (photos / "rocket.jpg").rename(photos / "trips" / "moon - 1.jpg")
    assert main(["index", str(photos), "--device", "cpu"]) == 0
    monkeypatch.chdir(tmp_path)
    nearest = found_by([command, "trips/moon - 1.jpg", str(photos)], capsys)
    assert (nearest[0] == "moon - 1.jpg") == (command == "search")
    # What lies here comes first.
    (tmp_path / "trips").mkdir()
    shutil.copy(photos / "cat.jpg", tmp_path / "trips" / "moon - 1.jpg")
    arguments = [command, "trips/moon - 1.jpg", str(photos), "--device", "cpu"]
    assert found_by(arguments, capsys)[0] == "cat.jpg"


def test_each_setting_is_remembered_when_another_is_changed(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(photos / "cat.jpg", photos / ".hidden.jpg")
    query = ["search", "a photo of a cat", str(photos), "--device", "cpu"]
    found_by([*query, "--exclude", "rocket*"], capsys)
    found = found_by([*query, "--include-hidden"], capsys)
    assert sorted(found) == [".hidden.jpg", "cat.jpg", "coffee.jpg"]
    found = found_by([*query, "--exclude", "coffee*"], capsys)
    assert sorted(found) == [".hidden.jpg", "cat.jpg", "rocket.jpg"]


def test_a_model_in_a_folder_is_found_from_wherever_the_program_is_started(
    photos: Path, toy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(photos / ".clipkit")
    monkeypatch.chdir(toy)
    assert main(["index", str(photos), "--model", "start", "--device", "cpu"]) == 0
    assert Index.open(photos).manifest.model == os.path.abspath("start")
    monkeypatch.chdir(photos)
    assert len(found_by(["search", "a cat", str(photos), "--device", "cpu"], capsys)) == 3


@pytest.mark.parametrize("query", ["a text that is new", "elsewhere.jpg"])
def test_a_revision_of_what_has_none_is_an_error_for_one_tower_as_for_both(
    query: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(photos / "cat.jpg", tmp_path / "elsewhere.jpg")
    if query.endswith(".jpg"):
        query = str(tmp_path / query)
    assert main(["search", query, str(photos), "--revision", "main"]) == 2
    problem = "--revision is of hub repositories, and tiny is none: leave it out"
    assert problem in capsys.readouterr().err


def test_images_that_need_a_plug_in_are_told_in_one_line(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "image_suffixes", lambda: {".jpg"})
    for name in ("1.heic", "2.HEIC", "3.avif"):
        (photos / name).touch()
    assert main(["index", str(photos)]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "left out" in line] == [
        f"clipkit: 1 image of {photos} is left out, since Pillow reads no .avif here: pip install "
        "--upgrade Pillow, which reads it from 11.3",
        f"clipkit: 2 images of {photos} are left out, since Pillow reads no .heic here: pip "
        "install pillow-heif",
    ]


def test_nothing_above_a_threshold_is_told_for_similar_images_too(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "load_model", None)
    cat = str(photos / "cat.jpg")
    assert main(["similar", cat, str(photos), "--threshold", "3"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"No image is that near to {cat!r}." in captured.err
