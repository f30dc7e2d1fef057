"""Read what a classifier takes: features, or images from which it computes them, and labels."""

import os
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from clipkit.classify.labels import (
    Labels,
    check_range,
    class_indices,
    match_classes,
    read_labels,
    translate,
)
from clipkit.classify.reading import Reading
from clipkit.data.arrays import is_array, is_array_image, is_array_of_images
from clipkit.data.classes import classes_of, is_part
from clipkit.data.decode import is_encoded
from clipkit.data.labelled import Pairs
from clipkit.data.pictures import Images, ImageSet
from clipkit.encode.embed import stream_features
from clipkit.encode.features import Features, refuse_skipped
from clipkit.encode.store import extract_features
from clipkit.errors import DataError, ImageError
from clipkit.plurals import number_of

FeatureRows: TypeAlias = Tensor | NDArray[np.floating[Any]] | Features
Inputs: TypeAlias = "Images | FeatureRows"
LabeledInputs: TypeAlias = "Images | FeatureRows | Pairs"

# Of the length of a feature. bfloat16 rounds each number by up to 0.4 %; the features of a CLIP
# that nobody normalized are about ten times too long.
LENGTH_TOLERANCE = 0.01


@dataclass(frozen=True, eq=False)
class SupportSet:
    """Hold what a head is fitted on.

    Attributes:
        features: (M, D), of unit length.
        labels: (M,) int64, one for each feature.
        paths: the path of each image; None, or its index, for one that has none.
        skipped: path or index of each image that could not be read, and why.
        views: how often each image was seen; None for features, which do not tell.
    """

    features: Tensor
    labels: Tensor
    paths: Sequence[str | None]
    skipped: list[tuple[str, str]]
    views: int | None = None


def is_one_image(given: object) -> bool:
    """Return whether this is a PIL, NumPy or encoded image, or a path that names no folder."""
    if isinstance(given, str | os.PathLike):
        # os.path says False, where Path raises an error, of a name that is too long.
        return not os.path.isdir(cast("str | os.PathLike[str]", given))
    # PIL need not be imported to ask.
    return is_encoded(given) or hasattr(given, "getbands") or is_array_image(given)


def check_path(given: object) -> None:
    """Raise `ImageError` for an empty text, which would name the working directory."""
    if isinstance(given, str) and not given:
        raise ImageError("the path of the image is empty: name a file, or '.' for this folder")


def features_and_paths(
    model: nn.Module, given: Inputs, reading: Reading
) -> tuple[Tensor, list[str | None]]:
    """Return features (N, D) of unit length, given or computed, and the paths of the images.

    Raises:
        DataError: for features that cannot be used.
        ConfigError: for features with `views` above 1, which would be ignored.
        ImageError: if an image cannot be read; it is named.
    """
    features = given_features(given)
    if features is not None:
        reading.check_features()
        if not isinstance(given, Features):
            return features, [None] * len(features)
        return features, [None if name.isdigit() else name for name in given.paths]
    check_path(given)
    batches: list[Features] = []
    with closing(_stream(model, cast("Images", given), reading)) as stream:
        for batch in stream:
            refuse_skipped(batch.skipped)
            batches.append(batch)
    features = torch.cat([batch.features for batch in batches])
    names = [name for batch in batches for name in batch.paths]
    if isinstance(given, DataLoader):
        return features, [None] * len(names)
    # An image without a path goes by its index.
    return features, [None if name == str(i) else name for i, name in enumerate(names)]


def support_set(
    model: nn.Module,
    given: LabeledInputs,
    labels: Labels | None,
    class_names: Sequence[str],
    reading: Reading,
) -> SupportSet:
    """Return features and labels to fit a head on, and warn of images that cannot be read.

    Args:
        model: what encodes images.
        given: features (N, D) of unit length, images, or pairs as `read_folder` returns them.
        labels: N indices or names of classes; None if the images come with labels.
        class_names: C names, to which the labels refer.
        reading: how images are read.

    Raises:
        DataError: if features or labels cannot be used, or no image can be read.
        ConfigError: for features with `views` above 1, which would be ignored.
    """
    if isinstance(given, Pairs):
        labels = _labels_of_pairs(given) if labels is None else labels
        given = given.files
    indices = None if labels is None else indices_of(labels, class_names, given)
    features = given_features(given)
    if features is not None:
        reading.check_features()
        return _support_of_features(given, features, indices, class_names)
    check_path(given)
    images = cast("Images", given)
    if indices is None:
        support = _extract_with_own_labels(model, images, class_names, reading)
    else:
        support = _extract_with_labels(model, images, indices, reading)
    if support.skipped:
        warnings.warn(
            f"{len(support.skipped)} of {len(support.skipped) + len(support.labels)} images cannot "
            f"be read and are left out; the first: {support.skipped[0][1]}",
            stacklevel=3,  # at the call of `ImageClassifier.fit`
        )
    return replace(support, views=reading.times)


