"""Zero-shot weights against the definition, written out in NumPy."""

import numpy as np
import pytest
import torch

import clipkit

NAMES = ["cat", "dog", "cup of coffee"]
TEMPLATES = ["a photo of a {}.", "{}", "one blurry picture of the {} in a field"]


@pytest.fixture(scope="module")
def model():
    return clipkit.load("tiny", "cpu")[0]


def test_equals_normalise_average_normalise(model, monkeypatch):
    monkeypatch.setattr("clipkit.features.TEXT_BATCH", 4)  # 9 prompts in 3 pieces
    weights = clipkit.zero_shot_weights(model, NAMES, TEMPLATES)
    assert weights.shape == (3, 256) and weights.dtype == torch.float32 and not weights.requires_grad
    for name, row in zip(NAMES, weights.double().numpy(), strict=True):
        with torch.no_grad():
            single = [model.encode_text(clipkit.tokenize(t.format(name)))[0].double().numpy() for t in TEMPLATES]
        mean = np.mean([v / np.linalg.norm(v) for v in single], axis=0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-6)


def test_braces_in_a_name_are_text(model):
    assert clipkit.zero_shot_weights(model, ["a {curly} name", "{}"]).shape == (2, 256)


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        ([], TEMPLATES, "class_names must be a non-empty list"),
        ("cat", TEMPLATES, "class_names must be a non-empty list of strings, not 'cat'"),
        (["cat", 3], TEMPLATES, "class_names must be"),
        (NAMES, [], "templates must be a non-empty list"),
        (NAMES, ["a photo"], r"needs one \{\} .*'a photo'"),
        (NAMES, ["{} and {}"], r"needs one \{\}"),
    ],
)
def test_bad_input(model, names, templates, message):
    with pytest.raises(clipkit.errors.ConfigError, match=message):
        clipkit.zero_shot_weights(model, names, templates)


def test_a_prompt_that_is_too_long_is_named(model):
    with pytest.raises(clipkit.errors.TokenizerError, match="very"):
        clipkit.zero_shot_weights(model, ["very " * 90])


def test_weights_can_start_a_trainable_head(model):
    weights = torch.nn.Parameter(clipkit.zero_shot_weights(model, NAMES))
    (torch.ones(2, 256) @ weights.T).sum().backward()
    assert torch.equal(weights.grad, torch.full((3, 256), 2.0))
