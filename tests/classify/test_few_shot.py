"""Test what `fit_head` promises for every method, its options, threads and refusals."""

import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from clipkit.classify import anchored, anchored_logistic, fitting, linear_probe, prompt_weights
from clipkit.classify.few_shot import METHODS, Method, check_options, fit_head
from clipkit.classify.heads import CosineHead
from clipkit.errors import ConfigError, DataError
from tests.helpers.models import assert_same_weights
from tests.helpers.support_sets import (
    CAPTIONS,
    CENTERS,
    CLASSES,
    NEEDED,
    SCALE,
    WIDTH,
    ZERO_SHOT,
    accuracy,
    assert_same_head,
    draw,
    snapshot,
)

pytestmark = pytest.mark.usefixtures("quick_fits")

# The methods that take each option.
TAKERS: dict[str, list[str]] = {
    "strength": ["anchored", "proker", "projection"],
    "C": ["linear_probe"],
    "alpha": ["gaussian", "cache"],
    "beta": ["cache", "proker"],
    "epochs": ["zero_shot_linear", "random_linear", "cache_finetuned", "lp_plus_plus", "clap"],
    "lr": ["zero_shot_linear", "random_linear", "cache_finetuned", "clap"],
    "sgd_batch_size": ["zero_shot_linear", "random_linear"],
    "captions": ["prompt_weights"],
}


def test_the_names_of_the_methods_are_those_of_the_table() -> None:
    assert list(get_args(Method)) == list(METHODS)
    assert [function.__name__ for function in METHODS.values()] == list(METHODS)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shots", [1, 2, 5])
def test_every_method_fits_any_support_set(method: str, shots: int) -> None:
    """Classes have fewer images than asked for, one has a single image, and one has none."""
    counts = [min(shots, count) for count in (9, 1, 3, 0, 7, 2)]
    features, labels = draw(*counts)
    head, chosen = fit_head(features, labels, ZERO_SHOT, method, **NEEDED[method])
    assert (head.classes, head.width) == (CLASSES, WIDTH)
    assert not head.training
    assert chosen["method"] == method
    assert chosen["images"] == len(labels)
    assert json.loads(json.dumps(chosen)) == chosen
    others, answers = draw(*(50,) * CLASSES, seed=1)
    assert head(others).isfinite().all()
    assert head(others).dtype == torch.float32
    assert accuracy(head, features, labels) > 0.5
    assert accuracy(head, others, answers) > 0.35  # chance is 0.17


@pytest.mark.parametrize("method", METHODS)
def test_a_fit_changes_nothing_else(method: str) -> None:
    features, labels = draw(5, 1, 3, 0, 5, 2)
    inputs = features.clone(), labels.clone()
    head_before = snapshot(ZERO_SHOT)
    random_before = torch.get_rng_state()
    fit_head(features, labels, ZERO_SHOT, method, **NEEDED[method])
    assert_same_weights(ZERO_SHOT.state_dict(), head_before)
    assert features.equal(inputs[0])
    assert labels.equal(inputs[1])
    assert torch.get_rng_state().equal(random_before)
    assert torch.is_grad_enabled()
    for parameter in ZERO_SHOT.parameters():
        assert parameter.grad is None


@pytest.mark.parametrize("method", METHODS)
def test_a_fit_does_not_depend_on_torchs_random_state(method: str) -> None:
    features, labels = draw(5, 1, 3, 0, 5, 2)
    torch.manual_seed(0)
    head, chosen = fit_head(features, labels, ZERO_SHOT, method, **NEEDED[method])
    torch.manual_seed(1)
    again, chosen_again = fit_head(features, labels, ZERO_SHOT, method, **NEEDED[method])
    assert_same_head(again, head)
    assert chosen_again == chosen


def quick_minimize(
    loss: Callable[[], Tensor], parameters: list[Tensor], iterations: int, tolerance: float = 1e-5
) -> None:
    fitting.minimize(loss, parameters, min(iterations, 2), tolerance)


