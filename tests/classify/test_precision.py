"""Test that fits and metrics ask for float64 in one place, which knows devices without it.

There is no such device here. Instead every operation is watched: float64 must come out of none that
got no float64, except inside of `as_float64`.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clipkit.classify import (
    adapt,
    anchored_gaussian,
    anchored_logistic,
    gaussian,
    linear_probe,
    metrics,
    precision,
    projection,
    proker,
    retrieval,
)
from clipkit.classify.few_shot import METHODS, fit_head
from tests.helpers.support_sets import NEEDED, ZERO_SHOT, draw

pytestmark = pytest.mark.usefixtures("quick_fits")

USERS = (
    adapt,
    anchored_gaussian,
    anchored_logistic,
    gaussian,
    linear_probe,
    metrics,
    projection,
    proker,
    retrieval,
)


def has_float64(values: Any) -> bool:
    return any(isinstance(v, Tensor) and v.dtype == torch.float64 for v in tree_leaves(values))


class NoNewFloat64(TorchDispatchMode):
    """Refuse operations that make float64 from other numbers, as a device without it would."""

    allowed = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        on_the_cpu_for_sure = (kwargs or {}).get("device") == torch.device("cpu")
        if has_float64(result) and not (
            self.allowed or on_the_cpu_for_sure or has_float64((args, kwargs))
        ):
            raise TypeError(f"{func} makes float64")
        return result


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> NoNewFloat64:
    """Return a watch that lets `as_float64` alone make float64."""
    watch = NoNewFloat64()

    def as_float64(tensor: Tensor) -> Tensor:
        watch.allowed = True
        try:
            return precision.as_float64(tensor)
        finally:
            watch.allowed = False

    for module in USERS:
        monkeypatch.setattr(module, "as_float64", as_float64)
    return watch


def test_the_watch_sees_float64(watched: NoNewFloat64) -> None:
    with watched, pytest.raises(TypeError, match="makes float64"):
        torch.ones(2).double()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("counts", [(3, 2, 3, 0, 1, 3), (1,) * 6])
def test_fits_make_float64_in_one_place(
    watched: NoNewFloat64, method: str, counts: tuple[int, ...]
) -> None:
    features, labels = draw(*counts)
    expected, _ = fit_head(features, labels, ZERO_SHOT, method, **NEEDED[method])
    with watched:
        head, _ = fit_head(features, labels, ZERO_SHOT, method, **NEEDED[method])
    for name, value in head.state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected.state_dict()[name])


SCORES = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.3, 0.2]])
LABELS = torch.tensor([0, 2, 1])


@pytest.mark.parametrize(
    "measure",
    [
        lambda: metrics.accuracy(SCORES.argmax(dim=1), LABELS),
        lambda: metrics.top_k_accuracy(SCORES, LABELS, 2),
        lambda: metrics.mean_per_class(SCORES.argmax(dim=1), LABELS),
        lambda: metrics.most_confused(torch.ones(3, 3)),
        lambda: metrics.expected_calibration_error(SCORES, LABELS),
        lambda: metrics.fit_temperature(SCORES, LABELS),
        lambda: metrics.recall_at_k(SCORES, SCORES),
        lambda: metrics.recall_at_k(LABELS[:, None], LABELS[:, None]),
        lambda: metrics.mean_average_precision(SCORES, SCORES),
    ],
)
def test_metrics_make_float64_in_one_place(
    watched: NoNewFloat64, measure: Callable[[], Any]
) -> None:
    expected = measure()
    with watched:
        assert measure() == expected


class OnMPS:
    """Stand for a tensor on a device without float64."""

    device = torch.device("mps")

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def cpu(self) -> Tensor:
        return self.values

    def double(self) -> Tensor:
        raise TypeError("MPS has no float64")


def test_float64_is_made_on_the_cpu_where_a_device_has_none() -> None:
    stub: Any = OnMPS(torch.tensor([1.5]))
    found = precision.as_float64(stub)
    assert found.dtype == torch.float64
    assert found.device == torch.device("cpu")


def test_only_mps_lacks_float64() -> None:
    assert not precision.has_float64(torch.device("mps"))
    assert precision.has_float64(torch.device("cpu"))
    assert precision.has_float64(torch.device("cuda"))


def test_results_get_the_dtype_before_they_move() -> None:
    """A device without float64 cannot take a tensor in float64."""

    class Result:
        moves: list[object] = []

        def to(self, target: object) -> "Result":
            self.moves.append(target)
            return self

    original: Any = OnMPS(torch.tensor([1.5]))
    original.dtype = torch.float32
    result: Any = Result()
    precision.restored(result, original)
    assert result.moves == [torch.float32, torch.device("mps")]
