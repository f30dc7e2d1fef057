"""Give each of some images in several variants: as it is, and corrupted in all ways."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clipkit.classify.inputs import (
    LabeledInputs,
    given_features,
    indices_of,
    labels_of_pairs,
)
from clipkit.classify.labels import Labels, check_range, translate
from clipkit.data.classes import classes_of
from clipkit.data.decode import read_image
from clipkit.data.labelled import Pairs
from clipkit.data.pictures import ImageSet
from clipkit.encode.features import Features
from clipkit.errors import ConfigError, DataError
from clipkit.inspect.corruptions import Corruption, Sample, sample_of

if TYPE_CHECKING:
    from PIL.Image import Image


class Variant(NamedTuple):
    """Hold what is done to an image; nothing without a corruption."""

    corruption: Corruption | None
    severity: float


class _Last(NamedTuple):
    """Hold the image that was read last."""

    place: int  # among all images
    image: "Image"  # upright, in mode L, RGB or CMYK
    label: int


class CorruptedImages(Dataset[Any]):
    """Give the variants of each image one after the other, with its label.

    An image is read once for all of its variants, and no more than one is held.

    Args:
        images: as in `robustness`.
        labels: as in `robustness`.
        class_names: C names.
        variants: what is done to each image.
        seed: of all that is drawn.

    Raises:
        ConfigError: for features, a DataLoader, or what holds no images.
        DataError: if the labels do not fit the images or the classes.
    """

    def __init__(
        self,
        images: LabeledInputs,
        labels: Labels | None,
        class_names: Sequence[str],
        variants: Sequence[Variant],
        seed: int,
    ) -> None:
        self.variants = variants
        self.class_names = class_names
        self.seed = seed
        # Of a data set that names its classes, whose own labels are found by these names.
        self._classes = classes_of(images)
        self.labels: Tensor | None = None  # (N,), where they are known before the images are read
        if isinstance(images, Pairs):
            if labels is None:
                self.labels = labels_of_pairs(images, class_names)
            images = images.files
        _refuse_prepared(images)
        if labels is not None:
            self.labels = indices_of(labels, class_names, images)
        # An `ImageSet` knows all forms of collections. Its transform is not used.
        self.source = ImageSet(cast("Any", images), torch.as_tensor).source
        if self.labels is not None and len(self.labels) != len(self.source):
            raise DataError(
                f"{len(self.source):,} images need as many labels, not {len(self.labels):,}"
            )
        self._last: _Last | None = None

    def __len__(self) -> int:
        """Return the number of images times the number of variants."""
        return len(self.source) * len(self.variants)

    def __getitem__(self, place: int) -> tuple["Image", int]:
        """Return a variant of an image, and the label of the image."""
        index, number = divmod(place, len(self.variants))
        if self._last is None or self._last.place != index:
            self._last = self._read(index)
        corruption, severity = self.variants[number]
        if corruption is None:
            return self._last.image, self._last.label
        sample = self.sample(index, self._last.label, corruption)
        found = corruption(self._last.image.convert("RGB"), severity, sample)
        if getattr(found, "mode", None) != "RGB":
            raise ConfigError(
                f"the corruption {corruption.name!r} must return a PIL image in mode RGB, not "
                f"{found!r:.60}"
            )
        return found, self._last.label

    def sample(self, index: int, label: int, corruption: Corruption) -> Sample:
        """Return what a corruption may know of an image beside its pixels."""
        return sample_of(index, label, self.class_names, name=corruption.name, seed=self.seed)

    def path(self, index: int) -> str | None:
        """Return the path of an image in a list of paths; None of any other."""
        if not isinstance(self.source, list | tuple):
            return None  # a data set may read an image to tell
        image, _ = _split(cast("Sequence[Any]", self.source)[index])
        is_path = isinstance(image, str | os.PathLike)
        return os.fspath(cast("str | os.PathLike[str]", image)) if is_path else None

    def _read(self, index: int) -> _Last:
        image, own_label = _split(self.source[index])
        if isinstance(image, Tensor):
            raise ConfigError(
                "images are corrupted before they are prepared, and these are tensors: pass paths "
                "or PIL images, of a data set without its transform"
            )
        label = self._own_label(own_label) if self.labels is None else int(self.labels[index])
        return _Last(index, read_image(image), label)

    def _own_label(self, label: Any) -> int:
        """Return the label that came with an image as an index of the classifier's classes."""
        try:
            integer = torch.tensor([int(label)], dtype=torch.int64, device="cpu")
        except (TypeError, ValueError) as error:
            raise DataError(
                "these images come without labels: pass labels, one for each. Folders named by "
                "classes are read by clipkit.read_folder, and robustness takes what it returns"
            ) from error
        if self._classes is not None:
            return int(translate(integer, self._classes, self.class_names))
        check_range(integer, len(self.class_names))
        return int(integer)


def _refuse_prepared(images: object) -> None:
    """Raise `ConfigError` for what was prepared or encoded already."""
    if isinstance(images, DataLoader):
        raise ConfigError(
            "images are corrupted before they are prepared, and a DataLoader gives them prepared: "
            "pass its data set, without a transform"
        )
    if isinstance(images, Features) or given_features(images) is not None:
        raise ConfigError("robustness corrupts images, and these are features: pass the images")


def _split(item: Any) -> tuple[Any, Any]:
    """Return the image of an item, and what stands beside it as a label, or None."""
    if isinstance(item, Mapping):  # as data sets of the hub have them
        row = cast("Mapping[str, Any]", item)
        return row.get("image", row.get("img")), row.get("label")
    if isinstance(item, tuple | list):
        first, *others = cast("Sequence[Any]", item)
        return first, others[0] if others else None
    return item, None
