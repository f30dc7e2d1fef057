"""Prediction in 16 threads at once gives what one thread gives, to the bit."""

import copy
import io
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipkit import CLIP, ImageClassifier, Tokenizer, tokenizer, zero_shot_weights
from clipkit.classify import predictor
from tests.helpers.threads import THREADS, in_threads
from tests.helpers.toy_classifier import NAMES

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"
TURNED = 6  # the EXIF orientation of a portrait photo
TEXTS = [[f"a {word} {i}" for i in range(3)] for word in ("red", "dark", "pale", "blue")]
Work = Callable[[int], Any]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return crops of photos, some of which their EXIF turns."""
    folder = tmp_path_factory.mktemp("crops")
    exif = Image.Exif()
    exif[0x0112] = TURNED
    made: list[Path] = []
    for i, name in enumerate(["cat", "coffee", "rocket"] * 2):
        with Image.open(PHOTOS / f"{name}.jpg") as photo:
            crop = photo.crop((20 * i, 10 * i, 20 * i + 120, 10 * i + 90))
            path = folder / f"{i}.jpg"
            crop.save(path, **({"exif": exif} if i % 2 else {}))
        made.append(path)
    return made


def pixels(file: Path) -> Any:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def same(first: Any, second: Any) -> bool:
    """Return whether two results are equal to the bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    return bool(
        first.path == second.path and torch.equal(first.probabilities, second.probabilities)
    )


def differing(work: Work, items: int, **options: Any) -> int:
    """Return how many results of 16 threads differ from those of a single one, made afterwards."""
    many = in_threads(work, items, **options)
    expected = [work(item) for item in range(items)]
    assert len(many) >= THREADS
    return sum(not same(*pair) for one in many for pair in zip(one, expected, strict=True))


def works_of(classifier: ImageClassifier, files: list[Path]) -> dict[str, Work]:
    """Return all that reads images, by name."""
    contents = [file.read_bytes() for file in files]
    arrays = [pixels(file) for file in files]
    features = classifier.embed(files)
    return {
        "paths": lambda i: classifier.predict(files[i]),
        "bytes": lambda i: classifier.predict(contents[i]),
        "open files": lambda i: classifier.predict(io.BytesIO(contents[i])),
        "arrays": lambda i: classifier.predict(arrays[i]),
        "several": lambda i: classifier.probabilities(files[i:] + files[:i]),
        "features": lambda i: classifier.probabilities(features[i : i + 1]),
        "embed": lambda i: classifier.embed([files[i], arrays[i - 1]]),
    }


KINDS = ("paths", "bytes", "open files", "arrays", "several", "features", "embed")


@pytest.mark.parametrize("kind", KINDS)
def test_images(toy: CLIP, files: list[Path], kind: str) -> None:
    classifier = ImageClassifier.zero_shot(toy, NAMES)
    assert differing(works_of(classifier, files)[kind], len(files)) == 0


def test_an_image_that_pillow_has_opened_is_shared(toy: CLIP, files: list[Path]) -> None:
    """It is decoded when it is first used, and its EXIF is read then: by one thread alone."""
    expected = toy.embed_images([files[1]])
    for _ in range(20):
        image = Image.open(files[1])
        many = in_threads(lambda i, image=image: toy.embed_images([image]), 1, rounds=1)
        assert all(torch.equal(one, expected) for (one,) in many)


@pytest.mark.parametrize("kind", ["paths", "several"])
@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_optimized_models(
    request: pytest.FixtureRequest,
    small_tokenizer: Tokenizer,
    files: list[Path],
    name: str,
    kind: str,
) -> None:
    model: CLIP = copy.deepcopy(request.getfixturevalue(name))
    model.tokenizer = small_tokenizer
    classifier = ImageClassifier.zero_shot(model.optimize(), NAMES, None)
    assert differing(works_of(classifier, files)[kind], len(files), rounds=1) == 0


def test_the_embedded_model(files: list[Path]) -> None:
    classifier = ImageClassifier.zero_shot("tiny", NAMES)
    assert differing(lambda i: classifier.predict(files[i]), len(files), rounds=1) == 0


def test_a_model_in_train_mode(toy: CLIP, files: list[Path]) -> None:
    classifier = ImageClassifier.zero_shot(toy, NAMES).train()
    try:
        assert differing(lambda i: classifier.predict(files[i]), len(files)) == 0
        assert all(module.training for module in classifier.modules())
    finally:
        classifier.eval()


def test_texts(toy: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache of words is emptied all the time, and the tokenizer is made in the threads."""
    monkeypatch.setattr(tokenizer, "CACHE_WORDS", 3)
    toy.tokenizer = Tokenizer(toy.tokenizer.merges, toy.context_length)
    works: list[Work] = [
        lambda i: toy.tokenizer(TEXTS[i]),
        lambda i: toy.embed_texts(TEXTS[i]),
        lambda i: toy.encode_text(toy.tokenizer(TEXTS[i])).detach(),
        lambda i: zero_shot_weights(toy, TEXTS[i], ["a {}.", "{}"]),
    ]
    for work in works:
        assert differing(work, len(TEXTS)) == 0


def test_the_tokenizer_of_the_published_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "CACHE_WORDS", 3)
    model = CLIP.from_pretrained("tiny")
    assert differing(lambda i: model.tokenizer(TEXTS[i]), len(TEXTS), rounds=150) == 0


def test_the_test_would_see_a_race(
    toy: CLIP, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features that wait in a place that threads share, as an attribute would be, get mixed up."""
    classifier = ImageClassifier.zero_shot(toy, NAMES)
    shelf: dict[str, Any] = {}
    compute = predictor.features_and_paths

    def by_the_shelf(*arguments: Any) -> Any:
        shelf["features"] = compute(*arguments)
        threading.Event().wait(0.0001)
        return shelf["features"]

    monkeypatch.setattr(predictor, "features_and_paths", by_the_shelf)
    assert differing(lambda i: classifier.predict(files[i]), len(files)) > 0


def test_the_first_use_of_all(files: list[Path]) -> None:
    """What is imported and built late is so by 16 threads at once."""
    code = (
        "import sys, clipkit\n"
        "from tests.helpers.threads import in_threads\n"
        "model = clipkit.CLIP.from_pretrained('tiny', device='cpu')\n"
        "images, texts = sys.argv[1:], ['a cat', 'a  dog', 'caf\\u00e9 &amp; b']\n"
        "many = in_threads(lambda i: (model.embed_images(images[i : i + 1]),\n"
        "    model.embed_texts(texts[i : i + 1])), 3, rounds=1)\n"
        "alone = [(model.embed_images([image]), model.embed_texts([text]))\n"
        "    for image, text in zip(images, texts)]\n"
        "print(all(a.equal(b) for one in many for x, y in zip(one, alone)\n"
        "    for a, b in zip(x, y)))\n"
    )
    command = [sys.executable, "-c", code, *map(str, files[:3])]
    root = Path(__file__).parents[2]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "True\n"
