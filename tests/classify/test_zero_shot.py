"""Zero-shot weights against the definition, written out in NumPy."""

import weakref
from typing import Any

import numpy as np
import pytest
import torch

import clipkit
from clipkit.clip import CLIP
from clipkit.encode import embed as features
from clipkit.prompts import render

NAMES = ["cat", "dog", "cup of coffee"]
TEMPLATES = ["a photo of a {}.", "{}", "one blurry picture of the {} in a field"]


@pytest.fixture(scope="module")
def model():
    return clipkit.load("tiny", "cpu")[0]


def test_equals_normalise_average_normalise(model: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipkit.encode.store.TEXT_BATCH", 4)  # 9 prompts in 3 pieces
    weights = clipkit.zero_shot_weights(model, NAMES, TEMPLATES)
    assert (
        weights.shape == (3, 256) and weights.dtype == torch.float32 and not weights.requires_grad
    )
    for name, row in zip(NAMES, weights.double().numpy(), strict=True):
        with torch.no_grad():
            single = [
                model.encode_text(clipkit.tokenize(t.format(name)))[0].double().numpy()
                for t in TEMPLATES
            ]
        mean = np.mean([v / np.linalg.norm(v) for v in single], axis=0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-6)


def test_braces_in_a_name_are_text(model: CLIP) -> None:
    assert clipkit.zero_shot_weights(model, ["a {curly} name", "{}"]).shape == (2, 256)


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        ("cat", TEMPLATES, "class_names must be a non-empty list, .*not 'cat'"),
        (["cat", "cat"], TEMPLATES, r"class_names has \['cat'\] more than once"),
        (NAMES, ["a photo"], "one {} each .*'a photo'"),
        (NAMES, "{}", "templates must be a list"),
    ],
)
def test_bad_input(model: CLIP, names: list[str], templates: Any, message: str) -> None:
    with pytest.raises(clipkit.errors.ConfigError, match=message):
        clipkit.zero_shot_weights(model, names, templates)


RAGGED = {"pet": ["cat", "dog", "pet fish"], "cup": "cup of coffee", "car": ["car"]}
OWN = {"car": [str.upper, "{}"], "pet": TEMPLATES, "cup": ["my {}"]}


@pytest.mark.parametrize("batch", [1, 4, 5, 256])
def test_ragged_prompts_against_the_definition(
    model: CLIP, monkeypatch: pytest.MonkeyPatch, batch
) -> None:
    """9, 1 and 2 prompts: batches of all sizes cut through and across the classes."""
    prompts = render(RAGGED, OWN)[1]
    assert [len(own) for own in prompts] == [9, 1, 2]
    monkeypatch.setattr(features, "TEXT_BATCH", batch)
    weights = clipkit.zero_shot_weights(model, RAGGED, OWN)
    for own, row in zip(prompts, weights.double().numpy(), strict=True):
        mean = features.embed_texts(model, own).double().numpy().mean(axis=0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-6)


def test_names_of_sets(model: CLIP) -> None:
    data = clipkit.prompt_set("fer2013")
    given = clipkit.zero_shot_weights(model, data.class_names, data.templates)
    assert given.shape == (7, 256)
    assert torch.equal(given, clipkit.zero_shot_weights(model, data.class_names, "FER-2013"))


def test_each_batch_is_forgotten(model: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    """10,000 prompts: never more than one batch is encoded, and no features but the last ones are still held."""
    alive, asked = [], []

    def embed_texts(given: Any, texts):
        assert given is model
        asked.append(len(texts))
        alive[:] = [reference for reference in alive if reference() is not None]
        result = torch.full((len(texts), 256), 1 / 16)
        alive.append(weakref.ref(result.untyped_storage()))
        return result

    monkeypatch.setattr(features, "embed_texts", embed_texts)
    weights = clipkit.zero_shot_weights(
        model, [f"class {i}" for i in range(500)], [f"{i} {{}}" for i in range(20)]
    )
    assert len(alive) <= 2 and max(asked) == features.TEXT_BATCH and sum(asked) == 10_000
    assert torch.allclose(weights, torch.full((500, 256), 1 / 16))


def test_progress(model: CLIP, capsys: pytest.CaptureFixture[str]) -> None:
    clipkit.zero_shot_weights(model, NAMES, progress=True)
    assert "1/1" in capsys.readouterr().err
    clipkit.zero_shot_weights(model, NAMES)
    assert capsys.readouterr().err == ""


def test_a_prompt_that_is_too_long_is_named(model: CLIP) -> None:
    with pytest.raises(clipkit.errors.TokenizerError, match="very"):
        clipkit.zero_shot_weights(model, ["very " * 90])


def test_weights_can_start_a_trainable_head(model: CLIP) -> None:
    weights = torch.nn.Parameter(clipkit.zero_shot_weights(model, NAMES))
    (torch.ones(2, 256) @ weights.T).sum().backward()
    assert torch.equal(weights.grad, torch.full((3, 256), 2.0))
