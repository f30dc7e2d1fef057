"""clipkit.classify.evaluate: figures by hand; what cannot be read is skipped with its labels."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit import CLIP, ImageClassifier, Pairs, read_folder, read_table
from clipkit.classify import evaluate
from clipkit.classify.evaluate import Evaluation, classifier_accuracy, retrieval, zero_shot
from clipkit.encode.features import Features
from clipkit.errors import DataError
from tests.helpers.toy_data import caption_table, color_folders


@pytest.fixture
def labeled(tmp_path: Path) -> Pairs:
    """Return 24 images of four colors."""
    return read_folder(color_folders(tmp_path / "labeled", each=6))


@pytest.fixture
def captioned(tmp_path: Path) -> Pairs:
    """Return 16 images of two colors each; every other one has a second caption."""
    pairs = read_table(caption_table(tmp_path / "captioned"))
    for row, captions in enumerate(pairs.captions[::2]):
        captions.append(f"number {row} of the others")
    return pairs


def owners_of(pairs: Pairs) -> list[int]:
    """Return the row of each caption's image, caption after caption."""
    return [row for row, captions in enumerate(pairs.captions) for _ in captions]


def accuracy_by_hand(model: CLIP, pairs: Pairs, texts: list[str]) -> float:
    images = model.embed_images(pairs.files)
    predicted = (images @ model.embed_texts(texts).T).argmax(dim=1)
    return (predicted == torch.tensor(pairs.labels)).double().mean().item()


def break_some(pairs: Pairs, positions: list[int]) -> Pairs:
    """Damage or delete the files at these positions, and return the others."""
    for position in positions:
        if position % 2:
            pairs.files[position].unlink()
        else:
            pairs.files[position].write_bytes(b"damaged")
    return pairs.select([i for i in range(len(pairs)) if i not in positions])


def assert_skipped(result: Evaluation, pairs: Pairs, positions: list[int]) -> None:
    assert [path for path, _ in result.skipped] == [str(pairs.files[i]) for i in positions]
    for path, problem in result.skipped:
        assert path in problem
    assert result.images == len(pairs) - len(positions)


# Zero-shot


def test_zero_shot_counts_what_is_right(toy: CLIP, labeled: Pairs) -> None:
    """Names are found in any order; without names of its own, the data's integers are indices."""
    names = [name.replace("_", " ") for name in labeled.class_names or []]
    texts = [f"see {name}" for name in names]
    expected = accuracy_by_hand(toy, labeled, texts)
    result = zero_shot(toy, labeled, templates=["see {}"])
    assert result.figures == {"accuracy": pytest.approx(expected)}
    assert_skipped(result, labeled, [])
    flipped = [names[i] for i in (1, 0, 3, 2)]
    other = accuracy_by_hand(toy, labeled, [f"see {name}" for name in flipped])
    assert other != expected
    assert zero_shot(toy, labeled, flipped, ["see {}"]).figures == result.figures
    unnamed = Pairs(labeled.files, labeled.captions, labeled.labels)
    assert zero_shot(toy, unnamed, flipped, ["see {}"]).figures == {
        "accuracy": pytest.approx(other)
    }
    prompts = dict(zip(names, texts, strict=True))
    assert zero_shot(toy, labeled, prompts, None).figures == result.figures


def test_zero_shot_skips_broken_images_with_their_labels(toy: CLIP, labeled: Pairs) -> None:
    broken = [0, 1, 7, 23]
    rest = break_some(labeled, broken)
    result = zero_shot(toy, labeled, batch_size=5)
    assert result.figures == zero_shot(toy, rest).figures
    assert_skipped(result, labeled, broken)


def test_zero_shot_needs_labels_and_names(toy: CLIP, labeled: Pairs, captioned: Pairs) -> None:
    unnamed = Pairs(labeled.files, labeled.captions, labeled.labels)
    for pairs in (captioned, unnamed):
        with pytest.raises(DataError, match="needs images with labels, and names"):
            zero_shot(toy, pairs)


# A classifier


