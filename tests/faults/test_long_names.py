"""Names that no file system takes: each is told by a typed error, as a missing file is."""

from collections.abc import Callable
from pathlib import Path

import pytest

import clipkit
from clipkit import ImageClassifier
from clipkit.checkpoints.weights import read_weights
from clipkit.cli import main
from clipkit.errors import CheckpointNotFoundError, ClipkitError, ImageError

LONG = "a" * 5000


@pytest.mark.parametrize(
    ("use", "error", "message"),
    [
        (lambda: ImageClassifier.load(LONG), CheckpointNotFoundError, "a+ does not exist"),
        (lambda: read_weights(Path(LONG)), CheckpointNotFoundError, "There is no file a+$"),
        (lambda: clipkit.load(LONG), ClipkitError, "no existing path"),
        (lambda: clipkit.read_folder(LONG), ClipkitError, "names no folder"),
    ],
)
def test_a_name_that_is_too_long_is_not_found(
    use: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        use()


def test_an_image_of_a_name_that_is_too_long_is_named() -> None:
    classifier = ImageClassifier.zero_shot("tiny", ["cat", "dog"])
    with pytest.raises(ImageError, match="cannot read the image at the path 'a+"):
        classifier.predict(LONG)


def test_class_folders_of_a_name_that_is_too_long_are_not_there(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["fit", LONG, "-o", "out"]) == 2
    assert "there is no folder a" in capsys.readouterr().err
