"""Draw how far probabilities hold, as SVG in the colors of the page around it."""

from collections.abc import Sequence

from clipkit.classify.metrics import ReliabilityBin, wilson_interval
from clipkit.plurals import number_of

_LEFT, _TOP, _SIDE = 52, 10, 300  # of the square, in units of the drawing
_BARS = 48  # height of the bars that count images
_GAP = 12
_HEIGHT = _TOP + _SIDE + _GAP + _BARS + 44
_WIDTH = _LEFT + _SIDE + 18


def reliability_diagram(bins: Sequence[ReliabilityBin]) -> str:
    """Return the accuracy of each range of probabilities beside the mean of these, as `<svg>`.

    Args:
        bins: as from `clipkit.classify.metrics.reliability_bins`.
    """
    most = max(part.images for part in bins)
    words = "; ".join(
        f"{part.confidence:.0%} said, {part.accuracy:.0%} right, {number_of(part.images, 'image')}"
        for part in bins
    )
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{words}">',
        _axes(),
        *(_bar(part, most) for part in bins),
        *(_dot(part) for part in bins),
        "</svg>",
    ]
    return "\n".join(parts)


def _x(share: float) -> float:
    return _LEFT + _SIDE * share


def _y(share: float) -> float:
    return _TOP + _SIDE * (1 - share)


def _axes() -> str:
    """Return the grid with its numbers, the line on which probabilities hold, and the titles."""
    parts: list[str] = []
    floor = _TOP + _SIDE + _GAP + _BARS
    for tick in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        x, y = _x(tick), _y(tick)
        parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_x(1)}" y1="{y:g}" y2="{y:g}"/>')
        parts.append(f'<line class="axis" x1="{x:g}" x2="{x:g}" y1="{_TOP}" y2="{_y(0)}"/>')
        parts.append(f'<text x="{_LEFT - 7}" y="{y + 4:g}" text-anchor="end">{tick:.0%}</text>')
        parts.append(f'<text x="{x:g}" y="{floor + 17}" text-anchor="middle">{tick:.0%}</text>')
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_x(1)}" y1="{floor}" y2="{floor}"/>')
    parts.append(f'<line class="ideal" x1="{_x(0)}" y1="{_y(0)}" x2="{_x(1)}" y2="{_y(1)}"/>')
    middle = _x(0.5)
    parts.append(
        f'<text x="{middle:g}" y="{floor + 37}" text-anchor="middle">probability of the answer'
        "</text>"
    )
    parts.append(
        f'<text transform="translate(12 {_y(0.5):g}) rotate(-90)" text-anchor="middle">'
        "answers that are right</text>"
    )
    return "\n".join(parts)


def _bar(part: ReliabilityBin, most: int) -> str:
    """Return the bar that counts the images of a bin."""
    height = max(1.0, _BARS * part.images / most)
    x, width = _x(part.low) + 1, _SIDE * (part.high - part.low) - 2
    y = _TOP + _SIDE + _GAP + _BARS - height
    title = number_of(part.images, "image")
    return (
        f'<rect class="count" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}">'
        f"<title>{title}</title></rect>"
    )


def _dot(part: ReliabilityBin) -> str:
    """Return the accuracy of a bin with its interval."""
    right = round(part.accuracy * part.images)
    low, high = wilson_interval(right, part.images)
    x, y = _x(part.confidence), _y(part.accuracy)
    title = f"{right:,} of {part.images:,} right, {part.confidence:.1%} said"
    return (
        f'<g><title>{title}</title><line class="whisker" x1="{x:.1f}" x2="{x:.1f}" '
        f'y1="{_y(low):.1f}" y2="{_y(high):.1f}"/>'
        f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/></g>'
    )
