"""clipkit.classify.zero_shot: weights against the definition, written out in NumPy."""

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import clipkit
from clipkit.classify import zero_shot
from clipkit.classify.zero_shot import embed_prompts, weights_of_prompts
from clipkit.clip import CLIP
from clipkit.errors import ConfigError, TokenizerError
from clipkit.prompts import render

NAMES = ["cat", "dog", "cup of coffee"]
TEMPLATES = ["a photo of a {}.", "{}", "one blurry image of the {} in a field"]
RAGGED = {"pet": ["cat", "dog", "pet fish"], "cup": "cup of coffee", "car": ["car"]}
OWN = {"car": [str.upper, "{}"], "pet": TEMPLATES, "cup": ["my {}"]}


@pytest.fixture(scope="module")
def model() -> CLIP:
    return CLIP.from_pretrained("tiny", device="cpu")


def unit_mean(features: Tensor) -> Any:
    """Return the mean of rows, scaled to unit length, in float64."""
    mean = features.double().numpy().mean(axis=0)
    return mean / np.linalg.norm(mean)


def test_equals_normalize_average_normalize(model: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zero_shot, "TEXT_BATCH", 4)  # 9 prompts in 3 pieces
    weights = clipkit.zero_shot_weights(model, NAMES, TEMPLATES)
    assert weights.shape == (3, 256)
    assert weights.dtype == torch.float32
    assert not weights.requires_grad
    for name, row in zip(NAMES, weights, strict=True):
        tokens = clipkit.tokenize([template.replace("{}", name) for template in TEMPLATES])
        with torch.no_grad():
            features = model.encode_text(tokens)
        features = features / features.norm(dim=1, keepdim=True)
        np.testing.assert_allclose(row.double().numpy(), unit_mean(features), atol=1e-6)


def test_braces_in_a_name_are_text(model: CLIP) -> None:
    assert clipkit.zero_shot_weights(model, ["a {curly} name", "{}"]).shape == (2, 256)


def test_names_can_be_whole_prompts(model: CLIP) -> None:
    prompts = ["a {curly} cat.", "two dogs"]
    weights = clipkit.zero_shot_weights(model, prompts, None)
    torch.testing.assert_close(weights, model.embed_texts(prompts), rtol=0, atol=1e-6)
    several = {"pet": ["a cat", "my dog"], "car": "one car"}
    weights = clipkit.zero_shot_weights(model, several, None)
    expected = unit_mean(model.embed_texts(["a cat", "my dog"]))
    np.testing.assert_allclose(weights[0].double().numpy(), expected, atol=1e-6)
    assert torch.equal(weights, clipkit.zero_shot_weights(model, several, ["{}"]))


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        ("cat", TEMPLATES, "class_names must be a non-empty list, .*not 'cat'"),
        (["cat", "cat"], TEMPLATES, r"class_names has \['cat'\] more than once"),
        (NAMES, ["a photo"], "one {} each .*'a photo'"),
        (NAMES, "{}", "templates must be a list"),
        ([], None, "class_names must be a non-empty list"),
    ],
)
def test_bad_input(model: CLIP, names: Any, templates: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        clipkit.zero_shot_weights(model, names, templates)


@pytest.mark.parametrize("batch", [1, 4, 5, 256])
def test_ragged_prompts_against_the_definition(
    model: CLIP, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    """9, 1 and 2 prompts: batches of all sizes cut through and across the classes."""
    _, prompts = render(RAGGED, OWN)
    assert [len(own) for own in prompts] == [9, 1, 2]
    monkeypatch.setattr(zero_shot, "TEXT_BATCH", batch)
    weights = clipkit.zero_shot_weights(model, RAGGED, OWN)
    assert torch.equal(weights, weights_of_prompts(model, prompts))
    for own, row in zip(prompts, weights, strict=True):
        expected = unit_mean(model.embed_texts(own))
        np.testing.assert_allclose(row.double().numpy(), expected, atol=1e-6)


def test_prompts_one_by_one_are_padded(model: CLIP) -> None:
    _, prompts = render(RAGGED, OWN)
    features = embed_prompts(model, prompts)
    assert features.shape == (3, 9, 256)
    assert features.dtype == torch.float32
    for own, rows in zip(prompts, features, strict=True):
        torch.testing.assert_close(rows[: len(own)], model.embed_texts(own), rtol=0, atol=1e-6)
        assert not rows[len(own) :].any()


def test_names_of_sets(model: CLIP) -> None:
    data = clipkit.prompt_set("fer2013")
    given = clipkit.zero_shot_weights(model, data.class_names, data.templates)
    assert given.shape == (7, 256)
    assert torch.equal(given, clipkit.zero_shot_weights(model, data.class_names, "FER-2013"))


def test_each_batch_is_forgotten(model: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 10,000 prompts never more than one batch is encoded, and only the last features live."""
    alive: list[weakref.ref[Any]] = []
    asked: list[int] = []

    def embed_texts(given: CLIP, texts: Sequence[str]) -> Tensor:
        assert given is model
        asked.append(len(texts))
        alive[:] = [reference for reference in alive if reference() is not None]
        result = torch.full((len(texts), 256), 1 / 16)
        alive.append(weakref.ref(result.untyped_storage()))
        return result

    monkeypatch.setattr(zero_shot, "embed_texts", embed_texts)
    names = [f"class {i}" for i in range(500)]
    templates = [f"{i} {{}}" for i in range(20)]
    weights = clipkit.zero_shot_weights(model, names, templates)
    assert len(alive) <= 2
    assert max(asked) == zero_shot.TEXT_BATCH
    assert sum(asked) == 10_000
    torch.testing.assert_close(weights, torch.full((500, 256), 1 / 16))


def test_progress(model: CLIP, capsys: pytest.CaptureFixture[str]) -> None:
    clipkit.zero_shot_weights(model, NAMES, progress=True)
    assert "1/1" in capsys.readouterr().err
    clipkit.zero_shot_weights(model, NAMES)
    assert capsys.readouterr().err == ""


def test_a_prompt_that_is_too_long_is_named(model: CLIP) -> None:
    with pytest.raises(TokenizerError, match="very"):
        clipkit.zero_shot_weights(model, ["very " * 90])


def test_weights_can_start_a_trainable_head(model: CLIP) -> None:
    weights = torch.nn.Parameter(clipkit.zero_shot_weights(model, NAMES))
    (torch.ones(2, 256) @ weights.T).sum().backward()
    assert weights.grad is not None
    assert torch.equal(weights.grad, torch.full((3, 256), 2.0))
