"""Test what predictions and classifiers say to people and programs.

Kinds Y4 (what a classifier was fitted on), Y5 (web servers), Y7 (what is left out is told), Y10
(notebooks) and S2 (remedies that can be taken).
"""

import io
import json
import math
import os
import re
import shutil
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from clipkit import CLIP, ImageClassifier, Prediction, extract_features, read_folder
from clipkit.classify.evaluate import classifier_accuracy
from clipkit.classify.seen import SEEN, count_seen, marks_of
from clipkit.classify.words import choices_in_words
from clipkit.errors import ConfigError, DataError, TokenizerError
from tests.helpers.toy_classifier import NAMES, toy_features
from tests.helpers.toy_data import color_folders


@pytest.fixture(scope="module")
def unseen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return color_folders(tmp_path_factory.mktemp("unseen"), each=3, seed=700)


@pytest.fixture(scope="module")
def classifier(model: CLIP, folder: Path) -> ImageClassifier:
    return ImageClassifier.zero_shot(model, NAMES).fit(read_folder(folder), method="gaussian")


PHOTOS = Path(__file__).parents[2] / "examples" / "photos"
ODD = ["<b>cat</b>", "größe & more"]


# Kind Y5


def test_a_prediction_is_plain_json() -> None:
    prediction = Prediction(["dog", "cat", "cow"], torch.tensor([0.25, 0.625, 0.125]), "x.png")
    expected = {
        "label": "cat",
        "probability": 0.625,
        "top": [{"label": "cat", "probability": 0.625}, {"label": "dog", "probability": 0.25}],
        "path": "x.png",
    }
    assert prediction.to_dict(k=2) == expected
    assert json.loads(json.dumps(prediction.to_dict(k=2))) == expected
    assert len(prediction.to_dict()["top"]) == 3
    assert "path" not in Prediction(["a"], torch.tensor([1.0])).to_dict()


def test_web_frameworks_make_json_of_a_prediction() -> None:
    """FastAPI takes dataclasses apart, and of anything else it asks `dict(value)`."""
    import dataclasses

    prediction = Prediction(ODD, torch.tensor([0.25, 0.75]))
    assert not dataclasses.is_dataclass(prediction)
    assert dict(prediction) == prediction.to_dict()


@pytest.mark.parametrize("k", [0, -1, 1.0, None, True, "2"])
def test_top_needs_a_positive_integer(k: Any) -> None:
    with pytest.raises(ConfigError, match="top needs k of at least 1, not "):
        Prediction(["a"], torch.tensor([1.0])).top(k)


def test_uploads_are_images(classifier: ImageClassifier, folder: Path) -> None:
    """What a web server has of a file: its bytes, or one of these open files."""
    file = folder / "green" / "00.png"
    expected = classifier.predict(file).to_dict()
    del expected["path"]
    data = file.read_bytes()
    with tempfile.SpooledTemporaryFile(max_size=1) as upload, file.open("rb") as opened:
        upload.write(data)
        upload.seek(0)
        for given in (data, bytearray(data), io.BytesIO(data), upload, opened):
            prediction: Prediction = classifier.predict(given)
            assert prediction.to_dict() == expected


# Kind Y10


