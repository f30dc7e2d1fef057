"""Compare key maps with names written out by hand, and refuse what is no plain CLIP."""

import pytest
import torch
from torch import Tensor

from clipkit import CLIP
from clipkit.checkpoints.layouts import (
    Layout,
    describe_mismatch,
    detect,
    from_canonical,
    to_canonical,
)
from clipkit.errors import (
    CorruptCheckpointError,
    StateDictMismatchError,
    UnsupportedCheckpointError,
)
from tests.helpers.models import assert_same_weights

# One block in OpenAI's names and in transformers'.
BLOCK = {
    "ln_1.weight": "layer_norm1.weight",
    "ln_1.bias": "layer_norm1.bias",
    "attn.out_proj.weight": "self_attn.out_proj.weight",
    "attn.out_proj.bias": "self_attn.out_proj.bias",
    "ln_2.weight": "layer_norm2.weight",
    "ln_2.bias": "layer_norm2.bias",
    "mlp.c_fc.weight": "mlp.fc1.weight",
    "mlp.c_fc.bias": "mlp.fc1.bias",
    "mlp.c_proj.weight": "mlp.fc2.weight",
    "mlp.c_proj.bias": "mlp.fc2.bias",
}
# Everything else of a ViT, as published: (canonical, OpenAI and open_clip, transformers).
REST = [
    ("logit_scale", "logit_scale", "logit_scale"),
    ("visual.class_embedding", "visual.class_embedding", "vision_model.embeddings.class_embedding"),
    (
        "visual.conv1.weight",
        "visual.conv1.weight",
        "vision_model.embeddings.patch_embedding.weight",
    ),
    (
        "visual.positional_embedding",
        "visual.positional_embedding",
        "vision_model.embeddings.position_embedding.weight",
    ),
    ("visual.ln_pre.weight", "visual.ln_pre.weight", "vision_model.pre_layrnorm.weight"),
    ("visual.ln_pre.bias", "visual.ln_pre.bias", "vision_model.pre_layrnorm.bias"),
    ("visual.ln_post.weight", "visual.ln_post.weight", "vision_model.post_layernorm.weight"),
    ("visual.ln_post.bias", "visual.ln_post.bias", "vision_model.post_layernorm.bias"),
    ("visual.proj", "visual.proj", "visual_projection.weight"),
    (
        "text.token_embedding.weight",
        "token_embedding.weight",
        "text_model.embeddings.token_embedding.weight",
    ),
    (
        "text.positional_embedding",
        "positional_embedding",
        "text_model.embeddings.position_embedding.weight",
    ),
    ("text.ln_final.weight", "ln_final.weight", "text_model.final_layer_norm.weight"),
    ("text.ln_final.bias", "ln_final.bias", "text_model.final_layer_norm.bias"),
    ("text.text_projection", "text_projection", "text_projection.weight"),
]
# The weights of one model by layout.
Published = dict[Layout, dict[str, Tensor]]

TOWERS = [("visual.", "visual.", "vision_model."), ("text.", "", "text_model.")]


@pytest.fixture(scope="module")
def published(vit: CLIP) -> Published:
    """Give the same weights in each layout."""
    canonical = vit.state_dict()
    openai: dict[str, Tensor] = {}
    transformers: dict[str, Tensor] = {}
    for ours, theirs, hf in REST:
        value = canonical[ours]
        openai[theirs] = value
        transformers[hf] = value.T.clone() if hf.endswith("projection.weight") else value
    for ours, theirs, hf in TOWERS:
        for layer in range(2):
            for leaf, hf_leaf in BLOCK.items():
                value = canonical[f"{ours}transformer.resblocks.{layer}.{leaf}"]
                openai[f"{theirs}transformer.resblocks.{layer}.{leaf}"] = value
                transformers[f"{hf}encoder.layers.{layer}.{hf_leaf}"] = value
            for kind in ("weight", "bias"):
                value = canonical[f"{ours}transformer.resblocks.{layer}.attn.in_proj_{kind}"]
                openai[f"{theirs}transformer.resblocks.{layer}.attn.in_proj_{kind}"] = value
                width = len(value) // 3
                # This is the order in the files.
                for letter, start in (("k", width), ("v", 2 * width), ("q", 0)):
                    name = f"{hf}encoder.layers.{layer}.self_attn.{letter}_proj.{kind}"
                    transformers[name] = value[start : start + width]
    return {"canonical": dict(canonical), "openai": openai, "transformers": transformers}