def labels_of_pairs(pairs: Pairs, class_names: Sequence[str]) -> Tensor:
    """Return the labels of pairs (N,) as indices of a classifier's classes.

    Pairs with class names mean those; without them they mean the classifier's.

    Raises:
        DataError: if there are no labels, or the classifier has no class of a name.
    """
    labels = _labels_of_pairs(pairs)
    if labels is None:
        raise DataError("accuracy needs images with labels")
    return class_indices(labels, class_names)


def _labels_of_pairs(pairs: Pairs) -> list[str] | list[int] | None:
    """Return the labels as names, which mean the same in any order of classes, if there are any."""
    if pairs.labels is None or pairs.class_names is None:
        return pairs.labels
    return [pairs.class_names[label] for label in pairs.labels]


def indices_of(labels: Labels, class_names: Sequence[str], given: object) -> Tensor:
    """Return labels as indices (N,), where it is clear to which classes integers refer.

    Raises:
        DataError: if they cannot be used; or if they are integers beside a data set that numbers
            the same classes in another way, so that they may mean either.
    """
    found = read_labels(labels)
    indices = class_indices(found, class_names)
    classes = given.class_names if isinstance(given, Features) else classes_of(given)
    if classes is not None and isinstance(found, Tensor):
        try:
            places = match_classes(classes, class_names)
        except DataError:  # the data set has other classes, so these labels are the classifier's
            return indices
        if any(integer != place for integer, place in places.items()):
            raise DataError(
                "the data set numbers its classes in another way than the classifier, so integers "
                "may mean either: pass names of classes as labels, or leave labels out to take "
                "those of the data set"
            )
    return indices


def given_features(given: object) -> Tensor | None:
    """Return features (N, D), or None if these are no tensor, array or rows of numbers.

    Raises:
        DataError: if they have another shape, are not finite, or not of unit length.
    """
    if isinstance(given, Features):
        given = given.features
    if isinstance(given, list | tuple) and given and all(map(_is_row, cast("list[Any]", given))):
        given = _stack(cast("Sequence[Any]", given))
    given = cast("object", given)
    if is_array(given):
        if given.dtype.kind not in "fiub" or is_array_image(given) or is_array_of_images(given):
            return None  # it holds paths or pixels
        given = torch.from_numpy(np.array(given, dtype=np.float32))  # a copy, which torch may own
    if not isinstance(given, Tensor):
        return None
    if given.ndim != 2:
        raise DataError(
            f"a tensor or an array must be features (N, D), not {tuple(given.shape)}: "
            "see ImageClassifier.embed. NumPy images are uint8, (h, w, 3) or many (N, h, w, 3)"
        )
    check_lengths(given)
    return given


def _is_row(value: object) -> bool:
    """Return whether this is one feature: a tensor, an array or a list of numbers."""
    if isinstance(value, Tensor):
        return value.ndim == 1
    if isinstance(value, np.ndarray):
        array = cast("NDArray[Any]", value)
        return array.ndim == 1 and array.dtype.kind in "fiu"
    return isinstance(value, list) and all(
        isinstance(number, float | int) for number in cast("list[Any]", value)
    )


def _stack(rows: Sequence[Any]) -> Tensor:
    """Return rows of numbers as one tensor (N, D) on the CPU."""
    lengths = {len(row) for row in rows}
    if len(lengths) > 1:
        raise DataError(f"features must have one width, not {sorted(lengths)}")
    tensors = [row if isinstance(row, Tensor) else torch.from_numpy(np.array(row)) for row in rows]
    return torch.stack([tensor.detach().float().cpu() for tensor in tensors])


