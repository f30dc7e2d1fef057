"""All nine architectures of OpenAI's can be looked into, at sizes that are not their own."""

import pytest
import torch

import clipkit
from clipkit import inspect
from clipkit.inspect.explain import METHODS
from tests.helpers.peers import small, with_tokenizer
from tests.helpers.random_weights import randomize, some_images


@pytest.mark.parametrize("name", clipkit.available_models())
def test_every_architecture_at_an_oblong_size(name: str) -> None:
    config = small(name)
    model = with_tokenizer(randomize(clipkit.CLIP(config)))
    height, width = config.vision.resolution
    image = some_images(1, (height, 2 * width + 3))
    missing = "rollout" if isinstance(config.vision, clipkit.ResNetConfig) else "grad_cam"
    for method in METHODS:
        if method == missing:
            continue
        masks = 4 if method == "rise" else None
        found = inspect.explain(model, image[0], "a cat", method, masks=masks)
        assert found.upsample().shape == (height, 2 * width + 3)
        assert found.heat_map.isfinite().all()
    weights = inspect.attention_maps(model, image, layers=-1)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))