@pytest.mark.parametrize("method", METHODS)
def test_threads_with_one_seed_fit_one_head(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen fits at once give what one fit gives, though threads seed and draw meanwhile."""
    for module in (anchored_logistic, linear_probe, prompt_weights):
        monkeypatch.setattr(module, "minimize", quick_minimize)
    features, labels = draw(5, 2, 3, 0, 5, 2)
    monkeypatch.setattr(anchored, "STRENGTHS", (1.0, 0.1))
    options: Any = NEEDED[method] | ({"epochs": 3} if method in TAKERS["epochs"] else {})
    expected, chosen = fit_head(features, labels, ZERO_SHOT, method, seed=3, **options)

    def fit(number: int) -> Any:
        torch.manual_seed(number)
        torch.rand(number + 1)
        return fit_head(features, labels, ZERO_SHOT, method, seed=3, **options)

    before = torch.get_rng_state()
    with ThreadPoolExecutor(16) as threads:
        results = list(threads.map(fit, range(16)))
    torch.set_rng_state(before)
    for head, told in results:
        assert_same_head(head, expected)
        assert told == chosen


def test_seeds_draw_the_same_as_torchs_global_state_did() -> None:
    """Version 0.1.0 seeded the global generator of the CPU; an own one gives the same numbers."""
    own = torch.randperm(100, generator=torch.Generator().manual_seed(3))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        assert torch.randperm(100).equal(own)


def fit_in_inference_mode(features: Tensor, labels: Tensor, method: str) -> Any:
    with torch.inference_mode():
        return fit_head(features.clone(), labels.clone(), ZERO_SHOT, method, **NEEDED[method])[0]


def fit_on_inference_tensors(features: Tensor, labels: Tensor, method: str) -> Any:
    with torch.inference_mode():
        frozen = features.clone(), labels.clone()
    return fit_head(*frozen, ZERO_SHOT, method, **NEEDED[method])[0]


def fit_without_gradients(features: Tensor, labels: Tensor, method: str) -> Any:
    with torch.no_grad():
        return fit_head(features.double(), labels.int(), ZERO_SHOT, method, **NEEDED[method])[0]


def fit_on_what_requires_gradients(features: Tensor, labels: Tensor, method: str) -> Any:
    leaf = features.clone().requires_grad_()
    head, _ = fit_head(leaf, labels.to(torch.uint8), ZERO_SHOT, method, **NEEDED[method])
    assert leaf.grad is None
    return head


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "fit",
    [
        fit_in_inference_mode,
        fit_on_inference_tensors,
        fit_without_gradients,
        fit_on_what_requires_gradients,
    ],
)
def test_inputs_of_other_kinds_and_modes(fit: Callable[..., Any], method: str) -> None:
    features, labels = draw(3, 3, 3, 3, 3, 3)
    expected, _ = fit_head(features, labels, ZERO_SHOT, method, **NEEDED[method])
    head = fit(features, labels, method)
    assert_same_weights(head.state_dict(), expected.state_dict())
    for parameter in head.parameters():
        assert not parameter.is_inference()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("counts", [(3, 2, 0, 3, 2, 1), (1,) * 6])
def test_fits_do_not_follow_torchs_default_dtype(
    method: str, default: torch.dtype, counts: tuple[int, ...]
) -> None:
    features, labels = draw(*counts)
    expected, chosen = fit_head(features, labels, ZERO_SHOT, method, **NEEDED[method])
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        head, told = fit_head(features, labels, ZERO_SHOT, method, **NEEDED[method])
    finally:
        torch.set_default_dtype(before)
    assert_same_head(head, expected)
    assert told == chosen


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("some", [[0], [0, 0, 0], [0, 0, 1, 1, 1, 2, 2]])
def test_one_image_and_equal_images(method: str, some: list[int]) -> None:
    features, labels = draw(1, 1, 1, 1, 1, 1)
    head, _ = fit_head(features[some], labels[some], ZERO_SHOT, method, **NEEDED[method])
    assert head(features).isfinite().all()
    assert head(features[some]).argmax(dim=1).equal(labels[some])


# Options

POSSIBLE: dict[str, Any] = dict.fromkeys(TAKERS, 1) | {"captions": CAPTIONS, "lr": 0.01}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("option", TAKERS)
def test_an_option_of_another_method_is_refused(method: str, option: str) -> None:
    features, labels = draw(2, 2, 2, 2, 2, 2)
    options: dict[str, Any] = NEEDED[method] | {option: POSSIBLE[option]}
    if method in TAKERS[option]:
        options |= {"epochs": 1} if method in TAKERS["epochs"] else {}
        fit_head(features, labels, ZERO_SHOT, method, **options)
        return
    takers = ", ".join(TAKERS[option])
    message = f"^{method} takes no {option}; it is an option of {takers}$"
    with pytest.raises(ConfigError, match=message):
        fit_head(features, labels, ZERO_SHOT, method, **options)
    with pytest.raises(ConfigError, match=message):
        check_options(method, {option: POSSIBLE[option]})


def test_an_option_that_is_none_is_not_given() -> None:
    check_options("cache", {"strength": None, "alpha": 1.0})


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(ConfigError, match="cache takes no gamma; it is an option of no method"):
        check_options("cache", {"gamma": 1.0})


NO_NUMBERS = (math.nan, True, "1", [1.0])
TOO_LARGE = (1e31, 10**400)
RANGE = "a number from -1e30 to 1e30"
COUNT = r"an integer from {} to 2\*\*31"
IMPOSSIBLE: dict[str, tuple[tuple[Any, ...], str]] = {
    "strength": ((0, -1, -math.inf, *TOO_LARGE, *NO_NUMBERS), "above 0, at most 1e30 or infinite"),
    "C": ((0, -1, math.inf, *TOO_LARGE, *NO_NUMBERS), "above 0 and at most 1e30"),
    "alpha": ((math.inf, *TOO_LARGE, *NO_NUMBERS), RANGE),
    "beta": ((math.inf, *TOO_LARGE, *NO_NUMBERS), RANGE),
    "epochs": ((-1, 1.0, 2**40, *NO_NUMBERS), COUNT.format(0)),
    "lr": ((-1e-3, math.inf, *TOO_LARGE, *NO_NUMBERS), "a number from 0 to 1e30"),
    "sgd_batch_size": ((0, 1.0, 2**40, *NO_NUMBERS), COUNT.format(1)),
    "captions": ((1.0, [CAPTIONS], CAPTIONS.numpy()), r"a tensor \(C, K, D\)"),
}


@pytest.mark.parametrize(
    "option, value", [(option, value) for option in IMPOSSIBLE for value in IMPOSSIBLE[option][0]]
)
def test_impossible_values_of_options(option: str, value: Any) -> None:
    features, labels = draw(2, 2, 2, 2, 2, 2)
    method = TAKERS[option][0]
    with pytest.raises(ConfigError, match=f"^{option} must be {IMPOSSIBLE[option][1]}, not "):
        fit_head(features, labels, ZERO_SHOT, method, **{option: value})


def test_numpy_numbers_are_numbers() -> None:
    features, labels = draw(2, 2, 2, 2, 2, 2)
    expected, _ = fit_head(features, labels, ZERO_SHOT, "gaussian", alpha=0.5)
    half: Any = np.float32(0.5)
    head, chosen = fit_head(features, labels, ZERO_SHOT, "gaussian", alpha=half)
    assert_same_head(head, expected)
    assert json.loads(json.dumps(chosen))["alpha"] == 0.5


def test_prompt_weights_need_captions() -> None:
    with pytest.raises(
        ConfigError, match=r"prompt_weights needs captions: the features \(C, K, D\)"
    ):
        fit_head(*draw(2, 2), ZERO_SHOT, "prompt_weights")


@pytest.mark.parametrize(
    "captions, shape",
    [
        (CAPTIONS[1:], r"\(5, 4, 16\)"),
        (CENTERS, r"\(6, 16\)"),
        (CAPTIONS[..., None], r"\(6, 4, 16, 1\)"),
    ],
)
def test_captions_of_another_shape(captions: Tensor, shape: str) -> None:
    with pytest.raises(ConfigError, match=rf"must have shape \(6, K, 16\), not {shape}"):
        fit_head(*draw(2, 2), ZERO_SHOT, "prompt_weights", captions=captions)


# Features and labels


def test_an_unknown_method() -> None:
    before = torch.get_rng_state()
    with pytest.raises(ConfigError, match="one of anchored, linear_probe, .*not 'svm'"):
        fit_head(*draw(2, 2), ZERO_SHOT, "svm")
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("shape", [(2, WIDTH + 1), (WIDTH,), (2, WIDTH, 1)])
def test_features_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=rf"shape \(N, 16\), not \({shape[0]},"):
        fit_head(torch.ones(shape), torch.tensor([0, 1]), ZERO_SHOT)


@pytest.mark.parametrize(
    "count, labels, found",
    [
        (2, torch.tensor([0, 1, 2]), r"\(3,\)"),
        (0, torch.tensor([]), r"\(0,\)"),
    ],
)
def test_labels_that_are_not_one_for_each_image(count: int, labels: Tensor, found: str) -> None:
    message = f"there must be a label for each image, and one at least, not {found} labels"
    with pytest.raises(DataError, match=message):
        fit_head(torch.ones(count, WIDTH), labels, ZERO_SHOT)


@pytest.mark.parametrize(
    "labels, found",
    [
        ([0, 6], "integers from 0 to 5, not from 0 to 6"),
        ([-1, 5], "integers from 0 to 5, not from -1 to 5"),
        ([[0], [1]], r"a row of integers .* not of shape \(2, 1\)"),
        ([0.0, 1.0], "a row of integers .* not torch.float32"),
        ([False, True], "a row of integers .* not torch.bool"),
        ([0j, 1j], "a row of integers .* not torch.complex64"),
    ],
)
def test_labels_that_are_no_classes(labels: list[Any], found: str) -> None:
    with pytest.raises(DataError, match=f"labels must be {found}"):
        fit_head(torch.ones(2, WIDTH), torch.tensor(labels), ZERO_SHOT)


def test_names_are_no_classes_of_a_head_without_names() -> None:
    with pytest.raises(DataError, match="labels must be integers from 0 to 5, not names"):
        fit_head(torch.ones(2, WIDTH), ["cat", "dog"], ZERO_SHOT)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_features_that_are_not_finite(value: float) -> None:
    with pytest.raises(DataError, match="some features are not finite"):
        fit_head(torch.full((2, WIDTH), value), torch.tensor([0, 1]), ZERO_SHOT)


def test_lists_are_no_features() -> None:
    features, labels = draw(2, 2)
    rows: Any = features.tolist()
    with pytest.raises(DataError, match=r"must be a tensor or an array \(N, D\), not list"):
        fit_head(rows, labels, ZERO_SHOT)


def test_arrays_and_lists_of_labels_are_taken() -> None:
    features, labels = draw(2, 2, 2, 2, 2, 2)
    expected, _ = fit_head(features, labels, ZERO_SHOT, "gaussian")
    for given in (labels.numpy(), labels.tolist(), iter(labels.tolist())):
        head, _ = fit_head(features.numpy(), given, ZERO_SHOT, "gaussian")
        assert_same_head(head, expected)


def test_a_single_class() -> None:
    start = CosineHead(CENTERS[:1], SCALE)
    with pytest.raises(ConfigError, match="there is a single class, so there is nothing to tell"):
        fit_head(torch.ones(2, WIDTH), torch.tensor([0, 0]), start)


class OnlyAShape:
    shape = (2, ZERO_SHOT.width)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.full((2, ZERO_SHOT.width), None), "numbers, not an array of object"),
        (OnlyAShape(), "a tensor or an array .*not OnlyAShape"),
    ],
)
def test_features_of_another_type_are_named(features: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        fit_head(features, [0, 1], ZERO_SHOT, "cache")
