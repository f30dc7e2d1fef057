"""Draw figures of every kind as users would, also with names and images that are hard to fit."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from clipkit import Prediction
from clipkit.inspect import RobustnessRow, plots
from clipkit.inspect.robustness_figures import RobustnessFigures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"
CAT, COFFEE, ROCKET = (PHOTOS / f"{name}.jpg" for name in ("cat", "coffee", "rocket"))
WIDE = Image.new("RGB", (800, 100), "skyblue")
TALL = Image.new("RGB", (60, 500), "khaki")
LONG = "a rather long class name with many words in it, such as those of remote sensing"
NAMES = ["cat", "dog", "$5 bill and $10 bill", "_hidden", LONG, "cup of coffee", "<b>rocket</b>"]


def prediction(*shares: float) -> Prediction:
    """Return a prediction of the first of `NAMES` with these probabilities."""
    return Prediction(NAMES[: len(shares)], torch.tensor(shares))


PREDICTIONS = [
    prediction(0.6, 0.2, 0.1, 0.05, 0.03, 0.015, 0.005),
    prediction(0.01, 0.02, 0.4, 0.3, 0.2, 0.05, 0.02),
    prediction(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0),
]


def spot(height: int = 7, width: int = 11) -> NDArray[np.float64]:
    """Return a map (h, w) with a maximum in its middle."""
    rows, columns = np.mgrid[:height, :width]
    return np.exp(-((rows - height // 2) ** 2 + (columns - width // 2) ** 2) / 6)


def areas() -> NDArray[np.int64]:
    """Return classes (60, 90) of four areas."""
    classes = np.zeros((60, 90), dtype=np.int64)
    classes[:, 40:] = 1
    classes[20:40, 30:60] = 2
    classes[45:, :30] = 3
    return classes


def tiles(count: int = 30) -> NDArray[np.int64]:
    """Return classes of as many tiles, (50, 10 * count / 5)."""
    return np.arange(count).reshape(5, -1).repeat(10, axis=0).repeat(10, axis=1)


def curves(methods: int) -> dict[str, dict[int, list[float]]]:
    """Return the accuracy of methods in five draws each."""
    random = np.random.default_rng(0)
    names = [*NAMES, *(f"{LONG}, method {place}" for place in range(60))][:methods]
    return {
        name: {k: random.normal(0.5 + 0.05 * np.log2(k), 0.02, 5).tolist() for k in (1, 2, 4, 8)}
        for name in names
    }


def clouds(classes: int, each: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features (classes * each, 16) around centers, and labels."""
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(classes * each) % classes
    centers = 3 * torch.randn(classes, 16, generator=random)
    return centers[labels] + torch.randn(len(labels), 16, generator=random), labels


def measured(corruptions: int = 2, severities: int = 3) -> RobustnessFigures:
    """Return made-up figures of robustness; the first corruption writes a class."""
    rows = [
        RobustnessRow(
            corruption=["text", "noise", LONG, "JPEG", "blur"][place],
            severity=0.1 * (step + 1),
            unit="height of letters / short side" if place != 1 else "of a long unit, " * 4,
            images=100,
            accuracy=0.8 - 0.2 * step,
            interval=(0.7 - 0.2 * step, 0.87 - 0.2 * step),
            confidence=0.75 - 0.1 * step,
            clean_accuracy=0.85,
            fooled=0.1 * step if place == 0 else None,
        )
        for place in range(corruptions)
        for step in range(severities)
    ]
    return RobustnessFigures(100, 0.85, (0.77, 0.91), 0.8, rows, 0, 0, [])


def _pairs(**options: Any) -> "Figure":
    examples = dict(zip(NAMES, [CAT, COFFEE, ROCKET, WIDE, TALL, CAT, CAT], strict=True))
    pairs = [("cat", "dog", 12.0), (LONG, NAMES[2], 3.0), ("_hidden", "cup of coffee", 1.0)]
    return plots.confusion_pairs(pairs, examples, **options)


# Every kind of figure, in usual and in unusual shapes.
FIGURES: dict[str, "Callable[[], Figure]"] = {
    "predictions": lambda: plots.prediction_panels(
        [CAT, COFFEE, ROCKET], PREDICTIONS, ["cat", "dog", LONG]
    ),
    "predictions without truth": lambda: plots.prediction_panels([CAT], PREDICTIONS[:1]),
    "predictions of one class": lambda: plots.prediction_panels(
        [WIDE, TALL], [prediction(1.0)] * 2, ["cat", "cat"], columns=1
    ),
    "heat map": lambda: plots.heat_map(CAT, spot()),
    "heat maps": lambda: plots.heat_map(
        COFFEE, {"Grad-ECLIP": spot(), LONG: -1000 * spot(), "$flat$": np.ones((3, 3))}, columns=2
    ),
    "heat map of a wide image": lambda: plots.heat_map(WIDE, {"a": spot(), "b": spot()}),
    "heat map of a tall image": lambda: plots.heat_map(TALL, spot(9, 2), limits=(0, 2)),
    "segmentation": lambda: plots.segmentation(CAT, areas(), ["wall", "fur", LONG, "$x$"]),
    "segmentation of 30 classes": lambda: plots.segmentation(
        COFFEE, tiles(), [f"class number {place}" for place in range(30)]
    ),
    "segmentation of a small image": lambda: plots.segmentation(
        Image.new("RGB", (20, 15), "tan"), areas()[::4, ::4], ["wall", "fur", LONG, "$x$"]
    ),
    "segmentation of names that begin alike": lambda: plots.segmentation(
        CAT, tiles(), [f"{LONG} {place}" for place in range(30)], background=29
    ),
    "segmentation of one class": lambda: plots.segmentation(TALL, np.zeros((4, 4), int), ["all"]),
    "segmentation of background": lambda: plots.segmentation(
        WIDE, np.zeros((4, 4), int), ["all"], background=0
    ),
    "curves": lambda: plots.few_shot_curves(curves(4), zero_shot=0.5, title="$a$ title"),
    "curves of many methods": lambda: plots.few_shot_curves(curves(20), zero_shot=0.4),
    "curves of 60 methods": lambda: plots.few_shot_curves(curves(60), zero_shot=0.4),
    "curve of one point": lambda: plots.few_shot_curves({"anchored": {4: [0.5]}}),
    "confusions": _pairs,
    "confusions with mistakes": lambda: _pairs(mistakes={("cat", "dog"): [CAT, WIDE, TALL, CAT]}),
    "confusions as shares": lambda: _pairs(unit=""),
    "embedding": lambda: plots.embedding_map(*clouds(3), NAMES[1:4], title="map"),
    "embedding of 30 classes": lambda: plots.embedding_map(
        *clouds(30), [f"class number {place}" for place in range(30)]
    ),
    "embedding of one class": lambda: plots.embedding_map(*clouds(1)),
    "robustness": lambda: plots.robustness_figure(measured()),
    "robustness of five": lambda: plots.robustness_figure(measured(5, 5)),
    "robustness of one": lambda: plots.robustness_figure(measured(1, 1)),
}
