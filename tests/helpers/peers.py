"""Make random models of open_clip and transformers, save them as theirs, and compare outputs.

The peers' configs are written here by hand, not by clipkit, so that neither can copy the other's
mistake.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import clipkit
from clipkit.checkpoints import registry
from clipkit.clip import CLIP
from clipkit.config import CLIPConfig, PreprocessConfig, ResNetConfig, TextConfig, ViTConfig
from clipkit.tokenizer import Tokenizer, default_merges
from tests.helpers.random_weights import assert_distinct, randomize, some_images, some_tokens

open_clip = pytest.importorskip("open_clip")
transformers = pytest.importorskip("transformers")
push_to_hf_hub = pytest.importorskip("open_clip.push_to_hf_hub")

# The largest absolute difference of unit vectors, and of logits at a scale of 100. On the small
# RN50x64 either library is 2.3e-4 off float64 in its logits, by oneDNN and by MKL alike.
FEATURES, LOGITS = 1e-5, 2e-4

FAMILIES = [
    *clipkit.available_models(),
    "ViT-B-32/laion2b_s34b_b79k",
    "ViT-B-32-256/datacomp_s34b_b86k",
    "ViT-B-16-plus-240/laion400m_e31",
    "ViT-L-14/laion2b_s32b_b82k",
    "ViT-H-14/laion2b_s32b_b79k",
    "ViT-H-14/dfn5b",
    "ViT-g-14/laion2b_s34b_b88k",
    "ViT-bigG-14/laion2b_s39b_b160k",
    "ViT-bigG-14/metaclip_2pt5b",
    "TinyCLIP-ViT-8M-16-Text-3M-YFCC15M",
]
VITS = [name for name in FAMILIES if isinstance(registry.MODELS[name].config.vision, ViTConfig)]
VOCAB = 640


def small(name: str) -> CLIPConfig:
    """Return a published config at a quarter of a ResNet's width, or with two heads of a ViT's."""
    config = registry.MODELS[name].config
    vision, text = config.vision, config.text
    if isinstance(vision, ResNetConfig):
        layers: Any = tuple(-(-n // 4) for n in vision.layers)
        side = 32 * (vision.grid[0] // 3)
        vision = replace(vision, width=vision.width // 4, layers=layers, resolution=(side, side))
    else:
        side = 3 * vision.patch_size + vision.resolution[0] % 5
        vision = replace(
            vision, width=2 * vision.head_width, layers=vision.layers // 4, resolution=(side, side)
        )
    text = replace(text, width=128, layers=text.layers // 3, vocab_size=VOCAB, context_length=24)
    return replace(config, embed_dim=48, vision=vision, text=text)


# What the peers would have written.


def open_clip_config(config: CLIPConfig) -> dict[str, Any]:
    """Return a `model_cfg` as in open_clip's own files, which leave out defaults."""
    vision, text = config.vision, config.text
    heads = {} if vision.head_width == 64 else {"head_width": vision.head_width}
    if isinstance(vision, ViTConfig):
        heads |= {} if vision.mlp_ratio == 4.0 else {"mlp_ratio": vision.mlp_ratio}
    cfg: dict[str, Any] = {
        "embed_dim": config.embed_dim,
        "vision_cfg": {
            "image_size": vision.resolution[0],
            "layers": list(vision.layers) if isinstance(vision, ResNetConfig) else vision.layers,
            "width": vision.width,
            "patch_size": getattr(vision, "patch_size", None),
            **heads,
        },
        "text_cfg": {
            "context_length": text.context_length,
            "vocab_size": text.vocab_size,
            "width": text.width,
            "heads": text.width // text.head_width,
            "layers": text.layers,
        },
    }
    return cfg | ({"quick_gelu": True} if text.activation == "quick_gelu" else {})


