"""Figures show the numbers that they are given."""

import statistics
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.colors import to_hex
from matplotlib.text import Text
from PIL import Image
from sklearn.decomposition import PCA

from clipkit import Prediction
from clipkit.errors import ConfigError, DataError, ImageError
from clipkit.inspect import draw_overlay, plots
from clipkit.inspect.areas import color_of
from clipkit.inspect.plot_style import BLUE, GREEN, PLAIN, VERMILION
from tests.helpers.figures import CAT, COFFEE, NAMES, PREDICTIONS, areas, clouds, curves, measured

RED = Image.new("RGB", (40, 20), (200, 30, 30))


def texts_in(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.findobj(Text) if text.get_text().strip()]


def bars_in(axes: Any) -> list[tuple[float, str]]:
    """Return length and color of the bars of a panel, without their grounds."""
    return [(bar.get_width(), to_hex(bar.get_facecolor()).upper()) for bar in axes.patches[1::2]]


def test_panels_show_the_ranked_labels_and_mark_the_right_one() -> None:
    right, wrong, _ = PREDICTIONS
    figure: Any = plots.prediction_panels([CAT, COFFEE], [right, wrong], ["cat", "cat"], k=3)
    first, second = figure.axes[1], figure.axes[3]
    shares = [0.6, 0.2, 0.1]
    assert [length for length, _ in bars_in(first)] == pytest.approx(shares)
    assert [color for _, color in bars_in(first)] == [GREEN, PLAIN.upper(), PLAIN.upper()]
    assert texts_in(first)[:3] == ["\u2713", "cat", "60.0%"]
    # The right label is not among the three of the second one.
    assert [length for length, _ in bars_in(second)] == pytest.approx([0.4, 0.3, 0.2, 0.01])
    assert [color for _, color in bars_in(second)] == [VERMILION, *[PLAIN.upper()] * 2, GREEN]
    assert texts_in(second)[:3] == ["\u2717", "$5 bill and $10 bill", "40.0%"]
    assert texts_in(second)[-3:] == ["\u2713", "cat", "1.0%"]


def test_panels_without_truth_mark_nothing() -> None:
    figure: Any = plots.prediction_panels([CAT], PREDICTIONS[:1], k=2)
    assert [color for _, color in bars_in(figure.axes[1])] == [BLUE, PLAIN.upper()]
    assert "\u2713" not in texts_in(figure.axes[1])


def test_a_map_is_stretched_as_by_torch() -> None:
    values = np.random.default_rng(0).normal(size=(3, 5))
    figure: Any = plots.heat_map(RED, torch.from_numpy(values))
    gray, shown = figure.axes[1].images
    expected = F.interpolate(torch.from_numpy(values)[None, None], (20, 40), mode="bilinear")[0, 0]
    assert np.abs(shown.get_array() - expected.numpy()).max() < 1e-5
    assert shown.get_clim() == pytest.approx((values.min(), values.max()))
    assert shown.get_cmap().name == "cividis"
    lightness = (0.299 * 200 + 0.587 * 30 + 0.114 * 30) / 255
    assert np.abs(gray.get_array() - lightness).max() < 1e-6


def test_maps_have_the_limits_that_are_asked() -> None:
    figure: Any = plots.heat_map(RED, {"a": np.eye(2), "b": 3 * np.eye(2)}, limits=(-1, 2))
    assert [axes.images[1].get_clim() for axes in figure.axes[1:3]] == [(-1, 2), (-1, 2)]
    assert [axes.get_title() for axes in figure.axes[:3]] == ["image", "a", "b"]


