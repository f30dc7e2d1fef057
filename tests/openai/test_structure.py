"""Test the names, shapes, dtypes and arguments that programs for OpenAI's package rely on."""

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import clipkit.openai as clip
from clipkit.models.layers import QuickGELU
from clipkit.openai import model as parts
from clipkit.openai.model import CLIP, LayerNorm, ResidualAttentionBlock
from tests.openai.small import LENGTH, TEXT, images_for, make_vit, some_ids

BLOCK = {
    "attn.in_proj_weight": (384, 128),
    "attn.in_proj_bias": (384,),
    "attn.out_proj.weight": (128, 128),
    "attn.out_proj.bias": (128,),
    "ln_1.weight": (128,),
    "ln_1.bias": (128,),
    "mlp.c_fc.weight": (512, 128),
    "mlp.c_fc.bias": (512,),
    "mlp.c_proj.weight": (128, 512),
    "mlp.c_proj.bias": (128,),
    "ln_2.weight": (128,),
    "ln_2.bias": (128,),
}


def stack(prefix: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of two blocks."""
    return {f"{prefix}.{n}.{name}": shape for n in (0, 1) for name, shape in BLOCK.items()}


OWN: dict[str, tuple[int, ...]] = {
    "positional_embedding": (16, 128),
    "text_projection": (128, 32),
    "logit_scale": (),
}
TEXT_PART: dict[str, tuple[int, ...]] = {
    **stack("transformer.resblocks"),
    "token_embedding.weight": (600, 128),
    "ln_final.weight": (128,),
    "ln_final.bias": (128,),
}
VISUAL: dict[str, tuple[int, ...]] = {
    "visual.class_embedding": (128,),
    "visual.positional_embedding": (10, 128),
    "visual.proj": (128, 32),
    "visual.conv1.weight": (128, 3, 16, 16),
    "visual.ln_pre.weight": (128,),
    "visual.ln_pre.bias": (128,),
    **stack("visual.transformer.resblocks"),
    "visual.ln_post.weight": (128,),
    "visual.ln_post.bias": (128,),
}
# Of a ResNet, one of each kind.
RESNET: dict[str, tuple[int, ...]] = {
    "visual.conv1.weight": (8, 3, 3, 3),
    "visual.bn1.running_var": (8,),
    "visual.conv3.weight": (16, 8, 3, 3),
    "visual.layer1.0.downsample.0.weight": (64, 16, 1, 1),
    "visual.layer2.1.bn3.weight": (128,),
    "visual.layer4.0.conv2.weight": (128, 128, 3, 3),
    "visual.attnpool.positional_embedding": (5, 512),
    "visual.attnpool.k_proj.weight": (512, 512),
    "visual.attnpool.q_proj.bias": (512,),
    "visual.attnpool.v_proj.bias": (512,),
    "visual.attnpool.c_proj.weight": (32, 512),
}


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def test_a_vit_has_these_weights_in_this_order(vit: CLIP) -> None:
    assert list(shapes_of(vit).items()) == [*OWN.items(), *VISUAL.items(), *TEXT_PART.items()]


def test_a_resnet_has_these_weights(resnet: CLIP) -> None:
    shapes = shapes_of(resnet)
    found = {name: shapes[name] for name in [*OWN, *RESNET, *TEXT_PART]}
    assert found == {**OWN, **RESNET, **TEXT_PART}


# The arguments of OpenAI's classes, in order.
ARGUMENTS = {
    parts.CLIP: "embed_dim image_resolution vision_layers vision_width vision_patch_size "
    "context_length vocab_size transformer_width transformer_heads transformer_layers",
    parts.VisionTransformer: "input_resolution patch_size width layers heads output_dim",
    parts.ModifiedResNet: "layers output_dim heads input_resolution width",
    parts.AttentionPool2d: "spacial_dim embed_dim num_heads output_dim",
    parts.Bottleneck: "inplanes planes stride",
    parts.Transformer: "width layers heads attn_mask",
    parts.ResidualAttentionBlock: "d_model n_head attn_mask",
    parts.build_model: "state_dict",
    parts.convert_weights: "model",
    clip.load: "name device jit download_root",
    clip.tokenize: "texts context_length truncate",
}


@pytest.mark.parametrize("callee", ARGUMENTS)
def test_arguments_stand_in_openais_order(callee: Any) -> None:
    parameters = inspect.signature(callee).parameters.values()
    by_position = [one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD]
    assert by_position == ARGUMENTS[callee].split()


ATTRIBUTES = {
    "": "context_length vocab_size dtype visual transformer token_embedding ln_final "
    "build_attention_mask initialize_parameters encode_image encode_text",
    "visual": "input_resolution output_dim conv1 class_embedding transformer ln_pre ln_post proj",
    "transformer": "width layers resblocks",
    "transformer.resblocks.0": "attn ln_1 mlp ln_2 attn_mask attention",
    "transformer.resblocks.0.mlp": "c_fc gelu c_proj",
}


@pytest.mark.parametrize("path", ATTRIBUTES)
def test_modules_have_these_attributes(path: str, vit: CLIP) -> None:
    module = vit.get_submodule(path)
    assert [name for name in ATTRIBUTES[path].split() if not hasattr(module, name)] == []


def test_a_resnet_has_these_attributes(resnet: CLIP) -> None:
    names = "input_resolution output_dim conv1 bn1 relu1 conv2 bn2 relu2 conv3 bn3 relu3 avgpool "
    names += "layer1 layer2 layer3 layer4 attnpool"
    assert [name for name in names.split() if not hasattr(resnet.visual, name)] == []
    block = resnet.visual.get_submodule("layer2.0")
    assert isinstance(block, parts.Bottleneck)
    assert (block.expansion, block.stride) == (4, 2)
    assert resnet.visual.get_submodule("attnpool.k_proj").in_features == 512


def test_parts_are_of_these_classes(vit: CLIP) -> None:
    block = vit.get_submodule("transformer.resblocks.1")
    assert isinstance(block, ResidualAttentionBlock)
    assert isinstance(block.attn, nn.MultiheadAttention)
    assert isinstance(block.mlp, nn.Sequential)
    assert isinstance(block.mlp.get_submodule("gelu"), QuickGELU)
    assert isinstance(vit.transformer.resblocks, nn.Sequential)
    norms = [module for module in vit.modules() if isinstance(module, nn.LayerNorm)]
    assert {type(norm) for norm in norms} == {LayerNorm}
    assert len(norms) == 3 + 2 * 4
    assert isinstance(vit.token_embedding, nn.Embedding)


def test_text_blocks_hold_the_causal_mask_and_image_blocks_none(vit: CLIP) -> None:
    expected = torch.full((LENGTH, LENGTH), float("-inf")).triu(1)
    assert torch.equal(vit.build_attention_mask(), expected)
    block = vit.get_submodule("transformer.resblocks.1")
    assert isinstance(block, ResidualAttentionBlock)
    assert block.attn_mask is not None
    assert torch.equal(block.attn_mask, expected)
    block = vit.get_submodule("visual.transformer.resblocks.1")
    assert isinstance(block, ResidualAttentionBlock)
    assert block.attn_mask is None


HALVED = (".attn.", ".mlp.", "conv", "downsample.0", "attnpool.", "proj")


def is_halved(name: str) -> bool:
    if name.endswith("positional_embedding"):
        return False
    return any(part in name for part in HALVED)


def test_convert_weights_halves_all_but_norms_and_embeddings(model: CLIP) -> None:
    copied = CLIP(*_arguments(model))
    parts.convert_weights(copied)
    floats = {k: v for k, v in copied.state_dict().items() if v.is_floating_point()}
    found = {name for name, value in floats.items() if value.dtype == torch.float16}
    assert found == {name for name in floats if is_halved(name)}
    assert {floats[name].dtype for name in floats.keys() - found} == {torch.float32}


def _arguments(model: CLIP) -> tuple[Any, ...]:
    if isinstance(model.visual, parts.ModifiedResNet):
        return 32, 64, (1, 2, 1, 1), 16, None, *TEXT
    return 32, 48, 2, 128, 16, *TEXT


@torch.no_grad()
def test_half_models_give_half_features(model: CLIP) -> None:
    halved = parts.build_model(model.state_dict())
    images, ids = images_for(model), some_ids()
    assert halved.dtype == torch.float16
    assert halved.encode_image(images).dtype == torch.float16
    assert halved.encode_text(ids).dtype == torch.float16
    for found, expected in zip(halved(images, ids), model(images, ids), strict=True):
        assert found.dtype == torch.float16
        torch.testing.assert_close(found.float(), expected, atol=1.0, rtol=0)


def test_norms_compute_in_float32() -> None:
    norm, x = LayerNorm(512), 300 * torch.randn(2, 512)
    expected = nn.functional.layer_norm(x.half().float(), (512,)).half()
    assert torch.equal(norm(x.half()), expected)
    assert torch.equal(norm(x.double()), norm(x).double())  # whose weights are float32


def test_build_model_leaves_the_state_dict_as_it_is(vit: CLIP) -> None:
    state = {**vit.state_dict(), "input_resolution": torch.tensor(48)}
    names = list(state)
    model = parts.build_model(state)
    assert list(state) == names
    assert state["visual.proj"].dtype == torch.float32
    assert not model.training
    assert torch.equal(state["visual.proj"].half(), dict(model.named_parameters())["visual.proj"])


def test_what_openai_has_not_is_carried_by_keywords() -> None:
    model = CLIP(
        *(16, 32, 1, 48, 16, 8, 50, 32, 2, 1),
        vision_head_width=24,
        vision_mlp_width=100,
        vision_activation="gelu",
        transformer_mlp_width=70,
    )
    image_block = model.get_submodule("visual.transformer.resblocks.0")
    text_block = model.get_submodule("transformer.resblocks.0")
    assert image_block.get_submodule("attn").num_heads == 2
    assert image_block.get_submodule("mlp.c_fc").out_features == 100
    assert isinstance(image_block.get_submodule("mlp.gelu"), nn.GELU)
    assert text_block.get_submodule("mlp.c_fc").out_features == 70
    assert isinstance(text_block.get_submodule("mlp.gelu"), QuickGELU)


def test_new_weights_are_drawn_as_in_the_paper() -> None:
    torch.manual_seed(0)
    model = CLIP(512, 224, 2, 256, 32, 77, 5000, 256, 4, 3)
    stds: dict[str, float] = {
        "token_embedding.weight": 0.02,
        "positional_embedding": 0.01,
        "text_projection": 256**-0.5,
        "transformer.resblocks.0.attn.in_proj_weight": 256**-0.5,
        "transformer.resblocks.0.attn.out_proj.weight": 256**-0.5 * 6**-0.5,
        "transformer.resblocks.0.mlp.c_fc.weight": 512**-0.5,
        "transformer.resblocks.0.mlp.c_proj.weight": 256**-0.5 * 6**-0.5,
        "visual.proj": 256**-0.5,
        "visual.positional_embedding": 256**-0.5,
    }
    found: dict[str, Tensor] = dict(model.named_parameters())
    for name, std in stds.items():
        assert float(found[name].detach().std()) == pytest.approx(std, rel=0.03), name
    assert float(model.logit_scale.detach().exp()) == pytest.approx(1 / 0.07)


def test_a_new_attention_pool_is_drawn_as_in_the_paper() -> None:
    torch.manual_seed(0)
    pool = CLIP(32, 64, (1, 1, 1, 1), 16, None, *TEXT).get_submodule("visual.attnpool")
    for name in ("positional_embedding", "q_proj.weight", "k_proj.weight", "c_proj.weight"):
        std = float(pool.get_parameter(name).detach().std())
        assert std == pytest.approx(512**-0.5, rel=0.05), name


def test_bottlenecks_begin_as_the_identity() -> None:
    model = CLIP(32, 64, (1, 2, 1, 1), 16, None, *TEXT)
    last = [value for name, value in model.named_parameters() if name.endswith("bn3.weight")]
    assert [float(value.detach().abs().max()) for value in last] == [1.0, *[0.0] * 5]


def test_parts_that_a_program_took_out_are_not_initialized() -> None:
    model: Any = CLIP(32, 64, (1, 1, 1, 1), 16, None, *TEXT)
    model.visual.attnpool = None
    model.text_projection = None
    model.transformer.resblocks[0] = nn.TransformerDecoderLayer(128, 2)
    model.transformer.resblocks[0].attn = nn.MultiheadAttention(128, 2)
    model.transformer.resblocks[0].mlp = make_vit().get_submodule("transformer.resblocks.0.mlp")
    before = model.token_embedding.weight.clone()
    model.initialize_parameters()
    assert not torch.equal(model.token_embedding.weight, before)


def test_a_vit_without_a_patch_size_is_refused() -> None:
    with pytest.raises(RuntimeError, match="needs a vision_patch_size, not None"):
        CLIP(32, 48, 2, 128, None, *TEXT)


def test_the_module_has_every_name_of_openais() -> None:
    names = "Bottleneck AttentionPool2d ModifiedResNet LayerNorm QuickGELU ResidualAttentionBlock "
    names += "Transformer VisionTransformer CLIP convert_weights build_model"
    assert [name for name in names.split() if not hasattr(parts, name)] == []


def test_a_mask_moves_to_the_dtype_of_the_tokens() -> None:
    model = make_vit().double()
    block = model.get_submodule("transformer.resblocks.0")
    assert isinstance(block, ResidualAttentionBlock)
    assert block.attn_mask is not None
    assert block.attn_mask.dtype == torch.float32
    block.attention(torch.randn(LENGTH, 1, 128, dtype=torch.float64))
    assert block.attn_mask.dtype == torch.float64
