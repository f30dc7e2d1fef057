"""The layouts in which CLIP weights are published, as tables of names, read and written.

Canonical names are `visual.*`, `text.*` and `logit_scale` with OpenAI's leaf names. OpenAI's files (and open_clip's)
keep the text tower at the top level; open_clip's "custom text" files are canonical already; transformers renames
everything, splits the fused projections and transposes both output projections.
"""

import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from clipkit.errors import (
    CorruptCheckpointError,
    StateDictMismatchError,
    UnsupportedCheckpointError,
)

Layout = Literal["canonical", "openai", "transformers"]

# Kept in files, not part of the model.
IGNORED = re.compile(
    r"input_resolution|context_length|vocab_size|(.+\.)?attn_mask|(vision|text)_model\.embeddings\.position_ids"
)

# OpenAI's top-level text names; canonical ones have `text.` before them.
OPENAI_TEXT = (
    "token_embedding.",
    "positional_embedding",
    "transformer.",
    "ln_final.",
    "text_projection",
)

# canonical <-> transformers; a name that ends in "." stands for all below it.
TRANSFORMERS = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.": "vision_model.pre_layrnorm.",  # spelt so
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
    "visual.ln_post.": "vision_model.post_layernorm.",
    "visual.proj": "visual_projection.weight",
    "text.token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "text.positional_embedding": "text_model.embeddings.position_embedding.weight",
    "text.transformer.resblocks.": "text_model.encoder.layers.",
    "text.ln_final.": "text_model.final_layer_norm.",
    "text.text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
TRANSFORMERS_BLOCK = {
    "ln_1.": "layer_norm1.",
    "attn.out_proj.": "self_attn.out_proj.",
    "ln_2.": "layer_norm2.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
}
TRANSPOSED = {"visual.proj", "text.text_projection"}
FROM_TRANSFORMERS, FROM_TRANSFORMERS_BLOCK = (
    {theirs: ours for ours, theirs in table.items()} for table in (TRANSFORMERS, TRANSFORMERS_BLOCK)
)

# The dtypes in which a weight and a counter may be stored; what is quantised or complex is no plain weight.
WEIGHT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COUNTER_DTYPES = (torch.int64, torch.int32)

# What a key that matches says about the model, for weights that are not a plain CLIP.
NOT_PLAIN = {
    r"logit_bias$": "a SigLIP model, whose loss and towers differ",
    r"text_decoder\.|text\.cls_emb|visual\.attn_pool\.": "a CoCa model, with a decoder or an attentional pool",
    r"visual\.trunk\.": "a model whose image tower is timm's (ConvNeXt, SigLIP, EVA, ViTamin, MobileCLIP, PE-Core)",
    r"visual\.(blocks|patch_embed)\.|.*\.rope": "an EVA model",
    r"visual\.head\.|image_encoder\.model\.": "a model with another image tower, such as MobileCLIP or a Swin",
    r"text\.transformer\.(embeddings|encoder|shared)\.|roberta\.": "a model whose text tower is RoBERTa, XLM or T5",
    r".*\.ls_1\.gamma|.*\.inner_attn_ln": "a model with layer scale or extra norms in its blocks",
    r"vision_model\.head\.|vision_model\.embeddings\.patch_embedding\.bias": "a SigLIP model",
    r".*(mask_|_mask$|hard_concrete|l0_module)": "a pruned TinyCLIP 'auto' model",
    r"(cls_token|pos_embed|patch_embed\.|stages\.|blocks\.)": "timm's image tower alone: there is no text tower",
    r"(embeddings|encoder)\.": "one tower alone: a CLIP needs both",
}


def detect(state_dict: Mapping[str, Tensor]) -> Layout:
    """Which layout the names are in.

    Raises:
        UnsupportedCheckpointError: for a model that is not a plain CLIP, with the reason.
        CorruptCheckpointError: for names that belong to no CLIP at all.
    """
    for pattern, reason in NOT_PLAIN.items():
        for key in state_dict:
            if re.match(pattern, key):
                raise UnsupportedCheckpointError(
                    f"these weights are not a plain CLIP: {key!r} belongs to {reason}"
                )
    vision = any(key.startswith(("vision_model.", "visual.")) for key in state_dict)
    text = any(key.startswith(("text_model.", "text.", "token_embedding.")) for key in state_dict)
    if vision and not text or text and not vision:
        missing = "text" if vision else "image"
        raise UnsupportedCheckpointError(
            f"these weights have no {missing} tower: a CLIP needs both"
        )
    if not vision:
        shown = ", ".join(sorted(state_dict)[:5]) + (
            f", ... ({len(state_dict)} entries)" if len(state_dict) > 5 else ""
        )
        raise CorruptCheckpointError(f"these are not the weights of a CLIP: {shown}")
    if any(key.startswith("vision_model.") for key in state_dict):
        return "transformers"
    return "canonical" if any(key.startswith("text.") for key in state_dict) else "openai"


