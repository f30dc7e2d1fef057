"""`clipkit segment`: what it writes and prints, what it leaves out, and its exit codes."""

import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipkit import CLIP, ImageClassifier, inspect
from clipkit.cli import main
from clipkit.commands import segment
from clipkit.inspect.areas import color_of
from clipkit.prompts import TEMPLATES
from tests.helpers.package import TESTS

PHOTOS = TESTS.parent / "examples" / "photos"
CAT = str(PHOTOS / "cat.jpg")
MODEL = ["--model", "tiny", "--device", "cpu"]


def test_paints_photos_as_the_library_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "painted"
    arguments = ["--labels", "cat", "rocket", "--background", "wall", "sky"]
    assert main(["segment", str(PHOTOS), *arguments, "--masks", "-o", str(out), *MODEL]) == 0
    stdout, stderr = capsys.readouterr()
    names = ["cat", "coffee", "rocket"]
    expected = {f"{name}.{kind}.png" for name in names for kind in ("overlay", "mask")}
    assert {path.name for path in out.iterdir()} == expected | {"labels.json"}
    assert json.loads((out / "labels.json").read_text()) == ["cat", "rocket", "background"]
    model = CLIP.from_pretrained("tiny", device="cpu")
    mapper = inspect.ClassMapper(model, ["cat", "rocket"], "imagenet", background=["wall", "sky"])
    indices = mapper.indices(CAT)
    mask = Image.open(out / "cat.mask.png")
    assert mask.mode == "P"
    assert np.array_equal(np.asarray(mask), indices.numpy())
    assert np.asarray(mask.convert("RGB"))[0, 0].tolist() == list(color_of(int(indices[0, 0])))
    assert stderr == ""
    lines = stdout.splitlines()
    assert len(lines) == 3
    share = float((indices == 0).double().mean())
    assert f"cat.jpg: cat {share:.1%}, " in lines[0]


