"""New models have the random weights of the paper (2103.00020) and of OpenAI's code."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from clipkit.clip import CLIP
from clipkit.config import CLIPConfig, ResNetConfig, TextConfig, ViTConfig
from clipkit.models.resnet import Bottleneck


def close(value: Tensor, std: float) -> bool:
    """Mean and spread of `value` as of N(0, std), within five standard errors."""
    n, mean, spread = value.numel(), value.mean().item(), value.std().item()
    return abs(spread / std - 1) < 5 / math.sqrt(2 * n) and abs(mean) < 5 * std / math.sqrt(n)


def test_transformers_start_as_in_the_paper() -> None:
    torch.manual_seed(0)
    config = CLIPConfig(
        embed_dim=96,
        vision=ViTConfig(resolution=64, patch_size=8, width=128, layers=4, activation="gelu"),
        text=TextConfig(width=128, layers=4, activation="gelu", vocab_size=500),
    )
    model = CLIP(config)
    assert model.training
    assert model.logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    visual: Any = model.visual
    assert close(visual.class_embedding, 128**-0.5) and close(
        visual.positional_embedding, 128**-0.5
    )
    assert close(visual.proj, 128**-0.5)
    assert close(model.text.token_embedding.weight, 0.02) and close(
        model.text.positional_embedding, 0.01
    )
    assert close(model.text.text_projection, 128**-0.5)
    for block in [*visual.transformer.resblocks, *model.text.transformer.resblocks]:
        assert close(block.attn.in_proj_weight, 128**-0.5)
        assert close(block.attn.out_proj.weight, 128**-0.5 * 8**-0.5)
        assert close(block.mlp.c_fc.weight, 256**-0.5)
        assert close(block.mlp.c_proj.weight, 128**-0.5 * 8**-0.5)
        assert not block.attn.in_proj_bias.any() and not block.attn.out_proj.bias.any()
        for norm in (block.ln_1, block.ln_2):
            assert (norm.weight == 1).all() and not norm.bias.any() and norm.eps == 1e-5


def test_resnets_start_as_in_the_paper() -> None:
    torch.manual_seed(0)
    visual: Any = CLIP(
        CLIPConfig(
            embed_dim=20,
            vision=ResNetConfig(resolution=64, layers=(1, 2, 1, 1), width=8),
            text=TextConfig(width=64, layers=1, activation="gelu", vocab_size=60),
        )
    ).visual
    pool = visual.attnpool
    for linear in (pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj):
        assert close(linear.weight, 256**-0.5)
    assert close(pool.positional_embedding, 256**-0.5)
    bottlenecks = [module for module in visual.modules() if isinstance(module, Bottleneck)]
    assert len(bottlenecks) == 5
    for block in bottlenecks:
        assert not block.bn3.weight.any()
        assert (block.bn1.weight == 1).all() and (block.bn2.weight == 1).all()
