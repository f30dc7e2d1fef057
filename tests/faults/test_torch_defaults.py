"""Test that torch's defaults, and threads that share a classifier, change no result.

Kinds J (torch's defaults and casts), X12 and Y2 (threads), X13 (numbers that are not finite).
"""

import copy
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clipkit import CLIP, ImageClassifier, LinearHead, fit_head, sample_shots, zero_shot_weights
from clipkit.classify import metrics
from clipkit.classify.few_shot import METHODS
from clipkit.classify.heads import WeightedPromptHead
from clipkit.errors import ConfigError, DataError
from tests.helpers.models import make_small_tokenizer, random_clip
from tests.helpers.support_sets import NEEDED, ZERO_SHOT, assert_same_head, draw
from tests.helpers.toy_classifier import NAMES, fitted, state_of, toy_features
from tests.helpers.toy_data import color_folders


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return color_folders(tmp_path_factory.mktemp("images"), each=1)


@contextmanager
def default(setting: torch.dtype | str) -> Generator[None, None, None]:
    """Let torch make tensors of another dtype, or on another device, for a while."""
    dtype = torch.get_default_dtype()
    if isinstance(setting, str):
        torch.set_default_device(setting)
    else:
        torch.set_default_dtype(setting)
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_default_device(None)


SETTINGS: list[Any] = [torch.float64, torch.bfloat16, "meta"]

# Options with which a fit takes no time.
QUICK: dict[str, dict[str, Any]] = {
    "anchored": {"strength": 1.0},
    "linear_probe": {"C": 1.0},
    "zero_shot_linear": {"epochs": 2},
    "random_linear": {"epochs": 2},
    "cache_finetuned": {"epochs": 2},
    "lp_plus_plus": {"epochs": 2},
    "proker": {"strength": 0.1, "beta": 1.0},
    "projection": {"strength": 1.0},
    "clap": {"epochs": 2},
}


# Kind J1


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_zero_shot_does_not_follow_torchs_defaults(
    model: CLIP, folder: Path, setting: torch.dtype | str
) -> None:
    weights = zero_shot_weights(model, NAMES)
    classifier = ImageClassifier.zero_shot(model, NAMES)
    probabilities = classifier.probabilities(folder)
    with default(setting):
        assert torch.equal(zero_shot_weights(model, NAMES), weights)
        again = ImageClassifier.zero_shot(model, NAMES)
        assert torch.equal(again.probabilities(folder), probabilities)
        labels = [prediction.label for prediction in again.predict(folder)]
    assert [NAMES.index(label) for label in labels] == probabilities.argmax(dim=1).tolist()
    assert state_of(again) == state_of(classifier)


@pytest.mark.parametrize("method", METHODS)
def test_fits_do_not_follow_torchs_default_device(method: str) -> None:
    features, labels = draw(3, 2, 0, 3, 2, 1)
    options = NEEDED[method] | QUICK.get(method, {})
    expected, chosen = fit_head(features, labels, ZERO_SHOT, method, **options)
    with default("meta"):
        head, told = fit_head(features, labels.tolist(), ZERO_SHOT, method, **options)
    assert_same_head(head, expected)
    assert told == chosen


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_a_classifier_does_not_follow_torchs_defaults(
    model: CLIP, folder: Path, tmp_path: Path, setting: torch.dtype | str
) -> None:
    files = sorted(folder.rglob("*.png"))
    labels = ["blue", "dark red", "green", "white"]
    expected = ImageClassifier.zero_shot(model, NAMES).fit(files, labels, "gaussian")
    expected.add_classes(["black"])
    with default(setting):
        found = ImageClassifier.zero_shot(model, NAMES).fit(files, labels, "gaussian")
        found.add_classes(["black"])
        found.save(tmp_path)
        loaded = ImageClassifier.load(tmp_path, device="cpu")
        assert loaded.predict(files[0]).label == expected.predict(files[0]).label
    assert state_of(found) == state_of(expected)
    assert state_of(loaded) == state_of(expected)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_heads_and_metrics_do_not_follow_torchs_defaults(setting: torch.dtype | str) -> None:
    rows = torch.eye(3, 4)
    captions = torch.ones(2, 3, 4)
    scale = torch.tensor(1.0)
    scores = [[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.3, 0.2]]
    measures: dict[str, Callable[[], Any]] = {
        "accuracy": lambda: metrics.accuracy([0, 1, 2], [0, 2, 2]),
        "top k": lambda: metrics.top_k_accuracy(scores, [0, 2, 1], 2),
        "per class": lambda: metrics.mean_per_class([0, 1, 2], [0, 2, 2]),
        "matrix": lambda: metrics.confusion_matrix([0, 1, 2], [0, 2, 2], 3).tolist(),
        "confused": lambda: metrics.most_confused([[3, 1], [2, 4]]),
        "calibration": lambda: metrics.expected_calibration_error(scores, [0, 2, 1]),
        "temperature": lambda: metrics.fit_temperature(scores, [0, 2, 1]),
        "recall": lambda: metrics.recall_at_k(np.eye(3), np.eye(3)[::-1]),
        "linear": lambda: LinearHead(rows)(rows).tolist(),
        "prompts": lambda: WeightedPromptHead(captions, scale)(rows).tolist(),
        "shots": lambda: sample_shots(["a", "b", "a"], 1).tolist(),
    }
    expected = {name: measure() for name, measure in measures.items()}
    with default(setting):
        assert {name: measure() for name, measure in measures.items()} == expected