def test_areas_have_their_colors_and_the_legend_their_shares() -> None:
    classes = areas()
    image = Image.new("RGB", (180, 120), (100, 100, 100))
    figure: Any = plots.segmentation(image, classes, ["wall", "fur", "eye", "$x$"], opacity=0.25)
    pixels = figure.axes[0].images[0].get_array()
    many = pixels.shape[0] // 120  # so many times it is enlarged, so that lines are fine
    for y, x in ((10, 10), (10, 170), (60, 90), (110, 20)):
        color = np.array(color_of(int(classes[y // 2, x // 2])))
        found = pixels[many * y + many // 2, many * x + many // 2]
        assert np.abs(found - (0.75 * 100 + 0.25 * color)).max() <= 0.5
    assert (pixels[10 * many, 80 * many] == 255).all()  # the line between wall and fur
    lines = [text.get_text() for text in figure.legends[0].get_texts()]
    shares = np.bincount(classes.ravel()) / classes.size
    assert lines == [
        f"{index + 1}  {name}  {shares[index]:.1%}"
        for index, name in enumerate(["wall", "fur", "eye", "$x$"])
    ]


def test_small_images_are_sharp_and_their_lines_fine() -> None:
    classes = np.zeros((24, 32), dtype=np.int64)
    classes[10, 10] = 1
    figure: Any = plots.segmentation(Image.new("RGB", (32, 24)), classes, ["a", "b"])
    image = figure.axes[0].images[0]
    pixels = image.get_array()
    assert max(pixels.shape) >= 800
    assert (pixels == 255).all(axis=2).mean() < 0.002
    own = np.array(color_of(1)) * 0.55  # of the only pixel of its class
    assert (np.abs(pixels - own).max(axis=2) <= 0.5).sum() > 400
    assert list(image.get_extent()) == [-0.5, 31.5, 23.5, -0.5]  # places are those of the image


def test_a_class_looks_as_in_an_overlay() -> None:
    image = Image.new("RGB", (90, 60), (100, 100, 100))
    names, classes = ["a", "b", "c", "d", "nowhere"], areas()
    figure: Any = plots.segmentation(image, classes, names, opacity=0.5)
    drawn = np.asarray(draw_overlay(image, torch.from_numpy(classes), names, opacity=0.5))
    pixels = figure.axes[0].images[0].get_array()
    many = pixels.shape[0] // 60
    for y, x in ((5, 5), (5, 85), (22, 50), (57, 3)):
        found = pixels[many * y + many // 2, many * x + many // 2]
        assert found.tolist() == drawn[y, x].tolist()
    for text in figure.axes[0].texts:
        x, y = text.get_position()
        assert text.get_bbox_patch().get_facecolor() == (0, 0, 0, 1)
        # The boxes of its numbers are black too.
        assert (drawn[round(y) - 2 : round(y) + 3, round(x) - 8 : round(x) + 9] == 0).any()


def test_numbers_stand_in_their_areas() -> None:
    classes = areas()
    figure: Any = plots.segmentation(Image.new("RGB", (90, 60)), classes, ["a", "b", "c", "d"])
    found = {text.get_text(): text.get_position() for text in figure.axes[0].texts}
    assert list(found) == ["1", "2", "3", "4"]
    for number, (x, y) in found.items():
        assert classes[round(y), round(x)] == int(number) - 1


def test_background_has_no_color_and_no_number() -> None:
    image = Image.new("RGB", (90, 60), (100, 100, 100))
    figure: Any = plots.segmentation(image, areas(), ["a", "b", "c", "d"], background=1)
    pixels = figure.axes[0].images[0].get_array()
    assert (pixels[pixels.shape[0] // 12, pixels.shape[1] * 8 // 9] == 100).all()
    lines = [text.get_text().split() for text in figure.legends[0].get_texts()]
    assert [line[:-1] for line in lines] == [["1", "a"], ["3", "c"], ["4", "d"], ["b"]]
    assert [text.get_text() for text in figure.axes[0].texts] == ["1", "3", "4"]


def test_colors_of_the_callers_are_taken() -> None:
    image = Image.new("RGB", (90, 60))
    colors = ["red", "#00ff00", (0, 0, 1), "0.5"]
    figure: Any = plots.segmentation(image, areas(), list("abcd"), colors=colors, opacity=1)  # pyright: ignore[reportArgumentType]
    pixels = figure.axes[0].images[0].get_array()
    assert pixels[20, 20].tolist() == [255, 0, 0]
    assert pixels[20, -20].tolist() == [0, 255, 0]
    assert to_hex(figure.legends[0].get_patches()[1].get_facecolor()) == "#00ff00"


def test_curves_show_means_and_standard_deviations() -> None:
    results = curves(3)
    figure: Any = plots.few_shot_curves(results, zero_shot=0.4)
    (axes,) = figure.axes
    order = [text.get_text() for text in figure.legends[0].get_texts()]
    assert order[-1] == "zero-shot"
    best = sorted(results, key=lambda name: -statistics.mean(results[name][8]))
    assert order[:-1] == best
    for name, container in zip(best, axes.containers, strict=True):
        line, _, (bars,) = container
        means = [statistics.mean(results[name][k]) for k in (1, 2, 4, 8)]
        assert line.get_ydata() == pytest.approx(means)
        assert line.get_xdata() == pytest.approx([1, 2, 4, 8], rel=0.06)
        halves = [(high - low) / 2 for (_, low), (_, high) in bars.get_segments()]
        deviations = [statistics.stdev(results[name][k]) for k in (1, 2, 4, 8)]
        assert halves == pytest.approx(deviations)
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "2", "4", "8"]


def test_pairs_are_shown_with_their_images() -> None:
    examples = {"cat": RED, "dog": Image.new("RGB", (10, 30), (0, 0, 255))}
    figure: Any = plots.confusion_pairs(
        [("cat", "dog", 12), ("dog", "cat", 1)],
        examples,
        mistakes={("dog", "cat"): [RED] * 5},
        most=2,
    )
    images = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    assert [image.shape for image in images] == [
        (20, 20, 3), (10, 10, 3), (10, 10, 3), (20, 20, 3), (20, 20, 3), (20, 20, 3),
    ]  # fmt: skip
    assert [tuple(image[0, 0]) == (0, 0, 255) for image in images] == [0, 1, 1, 0, 0, 0]
    assert texts_in(figure.axes[0]) == ["cat", "\u2192 dog", "12 images"]
    assert "1 image" in texts_in(figure.axes[3])


@pytest.mark.parametrize("is_wide", [True, False])
def test_the_square_in_the_middle_is_drawn(is_wide: bool) -> None:
    pixels = np.zeros((10, 30, 3), dtype=np.uint8)
    pixels[:, 10:20] = 200
    image = Image.fromarray(pixels if is_wide else pixels.transpose(1, 0, 2))
    figure: Any = plots.confusion_pairs([("a", "b", 2)], {"a": image, "b": image})
    assert all((axes.images[0].get_array() == 200).all() for axes in figure.axes if axes.images)


def test_the_projection_is_scikit_learns() -> None:
    features, _ = clouds(5)
    points, shares = plots.project(features)
    pca = PCA(2, svd_solver="full").fit(features.double().numpy())
    expected = pca.transform(features.double().numpy())
    for axis in range(2):
        sign = np.sign(points[:, axis] @ expected[:, axis])
        assert np.abs(points[:, axis] - sign * expected[:, axis]).max() < 1e-9
    assert shares == pytest.approx(pca.explained_variance_ratio_, abs=1e-12)
    turned, _ = plots.project(features.flip(0))
    assert np.abs(turned[::-1] - points).max() < 1e-9


def test_the_map_shows_the_points_of_each_class() -> None:
    features, labels = clouds(3)
    points, shares = plots.project(features)
    figure: Any = plots.embedding_map(features, [NAMES[label] for label in labels.tolist()])
    (axes,) = figure.axes
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == sorted(NAMES[:3])
    for name, cloud in zip(names, axes.collections, strict=True):
        own = labels.numpy() == NAMES.index(name)
        assert np.abs(cloud.get_offsets() - points[own]).max() < 1e-12
    assert axes.get_xlabel() == f"principal component 1 ({shares[0]:.0%} of the variance)"
    given = np.arange(72.0).reshape(36, 2)
    figure = plots.embedding_map(features, labels, coordinates=given)
    assert np.array_equal(figure.axes[0].collections[0].get_offsets(), given[::3])


def test_robustness_shows_every_row() -> None:
    result = measured(2, 3)
    figure: Any = plots.robustness_figure(result)
    first, second = figure.axes
    rows = result.by_corruption()["text"]
    line, _, (bars,) = first.containers[0]
    assert list(line.get_ydata()) == [row.accuracy for row in rows]
    ends = [[low, high] for (_, low), (_, high) in bars.get_segments()]
    assert np.abs(np.array(ends) - [row.interval for row in rows]).max() < 1e-12
    shown = [list(one.get_ydata()) for one in first.lines if len(one.get_ydata()) == 3]
    assert [row.confidence for row in rows] in shown
    assert [row.fooled for row in rows] in shown
    assert len(second.lines) == len(first.lines) - 1
    assert [text.get_text() for text in first.get_xticklabels()] == ["0.1", "0.2", "0.3"]
    assert first.get_xlabel() == "height of letters / short side"


UNTYPED: Any = plots  # takes what types forbid


@pytest.mark.parametrize(
    ("draw", "error", "message"),
    [
        (lambda: plots.prediction_panels([], []), ConfigError, "nothing to draw"),
        (lambda: plots.prediction_panels([CAT], PREDICTIONS), ConfigError, r"not \[1, 3\]"),
        (
            lambda: plots.prediction_panels([CAT], PREDICTIONS[:1], ["horse"]),
            ConfigError,
            "the right label 'horse' is none of the classifier's 7",
        ),
        (
            lambda: plots.prediction_panels([CAT], PREDICTIONS[:1], columns=0),
            ConfigError,
            "columns of at least 1, not 0",
        ),
        (
            lambda: plots.prediction_panels([b"x"], [Prediction(["a"], torch.ones(1))]),
            ImageError,
            "cannot read",
        ),
        (lambda: plots.heat_map(RED, np.zeros(3)), ConfigError, r"a map \(h, w\), not \(3,\)"),
        (lambda: plots.heat_map(RED, {}), ConfigError, "nothing to draw"),
        (lambda: plots.heat_map(RED, np.full((2, 2), np.nan)), ConfigError, "finite numbers"),
        (lambda: plots.heat_map(RED, np.eye(2), limits=(2, 1)), ConfigError, "from low to high"),
        (lambda: plots.segmentation(RED, np.eye(2), ["a"]), ConfigError, "a map of integers"),
        *[
            (partial(UNTYPED.heat_map, RED, np.eye(2), limits=one), ConfigError, "from low to hi")
            for one in ((1,), (), ("a", "b"), 3, (float("nan"), 1))
        ],
        *[
            (partial(UNTYPED.segmentation, RED, areas(), list("abcd"), **one), ConfigError, message)
            for one, message in (
                ({"colors": ["nocolor"] * 4}, "such as '#0072B2', not 'nocolor'"),
                ({"background": 7}, "the number of a class, 0 to 3, or None, not 7"),
                ({"opacity": "1"}, "a number from 0 to 1, not '1'"),
            )
        ],
        *[
            (
                partial(UNTYPED.confusion_pairs, [("a", "a", 1)], {"a": RED}, most=one),
                ConfigError,
                "needs most of at least 0, not",
            )
            for one in (-1, "2", 1.5)
        ],
        (
            partial(UNTYPED.few_shot_curves, {"a": {1: ["x"]}}),
            ConfigError,
            r"numbers, such as .*'a' has \['x'\] at 1",
        ),
        (lambda: plots.segmentation(RED, areas(), ["a"]), ConfigError, "0 to 0, not 0 to 3"),
        (lambda: plots.segmentation(RED, -areas(), ["a"] * 4), ConfigError, "not -3 to 0"),
        (
            lambda: plots.segmentation(RED, areas(), ["a"] * 4, colors=["red"]),
            ConfigError,
            "4 classes need as many colors, not 1",
        ),
        (
            lambda: plots.segmentation(RED, areas(), ["a"] * 4, opacity=2),
            ConfigError,
            "a number from 0 to 1, not 2",
        ),
        (lambda: plots.few_shot_curves({}), ConfigError, "nothing to draw"),
        (lambda: plots.few_shot_curves({"a": {}}), ConfigError, r"'a' has {}"),
        (lambda: plots.few_shot_curves({"a": {0: [0.5]}}), ConfigError, "from 1 on, and 'a' has 0"),
        *[
            (partial(UNTYPED.few_shot_curves, one), ConfigError, message)
            for one, message in (
                ([0.5], r"such as {\"anchored\": {1: \[0.61, 0.64\]}}, not \[0.5\]"),
                ({"a": [0.5]}, r"such as {1: \[0.61, 0.64\]}, and 'a' has \[0.5\]"),
                ({"a": {"1": [0.5]}}, r"and 'a' has '1': keys of JSON are texts, which {int\(k\)"),
                ({"a": {1.5: [0.5]}}, "integers from 1 on, and 'a' has 1.5$"),
            )
        ],
        (lambda: plots.few_shot_curves({"a": {1: []}}), ConfigError, r"'a' has none at \[1\]"),
        (lambda: plots.confusion_pairs([], {}), ConfigError, "nothing to draw"),
        (
            lambda: plots.confusion_pairs([("a", "b", 1)], {"a": RED}),
            ConfigError,
            "an example of each class: 'b'",
        ),
        (lambda: plots.embedding_map(torch.eye(2), [0, 1]), ConfigError, "N of at least 3"),
        (lambda: plots.embedding_map(torch.ones(4, 3), [0] * 4), ConfigError, "all of these are"),
        (lambda: plots.embedding_map(torch.eye(4) / 0, [0] * 4), ConfigError, "finite features"),
        (lambda: plots.embedding_map(torch.eye(4), [0]), ConfigError, "4 features need as many"),
        (lambda: plots.embedding_map(torch.eye(4), [9] * 4, ["a"]), DataError, "from 9 to 9"),
        (lambda: plots.embedding_map(torch.eye(4), [-1, 0, 0, 2]), DataError, "2, not from -1 to"),
        (lambda: plots.embedding_map(torch.eye(4), [-1] * 4), DataError, "from -1 to -1"),
        (
            lambda: plots.embedding_map(torch.eye(4), [0] * 4, coordinates=torch.eye(4)),
            ConfigError,
            r"\(4, 2\) finite numbers, not \(4, 4\)",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        draw()
