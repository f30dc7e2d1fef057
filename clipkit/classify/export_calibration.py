"""What an exported file says of a calibration: in its graph, and in its metadata."""

import contextlib
import math
from typing import Any

from torch import Tensor, nn

from clipkit.classify.calibration import Calibration
from clipkit.classify.contrast import confidence, contrast
from clipkit.errors import ConfigError

COVERAGES = (0.5, 0.8, 0.9, 0.95, 0.99)  # of which the metadata have the sets


class Outputs(nn.Module):
    """Make what a file returns out of a head's logits.

    Args:
        calibration: of the classifier. Without it there are probabilities alone.

    Attributes:
        names: of the outputs. "probabilities", (N, C), at the temperature of the calibration;
            "confidence", (N,), to be compared with the threshold in the metadata; "presence",
            (N, C), the probability of each label by itself.
    """

    slopes: Tensor
    offsets: Tensor

    def __init__(self, calibration: Calibration | None) -> None:
        super().__init__()
        self.names = ["probabilities"]
        self.temperature = 1.0
        if calibration is None:
            return
        self.temperature = calibration.temperature
        if calibration.images:
            self.names.append("confidence")
        if calibration.presence is not None:
            self.names.append("presence")
            self.register_buffer("slopes", calibration.presence.slopes.clone())
            self.register_buffer("offsets", calibration.presence.offsets.clone())

    def forward(self, logits: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the outputs, or the probabilities alone where there is nothing else."""
        soft = logits if self.temperature == 1 else logits / self.temperature
        outputs = [soft.softmax(dim=-1)]
        if "confidence" in self.names:
            outputs.append(confidence(logits))
        if "presence" in self.names:
            outputs.append((contrast(logits) * self.slopes + self.offsets).sigmoid())
        return outputs[0] if len(outputs) == 1 else tuple(outputs)


def check_exportable(calibration: Calibration | None) -> None:
    """Raise `ConfigError` for a calibration on several views: a file sees each image once."""
    views = None if calibration is None else calibration.views
    if views not in (None, 1):
        raise ConfigError(
            f"the classifier is calibrated with views={views}, and an exported file sees each "
            "image once: calibrate it anew with views=1, or set classifier.calibration = None"
        )


def describe_calibration(calibration: Calibration) -> dict[str, Any]:
    """Return as JSON what a program needs to use the outputs of a calibrated classifier.

    Returns:
        "temperature", which is in the graph already; "source" and "images"; "rejection" with the
        "threshold" below which a confidence means none of the classes; "sets", coverage -> the
        lowest probability in a set, to which the most probable label belongs in any case; and
        "presence" with the "thresholds" above which labels are present. Coverages and a rate of
        false alarms for which there were too few images are left out.
    """
    about: dict[str, Any] = {
        "temperature": calibration.temperature,
        "source": calibration.source,
        "images": calibration.images,
    }
    sets: dict[str, float] = {}
    for coverage in COVERAGES:
        with contextlib.suppress(ConfigError):
            sets[str(coverage)] = math.exp(-calibration.quantile(coverage))
    if sets:
        about["sets"] = sets
    with contextlib.suppress(ConfigError):
        threshold = calibration.threshold()
        about["rejection"] = {"false_alarms": calibration.false_alarms, "threshold": threshold}
    if calibration.presence is not None:
        about["presence"] = {"thresholds": calibration.presence.thresholds.tolist()}
    return about