class Texts(HTMLParser):
    """Collect the texts of an HTML page, and count the tags that are open."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def texts_of(html: str) -> list[str]:
    parser = Texts()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    return parser.texts


def test_a_notebook_shows_a_prediction_as_a_table() -> None:
    html = Prediction(ODD, torch.tensor([0.875, 0.125]), "<x>.png")._repr_html_()
    assert texts_of(html) == ["<x>.png", "<b>cat</b>", "87.5%", "größe & more", "12.5%"]
    assert "width: 140px" in html
    assert "width: 20px" in html
    many = Prediction([str(i) for i in range(1000)], torch.full((1000,), 1e-3))
    assert len(texts_of(many._repr_html_())) == 10
    assert len(repr(many)) < 100


def test_a_notebook_shows_a_classifier_as_a_table(model: CLIP, classifier: ImageClassifier) -> None:
    texts = texts_of(classifier._repr_html_())
    assert texts[:5] == [
        "ImageClassifier",
        "4 classes",
        "blue, dark red, green, white",
        "method",
        "gaussian on 12 images",
    ]
    assert texts[-2:] == ["image tower", "ViT 32 px"]
    assert SEEN not in texts
    odd = ImageClassifier.zero_shot(model, ["<b>", *(f"name {i}" for i in range(1999))], None)
    texts = texts_of(odd._repr_html_())
    assert texts[1] == "2,000 classes"
    assert texts[2].startswith("<b>, name 0, ")
    assert texts[2].endswith(", name 8 and 1,990 more")
    assert len(repr(odd)) < 120
    long = ImageClassifier.zero_shot(model, {"word " * 99: "cat", "dog": "dog"}, None)
    assert len(repr(long)) < 150


def test_words_about_a_head_may_be_anything(classifier: ImageClassifier) -> None:
    odd = ImageClassifier(
        classifier.model, classifier.head, NAMES, classifier.zero_shot_head, classifier.prompts
    )
    for provenance in ({"counts": 3}, {"counts": ["x"], "skipped": 5, "strength": "x"}, {"a": 1}):
        odd.provenance = provenance
        assert "4 classes" in repr(odd)
        assert "4 classes" in odd._repr_html_()
        assert odd.count_seen(toy_features()[0]) == 0


# Kind Y4


def test_a_penalty_without_end_is_said_in_words(model: CLIP) -> None:
    kept = ImageClassifier.zero_shot(model, NAMES).fit(*toy_features(), strength=math.inf)
    assert choices_in_words(kept.provenance) == {"strength": "infinite: zero-shot was kept"}
    assert "anchored on 22 images, zero-shot kept; ViT" in repr(kept)
    assert "zero-shot was kept" in kept._repr_html_()
    assert "inf;" not in repr(kept)


def test_numbers_have_few_digits() -> None:
    given = {"method": "x", "strength": 0.31622776601683794, "C": 1000000.0, "epochs": 20}
    expected = {"strength": "0.316", "C": "1e+06", "epochs": "20"}
    assert choices_in_words(given) == expected


def test_images_are_counted_as_images(classifier: ImageClassifier) -> None:
    assert classifier.provenance["images"] == 12
    assert "pictures" not in classifier.provenance


def test_a_measurement_on_fitted_images_is_told(
    classifier: ImageClassifier, folder: Path, unseen: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert classifier_accuracy(classifier, read_folder(unseen)).seen == 0
    assert caplog.messages == []
    result = classifier_accuracy(classifier, read_folder(folder), batch_size=5)
    assert result.seen == 12
    (message,) = caplog.messages
    assert "was fitted on 12 of these 12 images" in message
    classifier.provenance["images"] = 2001  # of which only a part is known
    classifier_accuracy(classifier, read_folder(folder))
    assert "was fitted on at least 12 of these 12 images" in caplog.messages[-1]


def test_fitted_images_are_known_again(
    model: CLIP, classifier: ImageClassifier, folder: Path, unseen: Path, tmp_path: Path
) -> None:
    """After loading, from another place, and as images without a file."""
    classifier.save(tmp_path / "saved")
    loaded = ImageClassifier.load(tmp_path / "saved", device="cpu")
    moved = tmp_path / "moved" / folder.name / "blue" / "00.png"
    moved.parent.mkdir(parents=True)
    shutil.copy2(folder / "blue" / "00.png", moved)
    other = unseen / "blue" / "00.png"
    features = loaded.embed([moved, other])
    assert loaded.count_seen(features, [str(moved), str(other)]) == 1
    assert loaded.count_seen(features) == 1
    assert loaded.count_seen(features[[1]], [str(moved)]) == 1
    with Image.open(moved) as image:
        assert loaded.count_seen(loaded.embed([image])) == 1
    found = extract_features(model, unseen)
    labels = [name.split("/")[-2].replace("_", " ") for name in found.paths]
    of_features = ImageClassifier.zero_shot(model, NAMES).fit(found, labels, "gaussian")
    assert of_features.count_seen(features) == 1
    assert of_features.count_seen(features, [str(moved), str(other)]) == 1


def test_a_classifier_that_was_not_fitted_has_seen_nothing(model: CLIP, folder: Path) -> None:
    zero_shot = ImageClassifier.zero_shot(model, NAMES)
    assert zero_shot.count_seen(zero_shot.embed(folder)) == 0


def test_marks_are_bounded_and_count_a_part_of_many_images() -> None:
    random = np.random.default_rng(0)
    rows = torch.from_numpy(random.normal(size=(9000, 8)))
    features: Tensor = torch.nn.functional.normalize(rows, dim=1)
    marks = marks_of(features, [None] * 9000)
    assert len(marks) == 4096
    assert marks == sorted(marks)
    assert count_seen(features, [None] * 9000, marks) == pytest.approx(4096, abs=5)
    assert count_seen(-features, [None] * 9000, marks) == 0
    for wrong in (None, 5, [5], [None], "abc", {}):
        assert count_seen(features[:2], [None, "nowhere.png"], wrong) == 0


def test_files_are_known_again_without_being_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A million images must take no minutes: at most 2,000 files are looked up."""
    paths: list[str | None] = []
    for number in range(2100):
        file = tmp_path / f"{number}.jpg"
        file.write_bytes(b"12")
        paths.append(str(file))
    features = torch.nn.functional.normalize(torch.randn(2100, 8), dim=1)
    looked_up: list[str] = []
    stat = os.stat

    def count(path: str) -> os.stat_result:
        looked_up.append(path)
        return stat(path)

    monkeypatch.setattr("builtins.open", lambda *_: pytest.fail("a file was opened"))
    monkeypatch.setattr("clipkit.classify.seen.os.stat", count)
    marks = marks_of(features, paths)
    assert len(looked_up) == 2000
    assert count_seen(-features, paths, marks) == 2000
    part = [path for path in paths if path in set(looked_up[:2000])][:50]
    assert count_seen(-features[:50], part, marks) == 50
    monkeypatch.undo()
    os.utime(part[0] or "", (1, 1))
    assert count_seen(-features[:50], part, marks) == 49