def check_lengths(features: Tensor) -> None:
    """Raise `DataError` unless all features (N, D) are finite and of unit length."""
    lengths = features.detach().float().square().sum(dim=1).sqrt()  # (N,)
    if not lengths.isfinite().all():
        row = int((~lengths.isfinite()).nonzero()[0])
        raise DataError(
            f"some features are not finite, first those of row {row} of {len(lengths)}: leave such "
            "rows out, or make their features again"
        )
    wrong = ((lengths - 1).abs() > LENGTH_TOLERANCE).nonzero().flatten()  # (rows that are,)
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"features must be of unit length, but {len(wrong)} of {len(lengths)} are not; row "
            f"{row} has length {lengths[row].item():.4g}: pass "
            "torch.nn.functional.normalize(features, dim=-1); in a Pipeline put scikit-learn's "
            "Normalizer() before the classifier"
        )


def _stream(model: nn.Module, images: Images, reading: Reading) -> Generator[Features, None, None]:
    return stream_features(
        model,
        images,
        batch_size=reading.batch_size,
        workers=reading.workers,
        progress=reading.progress,
        views=reading.times,
    )


def _extract(model: nn.Module, images: Images, reading: Reading) -> Features:
    """Return the features of all images that can be read; processes share nothing."""
    return extract_features(
        model,
        images,
        batch_size=reading.batch_size,
        workers=reading.workers,
        progress=reading.progress,
        views=reading.times,
    )


def _support_of_features(
    given: object, features: Tensor, indices: Tensor | None, class_names: Sequence[str]
) -> SupportSet:
    """Return given features with the labels, the paths and the problems that came with them."""
    found = given if isinstance(given, Features) else None
    if indices is None and found is not None and found.labels is not None:
        indices = _own_labels(found.labels, found.class_names, class_names)
    if indices is None:
        raise DataError("features need labels")
    if len(indices) != len(features):
        raise DataError(
            f"there must be a label for each image, not {len(indices):,} for {len(features):,}"
        )
    if found is None:
        return SupportSet(features, indices, [None] * len(features), [])
    return SupportSet(features, indices, found.paths, found.skipped)


def _extract_with_own_labels(
    model: nn.Module, images: Images, class_names: Sequence[str], reading: Reading
) -> SupportSet:
    """Return features with the labels of a data set, which may number its classes its own way."""
    classes = classes_of(images)
    if classes is not None and not is_part(images):  # a part may have a few of them
        match_classes(classes, class_names)
    found = _extract(model, images, reading)
    if found.labels is None:
        raise DataError(
            "these images come without labels: pass labels, one for each. Folders named by classes "
            "are read by clipkit.read_folder, and fit takes what it returns"
        )
    labels = _own_labels(found.labels, classes, class_names)
    return SupportSet(found.features, labels, found.paths, found.skipped)


def _own_labels(
    labels: Tensor, classes: Mapping[int, Sequence[str]] | None, class_names: Sequence[str]
) -> Tensor:
    """Return the labels of a data set (N,) as indices of a classifier's classes."""
    if classes is not None:
        return translate(labels, classes, class_names)
    check_range(labels, len(class_names))
    return labels


def _extract_with_labels(
    model: nn.Module, images: Images, labels: Tensor, reading: Reading
) -> SupportSet:
    """Return features with the labels that the caller gave, each label with its image."""
    if not isinstance(images, DataLoader):
        numbered = _Numbered(images)
        _check_count(len(numbered), labels)
        found = _extract(model, numbered, reading)
        assert found.labels is not None  # they are the numbers of the images that can be read
        return SupportSet(found.features, labels[found.labels], found.paths, found.skipped)
    found = _extract(model, cast("Images", images), reading)
    _check_count(len(found.paths) + len(found.skipped), labels)
    if found.skipped:  # a DataLoader has an order of its own
        raise DataError(
            f"{number_of(len(found.skipped), 'image')} of the DataLoader cannot be read, and "
            "nothing says which of the labels are theirs: let its data set return (image, label); "
            f"the first problem: {found.skipped[0][1]}"
        )
    return SupportSet(found.features, labels, found.paths, [])


def _check_count(images: int, labels: Tensor) -> None:
    if len(labels) != images:
        raise DataError(f"{number_of(images, 'image')} must have as many labels, not {len(labels)}")


class _Numbered(Dataset[Any]):
    """Give each image its number in place of a label."""

    def __init__(self, images: Images) -> None:
        # An `ImageSet` knows all forms of collections. Its transform is not used.
        self.source = ImageSet(images, torch.as_tensor).source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Any:
        sample: Any = self.source[index]
        if isinstance(sample, Mapping):  # as data sets of the hub have them
            return {**cast("Mapping[str, Any]", sample), "label": index}
        if isinstance(sample, tuple | list):  # with a label of its own
            sample = cast("Sequence[Any]", sample)[0]
        return sample, index
