"""clipkit.classify.heads: the zero-shot start is the zero-shot classifier."""

import numpy as np
import torch
import torch.nn.functional as F

from clipkit import CLIP, zero_shot_weights
from clipkit.classify.heads import LinearHead


def test_starts_at_zero():
    head = LinearHead(5, 3)
    assert head.weight.shape == (3, 5) and head.bias.shape == (3,)
    assert not head(torch.randn(4, 5)).any()


def test_zero_shot_start_against_numpy():
    weights = F.normalize(torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), dim=-1)
    features = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    head = LinearHead.from_zero_shot(weights, torch.tensor(2.5))
    expected = np.exp(2.5) * features.double().numpy() @ weights.double().numpy().T
    np.testing.assert_allclose(head(features).detach().numpy(), expected, rtol=1e-5, atol=1e-5)
    assert not head.bias.any() and head.weight.requires_grad and head.weight.data_ptr() != weights.data_ptr()


def test_zero_shot_start_equals_the_model(vit_config, small_tokenizer):
    torch.manual_seed(0)
    model = CLIP(vit_config, small_tokenizer).eval()
    images, names = torch.randn(5, 3, 48, 48), ["cat", "dog", "a b c"]
    with torch.no_grad():
        expected, _ = model(images, small_tokenizer([f"a photo of a {name}." for name in names]))
        head = LinearHead.from_zero_shot(zero_shot_weights(model, names), model.logit_scale)
        torch.testing.assert_close(head(model.encode_image(images, normalize=True)), expected, rtol=1e-5, atol=1e-5)


def test_half_precision_gives_a_float32_head():
    head = LinearHead.from_zero_shot(torch.randn(3, 5).half(), torch.tensor(4.6).half())
    assert head.weight.dtype == head.bias.dtype == torch.float32