def save_open_clip(
    model_cfg: dict[str, Any], preprocess: PreprocessConfig, folder: Path, **options: Any
) -> nn.Module:
    """Return a random model of open_clip's, and save it as its `push_to_hf_hub` does."""
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": model_cfg, "preprocess_cfg": {}})
    )
    model = randomize(open_clip.create_model(f"local-dir:{folder}", load_weights=False, **options))
    open_clip.model.set_model_preprocess_cfg(model, vars(preprocess))
    push_to_hf_hub.save_config_for_hf(model, folder / "open_clip_config.json", model_cfg)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return model


def transformers_config(config: CLIPConfig, eos_token_id: int) -> Any:
    """Return the CLIPConfig of transformers for a model with a vision transformer."""
    vision, text = config.vision, config.text
    assert isinstance(vision, ViTConfig)

    def tower(part: ViTConfig | TextConfig) -> dict[str, Any]:
        return {
            "hidden_size": part.width,
            "intermediate_size": int(part.width * part.mlp_ratio),
            "num_hidden_layers": part.layers,
            "num_attention_heads": part.width // part.head_width,
            "hidden_act": part.activation,
        }

    side = vision.resolution[0]
    return transformers.CLIPConfig(
        projection_dim=config.embed_dim,
        vision_config=tower(vision) | {"image_size": side, "patch_size": vision.patch_size},
        text_config=tower(text)
        | {
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.context_length,
            "bos_token_id": text.vocab_size - 2,
            "eos_token_id": eos_token_id,
            "pad_token_id": text.vocab_size - 1,
        },
    )


def save_processor(config: CLIPConfig, folder: Path) -> None:
    """Save transformers' image processor for a model of ours."""
    preprocess, side = config.preprocess, config.vision.resolution[0]
    transformers.CLIPImageProcessor(
        size={"height": side, "width": side}
        if preprocess.resize_mode == "squash"
        else {"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=preprocess.mean,
        image_std=preprocess.std,
    ).save_pretrained(folder)


# The comparison.

Outputs = tuple[Tensor, Tensor, Tensor]  # unit image features, unit text features, logits per image


@torch.no_grad()
def outputs_of(model: Any, images: Tensor, tokens: Tensor) -> Outputs:
    """Return what a model of any of the three libraries computes."""
    if isinstance(model, transformers.CLIPModel):
        out = model(input_ids=tokens, pixel_values=images)
        return out.image_embeds, out.text_embeds, out.logits_per_image
    if isinstance(model, CLIP):
        return (
            model.encode_image(images, normalize=True),
            model.encode_text(tokens, True),
            model(images, tokens)[0],
        )
    image_features, text_features, scale = model(images, tokens)
    return image_features, text_features, scale * image_features @ text_features.T


def inputs_for(config: CLIPConfig, count: int = 4, pad: int = 0) -> tuple[Tensor, Tensor]:
    """Return images and token ids for a model."""
    images = some_images(count, config.vision.resolution)
    return images, some_tokens(count, config.text.context_length, config.text.vocab_size, pad=pad)


def assert_equal(found: Outputs, expected: Outputs) -> None:
    """Fail unless the outputs are equal to float32's tolerance, and would tell models apart."""
    for features in expected[:2]:
        assert_distinct(features)
    assert expected[2].max() - expected[2].min() > 5
    differences = [
        float((one - other).abs().max()) for one, other in zip(found, expected, strict=True)
    ]
    print(
        "largest differences of image features, text features, logits:",
        *(f"{value:.1e}" for value in differences),
    )
    assert max(differences[:2]) < FEATURES, differences
    assert differences[2] < LOGITS, differences


def with_tokenizer(model: CLIP) -> CLIP:
    """Return the model with a tokenizer that has as many tokens. transformers' files name it."""
    tokenizer = Tokenizer(default_merges()[: model.vocab_size - 514], model.context_length)
    twin = CLIP(model.config, tokenizer)
    twin.load_state_dict(model.state_dict())
    return twin.eval()