def to_canonical(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights of any known layout. Names that are in no table pass unchanged, to be reported as unexpected.

    The caller's mapping and tensors are not changed; transposed projections are views.

    Raises:
        StateDictMismatchError: if two names mean the same weight, or q, k and v are not all there.
        UnsupportedCheckpointError, CorruptCheckpointError: as `detect`.
    """
    source = {key: value for key, value in state_dict.items() if not IGNORED.fullmatch(key)}
    layout = detect(source)
    out: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}  # fused name -> q, k, v
    for key, value in source.items():
        name = key
        if layout == "openai" and key.startswith(OPENAI_TEXT):
            name = "text." + key
        elif layout == "transformers":
            name = _rename(key, FROM_TRANSFORMERS)
            split = re.fullmatch(
                r"(.+\.resblocks\.\d+\.)self_attn\.([qkv])_proj\.(weight|bias)", name
            )
            if split:
                parts.setdefault(f"{split[1]}attn.in_proj_{split[3]}", {})[split[2]] = value
                continue
            name = _rename_block(name, FROM_TRANSFORMERS_BLOCK)
            value = value.T if name in TRANSPOSED and value.ndim == 2 else value
        if name in out:
            raise StateDictMismatchError(
                f"two entries of the checkpoint mean {name!r}; the second is {key!r}"
            )
        out[name] = value
    for name, qkv in parts.items():
        if set(qkv) != set("qkv"):
            raise StateDictMismatchError(
                f"{name!r} needs the q, k and v projections, but only {sorted(qkv)} are there"
            )
        shapes = {part: tuple(value.shape) for part, value in qkv.items()}
        if len(set(shapes.values())) > 1 or () in shapes.values():
            raise StateDictMismatchError(
                f"{name!r} cannot be made of projections of the shapes {shapes}"
            )
        out[name] = torch.cat([qkv["q"], qkv["k"], qkv["v"]])
    if "logit_scale" in out and out["logit_scale"].numel() == 1:
        out["logit_scale"] = out["logit_scale"].reshape(())  # some files hold shape (1,)
    return out


def from_canonical(state_dict: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Rename canonical weights into a layout, the inverse of `to_canonical`. Tensors are contiguous."""
    out: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        name = key
        if layout == "openai":
            name = key.removeprefix("text.")
        elif layout == "transformers":
            name = _rename(key, TRANSFORMERS)
            fused = re.fullmatch(r"(.+)\.attn\.in_proj_(weight|bias)", name)
            if fused:
                for part, piece in zip("qkv", value.chunk(3), strict=True):
                    out[f"{fused[1]}.self_attn.{part}_proj.{fused[2]}"] = piece.contiguous()
                continue
            name = _rename_block(name, TRANSFORMERS_BLOCK)
            value = value.T if key in TRANSPOSED else value
        out[name] = value.contiguous()
    return out


def describe_mismatch(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """A readable diff of names and shapes, or None if they agree. `-` is missing, `+` unexpected, `!` wrong."""
    lines = [
        f"  - {key} {tuple(expected[key].shape)}" for key in sorted(expected.keys() - found.keys())
    ]
    lines += [
        f"  + {key} {tuple(found[key].shape)}" for key in sorted(found.keys() - expected.keys())
    ]
    for key in sorted(expected.keys() & found.keys()):
        ours, theirs = expected[key], found[key]
        dtypes = WEIGHT_DTYPES if ours.is_floating_point() else COUNTER_DTYPES
        if ours.shape != theirs.shape:
            lines.append(f"  ! {key} is {tuple(theirs.shape)}, the model has {tuple(ours.shape)}")
        elif theirs.layout != torch.strided or theirs.is_meta or theirs.dtype not in dtypes:
            lines.append(
                f"  ! {key} holds {theirs.dtype} ({theirs.layout}, on {theirs.device}), not dense numbers"
            )
    if not lines:
        return None
    shown = lines[:20] + ([f"  ... and {len(lines) - 20} more"] if len(lines) > 20 else [])
    return "\n".join(["weights do not fit the model (- missing, + unexpected, ! wrong):", *shown])


def _rename(key: str, table: Mapping[str, str]) -> str:
    for old, new in table.items():
        if key == old or (old.endswith(".") and key.startswith(old)):
            return new + key[len(old) :]
    return key


def _rename_block(key: str, table: Mapping[str, str]) -> str:
    """Rename what lies inside a block, the blocks themselves being named in either layout."""
    return re.sub(
        r"(\.(?:resblocks|layers)\.\d+\.)(.+)", lambda m: m[1] + _rename(m[2], table), key
    )