@pytest.mark.parametrize("layout", ["canonical", "openai", "transformers"])
def test_names_of_each_layout_both_ways(published: Published, layout: Layout) -> None:
    state = published[layout]
    assert detect(state) == layout
    before = {name: (value, value.clone()) for name, value in state.items()}
    assert_same_weights(to_canonical(state), published["canonical"])
    assert state.keys() == before.keys()  # the caller's dict and tensors are as they were
    assert all(state[name] is value for name, (value, _) in before.items())
    assert all(torch.equal(value, copy) for value, copy in before.values())

    written = from_canonical(published["canonical"], layout)
    assert_same_weights(written, state)
    assert all(value.is_contiguous() for value in written.values())


def test_resnet_names(resnet: CLIP) -> None:
    canonical = dict(resnet.state_dict())
    openai = from_canonical(canonical, "openai")
    assert detect(openai) == "openai"
    assert openai.keys() > {
        "visual.bn3.running_mean",
        "visual.layer2.0.downsample.0.weight",
        "visual.layer2.1.conv3.weight",
        "visual.attnpool.k_proj.bias",
        "transformer.resblocks.1.attn.in_proj_bias",
    }
    assert_same_weights(to_canonical(openai), canonical)


def test_what_is_no_weight_is_left_out(published: Published) -> None:
    sizes = {"input_resolution": 48, "context_length": 16, "vocab_size": 600}
    scalars = {name: torch.tensor(value) for name, value in sizes.items()}
    openai = published["openai"] | scalars | {"attn_mask": torch.zeros(16, 16)}
    assert_same_weights(to_canonical(openai), published["canonical"])
    custom_text = published["canonical"] | {"text.attn_mask": torch.zeros(16, 16)}
    assert_same_weights(to_canonical(custom_text), published["canonical"])
    names = [f"{tower}_model.embeddings.position_ids" for tower in ("vision", "text")]
    transformers = published["transformers"] | dict.fromkeys(names, torch.arange(4)[None])
    assert_same_weights(to_canonical(transformers), published["canonical"])


def test_logit_scale_of_one_element(published: Published) -> None:
    state = published["openai"] | {"logit_scale": torch.tensor([4.5])}
    assert torch.equal(to_canonical(state)["logit_scale"], torch.tensor(4.5))
    two = to_canonical(published["openai"] | {"logit_scale": torch.zeros(2)})
    problem = describe_mismatch(published["canonical"], two)
    assert problem
    assert "! logit_scale is (2,), the model has ()" in problem


def test_unknown_names_pass_to_be_reported(published: Published) -> None:
    for state in published.values():
        assert "surprise.weight" in to_canonical(state | {"surprise.weight": torch.zeros(1)})


def test_two_names_for_one_weight(published: Published) -> None:
    state = published["transformers"] | {"visual.proj": torch.zeros(96, 32)}
    with pytest.raises(
        StateDictMismatchError, match="two entries of the checkpoint mean 'visual.proj'"
    ):
        to_canonical(state)


