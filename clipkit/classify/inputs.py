"""What a classifier takes: features, or images from which it computes them, and labels."""

import os
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from clipkit.data.decode import is_encoded
from clipkit.data.pictures import Images, ImageSet
from clipkit.encode.embed import Features, stream_features
from clipkit.encode.store import extract_features
from clipkit.errors import DataError, ImageError

FeatureRows: TypeAlias = Tensor | NDArray[np.floating[Any]]
Inputs: TypeAlias = "Images | FeatureRows"
Labels: TypeAlias = Tensor | NDArray[np.integer[Any]] | Sequence[int] | Sequence[str]

# Of the length of a feature. bfloat16 rounds each number by up to 0.4 %; the features of a CLIP
# that nobody normalized are about ten times too long.
LENGTH_TOLERANCE = 0.01


@dataclass(frozen=True)
class Reading:
    """Hold how images are read: so many at once, in so many processes, with a bar or without."""

    batch_size: int
    workers: int
    progress: bool


@dataclass(frozen=True, eq=False)
class SupportSet:
    """Hold what a head is fitted on.

    Attributes:
        features: (M, D), of unit length.
        labels: (M,), one for each feature.
        skipped: path or index of each image that could not be read, and why.
    """

    features: Tensor
    labels: Tensor
    skipped: list[tuple[str, str]]


def is_one_image(given: object) -> bool:
    """Return whether this is a PIL image or an encoded one, or a path that names no folder."""
    if isinstance(given, str | os.PathLike):
        return not Path(cast("str | os.PathLike[str]", given)).is_dir()
    return is_encoded(given) or hasattr(given, "getbands")  # PIL need not be imported to ask


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
        ImageError: if an image cannot be read; it is named.
    """
    features = _given_features(given)
    if features is not None:
        return features, [None] * len(features)
    check_path(given)
    batches: list[Features] = []
    with closing(_stream(model, cast("Images", given), reading)) as stream:
        for batch in stream:
            if batch.skipped:
                name, problem = batch.skipped[0]
                raise ImageError(problem if name in problem else f"image {name}: {problem}")
            batches.append(batch)
    features = torch.cat([batch.features for batch in batches])
    names = [name for batch in batches for name in batch.paths]
    if isinstance(given, DataLoader):
        return features, [None] * len(names)
    # An image without a path goes by its index.
    return features, [None if name == str(i) else name for i, name in enumerate(names)]


def support_set(
    model: nn.Module,
    given: Inputs,
    labels: Labels | None,
    class_names: Sequence[str],
    reading: Reading,
) -> SupportSet:
    """Return features and labels to fit a head on, and warn of images that cannot be read.

    Args:
        model: what encodes images.
        given: features (N, D) of unit length, or images.
        labels: N indices or names of classes; None if the images come with labels.
        class_names: C names, to which the labels refer.
        reading: how images are read.

    Raises:
        DataError: if features or labels cannot be used, or no image can be read.
    """
    indices = None if labels is None else _indices_of(labels, class_names)
    features = _given_features(given)
    if features is not None:
        if indices is None:
            raise DataError("features need labels")
        return SupportSet(features, indices, [])
    check_path(given)
    images = cast("Images", given)
    if indices is None:
        support = _extract_with_own_labels(model, images, reading)
    else:
        support = _extract_with_labels(model, images, indices, reading)
    if support.skipped:
        warnings.warn(
            f"{len(support.skipped)} of {len(support.skipped) + len(support.labels)} images cannot "
            f"be read and are left out; the first: {support.skipped[0][1]}",
            stacklevel=3,  # at the call of `ImageClassifier.fit`
        )
    return support


def _given_features(given: object) -> Tensor | None:
    """Return features (N, D), or None if this is neither a tensor nor an array of numbers.

    Raises:
        DataError: if they have another shape, are not finite, or not of unit length.
    """
    if isinstance(given, np.ndarray):
        array = cast(NDArray[Any], given)
        if array.dtype.kind not in "fiub":
            return None  # it holds paths
        given = torch.from_numpy(np.array(array, dtype=np.float32))  # a copy, which torch may own
    if not isinstance(given, Tensor):
        return None
    if given.ndim != 2:
        raise DataError(
            f"a tensor or an array must be features (N, D), not {tuple(given.shape)}: "
            "see ImageClassifier.embed"
        )
    _check_lengths(given)
    return given


def _check_lengths(features: Tensor) -> None:
    """Raise `DataError` unless all features (N, D) are finite and of unit length."""
    lengths = features.detach().float().square().sum(dim=1).sqrt()  # (N,)
    if not lengths.isfinite().all():
        raise DataError("some features are not finite")
    wrong = ((lengths - 1).abs() > LENGTH_TOLERANCE).nonzero().flatten()  # (rows that are,)
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"features must be of unit length, but {len(wrong)} of {len(lengths)} are not; row "
            f"{row} has length {lengths[row].item():.4g}: pass "
            "torch.nn.functional.normalize(features, dim=-1)"
        )


def _indices_of(labels: Labels, class_names: Sequence[str]) -> Tensor:
    """Return labels as indices of classes; numbers are checked when a head is fitted."""
    if isinstance(labels, Tensor):
        return labels
    index: Mapping[Any, int] = {name: i for i, name in enumerate(class_names)}
    given: list[Any] = list(labels)
    unknown = {label for label in given if isinstance(label, str) and label not in index}
    if unknown:
        names = ", ".join(repr(name) for name in sorted(unknown)[:5])
        raise DataError(f"no class of this classifier is called {names}")
    return torch.tensor([index[label] if isinstance(label, str) else label for label in given])


def _stream(model: nn.Module, images: Images, reading: Reading) -> Generator[Features, None, None]:
    return stream_features(
        model,
        images,
        batch_size=reading.batch_size,
        workers=reading.workers,
        progress=reading.progress,
    )


def _extract(model: nn.Module, images: Images, reading: Reading) -> Features:
    """Return the features of all images that can be read; processes share nothing."""
    return extract_features(
        model,
        images,
        batch_size=reading.batch_size,
        workers=reading.workers,
        progress=reading.progress,
    )


def _extract_with_own_labels(model: nn.Module, images: Images, reading: Reading) -> SupportSet:
    found = _extract(model, images, reading)
    if found.labels is None:
        raise DataError("these images come without labels: pass labels, one for each")
    return SupportSet(found.features, found.labels, found.skipped)


def _extract_with_labels(
    model: nn.Module, images: Images, labels: Tensor, reading: Reading
) -> SupportSet:
    """Return features with the labels that the caller gave, each label with its image."""
    if not isinstance(images, DataLoader):
        numbered = _Numbered(images)
        _check_count(len(numbered), labels)
        found = _extract(model, numbered, reading)
        assert found.labels is not None  # they are the numbers of the images that can be read
        return SupportSet(found.features, labels.cpu()[found.labels], found.skipped)
    found = _extract(model, cast("Images", images), reading)
    _check_count(len(found.paths) + len(found.skipped), labels)
    if found.skipped:  # a DataLoader has an order of its own
        raise DataError(
            f"{len(found.skipped)} images of the DataLoader cannot be read, and nothing says which "
            f"of the labels are theirs: let its data set return (image, label); the first problem: "
            f"{found.skipped[0][1]}"
        )
    return SupportSet(found.features, labels, [])


def _check_count(images: int, labels: Tensor) -> None:
    if labels.ndim == 0 or len(labels) != images:
        raise DataError(f"{images} images need as many labels, not {labels.numel()}")


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
