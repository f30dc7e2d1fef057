"""Measure how good a model is on labeled or captioned images."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from clipkit.classify.classifier import ImageClassifier
from clipkit.classify.inputs import labels_of_pairs
from clipkit.classify.metrics import accuracy, recall_at_k
from clipkit.classify.seen import MOST_FILES
from clipkit.classify.zero_shot import weights_of_prompts
from clipkit.clip import CLIP
from clipkit.data.labelled import Pairs
from clipkit.encode.embed import embed_texts
from clipkit.encode.store import extract_features
from clipkit.errors import DataError
from clipkit.prompts import TEMPLATES, ClassNames, Templates, render

_LOG = logging.getLogger("clipkit")

RECALL_AT = (1, 5)


@dataclass(frozen=True)
class Evaluation:
    """Hold what was measured, and on which images.

    Attributes:
        figures: name -> value, 0 to 1.
        images: the number of images that were measured.
        skipped: path of each image that could not be read, and why. No figure counts them.
        seen: how many of the images the classifier was fitted on, as far as it knows; see
            `ImageClassifier.count_seen`. On those it is better than on others.
    """

    figures: dict[str, float]
    images: int
    skipped: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    seen: int = 0


def zero_shot(
    model: CLIP,
    pairs: Pairs,
    class_names: ClassNames | Iterable[str] | None = None,
    templates: Templates | None = TEMPLATES,
    *,
    batch_size: int = 64,
    workers: int = 0,
    progress: bool = False,
) -> Evaluation:
    """Return the zero-shot top-1 accuracy on labeled images, as the figure "accuracy".

    Example:
        pairs = clipkit.read_folder(Path("validation"))
        result = zero_shot(model, pairs)
        print(result.figures["accuracy"], result.skipped)

    Args:
        model: the model to measure.
        pairs: images with labels.
        class_names: C names; by default those of the pairs. Labels of pairs with class names refer
            to those, and are found here by name, in any order; a mapping gives them other names or
            prompts. Labels of pairs without class names are indices of these.
        templates: as in `zero_shot_weights`.
        batch_size, workers, progress: as in `embed_images`.

    Raises:
        DataError: if there are no labels or no class names, or a class of the pairs is not among
            the names, or no image can be read.
    """
    class_names = pairs.class_names if class_names is None else class_names
    if pairs.labels is None or class_names is None:
        raise DataError("zero-shot accuracy needs images with labels, and names of their classes")
    names, prompts = render(class_names, templates)
    try:
        labels = labels_of_pairs(pairs, names)
    except DataError as error:
        remedy = "a mapping gives the classes of the data other names, or prompts"
        raise DataError(f"the data and class_names differ: {error}; {remedy}") from error
    weights = weights_of_prompts(model, prompts).cpu()
    features, kept, skipped = _embed_readable(model, pairs, batch_size, workers, progress)
    predicted = (features @ weights.T).argmax(dim=1)  # (M, D) x (D, C) -> (M,)
    return Evaluation({"accuracy": accuracy(predicted, labels[kept])}, len(kept), skipped)


def classifier_accuracy(
    classifier: ImageClassifier,
    pairs: Pairs,
    *,
    batch_size: int = 64,
    workers: int = 0,
    progress: bool = False,
) -> Evaluation:
    """Return a classifier's top-1 accuracy on labeled images, as the figure "accuracy".

    A line in the log "clipkit" tells if it was fitted on some of the images.

    Example:
        print(classifier_accuracy(classifier, pairs).figures["accuracy"])

    Args:
        classifier: the classifier to measure.
        pairs: images with labels. Those of pairs with class names are found among the classifier's
            by name; others are indices of the classifier's classes.
        batch_size, workers, progress: as in `embed_images`.

    Raises:
        DataError: if there are no labels, or the classifier does not have a class of the pairs, or
            no image can be read.
    """
    labels = labels_of_pairs(pairs, classifier.labels)
    features, kept, skipped = _embed_readable(
        classifier.model, pairs, batch_size, workers, progress
    )
    predicted = classifier.probabilities(features).argmax(dim=1)  # (M,)
    seen = warn_of_seen(classifier, features, [str(pairs.files[int(i)]) for i in kept])
    return Evaluation({"accuracy": accuracy(predicted, labels[kept])}, len(kept), skipped, seen)


def warn_of_seen(classifier: ImageClassifier, features: Tensor, paths: Sequence[str | None]) -> int:
    """Return how many images the classifier was fitted on, and tell the log "clipkit" if any.

    Args:
        classifier: what is measured.
        features, paths: of the images that it is measured on, as `ImageClassifier.count_seen`
            takes them.
    """
    seen = classifier.count_seen(features, paths)
    if seen:
        fitted = classifier.provenance.get("images", 0)
        is_part = max(len(features), fitted if isinstance(fitted, int) else 0) > MOST_FILES
        _LOG.warning(
            "the classifier was fitted on %s of these %s images, so the figures are better than "
            "they will be on others",
            f"at least {seen:,}" if is_part else f"{seen:,}",
            f"{len(features):,}",
        )
    return seen


def retrieval(
    model: CLIP,
    pairs: Pairs,
    *,
    batch_size: int = 64,
    workers: int = 0,
    progress: bool = False,
) -> Evaluation:
    """Return recall at 1 and 5 between images and all of their captions, both ways.

    An image counts as found if one of its captions is; each caption has one image. So do papers on
    COCO and Flickr30k, which have five captions an image. The figures are called "image to text
    R@1", "image to text R@5", "text to image R@1" and "text to image R@5".

    Example:
        print(retrieval(model, clipkit.read_table(Path("captions.csv"))).figures)

    Args:
        model: the model to measure.
        pairs: images with captions. Captions that are too long are cut.
        batch_size, workers, progress: as in `embed_images`.

    Raises:
        DataError: if no image can be read.
    """
    images, kept, skipped = _embed_readable(model, pairs, batch_size, workers, progress)
    groups = [pairs.captions[int(position)] for position in kept]
    texts = embed_texts(model, [caption for group in groups for caption in group], truncate=True)
    owners = [row for row, group in enumerate(groups) for _ in group]  # the image of each caption
    figures: dict[str, float] = {}
    for k in RECALL_AT:
        figures[f"image to text R@{k}"] = recall_at_k(images, texts, k, key_labels=owners)
    for k in RECALL_AT:
        figures[f"text to image R@{k}"] = recall_at_k(texts, images, k, query_labels=owners)
    return Evaluation(figures, len(kept), skipped)


def _embed_readable(
    model: CLIP, pairs: Pairs, batch_size: int, workers: int, progress: bool
) -> tuple[Tensor, Tensor, list[tuple[str, str]]]:
    """Return features of the images that can be read, their positions, and the other images.

    Returns:
        features (M, D) float32 on the CPU, positions (M,) int64 among the pairs, and path and
        problem of each image that cannot be read.
    """
    numbered = [(file, position) for position, file in enumerate(pairs.files)]
    found = extract_features(
        model, numbered, batch_size=batch_size, workers=workers, progress=progress
    )
    assert found.labels is not None  # they are the positions
    return found.features, found.labels, found.skipped
