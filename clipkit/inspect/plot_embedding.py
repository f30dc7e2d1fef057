"""Draw features as points of a plane, with their classes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipkit.classify.labels import Labels, check_range, read_labels
from clipkit.errors import ConfigError
from clipkit.inspect.plot_style import (
    COLORS,
    MARKERS,
    add_axes,
    add_legend,
    legend_size,
    new_figure,
    set_labels,
    set_title,
)
from clipkit.inspect.short_names import letters, shorten_all

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Tensor | NDArray[Any]

_LETTERS = 24  # of a name in the legend


class Projection(NamedTuple):
    """Hold features projected on the two directions in which they spread most.

    Attributes:
        points: (N, 2) float64.
        shares: how much of the variance each direction has, 0 to 1.
    """

    points: NDArray[np.float64]
    shares: tuple[float, float]


def project(features: Rows) -> Projection:
    """Return features on their first two principal components.

    The sign of each is such that the largest weight of a feature is positive, so that the same
    features give the same map everywhere.

    Args:
        features: (N, D) finite numbers, N at least 3, D at least 2.

    Raises:
        ConfigError: for anything else, or if all features are the same.

    Example:
        points, shares = project(classifier.embed("photos"))
    """
    rows = torch.as_tensor(features, device="cpu").detach().double()
    if rows.ndim != 2 or len(rows) < 3 or rows.shape[1] < 2:
        raise ConfigError(
            "a map needs features (N, D), N of at least 3, D of at least 2, not "
            f"{tuple(rows.shape)}"
        )
    if not rows.isfinite().all():
        raise ConfigError("a map needs finite features: leave rows with NaN or infinity out")
    centered = rows - rows.mean(dim=0)
    variance = centered.square().sum()
    if variance <= 1e-20 * rows.square().sum():
        raise ConfigError("a map needs features that differ, and all of these are the same")
    _, lengths, directions = cast(
        "tuple[Tensor, Tensor, Tensor]", torch.linalg.svd(centered, full_matrices=False)
    )
    first = directions[:2]  # (2, D)
    signs = first.gather(1, first.abs().argmax(dim=1, keepdim=True)).sign()  # (2, 1)
    points = centered @ (first * signs).T  # (N, D) @ (D, 2) -> (N, 2)
    shares = lengths.square() / variance
    return Projection(points.numpy(), (float(shares[0]), float(shares[1])))


def embedding_map(
    features: Rows,
    labels: Labels,
    names: Sequence[str] | None = None,
    *,
    coordinates: Rows | None = None,
    title: str = "",
) -> "Figure":
    """Return a point for each image, with a color and a shape for each class.

    Args:
        features: (N, D), which are projected on the two directions in which they spread most (PCA).
        labels: N integers or names of classes.
        names: C names of integer labels.
        coordinates: (N, 2) points of another projection, such as UMAP, in place of PCA.
        title: of the figure.

    Raises:
        ConfigError: if shapes do not fit, or matplotlib is missing.
        DataError: if the labels cannot be used.

    Example:
        plots.embedding_map(classifier.embed(files), labels).savefig("map.png")
    """
    points, axis_names = _points(features, coordinates)
    classes, texts = _classes(labels, names, len(points))
    present = [place for place in range(len(texts)) if (classes == place).any()]
    shown = shorten_all([texts[place] for place in present], letters(_LETTERS))
    legend = legend_size(shown)
    figure = new_figure(5.2 + legend.width, max(4.6, legend.height + 0.2))
    axes = add_axes(figure)
    handles = [_scatter(axes, points[classes == place], place) for place in present]
    add_legend(figure, handles, shown, columns=legend.columns)
    axes.set_aspect("equal", adjustable="datalim")
    set_labels(axes, *axis_names)
    set_title(axes, title)
    return figure


def _scatter(axes: "Axes", points: NDArray[np.float64], place: int) -> Any:
    """Draw the points of a class, in a color and a shape of its own."""
    marker = MARKERS[(place % len(COLORS) + place // len(COLORS)) % len(MARKERS)]
    return axes.scatter(
        points[:, 0],
        points[:, 1],
        s=26,
        color=COLORS[place % len(COLORS)],
        marker=marker,
        alpha=0.75,
        linewidths=0.4,
        edgecolors="white",
    )


def _points(features: Rows, coordinates: Rows | None) -> tuple[NDArray[np.float64], list[str]]:
    """Return the points (N, 2), and what the two axes hold."""
    if coordinates is None:
        points, shares = project(features)
        return points, [
            f"principal component {place} ({share:.0%} of the variance)"
            for place, share in enumerate(shares, start=1)
        ]
    points = torch.as_tensor(coordinates, device="cpu").detach().double().numpy()
    if points.shape != (len(features), 2) or not np.isfinite(points).all():
        raise ConfigError(
            f"coordinates must be ({len(features)}, 2) finite numbers, not {points.shape}"
        )
    return points, ["", ""]


def _classes(
    labels: Labels, names: Sequence[str] | None, count: int
) -> tuple[NDArray[np.int64], list[str]]:
    """Return the class of each point (N,), and the name of each class."""
    found = read_labels(labels)
    if len(found) != count:
        raise ConfigError(f"{count} features need as many labels, not {len(found)}")
    if not isinstance(found, Tensor):
        texts = sorted(set(found)) if names is None else list(names)
        if unknown := sorted(set(found) - set(texts)):
            raise ConfigError(f"the label {unknown[0]!r:.60} is none of the names")
        places = {text: place for place, text in enumerate(texts)}
        return np.array([places[text] for text in found]), texts
    texts = [str(place) for place in range(int(found.max()) + 1)] if names is None else list(names)
    check_range(found, len(texts))
    return found.numpy(), texts