def test_without_masks_there_are_overlays_alone(tmp_path: Path) -> None:
    assert main(["segment", CAT, "--labels", "cat", "dog", "-o", str(tmp_path), *MODEL]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["cat.overlay.png"]
    with Image.open(tmp_path / "cat.overlay.png") as drawn, Image.open(CAT) as photo:
        assert drawn.width >= photo.width
        assert drawn.height > photo.height


def test_options_reach_the_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[dict[str, Any]] = []

    class Recorder(inspect.ClassMapper):
        def __init__(self, model: CLIP, names: Any, templates: Any, **options: Any) -> None:
            taken.append({"templates": templates, **options})
            super().__init__(model, names, templates, **options)

    monkeypatch.setattr(segment, "ClassMapper", Recorder)
    expected: dict[str, Any] = {
        "templates": "imagenet",
        "background": None,
        "method": None,
        "window": None,
        "stride": None,
        "short_side": None,
        "refine": False,
    }
    where = ["-o", str(tmp_path), *MODEL]
    assert main(["segment", CAT, "--labels", "cat", "wall", *where]) == 0
    given = "--method values --window 64 --stride 48 --short-side 224 --threshold 0.7 --refine"
    options = [*given.split(), "--templates", "{}", "a {}"]
    assert main(["segment", CAT, "--labels", "cat", "wall", *options, *where]) == 0
    assert taken[0] == expected
    assert taken[1] == {
        "templates": ["{}", "a {}"],
        "background": 0.7,
        "method": "values",
        "window": 64,
        "stride": 48,
        "short_side": 224,
        "refine": True,
    }


def test_the_background_is_left_unpainted(tmp_path: Path) -> None:
    options = ["--labels", "rocket", "--background", "sky", "cloud", "--masks"]
    rocket = PHOTOS / "rocket.jpg"
    assert main(["segment", str(rocket), *options, "-o", str(tmp_path), *MODEL]) == 0
    with Image.open(tmp_path / "rocket.mask.png") as mask:
        is_background = np.asarray(mask)[:-1, :-1] == 1
    with Image.open(tmp_path / "rocket.overlay.png") as drawn, Image.open(rocket) as photo:
        rows, columns = is_background.shape
        same = np.asarray(drawn)[:rows, :columns] == np.asarray(photo)[:-1, :-1]
    assert 0.01 < is_background.mean() < 0.99
    assert same.all(axis=2)[is_background].mean() > 0.95  # but for outlines and numbers
    assert same.all(axis=2)[~is_background].mean() < 0.5


def test_several_names_of_a_label_come_from_a_file(tmp_path: Path) -> None:
    labels = tmp_path / "names.json"
    labels.write_text(json.dumps({"pet": ["cat", "dog"], "wall": "wall"}))
    options = ["--labels-file", str(labels), "--masks", "-o", str(tmp_path), *MODEL]
    assert main(["segment", CAT, *options]) == 0
    assert json.loads((tmp_path / "labels.json").read_text()) == ["pet", "wall"]


def test_images_of_one_name_do_not_take_each_others_place(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "cat.jpg").write_bytes((PHOTOS / "cat.jpg").read_bytes())
    (tmp_path / "b" / "cat-2.jpg").write_bytes((PHOTOS / "rocket.jpg").read_bytes())
    out = tmp_path / "out"
    images = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert main(["segment", *images, "--labels", "cat", "dog", "-o", str(out), *MODEL]) == 0
    assert len(list(out.iterdir())) == 3


def test_a_second_run_takes_no_files_of_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cat.jpg").write_bytes((PHOTOS / "cat.jpg").read_bytes())
    (tmp_path / "new").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "new" / "dog.mask.png")  # elsewhere, so a photo
    options = ["--labels", "cat", "dog", "--masks", "-o", str(tmp_path), *MODEL]
    assert main(["segment", str(tmp_path), *options]) == 0
    written = sorted(path.name for path in tmp_path.iterdir())
    assert "dog.mask.overlay.png" in written
    assert main(["segment", str(tmp_path), *options]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == written
    assert main(["segment", str(tmp_path / "*.mask.png"), *options]) == 2
    assert "no photo, only what this command wrote" in capsys.readouterr().err


def test_masks_hold_more_classes_than_a_palette(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = (torch.arange(300 * 451) % 301).view(300, 451)

    def indices(*_: object) -> torch.Tensor:
        return places

    monkeypatch.setattr(segment.ClassMapper, "indices", indices)
    labels = [f"class {place}" for place in range(301)]
    options = ["--labels", *labels, "--templates", "{}", "--masks", "-o", str(tmp_path), *MODEL]
    photo = tmp_path / "photo.png"
    Image.new("RGB", (451, 300)).save(photo)
    assert main(["segment", str(photo), *options]) == 0
    with Image.open(tmp_path / "photo.mask.png") as mask:
        assert np.array_equal(np.asarray(mask), places.numpy())


def test_what_cannot_be_read_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    images = [CAT, str(broken), str(tmp_path / "none.jpg")]
    options = ["--labels", "cat", "dog", "-o", str(tmp_path / "out"), *MODEL]
    assert main(["segment", *images, *options]) == 1
    stderr = capsys.readouterr().err
    assert stderr.count("skipped: ") == 2
    assert "broken.jpg" in stderr
    assert "none.jpg" in stderr
    assert main(["segment", *images[1:], *options]) == 2
    assert main(["segment", images[2], *options]) == 2


def give(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """Put a content on standard input."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_images_and_lists_come_from_standard_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    where = ["--labels", "cat", "dog", "-o", str(tmp_path), *MODEL]
    assert main(["segment", CAT, *where]) == 0
    expected = (tmp_path / "cat.overlay.png").read_bytes()
    give(monkeypatch, Path(CAT).read_bytes())
    assert main(["segment", "-", *where]) == 0
    assert (tmp_path / "stdin.overlay.png").read_bytes() == expected
    assert capsys.readouterr().out.splitlines()[1].startswith("-: ")
    give(monkeypatch, f"{CAT}\0{PHOTOS / 'rocket.jpg'}\0".encode())
    assert main(["segment", "--images-from", "-", *where]) == 0
    assert [line.split(": ")[0] for line in capsys.readouterr().out.splitlines()] == [
        CAT,
        str(PHOTOS / "rocket.jpg"),
    ]
    give(monkeypatch, b"cat\ndog\n")
    assert main(["segment", CAT, "--labels-file", "-", "-o", str(tmp_path), *MODEL]) == 0


def test_an_image_that_is_named_as_that_of_standard_input_keeps_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = tmp_path / "stdin.jpg"
    photo.write_bytes(Path(CAT).read_bytes())
    give(monkeypatch, (PHOTOS / "rocket.jpg").read_bytes())
    out = tmp_path / "out"
    assert main(["segment", str(photo), "-", "--labels", "a", "b", "-o", str(out), *MODEL]) == 0
    assert {path.name for path in out.iterdir()} == {"stdin.overlay.png", "stdin-2.overlay.png"}


def given(prompt: str, _name: str) -> str:
    """Return a prompt, whatever the name is."""
    return prompt


@pytest.mark.parametrize("templates", [["a drawing of a {}.", "{}"], None])
def test_a_classifier_brings_its_model_labels_and_texts(
    templates: list[str] | None, tmp_path: Path
) -> None:
    """Also what functions made, which are not saved."""
    model = CLIP.from_pretrained("tiny", device="cpu")
    names = {"pet": ["cat", "dog"], "rocket": "rocket"}
    made = templates or [lambda name: f"a toy {name}"]
    classifier = ImageClassifier.zero_shot(model, names, made)
    classifier.save(tmp_path / "pets")
    options = ["--classifier", str(tmp_path / "pets"), "--masks", "--background", "wall"]
    assert main(["segment", CAT, *options, "-o", str(tmp_path / "out"), "--device", "cpu"]) == 0
    assert json.loads((tmp_path / "out" / "labels.json").read_text()) == [*names, "background"]
    every = [*classifier.prompts, [text.format("wall") for text in templates or TEMPLATES]]
    prompts = dict(zip([*names, "background"], every, strict=True))
    ready: Any = {label: [partial(given, own) for own in each] for label, each in prompts.items()}
    mapper = inspect.ClassMapper(model, {n: n for n in names}, ready, background=["wall"])
    with Image.open(tmp_path / "out" / "cat.mask.png") as mask:
        assert np.array_equal(np.asarray(mask), mapper.indices(CAT).numpy())


def test_a_classifier_takes_no_labels_templates_or_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ["segment", CAT, "--classifier", str(tmp_path), "-o", str(tmp_path / "out")]
    for options, message in (
        (["--labels", "a"], "--classifier knows its own labels: leave --labels out"),
        (["--labels-file", "a"], "--classifier knows its own labels: leave --labels-file out"),
        (["--templates", "{}"], "brings its own model and texts: leave --templates out"),
        (["--model", "tiny"], "brings its own model and texts: leave --model out"),
    ):
        assert main([*start, *options]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-", "--images-from", "-", "--labels", "a", "-o", "x"], "and is given 2 times"),
        ([CAT, "-o", "x"], "give --labels (or --labels-file)"),
        (["--labels", "cat", "-o", "x"], "there is no image: clipkit segment IMAGE"),
        (["--labels", "cat", CAT, "-o", "x"], "--labels takes all words behind it"),
        (["--labels", "a", "--background", "b", CAT, "-o", "x"], "--background takes all words"),
        ([CAT, "--labels", "a", "--background", "b", "--threshold", ".5", "-o", "x"], "both say"),
        ([CAT, "--labels", "a", "--threshold", "2", "-o", "x"], "--threshold must be a probab"),
        ([CAT, "--labels", "a", "--window", "3", "-o", "x"], "--window must be an integer from 32"),
        ([CAT, "--labels", "a", "background", "--threshold", ".5", "-o", "x"], "'background'"),
        ([CAT, "--labels", "a", "-o", CAT], "a file of that name is in the way"),
    ],
)
def test_impossible_arguments_end_in_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["segment", *arguments, *MODEL]) == 2
    stdout, stderr = capsys.readouterr()
    assert stdout == ""
    assert message in stderr
    assert len(stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
