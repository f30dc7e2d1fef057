"""Say what a method makes of images that it was not fitted on, where there is a support set only.

The head of a classifier is fitted on all of its support set, and what it says of those images is
no sign of what it will say of others. So the method is fitted anew several times, each time without
a part of the images, and says what it makes of that part.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clipkit.classify.few_shot import Method, check_method, fit_head
from clipkit.classify.fitting import FOLDS, Folds, make_folds, shuffled
from clipkit.classify.heads import CosineHead, Head
from clipkit.classify.labels import Labels, check_range, read_labels
from clipkit.classify.metric_inputs import is_count
from clipkit.errors import ConfigError, DataError
from clipkit.plurals import number_of

# They know nothing of a class without images, so such a class cannot be told from others by them.
WITHOUT_TEXT = ("linear_probe", "random_linear")


@dataclass(frozen=True, eq=False)
class CrossValidated:
    """Hold what heads say of images that they were not fitted on.

    Attributes:
        logits: (M, C) float32 on the CPU. Each row comes from a head that saw only other images.
        indices: (M,) int64, rising: which rows of the support set these are. A class with a single
            image is left out, as long as another class has more.
        folds: how many heads were fitted.
        pessimistic: whether each class has a single image. Then the class of an image that is held
            out is known by its text alone, and the head that is fitted on all images is better.
    """

    logits: Tensor
    indices: Tensor
    folds: int
    pessimistic: bool


def cross_validated(
    features: Tensor,
    labels: Labels,
    zero_shot: CosineHead,
    method: Method | str = "anchored",
    options: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    folds: int = FOLDS,
    like: Head | None = None,
) -> CrossValidated:
    """Fit a method several times, each time without a part of the images, and classify that part.

    Where classes have several images, each class is spread evenly over the folds, and a class with
    a single image is never held out. Where each class has a single image, single images are held
    out all the same, class by class; see `CrossValidated.pessimistic`.

    Args:
        features: (N, D), of unit length, any float dtype.
        labels: (N,) integers below the C classes of `zero_shot`.
        zero_shot: where each fit starts; it is not changed.
        method: a key of `clipkit.classify.few_shot.METHODS`.
        options: of the method, by the names that `fit_head` gives them; None stands for one that is
            not given. `prompt_weights` needs `captions`.
        seed: of the folds, and of all that the fits draw.
        folds: how many fits at most, at least 2. There are no more than the largest class has
            images.
        like: a head fitted on all images. The logits of each fold are multiplied by the factor with
            which they are spread as those of this head are, on the images that both were fitted
            on. Methods choose how large logits are, anew in each fold, and what is learned from
            them, such as a temperature, is for this head. Without it they stay as they are.

    Returns:
        Logits of the images that were held out.

    Raises:
        ConfigError: as `fit_head`; or if `folds` is impossible.
        DataError: as `fit_head`; if there are fewer than two images; or if each class has a single
            image and the method is one that knows classes by images alone.

    Example:
        >>> zero_shot = CosineHead(torch.eye(2), torch.tensor(2.0))
        >>> found = cross_validated(torch.eye(2).repeat(3, 1), [0, 1, 0, 1, 0, 1], zero_shot)
        >>> found.indices.tolist(), found.folds, found.logits.argmax(dim=1).tolist()
        ([0, 1, 2, 3, 4, 5], 3, [0, 1, 0, 1, 0, 1])
    """
    check_method(method)
    if not is_count(folds) or folds < 2:
        raise ConfigError(f"folds must be an integer of at least 2, not {folds!r}")
    indices = _checked_labels(features, labels, zero_shot.classes)
    generator = torch.Generator("cpu").manual_seed(seed)
    parts = make_folds(indices, generator, folds)
    pessimistic = not parts
    if pessimistic:
        parts = _single_folds(indices, method, generator, folds)
    options = dict(options or {})
    logits: list[Tensor] = []
    places: list[Tensor] = []
    for rest, out in parts:
        own = features[rest.to(features.device)]
        head, _ = fit_head(own, indices[rest], zero_shot, method, seed=seed, **options)
        held_out = _logits(head, features[out.to(features.device)])
        factor = 1.0 if like is None else _spread(_logits(like, own)) / _spread(_logits(head, own))
        logits.append(held_out * factor)
        places.append(out.nonzero().flatten())  # (M, 1) -> (M,)
    order = torch.cat(places).argsort()
    return CrossValidated(
        logits=torch.cat(logits)[order],
        indices=torch.cat(places)[order],
        folds=len(parts),
        pessimistic=pessimistic,
    )


def _logits(head: Head, features: Tensor) -> Tensor:
    """Return the logits (N, C) of features (N, D), on the CPU."""
    with torch.no_grad():
        return head(features.float().to(next(head.parameters()).device)).cpu()


def _spread(logits: Tensor) -> float:
    """Return how far the logits of a row (N, C) are from each other; above 0."""
    return max(logits.std(dim=1, correction=0).mean().item(), 1e-6)


def _checked_labels(features: Tensor, labels: Labels, classes: int) -> Tensor:
    """Return labels (N,) int64 on the CPU, one for each of at least two images."""
    indices = read_labels(labels)
    if not isinstance(indices, Tensor):
        raise DataError(f"labels must be integers from 0 to {classes - 1}, not names")
    if len(indices) != len(features):
        raise DataError(
            f"there must be a label for each image, not {len(indices)} for {len(features)}"
        )
    if len(indices) < 2:
        raise DataError(
            f"nothing can be held out of {number_of(len(indices), 'image')}: cross-validation "
            "needs two at least"
        )
    check_range(indices, classes)
    return indices


def _single_folds(labels: Tensor, method: str, generator: torch.Generator, most: int) -> Folds:
    """Return folds for classes with a single image each."""
    if method in WITHOUT_TEXT:
        raise DataError(
            f"each class has a single image, and {method} knows nothing of a class without images, "
            "so nothing can be held out: pass more images, or take a method that starts from the "
            "texts, such as 'anchored'"
        )
    fold_of = torch.empty_like(labels)
    numbers = torch.arange(len(labels), device=labels.device)
    fold_of[shuffled(len(labels), generator)] = numbers % most
    return [(fold_of != fold, fold_of == fold) for fold in range(min(most, len(labels)))]
