"""Images are known again by their files whatever the views, and by features of the same views."""

from pathlib import Path

import pytest

from clipkit import CLIP, ImageClassifier, extract_features
from tests.helpers.toy_classifier import NAMES
from tests.helpers.toy_data import COLORS, two_colors

LABELS = [place % 4 for place in range(12)]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Return images with sides that differ, so that views of them do."""
    paths = [tmp_path / f"{place}.png" for place in range(len(LABELS))]
    for place, (path, label) in enumerate(zip(paths, LABELS, strict=True)):
        two_colors(COLORS[NAMES[label]], (20 * place, 99, 255 - 20 * place), place).save(path)
    return paths


def test_files_are_known_again_by_any_views(toy: CLIP, files: list[Path]) -> None:
    classifier = ImageClassifier.zero_shot(toy, NAMES)
    fitted = extract_features(toy, files, views=2)
    classifier.fit(fitted, LABELS, "gaussian")
    for views in (1, 2, 10):
        others = extract_features(toy, files, views=views)
        assert classifier.count_seen(others.features, others.paths) == len(files)
    assert classifier.report(files, LABELS).estimate.folds > 0


def test_features_are_known_again_by_the_same_views_alone(toy: CLIP, files: list[Path]) -> None:
    classifier = ImageClassifier.zero_shot(toy, NAMES)
    classifier.fit(classifier.embed(files, views=2), LABELS, "gaussian")
    assert classifier.count_seen(classifier.embed(files, views=2)) == len(files)
    assert classifier.count_seen(classifier.embed(files)) < len(files)
