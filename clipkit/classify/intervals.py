"""Say where a share lies that was measured on some images."""

import math
from statistics import NormalDist

from clipkit.classify.metric_inputs import check_count, is_count, is_number
from clipkit.errors import ConfigError


def wilson_interval(hits: int, images: int, level: float = 0.95) -> tuple[float, float]:
    """Return the interval in which the true share lies, after so many hits (Wilson, 1927).

    It holds for shares near 0 and 1 and for few images too, where the usual p +- 1.96 standard
    errors does not. It takes the images for independent of each other.

    Args:
        hits: how many were right, 0 to `images`.
        images: how many were measured, at least 1.
        level: how often such an interval holds the true share, between 0 and 1.

    Returns:
        The lower and the upper end, 0 to 1.

    Raises:
        ConfigError: if an argument is out of its range.

    Example:
        >>> [round(end, 3) for end in wilson_interval(90, 100)]
        [0.826, 0.945]
    """
    check_count("wilson_interval", "images", images)
    if hits != 0 and (not is_count(hits) or hits > images):
        raise ConfigError(f"wilson_interval needs hits of 0 to {images}, not {hits!r}")
    if not is_number(level) or not 0 < level < 1:
        raise ConfigError(f"wilson_interval needs a level between 0 and 1, not {level!r}")
    hits, images = int(hits), int(images)
    z = NormalDist().inv_cdf((1 + float(level)) / 2)
    share, excess = hits / images, z * z / images
    middle = (share + excess / 2) / (1 + excess)
    half = math.sqrt(share * (1 - share) * excess + excess * excess / 4) / (1 + excess)
    # The formula gives exactly 0 and 1 there, and floats nearly.
    low = middle - half if hits > 0 else 0.0
    high = middle + half if hits < images else 1.0
    return low, high
