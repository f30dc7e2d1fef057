"""Fitting heads on the features of a few labeled images, the support set.

Every method takes features (N, D) of unit length and labels (N,), and returns a head and the
settings that it chose. It chooses them on the support set alone: by cross-validation where a class
has several images, and by a rule that its docstring states where each class has one. `anchored` is
the default; the others are what it is compared with.
"""

import inspect
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipkit.classify.anchored import anchored
from clipkit.classify.cache import cache, cache_finetuned
from clipkit.classify.clap import clap
from clipkit.classify.fitting import Fitted, shuffled
from clipkit.classify.gaussian import gaussian
from clipkit.classify.gradient import random_linear, zero_shot_linear
from clipkit.classify.heads import CosineHead, Head
from clipkit.classify.inputs import FeatureRows, given_features
from clipkit.classify.labels import Labels, check_range, class_indices, read_labels
from clipkit.classify.linear_probe import linear_probe
from clipkit.classify.lp_plus_plus import lp_plus_plus
from clipkit.classify.projection import projection
from clipkit.classify.proker import proker
from clipkit.classify.prompt_weights import prompt_weights
from clipkit.encode.features import Features
from clipkit.errors import ConfigError, DataError
from clipkit.plurals import number_of

_LOG = logging.getLogger("clipkit")

_NUMBERS = ("strength", "C", "alpha", "beta", "lr")  # the options that need not be whole
_LARGEST = 1e30  # of an option, so that its products with others are numbers of float32

Method = Literal[
    "anchored",
    "linear_probe",
    "zero_shot_linear",
    "random_linear",
    "prompt_weights",
    "gaussian",
    "cache",
    "cache_finetuned",
    "lp_plus_plus",
    "proker",
    "projection",
    "clap",
]

# The function of each method: (features, labels, zero_shot, generator, *, options) -> Fitted.
METHODS: dict[Method, Callable[..., Fitted]] = {
    "anchored": anchored,
    "linear_probe": linear_probe,
    "zero_shot_linear": zero_shot_linear,
    "random_linear": random_linear,
    "prompt_weights": prompt_weights,
    "gaussian": gaussian,
    "cache": cache,
    "cache_finetuned": cache_finetuned,
    "lp_plus_plus": lp_plus_plus,
    "proker": proker,
    "projection": projection,
    "clap": clap,
}


def sample_shots(labels: Labels, shots: int, seed: int = 0) -> Tensor:
    """Draw a balanced support set: some images of each class, or all of a class that has fewer.

    A line in the log "clipkit" tells which classes have fewer.

    Args:
        labels: N integers or names: a tensor (N,), an array (N,), a list or another row.
        shots: images per class, at least 1.
        seed: the same one draws the same images.

    Returns:
        (M,) int64, indices into `labels`, class after class.

    Raises:
        ConfigError: if there are no labels or no shots, or labels are no row of integers or names.

    Example:
        >>> chosen = sample_shots(["cat", "dog", "cat", "cat", "dog"], shots=1)
        >>> sorted(["cat", "dog", "cat", "cat", "dog"][i] for i in chosen)
        ['cat', 'dog']
    """
    shots = _plain(shots)
    read = read_labels(labels, error=ConfigError)
    if len(read) == 0 or not _is_integer(shots) or shots < 1:
        raise ConfigError(
            f"sample_shots needs labels and at least one shot, not {len(read)} and {shots!r}"
        )
    generator = _generator(seed)
    names = [] if isinstance(read, Tensor) else sorted(set(read))
    numbers = read if isinstance(read, Tensor) else class_indices(read, names)
    drawn: list[Tensor] = []
    fewer: list[str] = []
    for label, members in _members(numbers):
        drawn.append(members[shuffled(len(members), generator)[:shots]])
        if len(members) < shots:
            fewer.append(f"{names[label] if names else label} ({len(members)})")
    if fewer:
        more = f" and {len(fewer) - 5} more" if len(fewer) > 5 else ""
        shown = ", ".join(fewer[:5]) + more
        _LOG.warning("fewer than %d images, so all are taken: %s", shots, shown)
    return torch.cat(drawn)