def test_features_with_other_last_bits_have_the_same_marks() -> None:
    features, _ = toy_features()
    paths: list[str | None] = [None] * 22
    known = marks_of(features, paths)
    noise = torch.randn(22, 32, generator=torch.Generator().manual_seed(1))
    assert count_seen(features + 1e-7 * noise, paths, known) >= 21
    assert count_seen(features + 1e-2 * noise, paths, known) == 0


def test_images_are_known_again_in_other_precisions_and_alike_ones_told_apart() -> None:
    """A model that was loaded in bfloat16 did not know the images of its own head."""
    photos = [Image.open(file).convert("RGB") for file in sorted(PHOTOS.glob("*.jpg"))]
    turned = [photo.rotate(3) for photo in photos]
    model = CLIP.from_pretrained("tiny", dtype=torch.float32)
    paths: list[str | None] = [None] * len(photos)
    known = marks_of(model.embed_images(photos), paths)
    for dtype in (torch.float16, torch.bfloat16):
        other = CLIP.from_pretrained("tiny", dtype=dtype)
        assert count_seen(other.embed_images(photos), paths, known) == len(photos)
        assert count_seen(other.embed_images(turned), paths, known) == 0
    random = torch.Generator().manual_seed(0)
    base = torch.randn(1, 512, generator=random)
    still = base + 0.015 * torch.randn(400, 512, generator=random)  # 0.021 from each other
    still = torch.nn.functional.normalize(still, dim=1)
    nobody: list[str | None] = [None] * 200
    assert count_seen(still[200:], nobody, marks_of(still[:200], nobody)) == 0
    assert count_seen(still[:200], nobody, marks_of(still[:200], nobody)) == 200
    # Within reach, because nothing lies closer by.
    single = marks_of(still[:1], [None])
    assert count_seen(still[200:], nobody, single) > 150


def test_paths_are_as_many_as_images() -> None:
    features, _ = toy_features()
    with pytest.raises(DataError, match="22 images must have as many paths, not 1"):
        count_seen(features, [None], marks_of(features, [None] * 22))


# Kind Y7


def test_a_fit_tells_which_classes_have_no_image(
    model: CLIP, caplog: pytest.LogCaptureFixture
) -> None:
    features, labels = toy_features()
    some = labels < 2
    classifier = ImageClassifier.zero_shot(model, NAMES)
    classifier.fit(features[some], labels[some], "gaussian")
    assert caplog.messages == ["no image of 2 classes to fit on: 'green', 'white'"]
    assert classifier.provenance["counts"] == [7, 5, 0, 0]


# Kind S2


def test_a_class_name_that_is_too_long_has_a_remedy_that_can_be_taken(model: CLIP) -> None:
    with pytest.raises(TokenizerError, match=r"a prompt cannot be used.*cat cat.*shorten it") as e:
        ImageClassifier.zero_shot(model, ["cat " * 99, "dog"])
    assert "truncate" not in str(e.value)
    assert not re.search(r"\n", str(e.value))