def test_a_classifier_is_measured_on_what_it_predicts(toy: CLIP, labeled: Pairs) -> None:
    classifier = ImageClassifier.zero_shot(toy, labeled.class_names or [])
    classifier.fit(labeled.files, labeled.labels, strength=1)
    labels = labeled.labels or []
    broken = [3, 10]
    rest = break_some(labeled, broken)
    predictions = classifier.predict(rest.files)
    right = [
        prediction.label == classifier.labels[label]
        for prediction, label in zip(predictions, rest.labels or [], strict=True)
    ]
    result = classifier_accuracy(classifier, labeled, batch_size=5)
    assert result.figures == {"accuracy": pytest.approx(sum(right) / 22)}
    assert result.figures["accuracy"] > 0.5
    assert_skipped(result, labeled, broken)
    shifted = Pairs(labeled.files, labeled.captions, [(label + 1) % 4 for label in labels])
    assert classifier_accuracy(classifier, shifted).figures["accuracy"] < 0.5


def test_a_classifier_needs_labels(toy: CLIP, captioned: Pairs) -> None:
    with pytest.raises(DataError, match="accuracy needs images with labels"):
        classifier_accuracy(ImageClassifier.zero_shot(toy, ["cat"]), captioned)


# Retrieval


def test_retrieval_counts_all_captions_both_ways(
    toy: CLIP, captioned: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images 1 to 3 are nearest to the first caption of image 0; 2 has a second one like itself.

    All other second captions are nearest to image 15.
    """
    unit = torch.eye(16)
    images = unit.clone()
    images[1:4] = unit[0] + 0.9 * unit[1:4]
    images[0] *= 2
    images = F.normalize(images, dim=1)
    texts: list[Tensor] = []
    for row, captions in enumerate(captioned.captions):
        second = images[2] if row == 2 else unit[15]
        texts += [unit[row], second][: len(captions)]
    asked: list[tuple[list[str], bool]] = []

    def extract(model: CLIP, numbered: list[tuple[Path, int]], **options: object) -> Features:
        paths = [str(path) for path, _ in numbered]
        return Features(images, torch.tensor([number for _, number in numbered]), paths, [])

    def embed(model: CLIP, captions: list[str], *, truncate: bool) -> Tensor:
        asked.append((captions, truncate))
        return torch.stack(texts)

    monkeypatch.setattr(evaluate, "extract_features", extract)
    monkeypatch.setattr(evaluate, "embed_texts", embed)
    found = retrieval(toy, captioned).figures
    # Of 16 images 1 and 3 find the caption of 0 first, and 15 finds the seven others.
    assert found["image to text R@1"] == 13 / 16
    # Of 24 captions the second ones of 0, 4, 6, ... 14 find image 15.
    assert found["text to image R@1"] == 17 / 24
    assert found["text to image R@5"] < 1
    assert asked == [([one for captions in captioned.captions for one in captions], True)]


def test_retrieval_is_that_of_the_features(toy: CLIP, captioned: Pairs) -> None:
    images = toy.embed_images(captioned.files)
    texts = toy.embed_texts([one for captions in captioned.captions for one in captions])
    similarity = F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T  # (16, 24)
    owners = torch.tensor(owners_of(captioned))
    own = similarity.where(owners == torch.arange(16)[:, None], torch.tensor(-2.0)).amax(dim=1)
    of_texts = similarity[owners, torch.arange(24)]
    result = retrieval(toy, captioned)
    assert result.images == 16
    assert result.skipped == []
    for k in (1, 5):
        found = ((similarity >= own[:, None]).sum(dim=1) <= k).double().mean().item()
        assert result.figures[f"image to text R@{k}"] == pytest.approx(found)
        found = ((similarity >= of_texts).sum(dim=0) <= k).double().mean().item()
        assert result.figures[f"text to image R@{k}"] == pytest.approx(found)


def test_retrieval_skips_broken_images_with_their_captions(toy: CLIP, captioned: Pairs) -> None:
    broken = [0, 5, 6]
    rest = break_some(captioned, broken)
    result = retrieval(toy, captioned, batch_size=4)
    assert result.figures == retrieval(toy, rest).figures
    assert_skipped(result, captioned, broken)


def test_nothing_that_can_be_read_is_an_error(toy: CLIP, labeled: Pairs, captioned: Pairs) -> None:
    break_some(labeled, list(range(24)))
    break_some(captioned, list(range(16)))
    with pytest.raises(DataError, match="none of 24 images can be read"):
        zero_shot(toy, labeled)
    with pytest.raises(DataError, match="none of 16 images can be read"):
        retrieval(toy, captioned)
