"""New models have the random weights of the paper (2103.00020) and of OpenAI's code."""

import math

import pytest
import torch
from torch import Tensor, nn

from clipkit.clip import CLIP
from clipkit.config import CLIPConfig, ResNetConfig, TextConfig, ViTConfig
from clipkit.models.layers import ResidualAttentionBlock
from clipkit.models.resnet import AttentionPool2d, Bottleneck
from clipkit.models.vision_transformer import VisionTransformer


def assert_normal(value: Tensor, std: float) -> None:
    """Fail if mean or spread is more than five standard errors from those of N(0, std)."""
    n, mean, spread = value.numel(), value.mean().item(), value.std().item()
    assert abs(spread / std - 1) < 5 / math.sqrt(2 * n)
    assert abs(mean) < 5 * std / math.sqrt(n)


def assert_all(value: Tensor, number: float) -> None:
    assert (value == number).all()


@pytest.fixture(scope="module")
def transformers() -> CLIP:
    torch.manual_seed(0)
    vision = ViTConfig(resolution=(64, 64), patch_size=8, width=128, layers=4, activation="gelu")
    text = TextConfig(width=128, layers=4, activation="gelu", vocab_size=500)
    return CLIP(CLIPConfig(embed_dim=96, vision=vision, text=text))


def test_a_new_model_is_in_training_mode_and_has_the_papers_temperature(transformers: CLIP) -> None:
    assert transformers.training
    assert transformers.logit_scale.item() == pytest.approx(math.log(1 / 0.07))


def test_embeddings_and_projections_start_as_in_the_paper(transformers: CLIP) -> None:
    visual, text = transformers.visual, transformers.text
    assert isinstance(visual, VisionTransformer)
    assert visual.proj is not None
    assert text.text_projection is not None
    assert_normal(visual.class_embedding, 128**-0.5)
    assert_normal(visual.positional_embedding, 128**-0.5)
    assert_normal(visual.proj, 128**-0.5)
    assert_normal(text.token_embedding.weight, 0.02)
    assert_normal(text.positional_embedding, 0.01)
    assert_normal(text.text_projection, 128**-0.5)


def test_blocks_start_as_in_the_paper(transformers: CLIP) -> None:
    modules = transformers.modules()
    blocks = [module for module in modules if isinstance(module, ResidualAttentionBlock)]
    assert len(blocks) == 8
    for block in blocks:
        assert_normal(block.attn.in_proj_weight, 128**-0.5)
        assert_normal(block.attn.out_proj.weight, 128**-0.5 * 8**-0.5)
        assert_normal(block.mlp.c_fc.weight, 256**-0.5)
        assert_normal(block.mlp.c_proj.weight, 128**-0.5 * 8**-0.5)
        assert_all(block.attn.in_proj_bias, 0)
        assert_all(block.attn.out_proj.bias, 0)


def test_norms_start_neutral(transformers: CLIP) -> None:
    norms = [module for module in transformers.modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 2 * 8 + 3
    for norm in norms:
        assert_all(norm.weight, 1)
        assert_all(norm.bias, 0)
        assert norm.eps == 1e-5


def test_resnets_start_as_in_the_paper() -> None:
    torch.manual_seed(0)
    vision = ResNetConfig(resolution=(64, 64), layers=(1, 2, 1, 1), width=8)
    text = TextConfig(width=64, layers=1, activation="gelu", vocab_size=60)
    visual = CLIP(CLIPConfig(embed_dim=20, vision=vision, text=text)).visual
    pool = visual.get_submodule("attnpool")
    assert isinstance(pool, AttentionPool2d)
    for layer in (pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj):
        assert_normal(layer.weight, 256**-0.5)
    assert_normal(pool.positional_embedding, 256**-0.5)
    bottlenecks = [module for module in visual.modules() if isinstance(module, Bottleneck)]
    assert len(bottlenecks) == 5
    for block in bottlenecks:
        assert_all(block.bn3.weight, 0)
        assert_all(block.bn1.weight, 1)
        assert_all(block.bn2.weight, 1)
