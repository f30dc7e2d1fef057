"""A report measures no image by a head that was fitted on it, and says what it did."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit import CLIP, Features, ImageClassifier, extract_features, read_folder
from clipkit.classify import estimate
from clipkit.classify.calibration import Calibration
from clipkit.classify.cross_validation import cross_validated
from clipkit.classify.heads import CosineHead
from clipkit.classify.metrics import accuracy
from clipkit.errors import DataError
from tests.helpers.held_out import held_out
from tests.helpers.toy_classifier import NAMES, assert_close
from tests.helpers.toy_data import color_folders

Few = tuple[Tensor, Tensor]


def noisy(few: Few, seed: int, noise: float = 0.1) -> Few:
    """Return other features of the same classes."""
    features, labels = few
    random = torch.Generator().manual_seed(seed)
    other = features + noise * torch.randn(features.shape, generator=random)
    return F.normalize(other, dim=1), labels


def both(first: Few, second: Few) -> Few:
    return torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]])


def start_of(classifier: ImageClassifier) -> CosineHead:
    head = classifier.zero_shot_head
    return CosineHead(head.weight, head.logit_scale)


def test_zero_shot_is_measured_on_all(classifier: ImageClassifier, few: Few) -> None:
    report = classifier.report(*few)
    predicted = classifier.probabilities(few[0]).argmax(dim=1)
    assert report.accuracy == accuracy(predicted, few[1])
    assert report.estimate.folds == 0
    assert "fitted on nothing" in report.estimate.sentence


def test_zero_shot_that_was_kept_is_measured_on_the_images_of_the_others(
    classifier: ImageClassifier, few: Few
) -> None:
    """`finetune(lora=2)` knows the images, of which a zero-shot head has seen none."""
    expected = classifier.report(*few)
    seen = classifier.fit(*few).provenance["images_seen"]
    kept = ImageClassifier.zero_shot(classifier.model, NAMES)
    kept.provenance |= {"images_seen": seen, "images": 22, "counts": [7, 5, 5, 5]}
    assert kept.count_seen(few[0]) == 22
    assert kept.report(*few) == expected
    assert kept.suspects(*few, cut=1)
    assert kept.calibrate(*few).calibration is not None
    adapted, _ = kept.adapt(few[0], guard=False)
    with pytest.raises(DataError, match="is adapted to a batch and was fitted on these images"):
        adapted.report(*few)


def test_other_images_are_held_out(classifier: ImageClassifier, few: Few) -> None:
    classifier.fit(*few, "gaussian")
    other = noisy(few, 1, 0.5)
    report = classifier.report(*other)
    predicted = classifier.probabilities(other[0]).argmax(dim=1)
    assert report.accuracy == accuracy(predicted, other[1])
    assert 0.5 < report.accuracy < 1
    assert report.estimate.sentence == (
        "held out: measured on 22 images that the classifier is not known to be fitted on"
    )
    assert report.estimate.left_out == 0


@pytest.mark.parametrize(
    ("method", "options"),
    [("anchored", {}), ("gaussian", {"alpha": 0.5}), ("zero_shot_linear", {"epochs": 2})],
)
def test_images_of_the_fit_are_judged_by_heads_without_them(
    classifier: ImageClassifier, few: Few, method: str, options: dict[str, Any]
) -> None:
    classifier.fit(*few, method, seed=5, **options)
    report = classifier.report(*few, seed=2)
    found = cross_validated(
        *few, start_of(classifier), method, options, seed=2, like=classifier.head
    )
    assert report.images == 22
    assert report.accuracy == accuracy(found.logits.argmax(dim=1), few[1])
    judged = estimate.judge_unseen(classifier, support(few), 2)
    assert_close(judged.probabilities, found.logits.softmax(dim=1))
    assert report.estimate.folds == 4
    assert f"its method, {method}, was fitted again" in report.estimate.sentence


def support(few: Few) -> estimate.SupportSet:
    return estimate.SupportSet(*few, [None] * len(few[1]), [])


def test_labels_drawn_at_random_are_not_found_again(toy: CLIP) -> None:
    """A head that remembers its images is right on each of them, and by chance on others."""
    random = torch.Generator().manual_seed(3)
    features = F.normalize(torch.randn(80, 32, generator=random), dim=1)
    labels = torch.randint(0, 4, (80,), generator=random)
    classifier = ImageClassifier.zero_shot(toy, NAMES)
    classifier.fit(features, labels, "linear_probe", C=1e6)
    assert accuracy(classifier.probabilities(features).argmax(dim=1), labels) == 1
    report = classifier.report(features, labels)
    assert report.accuracy < 0.45
    assert report.interval[0] < 0.25 < report.interval[1]


def test_prompt_weights_get_their_prompts_again(classifier: ImageClassifier, few: Few) -> None:
    classifier.fit(*few, "prompt_weights")
    assert classifier.report(*few).estimate.folds == 4


def test_of_a_mix_the_others_alone_are_measured(classifier: ImageClassifier, few: Few) -> None:
    classifier.fit(*few, "gaussian")
    other = noisy(few, 1, 0.5)
    mixed = both(other, few)
    report = classifier.report(*mixed)
    assert report.accuracy == classifier.report(*other).accuracy
    assert report.images == 22
    assert report.estimate.left_out == 22
    assert "was fitted on 22 of these 44 images, so it was measured on the other 22 alone" in (
        report.estimate.sentence
    )
    assert max(mistake.index for mistake in report.mistakes) < 22


def test_a_few_that_are_not_known_again_do_not_stand_for_all(
    classifier: ImageClassifier, few: Few
) -> None:
    classifier.fit(*few, "gaussian")
    features, labels = both(few, noisy(few, 1))
    report = classifier.report(features[:24], labels[:24])  # two of 24 are others
    assert report.estimate.folds == 4
    assert report.images == 24
    report = classifier.report(features[:25], labels[:25])  # three are more than a tenth
    assert report.estimate.folds == 0
    assert report.images == 3


def test_where_not_all_images_of_the_fit_are_known_all_are_cross_validated(
    classifier: ImageClassifier, few: Few, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "MOST_FILES", 20)
    classifier.fit(*few, "gaussian")
    report = classifier.report(*both(few, noisy(few, 1)))  # about two of the others may be known
    assert report.estimate.folds == 4
    assert report.images == 44
    assert "was fitted on at least 22 of these 44 images, so its method" in report.estimate.sentence
    assert len(classifier.suspects(*both(few, noisy(few, 1)), cut=1)) == sum(
        pair.count for pair in report.confusions
    )
    classifier.provenance["method"] = "finetune"
    with pytest.raises(DataError, match="was fitted on at least 22 of these 44 images, which"):
        classifier.report(*both(few, noisy(few, 1)))


def test_files_of_a_large_fit_are_not_measured_by_it_when_features_changed(
    classifier: ImageClassifier, few: Few, tmp_path: Path
) -> None:
    """Of files 2,000 are known again: of 3,000 all others passed for new ones."""
    files = [tmp_path / f"{number}.jpg" for number in range(3000)]
    for file in files:
        file.touch()
    features, labels = few[0].repeat(137, 1)[:3000], few[1].repeat(137)[:3000]
    paths = [str(file) for file in files]
    classifier.fit(Features(features, labels, paths, []), None, "gaussian", alpha=1.0)
    changed = noisy((features, labels), 1)[0]
    report = classifier.report(Features(changed, labels, paths, []))
    assert report.estimate.folds == 4
    assert report.images == 3000
    assert "at least 2,000 of these 3,000 images" in report.estimate.sentence


def test_one_duplicate_does_not_stand_for_a_test_set(
    classifier: ImageClassifier, few: Few, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "MOST_FILES", 20)
    classifier.fit(*few, "gaussian")
    others = noisy((few[0].repeat(5, 1), few[1].repeat(5)), 1)
    mixed = both((few[0][:1], few[1][:1]), others)
    report = classifier.report(*mixed)
    assert report.estimate.folds == 0
    assert report.images == 110
    assert report.estimate.sentence == (
        "held out: the classifier was fitted on 1 of these 111 images, so it was measured on the "
        "other 110 alone"
    )
    assert report.accuracy == classifier.report(*others).accuracy
    assert all(one.index for one in classifier.suspects(*mixed, cut=1))
    monkeypatch.setattr(estimate, "MOST_FILES", 9)
    sentence = classifier.report(*mixed).estimate.sentence
    assert sentence.endswith(
        "alone, about 1 of which may be of the fit as well, since of so many "
        "images only a part is known again"
    )
    sentence = classifier.report(*others).estimate.sentence
    assert sentence.endswith("of the 22 images of its fit a part is known again")
    monkeypatch.setattr(estimate, "MOST_FILES", 6)
    assert classifier.report(*mixed).estimate.folds == 4  # three may be, of 110 more than 2 %


def test_a_part_of_the_fit_is_said_to_be_a_part(classifier: ImageClassifier, few: Few) -> None:
    classifier.fit(*few, "gaussian")
    sentence = classifier.report(few[0][:12], few[1][:12]).estimate.sentence
    assert sentence.endswith("; the classifier itself was fitted on more, 22 images")


def test_single_images_are_pessimistic_or_left_out(classifier: ImageClassifier, few: Few) -> None:
    features, labels = few[0][:4], few[1][:4]  # one of each class
    classifier.fit(features, labels)
    single = classifier.report(features, labels).estimate
    assert single.pessimistic
    assert "pessimistic, because each class has a single image" in single.sentence
    classifier.fit(few[0][:7], few[1][:7])  # the last class has one
    mixed = classifier.report(few[0][:7], few[1][:7])
    assert mixed.images == 6
    assert mixed.estimate.left_out == 1
    assert "not measured on 1 image, which is the only one of its class" in mixed.estimate.sentence


def test_a_classifier_that_cannot_know_its_images_says_so(
    classifier: ImageClassifier, few: Few
) -> None:
    classifier.fit(*few, "gaussian")
    del classifier.provenance["images_seen"]  # as those of version 0.1.0
    sentence = classifier.report(*few).estimate.sentence
    assert "the classifier does not know what it was fitted on" in sentence


def test_what_cannot_be_fitted_again_is_refused(classifier: ImageClassifier, few: Few) -> None:
    classifier.fit(*few)
    adapted, _ = classifier.adapt(few[0], guard=False)
    with pytest.raises(DataError, match="is adapted to a batch and was fitted on these images"):
        adapted.report(*few)
    assert adapted.report(*noisy(few, 1)).estimate.folds == 0
    classifier.provenance["method"] = "finetune"
    with pytest.raises(DataError, match="fitted by finetune .*: measure it on other images"):
        classifier.report(*few)


@pytest.mark.parametrize("method", ["anchored", "gaussian", "linear_probe"])
def test_a_calibration_is_used_on_logits_like_those_of_the_head(
    classifier: ImageClassifier, few: Few, method: str
) -> None:
    """Logits of the folds have other scales, for which the temperature was not learned."""
    classifier.fit(*few, method, calibrate=True)
    assert classifier.calibration is not None
    found = cross_validated(*few, start_of(classifier), method, {}, seed=0, like=classifier.head)
    soft = (found.logits / classifier.calibration.temperature).softmax(dim=1)
    assert_close(estimate.judge_unseen(classifier, support(few), 0).probabilities, soft)


def test_a_calibration_on_the_same_images_is_told(classifier: ImageClassifier, few: Few) -> None:
    others, more = held_out(classifier), held_out(classifier, seed=6)
    assert "calibra" not in classifier.report(*others).estimate.sentence
    classifier.calibrate(*others)
    ending = (
        "; probabilities are calibrated on 99 images: if these are among them, the calibration "
        "error is a trifle too low"
    )
    assert classifier.report(*others).estimate.sentence.endswith(ending)
    assert classifier.report(*more).estimate.sentence.endswith(ending)  # nobody knows
    classifier.fit(*few, calibrate=True)
    sentence = classifier.report(*few).estimate.sentence
    assert sentence.endswith(
        "on that part; probabilities are calibrated on images of the fit, so the calibration error "
        "is a trifle too low"
    )
    assert "calibra" not in classifier.report(*others).estimate.sentence
    classifier.calibration = Calibration(presence=None)
    assert "calibra" not in classifier.report(*few).estimate.sentence


def test_empty_input_is_refused(classifier: ImageClassifier) -> None:
    with pytest.raises(DataError, match="there is no image to measure on"):
        classifier.report(torch.zeros(0, 32), torch.zeros(0, dtype=torch.long))


@pytest.mark.parametrize(("images", "labels"), [(19, 22), (4, 3)])
def test_features_and_labels_are_as_many(
    classifier: ImageClassifier, few: Few, images: int, labels: int
) -> None:
    """The labels that are too many were ignored."""
    given = few[0][:images], few[1][:labels]
    message = f"there must be a label for each image, not {labels} for {images}"
    for measure in (classifier.report, classifier.suspects, classifier.fit):
        with pytest.raises(DataError, match=message):
            measure(*given)
    features = Features(*given, [str(number) for number in range(images)], [])
    with pytest.raises(DataError, match=message):
        classifier.report(features)


def of_folder(root: Path) -> Any:
    return read_folder(root)


def of_paths(root: Path) -> Sequence[Any]:
    pairs = read_folder(root)
    names = pairs.class_names or []
    return [str(file) for file in pairs.files], [names[label] for label in pairs.labels or []]


@pytest.mark.parametrize("given", [of_folder, of_paths])
def test_images_of_files_keep_their_paths(
    classifier: ImageClassifier, tmp_path: Path, given: Callable[[Path], Any]
) -> None:
    root = color_folders(tmp_path / "images", each=3)
    (root / "blue" / "00.png").write_bytes(b"broken")
    arguments = given(root)
    arguments = arguments if isinstance(arguments, tuple) else (arguments,)
    with pytest.warns(UserWarning, match="1 of 12 images cannot be read") as warnings:
        report = classifier.report(*arguments)
    assert warnings[0].filename == __file__
    assert report.images == 11
    assert report.estimate.skipped[0][0] == str(root / "blue" / "00.png")
    paths = [str(file) for file in read_folder(root).files[1:]]
    assert [mistake.path for mistake in report.mistakes] == [
        paths[mistake.index] for mistake in report.mistakes
    ]


def test_features_with_paths_and_images_without_any(
    classifier: ImageClassifier, toy: CLIP, tmp_path: Path
) -> None:
    root = color_folders(tmp_path / "images", each=3)
    pairs = read_folder(root)
    rows = list(zip(pairs.files, pairs.labels or [], strict=True))
    by_features = classifier.report(extract_features(toy, rows))
    assert by_features == classifier.report(pairs)
    nameless = classifier.report(
        by_bytes := [file.read_bytes() for file in pairs.files], rows_of(rows)
    )
    assert len(by_bytes) == 12
    assert nameless.accuracy == by_features.accuracy
    assert {mistake.path for mistake in nameless.mistakes} == {None}


def rows_of(rows: list[tuple[Path, int]]) -> list[int]:
    return [label for _, label in rows]