def test_projections_that_do_not_go_together(published: Published) -> None:
    name = "vision_model.encoder.layers.1.self_attn.k_proj.weight"
    state = {key: value for key, value in published["transformers"].items() if key != name}
    with pytest.raises(
        StateDictMismatchError,
        match=r"resblocks\.1\.attn\.in_proj_weight.*only \['q', 'v'\] are there",
    ):
        to_canonical(state)
    for value in (torch.zeros(96, 95), torch.zeros(96), torch.tensor(0.0)):
        with pytest.raises(
            StateDictMismatchError, match=r"resblocks\.1\.attn\.in_proj_weight.* shapes"
        ):
            to_canonical(state | {name: value})


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("logit_bias", "'logit_bias' belongs to a SigLIP model"),
        ("visual.trunk.blocks.0.norm1.weight", "image tower is timm's .*ConvNeXt"),
        ("visual.blocks.0.attn.q_bias", "an EVA model"),
        ("visual.patch_embed.proj.weight", "an EVA model"),
        ("text_decoder.resblocks.0.ln_1.weight", "a CoCa model"),
        ("text.cls_emb", "a CoCa model"),
        ("visual.attn_pool.query", "a CoCa model"),
        ("text.transformer.embeddings.word_embeddings.weight", "RoBERTa, XLM or T5"),
        ("text.transformer.encoder.layer.0.output.dense.weight", "RoBERTa, XLM or T5"),
        ("image_encoder.model.patch_embed.0.block.conv.weight", "MobileCLIP"),
        ("visual.head.proj.weight", "MobileCLIP or a Swin"),
        ("visual.transformer.resblocks.0.ls_1.gamma", "layer scale"),
        ("vision_model.head.attention.in_proj_weight", "a SigLIP model"),
        ("vision_model.embeddings.patch_embedding.bias", "a SigLIP model"),
        ("visual.transformer.resblocks.0.mlp_mask", "pruned TinyCLIP"),
    ],
)
def test_another_models_key_among_a_clips(published: Published, key: str, reason: str) -> None:
    state = {key: torch.zeros(1)} | published["openai"]
    with pytest.raises(UnsupportedCheckpointError, match=f"not a plain CLIP: .*{reason}"):
        to_canonical(state)


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        (
            ["cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.norm1.weight"],
            "timm's image tower alone",
        ),
        (["stem.0.weight", "stages.0.blocks.0.conv_dw.weight"], "timm's image tower alone"),
        (["embeddings.class_embedding", "encoder.layers.0.mlp.fc1.weight"], "one tower alone"),
        (["vision_model.pre_layrnorm.weight", "visual_projection.weight"], "no text tower"),
        (["visual.conv1.weight", "visual.proj", "logit_scale"], "no text tower"),
        (["text_model.final_layer_norm.weight", "text_projection.weight"], "no image tower"),
        (["token_embedding.weight", "transformer.resblocks.0.ln_1.weight"], "no image tower"),
        (["text.token_embedding.weight", "text.ln_final.weight"], "no image tower"),
    ],
)
def test_one_tower_alone(keys: list[str], reason: str) -> None:
    with pytest.raises(UnsupportedCheckpointError, match=reason):
        detect(dict.fromkeys(keys, torch.zeros(1)))


def test_weights_of_something_else() -> None:
    state = {f"layer{n}.weight": torch.zeros(1) for n in range(7)}
    with pytest.raises(
        CorruptCheckpointError, match=r"not the weights of a CLIP: layer0\.weight, .*\(7 entries\)"
    ):
        detect(state)


def test_mismatch_prints_as_a_diff() -> None:
    expected = {"a": torch.zeros(2), "b": torch.zeros(3, 4), "c": torch.zeros(())}
    assert describe_mismatch(expected, dict(expected)) is None
    found = {"b": torch.zeros(4, 3), "c": torch.zeros(()), "d": torch.zeros(5)}
    assert describe_mismatch(expected, found) == (
        "weights do not fit the model (- missing, + unexpected, ! wrong):\n"
        "  - a (2,)\n  + d (5,)\n  ! b is (4, 3), the model has (3, 4)"
    )
    lines = (describe_mismatch({str(n): torch.zeros(1) for n in range(25)}, {}) or "").splitlines()
    assert len(lines) == 22
    assert lines[-1] == "  ... and 5 more"


@pytest.mark.parametrize(
    "wrong",
    [
        torch.ones(2, 2, dtype=torch.int8),
        torch.ones(2, 2, dtype=torch.complex64),
        torch.ones(2, 2).to_sparse(),
        torch.ones(2, 2, device="meta"),
    ],
)
def test_weights_that_are_no_dense_floats(wrong: Tensor) -> None:
    good = {"w": torch.ones(2, 2), "n": torch.tensor(0)}
    half = {"w": torch.ones(2, 2).half(), "n": torch.tensor(1)}
    assert describe_mismatch(good, half) is None
    assert "! w holds" in (describe_mismatch(good, good | {"w": wrong}) or "")
    assert "! n holds" in (describe_mismatch(good, good | {"n": torch.tensor(0.5)}) or "")
