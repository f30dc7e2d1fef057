"""Fit a classifier's head on its support set, and tell of it what people want to know."""

import logging
from typing import Any, cast

import numpy as np
from torch import Tensor

from clipkit.classify.few_shot import Method, fit_head
from clipkit.classify.heads import CosineHead, Head
from clipkit.classify.inputs import SupportSet
from clipkit.classify.labels import show
from clipkit.classify.seen import SEEN, marks_of
from clipkit.plurals import number_of_classes

_LOG = logging.getLogger("clipkit")

# The name in a provenance of the options that the caller gave. What stands beside them was chosen,
# and whoever fits the same method on other images lets it choose again.
OPTIONS = "options"


def fit_support(
    support: SupportSet,
    labels: list[str],
    zero_shot: CosineHead,
    method: Method | str,
    seed: int,
    options: dict[str, Any],
) -> tuple[Head, dict[str, Any]]:
    """Return a head fitted on a support set, and how it was made.

    Args:
        support: features, labels and where they are from.
        labels: the names of the classes.
        zero_shot: where to start; it is not changed.
        method, seed: as in `fit_head`.
        options: of the method, by name.
    """
    start = CosineHead(zero_shot.weight, zero_shot.logit_scale)  # float32
    head, provenance = fit_head(
        support.features, support.labels, start, method, seed=seed, **options
    )
    counts = cast("list[int]", support.labels.bincount(minlength=len(labels)).tolist())
    empty = [label for label, count in zip(labels, counts, strict=True) if count == 0]
    if empty:
        _LOG.warning("no image of %s to fit on: %s", number_of_classes(len(empty)), show(empty))
    provenance |= {"counts": counts, SEEN: marks_of(support.features, support.paths)}
    if given := _as_json(options):
        provenance[OPTIONS] = given
    if support.skipped:
        provenance["skipped"] = [list(one) for one in support.skipped]
    return head, provenance


def _as_json(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that are given, numbers of NumPy and torch as those of Python."""
    return {
        name: value.item() if isinstance(value, np.generic | Tensor) else value
        for name, value in options.items()
        if value is not None and name != "captions"
    }
