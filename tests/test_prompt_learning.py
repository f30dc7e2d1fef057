"""The example of prompt learning begins as it says, and learns the context alone."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import clipkit

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = ["apple", "maple tree", "sea"]


@pytest.fixture(scope="module")
def example() -> Iterator[Any]:
    """Return the example as a module. It imports the scripts beside it."""
    present = set(sys.modules)
    sys.path.insert(0, str(EXAMPLES))
    yield importlib.import_module("prompt_learning")
    sys.path.remove(str(EXAMPLES))
    for name in set(sys.modules) - present:
        if str(EXAMPLES) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture(scope="module")
def model() -> clipkit.CLIP:
    return clipkit.CLIP.from_pretrained("tiny", device="cpu").requires_grad_(False)


@pytest.mark.parametrize("own", [False, True])
def test_a_context_of_words_begins_as_the_prompt_of_these_words(
    example: Any, model: clipkit.CLIP, own: bool
) -> None:
    learner = example.PromptLearner(model, NAMES, "a photo of a", own=own)
    expected = model.embed_texts([f"a photo of a {name}." for name in NAMES])
    torch.testing.assert_close(learner().detach(), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize(("own", "contexts"), [(False, 1), (True, 3)])
def test_a_random_context_is_sixteen_vectors_before_the_name(
    example: Any, model: clipkit.CLIP, own: bool, contexts: int
) -> None:
    torch.manual_seed(0)
    learner = example.PromptLearner(model, NAMES, own=own)
    assert learner.context.shape == (contexts, 16, 96)
    assert learner.context.std().item() == pytest.approx(0.02, rel=0.1)
    embeddings = torch.cat([learner.start, learner.context.expand(3, -1, -1), learner.names], dim=1)
    known = model.text.token_embedding(learner.tokens)
    assert embeddings.shape == known.shape
    is_context = torch.arange(77).sub(1).div(16, rounding_mode="floor") == 0
    assert embeddings[:, ~is_context].equal(known[:, ~is_context])


def support(model: clipkit.CLIP, count: int) -> tuple[Tensor, Tensor]:
    """Return unit features (3 * count, D) near those of other names than their labels."""
    labels = torch.arange(3).repeat_interleave(count)
    features = model.embed_texts(NAMES)[labels - 1]
    seeded = torch.Generator().manual_seed(1)
    noise = torch.randn(features.shape, generator=seeded) / features.shape[1] ** 0.5
    return F.normalize(features + noise, dim=-1), labels


@pytest.mark.parametrize(("words", "own", "rate"), [("", True, 0.5), ("a photo of a", False, 5.0)])
def test_learning_lowers_the_loss_and_changes_the_context_alone(
    example: Any, model: clipkit.CLIP, words: str, own: bool, rate: float
) -> None:
    torch.manual_seed(0)
    learner = example.PromptLearner(model, NAMES, words, own=own)
    features, labels = support(model, 5)
    weights = {name: value.clone() for name, value in model.state_dict().items()}

    def loss() -> float:
        with torch.no_grad():
            return F.cross_entropy(10 * features @ learner().T, labels).item()

    before = loss()
    example.learn(learner, features, labels, torch.tensor(10.0), 20, rate=rate, batch_size=8)
    assert loss() < 0.9 * before
    assert [name for name, _ in learner.named_parameters()] == ["context"]
    after = model.state_dict()
    assert all(after[name].equal(value) for name, value in weights.items())


def test_the_rate_warms_up_and_falls_as_half_a_cosine(example: Any) -> None:
    rates = [example.rate_of(epoch, 50, 0.002) for epoch in range(50)]
    assert rates[0] == 1e-5
    assert rates[1] == 0.002
    assert rates[26] == pytest.approx(0.001)
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert 0 < rates[-1] < 1e-5


def test_the_table_has_a_row_for_each_method(example: Any) -> None:
    draws = [{"anchored": {"accuracy": value}, "own": {"accuracy": 0.5}} for value in (0.1, 0.2)]
    shots = {"1": draws, "4": draws[:1]}
    result = {"set": "toys", "classes": 3, "test": 1000, "zero_shot": 0.25, "shots": shots}
    assert example.table(result).splitlines() == [
        "**toys**: 3 classes, 1,000 test images. Zero-shot 25.0%.",
        "",
        "| method | k = 1 | k = 4 |",
        "|---|---|---|",
        "| anchored | 15.0 ± 7.1 | 10.0 |",
        "| own | 50.0 ± 0.0 | 50.0 |",
    ]
