"""Labels of many classes are ranked by a few operations on tensors, and rightly."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from clipkit.classify.calibration import Calibration
from clipkit.classify.judgement import Wanted, judge
from clipkit.classify.prediction import Prediction

CLASSES = 1000
LABELS = [str(number) for number in range(CLASSES)]


class Counting(TorchFunctionMode):
    """Count the calls of torch's functions."""

    calls = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


def judged(images: int) -> tuple[list[Prediction], int]:
    """Return predictions with sets of many labels, some as likely as others, and calls of torch."""
    numbers = random.Random(0)
    rows = [[float(numbers.randrange(40)) / 8 for _ in LABELS] for _ in range(images)]
    logits = torch.tensor(rows)
    calibration = Calibration(scores=torch.linspace(0, 10, 99), confidences=torch.arange(99.0))
    with Counting() as counting:
        predictions = judge(LABELS, logits, [None] * images, calibration, Wanted(coverage=0.8))
    return predictions, counting.calls


def test_sets_are_ranked() -> None:
    for prediction in judged(5)[0]:
        shares: list[float] = prediction.probabilities.tolist()
        assert prediction.set is not None
        assert 300 < len(prediction.set) < CLASSES
        members = [int(label) for label in prediction.set]
        # The more probable first, and of equal ones those that come first among the classes.
        assert members == sorted(members, key=lambda place: (-shares[place], place))
        least = min(shares[place] for place in members)
        assert set(members) == {place for place in range(CLASSES) if shares[place] >= least}


def test_ranking_asks_no_tensor_for_each_label() -> None:
    """It did, and 500 images of 1,000 classes took seconds."""
    extra = judged(25)[1] - judged(5)[1]
    assert extra <= 20 * 20
