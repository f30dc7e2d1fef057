"""Tell images of none of the classes from others, at a stated rate of false alarms."""

import math

from torch import Tensor

from clipkit.classify.conformal import ROUNDING, check_share
from clipkit.errors import ConfigError


def rejection_threshold(confidences: Tensor, false_alarms: float) -> float:
    """Return the confidence below which an image is said to be of none of the classes.

    It is the k-th lowest of n confidences, where k = floor((n + 1) false_alarms). A new image of
    the classes falls below it with a probability of at most k / (n + 1).

    Args:
        confidences: (n,), of calibration images, in rising order.
        false_alarms: the share of images of the classes that may be rejected, between 0 and 1.

    Raises:
        ConfigError: if `false_alarms` is not between 0 and 1, or needs more images.

    Example:
        >>> import torch
        >>> rejection_threshold(torch.tensor([3.0, 5.0, 6.0, 8.0]), 0.4)
        5.0
    """
    check_share("false_alarms", false_alarms)
    count = len(confidences)
    place = math.floor((count + 1) * false_alarms + ROUNDING)
    if place < 1:
        needed = math.ceil(1 / false_alarms - ROUNDING) - 1
        raise ConfigError(
            f"false_alarms of {false_alarms} need {needed:,} calibration images at least, and "
            f"there are {count:,}: calibrate on more images, or with false_alarms of at least "
            f"{math.ceil(1000 / (count + 1)) / 1000}"
        )
    return float(confidences[min(place, count) - 1])
