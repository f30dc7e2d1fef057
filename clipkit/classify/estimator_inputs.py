"""Read what scikit-learn's tools pass on: tables and columns of images, and labels as numbers."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from clipkit.classify.inputs import Inputs
from clipkit.classify.labels import Labels, show
from clipkit.classify.plain_features import read_classes
from clipkit.data.arrays import is_array_image
from clipkit.data.pictures import Images
from clipkit.errors import ConfigError, DataError

Targets: TypeAlias = Labels | Iterable[float]  # whole floats count as integers

# Label -> its name, or a list of its names; or C names, to which integers from 0 refer.
ClassNamesByLabel: TypeAlias = Mapping[Any, "str | Sequence[str]"] | Sequence[str]
Names: TypeAlias = "list[str] | dict[str, str | Sequence[str]]"


def read_images(given: Images) -> Images:
    """Return images as `extract_features` takes them, out of tables and arrays of one column.

    Anything else is returned as it is.

    Args:
        given: such as a table of one column, or an array (N, 1) of paths.
    """
    table = cast(Any, given)
    if hasattr(table, "columns") and hasattr(table, "iloc") and len(table.columns) == 1:
        return list(table.iloc[:, 0])
    if isinstance(table, np.ndarray):
        array = cast("NDArray[Any]", table)
        if array.dtype.kind in "OUS" and array.ndim == 2 and array.shape[1] == 1:
            return list(array.ravel())
    return given


def read_inputs(given: Inputs) -> Inputs:
    """Return images or features as `ImageClassifier` takes them; a table of numbers as an array."""
    table = cast(Any, given)
    if hasattr(table, "columns") and len(table.columns) > 1:
        try:
            return np.asarray(table, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"a table must hold images in one column, or features in all: {error}. Pass the "
                "column alone: table['path']"
            ) from error
    return read_images(cast("Images", given))


def check_width(given: Inputs, width: int, caller: str) -> None:
    """Raise `ConfigError` for features of another width than the model's.

    Args:
        given: images, which have no width here, or features (N, D).
        width: D of the model.
        caller: the name of the estimator.
    """
    shape: Sequence[int] = getattr(given, "shape", ())
    if len(shape) != 2 or is_array_image(cast("object", given)):
        return
    columns = shape[1]
    if columns != width:
        raise ConfigError(
            f"X has {columns} features, but {caller} is expecting {width} features as input, those "
            "of its model: pass what CLIPEncoder makes of images, or the images; or model=None for "
            "features of any origin"
        )


def find_names(
    classes: NDArray[Any] | None, class_names: ClassNamesByLabel | None, needed: bool
) -> tuple[NDArray[Any], Names] | None:
    """Return all labels (C,), sorted, and their names, in the same order.

    Args:
        classes: the labels that occur, sorted; None if there are none.
        class_names: what the labels are called; None if they are names themselves.
        needed: whether prompts will be made of the names.

    Returns:
        None if there are no names and none are needed. Otherwise the labels, of the type of those
        that occur; and names as `ImageClassifier.zero_shot` takes them: a list, or label -> its
        name or names.

    Raises:
        ConfigError: if names are needed, and there are none; if a list has a name twice, or more or
            fewer than two names for booleans; or if there are names of other labels than booleans.
        DataError: if a label has no name.
    """
    if class_names is None:
        if classes is not None and _are_texts(classes):
            return classes, [str(label) for label in classes]
        if not needed:
            return None
        raise ConfigError(
            "labels that are no texts name nothing: pass class_names={label: 'its name', ...}, "
            "or method='linear_probe', which needs no names. VotingClassifier and other tools turn "
            "texts into integers: pass class_names=[...], the names in sorted order"
        )
    labels, names = _all_names(classes, class_names)
    if classes is None:
        return labels, names
    known = set(labels.tolist())
    unknown = [label for label in classes.tolist() if label not in known]
    if unknown:
        raise DataError(
            f"y has labels without a name: {show(unknown)}; class_names "
            f"{_describe_names(classes, class_names)}"
        )
    return _of_the_type_of(classes, labels), names


def _describe_names(classes: NDArray[Any], class_names: ClassNamesByLabel) -> str:
    """Return in words for which labels there are names."""
    if isinstance(class_names, Mapping) or _are_texts(classes):
        return f"has names of {show(list(class_names))}: add these, of the type that they have in y"
    last = len(class_names) - 1
    return f"{show(class_names)} are names of the labels 0 to {last}: add others, or pass a dict"


def _all_names(
    classes: NDArray[Any] | None, class_names: ClassNamesByLabel
) -> tuple[NDArray[Any], Names]:
    """Return the labels that have names, sorted, and these names."""
    if isinstance(class_names, str) or not isinstance(class_names, Mapping | Sequence):
        raise ConfigError(
            f"class_names must be a list of names, or label -> name, not {class_names!r:.60}"
        )
    if isinstance(class_names, Mapping):
        named = {str(label): names for label, names in class_names.items()}
        labels = _labels_of(list(class_names))
        return labels, {str(label): named[str(label)] for label in labels}
    _refuse_repeated(class_names)
    if classes is None or _are_texts(classes):
        labels = _labels_of(list(class_names))
        return labels, [str(label) for label in labels]
    labels = np.arange(len(class_names))
    if classes.dtype.kind == "b" and len(labels) != 2:
        raise ConfigError(
            f"y holds booleans, so class_names must have two names, those of False and True, "
            f"not {len(labels)}: {show(class_names)}"
        )
    return labels, list(class_names)


def _labels_of(named: list[Any]) -> NDArray[Any]:
    """Return the labels that have names, sorted."""
    try:
        return read_classes(named)[0]
    except DataError as error:
        raise ConfigError(
            f"the labels in class_names must be of one type, texts or integers or booleans, not "
            f"{show(named)}"
        ) from error


def _refuse_repeated(class_names: Sequence[str]) -> None:
    """Raise `ConfigError` if a name comes twice in a list, where it would be two classes."""
    repeated = [name for name, count in Counter(map(repr, class_names)).items() if count > 1]
    if repeated:
        raise ConfigError(
            f"class_names has {', '.join(repeated)} more than once, and their texts could not tell "
            "such classes apart: give each class a name of its own. If two labels are to share a "
            "name, pass a dict of labels to names"
        )


def _of_the_type_of(classes: NDArray[Any], labels: NDArray[Any]) -> NDArray[Any]:
    """Return all labels (C,) in the type of those that occur, where it can hold them."""
    if _are_texts(classes):
        return labels
    cast_labels = labels.astype(classes.dtype)
    if np.array_equal(cast_labels, labels):
        return cast_labels
    if classes.dtype.kind != "b":
        return labels
    raise ConfigError(
        f"y holds booleans, and class_names has names of {show(labels.tolist())}: pass the names "
        "of False and True alone, or integers as labels: y.astype(int)"
    )


def _are_texts(classes: NDArray[Any]) -> bool:
    return all(isinstance(label, str) for label in classes)