def _members(labels: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield each label of (N,) that occurs, in rising order, with the indices that have it."""
    found, counts = cast("tuple[Tensor, Tensor]", labels.unique(return_counts=True))
    order = labels.argsort(stable=True)  # (N,), class after class
    parts = cast("tuple[Tensor, ...]", order.split(cast("list[int]", counts.tolist())))
    yield from zip(cast("list[int]", found.tolist()), parts, strict=True)


def fit_head(
    features: FeatureRows,
    labels: Labels,
    zero_shot: CosineHead,
    method: Method | str = "anchored",
    *,
    seed: int = 0,
    strength: float | None = None,
    C: float | None = None,
    alpha: float | None = None,
    beta: float | None = None,
    epochs: int | None = None,
    lr: float | None = None,
    sgd_batch_size: int | None = None,
    captions: Tensor | None = None,
) -> Fitted:
    """Fit a head by one of the methods.

    It neither reads nor changes torch's random state, so fits in several threads do not disturb
    each other. An option that is None is left to the method, whose docstring says what it does.

    Args:
        features: (N, D), of unit length, any float dtype: a tensor, an array, or what
            `extract_features` returns.
        labels: (N,) integers below the C classes of `zero_shot`, a tensor, an array or a list.
            Classes may differ in their number of images, and some may have none.
        zero_shot: where to start. It is not changed, and the fit runs on its device.
        method: a key of `METHODS`.
        seed: of the folds and of all that is drawn.
        strength: of the pull to zero-shot, above 0, for `anchored`, `proker` and `projection`.
        C: of the cross-entropy against the squared weights, above 0, for `linear_probe`.
        alpha: of the added logits, for `gaussian` and `cache`.
        beta: how near an image must be to count, for `cache` and `proker`.
        epochs: from 0, for `zero_shot_linear`, `random_linear`, `cache_finetuned`, `clap` and
            `lp_plus_plus`.
        lr: learning rate, from 0, for the first four of them.
        sgd_batch_size: images in a step, from 1, for `zero_shot_linear` and `random_linear`.
        captions: (C, K, D), features of the prompts. `prompt_weights` needs it, and no other method
            takes it.

    Returns:
        The head, in eval mode on the device of `zero_shot`; and how it was made, as JSON: the
        method, the number of images, and the method's settings.

    Raises:
        ConfigError: if the method is unknown, an option is impossible or not one of the method's,
            features have another width, there is a single class, or the fit with these options is
            not finite.
        DataError: if there are no images, labels do not fit, or features are not finite or not of
            unit length.

    Example:
        >>> from clipkit.classify.heads import CosineHead
        >>> zero_shot = CosineHead(torch.eye(3), torch.tensor(2.0))
        >>> head, chosen = fit_head(torch.eye(3), torch.arange(3), zero_shot, "gaussian")
        >>> chosen
        {'method': 'gaussian', 'images': 3, 'alpha': 1.0}
    """
    options = {
        "strength": strength,
        "C": C,
        "alpha": alpha,
        "beta": beta,
        "epochs": epochs,
        "lr": lr,
        "sgd_batch_size": sgd_batch_size,
        "captions": captions,
    }
    given = {name: _plain(value) for name, value in options.items() if value is not None}
    check_options(method, given)
    if method == "prompt_weights" and captions is None:
        raise ConfigError("prompt_weights needs captions: the features (C, K, D) of all prompts")
    rows, indices = _check_support(features, labels, zero_shot)
    given = {name: float(value) if name in _NUMBERS else value for name, value in given.items()}
    head, chosen = _fit(rows, indices, zero_shot, cast(Method, method), seed, given)
    _check_head(head, rows, method, given)
    return head.eval(), {"method": method, "images": len(indices)} | chosen


def _fit(
    features: Tensor,
    labels: Tensor,
    zero_shot: CosineHead,
    method: Method,
    seed: int,
    options: Mapping[str, Any],
) -> Fitted:
    """Call the function of a method where gradients are allowed, with a generator of its own."""
    device = zero_shot.weight.device
    generator = _generator(seed)
    with torch.inference_mode(False), torch.enable_grad():
        # Copies, because what was made in inference mode cannot be trained on.
        features = features.detach().to(device, torch.float32, copy=True)
        labels = labels.to(device, torch.int64, copy=True)
        return METHODS[method](features, labels, zero_shot, generator, **options)


def _generator(seed: int) -> torch.Generator:
    """Return a generator of the CPU with this seed, or raise `ConfigError`."""
    seed = _plain(seed)
    if not _is_integer(seed) or not -(2**63) <= seed < 2**64:
        raise ConfigError(f"seed must be an integer of 64 bits, not {seed!r:.60}")
    return torch.Generator("cpu").manual_seed(seed)


def _check_head(head: Head, features: Tensor, method: str, given: Mapping[str, Any]) -> None:
    """Raise `ConfigError` if a fit has run away, which no later number would tell."""
    with torch.no_grad():
        logits = head(features.to(next(head.parameters()).device))  # (N, C)
    if all(value.isfinite().all() for value in (logits, *head.state_dict().values())):
        return
    options = {name: value for name, value in given.items() if name != "captions"}
    raise ConfigError(
        f"{method} has run away with {options or 'its own options'}: the head makes numbers that "
        "are not finite. Use other options, such as a lower lr or alpha"
    )


def check_method(method: str) -> None:
    """Raise `ConfigError` unless `method` is a key of `METHODS`."""
    if not isinstance(method, str) or method not in METHODS:
        raise ConfigError(f"method must be one of {', '.join(METHODS)}, not {method!r}")


def check_options(method: str, given: Mapping[str, object]) -> None:
    """Raise `ConfigError` unless the method takes these options, with possible values.

    Args:
        method: a key of `METHODS`, or an error is raised.
        given: options of `fit_head` by name; None stands for one that is not given.
    """
    check_method(method)
    for name, given_value in given.items():
        value = _plain(given_value)
        if value is None:
            continue
        takers = [other for other in METHODS if name in _options_of(other)]
        if method not in takers:
            raise ConfigError(
                f"{method} takes no {name}; it is an option of {', '.join(takers) or 'no method'}"
            )
        is_possible, needed = _VALUES[name]
        if not is_possible(value):
            raise ConfigError(f"{name} must be {needed}, not {value!r:.60}")


def _options_of(method: Method) -> list[str]:
    """Return the names of the options of a method: the keyword-only arguments of its function."""
    parameters = inspect.signature(METHODS[method]).parameters.values()
    return [one.name for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY]


def _plain(value: Any) -> Any:
    """Return a NumPy number as a Python number, which JSON can hold; anything else as it is."""
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.ndim == 0):
        return cast(Any, value).item()
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_moderate(value: Any) -> bool:
    """Return whether this is a number with which float32 can compute."""
    return _is_number(value) and -_LARGEST <= value <= _LARGEST


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_integer(value) and 0 <= value <= 2**31


# For each option, the values that are possible, and how to say so.
_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "strength": (
        lambda value: value == math.inf or (_is_moderate(value) and value > 0),
        "above 0, at most 1e30 or infinite",
    ),
    "C": (lambda value: _is_moderate(value) and value > 0, "above 0 and at most 1e30"),
    "alpha": (_is_moderate, "a number from -1e30 to 1e30"),
    "beta": (_is_moderate, "a number from -1e30 to 1e30"),
    "epochs": (lambda value: _is_count(value), "an integer from 0 to 2**31"),
    "lr": (lambda value: _is_moderate(value) and value >= 0, "a number from 0 to 1e30"),
    "sgd_batch_size": (lambda value: _is_count(value) and value > 0, "an integer from 1 to 2**31"),
    "captions": (lambda value: isinstance(value, Tensor), "a tensor (C, K, D)"),
}


def _check_support(
    features: FeatureRows, labels: Labels, zero_shot: CosineHead
) -> tuple[Tensor, Tensor]:
    """Return features (N, D) and labels (N,) that fit each other and the zero-shot head.

    Raises:
        ConfigError, DataError: if they do not; see `fit_head`.
    """
    rows: Any = features.features if isinstance(features, Features) else features
    if not isinstance(rows, Tensor | np.ndarray):
        raise DataError(
            f"features must be a tensor or an array (N, D), not {type(features).__name__}"
        )
    rows = cast("Tensor | NDArray[Any]", rows)
    shape = tuple(rows.shape)
    if len(shape) != 2 or shape[1] != zero_shot.width:
        raise ConfigError(f"features must have shape (N, {zero_shot.width}), not {shape}")
    if zero_shot.classes < 2:
        raise ConfigError("there is a single class, so there is nothing to tell apart")
    indices = read_labels(labels)
    if not isinstance(indices, Tensor):
        raise DataError(f"labels must be integers from 0 to {zero_shot.classes - 1}, not names")
    if len(indices) != len(rows) or len(indices) == 0:
        raise DataError(
            "there must be a label for each image, and one at least, not "
            f"{tuple(indices.shape)} labels for {number_of(len(rows), 'image')}"
        )
    check_range(indices, zero_shot.classes)
    found = given_features(features)
    if found is None:
        raise DataError(f"features must be numbers, not an array of {rows.dtype}")
    return found, indices