# Kinds X12 and Y2


def test_predictions_of_a_classifier_in_training_are_right_in_threads(folder: Path) -> None:
    """Batch norms would learn from each batch, and compute otherwise."""
    from tests.helpers.models import RESNET

    classifier = ImageClassifier.zero_shot(random_clip(RESNET, make_small_tokenizer()), NAMES)
    files = sorted(folder.rglob("*.png"))
    expected = classifier.probabilities(files)
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    classifier.train()
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda _: classifier.probabilities(files), range(16)))
    for found in results:
        assert torch.equal(found, expected)
    assert all(module.training for module in classifier.modules())
    for name, value in classifier.state_dict().items():
        assert torch.equal(value, before[name]), name


# Kind X13


@pytest.mark.parametrize("method", METHODS)
def test_features_without_a_length_are_refused(method: str) -> None:
    """They gave heads of NaN."""
    features, labels = draw(2, 2, 2, 2, 2, 2)
    for wrong in (0 * features, 3 * features):
        with pytest.raises(DataError, match="must be of unit length, but 12 of 12 are not"):
            fit_head(wrong, labels, ZERO_SHOT, method, **NEEDED[method])


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("cache_finetuned", {"lr": 1e30, "epochs": 3}),
        ("cache", {"alpha": 1e30, "beta": -1e30}),
        ("anchored", {"strength": 1e30}),
    ],
)
def test_a_fit_that_runs_away_is_refused(method: str, options: dict[str, Any]) -> None:
    features, labels = draw(2, 2, 2, 2, 2, 2)
    with pytest.raises(ConfigError, match=f"{method} has run away with .*not finite"):
        fit_head(features, labels, ZERO_SHOT, method, **options)


@pytest.mark.parametrize("seed", [None, 1.5, "1", True, 2**64, [1]])
def test_seeds_are_integers(seed: Any) -> None:
    features, labels = draw(2, 2, 2, 2, 2, 2)
    with pytest.raises(ConfigError, match="seed must be an integer of 64 bits, not "):
        fit_head(features, labels, ZERO_SHOT, "gaussian", seed=seed)
    with pytest.raises(ConfigError, match="seed must be an integer of 64 bits, not "):
        sample_shots([0, 1], 1, seed)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_classifier_that_was_cast_predicts(model: CLIP, folder: Path, dtype: torch.dtype) -> None:
    """Kind J2."""
    whole = fitted(model, toy_features(), "gaussian")
    cast = copy.deepcopy(whole).to(dtype)
    probabilities: Tensor = cast.probabilities(folder)
    assert probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities, whole.probabilities(folder), rtol=0, atol=0.05)
    labels = [prediction.label for prediction in whole.predict(folder)]
    assert [prediction.label for prediction in cast.predict(folder)] == labels
