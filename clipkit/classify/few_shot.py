"""Fitting heads on the features of a few labeled images, the support set.

Every method takes features (N, D) of unit length and labels (N,), and returns a head and the
settings that it chose. It chooses them on the support set alone: by cross-validation where a class
has several images, and by a rule that its docstring states where each class has one. `anchored` is
the default; the others are what it is compared with.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clipkit.classify.anchored import anchored
from clipkit.classify.cache import cache, cache_finetuned
from clipkit.classify.fitting import Fitted, distinct, shuffled
from clipkit.classify.gaussian import gaussian
from clipkit.classify.gradient import random_linear, zero_shot_linear
from clipkit.classify.heads import CosineHead
from clipkit.classify.linear_probe import linear_probe
from clipkit.classify.prompt_weights import prompt_weights
from clipkit.errors import ConfigError, DataError

Method = Literal[
    "anchored",
    "linear_probe",
    "zero_shot_linear",
    "random_linear",
    "prompt_weights",
    "gaussian",
    "cache",
    "cache_finetuned",
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
}


def sample_shots(
    labels: Tensor | npt.NDArray[Any] | Sequence[int] | Sequence[str], shots: int, seed: int = 0
) -> Tensor:
    """Draw a balanced support set: some images of each class, or all of a class that has fewer.

    Args:
        labels: N integers or names: a tensor (N,), an array (N,) or a list.
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
    if len(labels) == 0 or not _is_integer(shots) or shots < 1:
        raise ConfigError(
            f"sample_shots needs labels and at least one shot, not {len(labels)} and {shots}"
        )
    numbers = _numbered(labels)
    generator = torch.Generator("cpu").manual_seed(seed)
    drawn: list[Tensor] = []
    for label in distinct(numbers):
        members = (numbers == label).nonzero().flatten()  # (images, 1) -> (images,)
        drawn.append(members[shuffled(len(members), generator)[:shots]])
    return torch.cat(drawn)


def _numbered(labels: Tensor | npt.NDArray[Any] | Sequence[int] | Sequence[str]) -> Tensor:
    """Return labels as numbers (N,) on the CPU, which follow the order of the labels."""
    if isinstance(labels, Tensor):
        if labels.ndim != 1:
            raise ConfigError(f"sample_shots needs labels (N,), not {tuple(labels.shape)}")
        return labels.cpu()
    values: list[Any] = list(labels)
    try:
        number_of = {label: number for number, label in enumerate(sorted(set(values)))}
    except TypeError as error:
        raise ConfigError(f"sample_shots needs one integer or name per image: {error}") from error
    numbers = [number_of[label] for label in values]
    return torch.tensor(numbers, dtype=torch.int64, device="cpu")


def fit_head(
    features: Tensor,
    labels: Tensor,
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
        features: (N, D), of unit length, any float dtype.
        labels: (N,) integers below the C classes of `zero_shot`. Classes may differ in their number
            of images, and some may have none.
        zero_shot: where to start. It is not changed, and the fit runs on its device.
        method: a key of `METHODS`.
        seed: of the folds and of all that is drawn.
        strength: of the penalty towards zero-shot, above 0, for `anchored`.
        C: of the cross-entropy against the squared weights, above 0, for `linear_probe`.
        alpha: of the added logits, for `gaussian` and `cache`.
        beta: how near an image must be to count, for `cache`.
        epochs: from 0, for `zero_shot_linear`, `random_linear` and `cache_finetuned`.
        lr: learning rate, from 0, for the same three.
        sgd_batch_size: images in a step, from 1, for `zero_shot_linear` and `random_linear`.
        captions: (C, K, D), features of the prompts. `prompt_weights` needs it, and no other method
            takes it.

    Returns:
        The head, in eval mode on the device of `zero_shot`; and how it was made, as JSON: the
        method, the number of images, and the method's settings.

    Raises:
        ConfigError: if the method is unknown, an option is impossible or not one of the method's,
            features have another width, or there is a single class.
        DataError: if there are no images, labels do not fit, or features are not finite.

    Example:
        >>> from clipkit.classify.heads import CosineHead
        >>> zero_shot = CosineHead(torch.eye(3), torch.tensor(2.0))
        >>> head, chosen = fit_head(torch.eye(3), torch.arange(3), zero_shot, "gaussian")
        >>> chosen
        {'method': 'gaussian', 'pictures': 3, 'alpha': 1.0}
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
    _check_support(features, labels, zero_shot)
    head, chosen = _fit(features, labels, zero_shot, cast(Method, method), seed, given)
    return head.eval(), {"method": method, "pictures": len(labels)} | chosen


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
    generator = torch.Generator("cpu").manual_seed(seed)
    with torch.inference_mode(False), torch.enable_grad():
        # Copies, because what was made in inference mode cannot be trained on.
        features = features.detach().to(device, torch.float32, copy=True)
        labels = labels.to(device, torch.int64, copy=True)
        return METHODS[method](features, labels, zero_shot, generator, **options)


def check_method(method: str) -> None:
    """Raise `ConfigError` unless `method` is a key of `METHODS`."""
    if method not in METHODS:
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
    return cast(Any, value).item() if isinstance(value, np.generic) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# For each option, the values that are possible, and how to say so.
_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "strength": (lambda value: _is_number(value) and value > 0, "above 0"),
    "C": (lambda value: _is_finite(value) and value > 0, "above 0 and finite"),
    "alpha": (_is_finite, "a finite number"),
    "beta": (_is_finite, "a finite number"),
    "epochs": (lambda value: _is_integer(value) and value >= 0, "an integer of at least 0"),
    "lr": (lambda value: _is_finite(value) and value >= 0, "a finite number of at least 0"),
    "sgd_batch_size": (lambda value: _is_integer(value) and value > 0, "a positive integer"),
    "captions": (lambda value: isinstance(value, Tensor), "a tensor (C, K, D)"),
}


def _check_support(features: Tensor, labels: Tensor, zero_shot: CosineHead) -> None:
    """Raise an error unless features and labels fit each other and the zero-shot head."""
    if not isinstance(features, Tensor) or not isinstance(labels, Tensor):
        raise DataError(
            "features and labels must be tensors, not "
            f"{type(features).__name__} and {type(labels).__name__}"
        )
    if features.ndim != 2 or features.shape[1] != zero_shot.width:
        raise ConfigError(
            f"features must have shape (N, {zero_shot.width}), not {tuple(features.shape)}"
        )
    if zero_shot.classes < 2:
        raise ConfigError("there is a single class, so there is nothing to tell apart")
    if labels.ndim != 1 or len(labels) != len(features) or len(labels) == 0:
        raise DataError(
            "there must be a label for each image, and one at least, not "
            f"{tuple(labels.shape)} labels"
        )
    _check_labels(labels, zero_shot.classes)
    if not features.isfinite().all():
        raise DataError("some features are not finite")


def _check_labels(labels: Tensor, classes: int) -> None:
    """Raise `DataError` unless labels are integers from 0 to classes - 1."""
    needed = f"labels must be integers from 0 to {classes - 1}"
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise DataError(f"{needed}, not {labels.dtype}")
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= classes:
        raise DataError(f"{needed}, not {labels.dtype} from {lowest} to {highest}")
