"""Ask data sets for the names of their classes."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch.utils.data import ConcatDataset, DataLoader, Subset


def classes_of(data: object) -> dict[int, list[str]] | None:
    """Return the names of each integer that a data set gives as a label; None if it tells none.

    No integer has a name in joined data sets that name them in different ways.

    torchvision's data sets have them in `class_to_idx` or `classes`, those of the hub in the
    feature "label". A class may have several names. A `target_transform` gives other integers,
    which only the caller knows.
    """
    if isinstance(data, DataLoader | Subset):
        return classes_of(cast("DataLoader[Any] | Subset[Any]", data).dataset)
    if isinstance(data, ConcatDataset):
        parts = [classes_of(part) for part in cast("ConcatDataset[Any]", data).datasets]
        return parts[0] if all(part == parts[0] for part in parts) else {}
    if getattr(data, "target_transform", None) is not None:
        return None
    indices: Any = getattr(data, "class_to_idx", None)
    if isinstance(indices, Mapping) and indices:
        names: dict[int, list[str]] = {}
        for name, index in cast("Mapping[str, int]", indices).items():
            names.setdefault(index, []).append(name)
        return names
    listed = _listed_names(data)
    return None if listed is None else dict(enumerate(listed))


def is_part(data: object) -> bool:
    """Return whether this is a part of a data set, and so may lack some of its classes."""
    if isinstance(data, DataLoader):
        data = cast("DataLoader[Any]", data).dataset
    if isinstance(data, ConcatDataset):
        return any(map(is_part, cast("ConcatDataset[Any]", data).datasets))
    return isinstance(data, Subset)


def _listed_names(data: object) -> list[list[str]] | None:
    """Return the names that a data set lists in the order of its integers, if it does."""
    listed: Any = getattr(data, "classes", None)
    features: Any = getattr(data, "features", None)
    if listed is None and isinstance(features, Mapping):
        label: Any = cast("Mapping[str, Any]", features).get("label")
        listed = getattr(label, "names", None)
    if not isinstance(listed, list | tuple) or not listed:
        return None
    rows: list[list[str]] = []
    for entry in cast("Sequence[Any]", listed):
        names = [entry] if isinstance(entry, str) else entry
        if not isinstance(names, list | tuple) or not names:
            return None
        if not all(isinstance(name, str) for name in cast("Sequence[Any]", names)):
            return None
        rows.append(list(cast("Sequence[str]", names)))
    return rows
