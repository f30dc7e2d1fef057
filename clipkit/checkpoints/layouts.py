"""Rename weights between the layouts in which CLIP is published; the names are tables.

Canonical names are `visual.*`, `text.*` and `logit_scale` with OpenAI's leaf names. OpenAI's files
(and open_clip's) keep the text tower at the top level. open_clip's "custom text" files are
canonical already. transformers renames everything, splits the fused projections and transposes both
output projections.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

from clipkit.errors import (
    CorruptCheckpointError,
    StateDictMismatchError,
    UnsupportedCheckpointError,
)
from clipkit.plurals import number_of

Layout = Literal["canonical", "openai", "transformers"]

# Files hold these beside the weights, but they are not part of the model.
IGNORED = re.compile(
    r"input_resolution|context_length|vocab_size"
    r"|(.+\.)?attn_mask"
    r"|(vision|text)_model\.embeddings\.position_ids"
)

# OpenAI's text names at the top level; canonical ones have `text.` before them.
OPENAI_TEXT = (
    "token_embedding.",
    "positional_embedding",
    "transformer.",
    "ln_final.",
    "text_projection",
)

# Canonical names, and those of transformers. A name that ends in "." stands for all below it.
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
FROM_TRANSFORMERS = {theirs: ours for ours, theirs in TRANSFORMERS.items()}
FROM_TRANSFORMERS_BLOCK = {theirs: ours for ours, theirs in TRANSFORMERS_BLOCK.items()}

# The dtypes in which a weight and a counter may be stored. Nothing quantized or complex is a plain
# weight.
WEIGHT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COUNTER_DTYPES = (torch.int64, torch.int32)

# A key that matches one of these tells that the model is not a plain CLIP, and which it is.
NOT_PLAIN = {
    r"logit_bias$": "a SigLIP model, whose loss and towers differ",
    r"text_decoder\.|text\.cls_emb|visual\.attn_pool\.": (
        "a CoCa model, with a decoder or an attentional pool"
    ),
    r"visual\.trunk\.": (
        "a model whose image tower is timm's (ConvNeXt, SigLIP, EVA, ViTamin, MobileCLIP, PE-Core)"
    ),
    r"visual\.(blocks|patch_embed)\.|.*\.rope": "an EVA model",
    r"visual\.head\.|image_encoder\.model\.": (
        "a model with another image tower, such as MobileCLIP or a Swin"
    ),
    r"text\.transformer\.(embeddings|encoder|shared)\.|roberta\.": (
        "a model whose text tower is RoBERTa, XLM or T5"
    ),
    r".*\.ls_1\.gamma|.*\.inner_attn_ln": "a model with layer scale or extra norms in its blocks",
    r"vision_model\.head\.|vision_model\.embeddings\.patch_embedding\.bias": "a SigLIP model",
    r".*(hard_concrete|l0_module)|(visual|text|transformer|vision_model|text_model|image_encoder|"
    r"text_encoder)[._].*(mask_|_mask$)": "a pruned TinyCLIP 'auto' model",
}

# Such a name tells of one tower alone. Beside both towers of a CLIP it is a head's.
ONE_TOWER = {
    r"(cls_token|pos_embed|patch_embed\.|stages\.|blocks\.)": (
        "timm's image tower alone: there is no text tower"
    ),
    r"(embeddings|encoder)\.": "one tower alone: a CLIP needs both",
}


# Where layers are numbered, and what they are the layers of.
_DEPTHS = {
    "the image tower": "visual.transformer.resblocks.",
    "the text tower": "text.transformer.resblocks.",
    **{f"stage {n} of the image tower": f"visual.layer{n}." for n in (1, 2, 3, 4)},
}

# Every name of a CLIP begins with one of these, in any layout. `logit_bias` tells another model.
_TOPS = (
    "visual.",
    "visual_projection.",
    "vision_model.",
    "text.",
    "text_model.",
    *OPENAI_TEXT,
    "logit_scale",
    "logit_bias",
)


def is_beside(name: str) -> bool:
    """Return whether a name, beside both towers of a CLIP, is that of something else.

    Example:
        >>> is_beside("head.weight"), is_beside("visual.proj")
        (True, False)
    """
    if name.startswith(_TOPS) or IGNORED.fullmatch(name):
        return False
    return not any(re.match(pattern, name) for pattern in NOT_PLAIN)


def detect(state_dict: Mapping[str, Tensor]) -> Layout:
    """Return the layout that the names are in.

    Raises:
        UnsupportedCheckpointError: for a model that is not a plain CLIP, with the reason.
        CorruptCheckpointError: for names that belong to no CLIP at all.
    """
    _refuse_other_models(state_dict)
    vision = _any_starts(state_dict, "vision_model.", "visual.")
    text = _any_starts(state_dict, "text_model.", "text.", "token_embedding.")
    if vision != text:
        missing = "text" if vision else "image"
        raise UnsupportedCheckpointError(
            f"these weights have no {missing} tower: a CLIP needs both"
        )
    if not vision:
        shown = ", ".join(sorted(state_dict)[:5])
        if len(state_dict) > 5:
            shown += f", ... ({len(state_dict)} entries)"
        raise CorruptCheckpointError(f"these are not the weights of a CLIP: {shown}")
    if _any_starts(state_dict, "vision_model."):
        return "transformers"
    return "canonical" if _any_starts(state_dict, "text.") else "openai"


def _refuse_other_models(names: Iterable[str]) -> None:
    """Raise `UnsupportedCheckpointError` if a name belongs to a model that is not a plain CLIP."""
    names = list(names)
    for pattern, reason in (NOT_PLAIN | ONE_TOWER).items():
        for name in names:
            if re.match(pattern, name):
                raise UnsupportedCheckpointError(
                    f"these weights are not a plain CLIP: {name!r} belongs to {reason}"
                )


def _any_starts(names: Iterable[str], *prefixes: str) -> bool:
    return any(name.startswith(prefixes) for name in names)


def to_canonical(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights of any known layout to canonical names.

    Names that are in no table pass unchanged, to be reported as unexpected. The caller's mapping
    and tensors are not changed. Transposed projections are views.

    Raises:
        StateDictMismatchError: if two names mean the same weight, or q, k and v are not all there.
        UnsupportedCheckpointError, CorruptCheckpointError: as `detect`.
    """
    source = {key: value for key, value in state_dict.items() if not IGNORED.fullmatch(key)}
    return rename(source, detect(source))


def rename(source: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Rename weights of a layout, of a whole model or of a part of one, to canonical names.

    Nothing of `source` is ignored.

    Raises:
        StateDictMismatchError: as `to_canonical`.
    """
    canonical: dict[str, Tensor] = {}
    # The name of a fused projection, and its parts q, k and v.
    split: dict[str, dict[str, Tensor]] = {}
    for key, value in source.items():
        name = _canonical_name(key, layout)
        part = re.fullmatch(r"(.+\.resblocks\.\d+\.)self_attn\.([qkv])_proj\.(weight|bias)", name)
        if part and layout == "transformers":
            split.setdefault(f"{part[1]}attn.in_proj_{part[3]}", {})[part[2]] = value
            continue
        if name in canonical:
            raise StateDictMismatchError(
                f"two entries of the checkpoint mean {name!r}; the second is {key!r}"
            )
        transposed = layout == "transformers" and name in TRANSPOSED and value.ndim == 2
        canonical[name] = value.T if transposed else value  # (D, W) -> (W, D)
    for name, parts in split.items():
        canonical[name] = _fuse(name, parts)
    scale = canonical.get("logit_scale")
    if scale is not None and scale.numel() == 1:
        canonical["logit_scale"] = scale.reshape(())  # some files hold shape (1,)
    return canonical


def _canonical_name(key: str, layout: Layout) -> str:
    """Return the canonical name of a key, or the key itself if no table has it.

    The parts of transformers' split projections keep `self_attn` in their names.
    """
    if layout == "openai" and key.startswith(OPENAI_TEXT):
        return "text." + key
    if layout == "transformers":
        return _rename_block(_rename(key, FROM_TRANSFORMERS), FROM_TRANSFORMERS_BLOCK)
    return key


def _fuse(name: str, parts: Mapping[str, Tensor]) -> Tensor:
    """Join the projections q, k and v, (W, ...) each, to one of (3 W, ...)."""
    if set(parts) != set("qkv"):
        raise StateDictMismatchError(
            f"{name!r} needs the q, k and v projections, but only {sorted(parts)} are there"
        )
    shapes = {part: tuple(value.shape) for part, value in parts.items()}
    if len(set(shapes.values())) > 1 or () in shapes.values():
        raise StateDictMismatchError(
            f"{name!r} cannot be made of projections of the shapes {shapes}"
        )
    return torch.cat([parts["q"], parts["k"], parts["v"]])


def from_canonical(state_dict: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Rename canonical weights into a layout, the inverse of `to_canonical`.

    Returns:
        Contiguous tensors by the layout's names.
    """
    if layout == "transformers":
        return _to_transformers(state_dict)
    prefix = "text." if layout == "openai" else ""
    return {key.removeprefix(prefix): value.contiguous() for key, value in state_dict.items()}


def _to_transformers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename canonical weights to transformers' names, with split and transposed projections."""
    renamed: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        name = _rename(key, TRANSFORMERS)
        fused = re.fullmatch(r"(.+)\.attn\.in_proj_(weight|bias)", name)
        if fused:
            for part, piece in zip("qkv", value.chunk(3), strict=True):  # (3 W, ...) -> (W, ...)
                renamed[f"{fused[1]}.self_attn.{part}_proj.{fused[2]}"] = piece.contiguous()
            continue
        name = _rename_block(name, TRANSFORMERS_BLOCK)
        value = value.T if key in TRANSPOSED else value  # (W, D) -> (D, W)
        renamed[name] = value.contiguous()
    return renamed


def describe_mismatch(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """Return a readable diff of names and shapes, or None if they agree.

    `-` marks what is missing, `+` what is unexpected, and `!` what is wrong.
    """
    missing = sorted(expected.keys() - found.keys())
    unexpected = sorted(found.keys() - expected.keys())
    lines = _describe_depths(expected, found)
    lines += [f"  - {key} {tuple(expected[key].shape)}" for key in missing]
    lines += [f"  + {key} {tuple(found[key].shape)}" for key in unexpected]
    for key in sorted(expected.keys() & found.keys()):
        problem = _describe_weight(expected[key], found[key])
        if problem:
            lines.append(f"  ! {key} {problem}")
    if not lines:
        return None
    shown = lines[:20]
    if len(lines) > 20:
        shown.append(f"  ... and {len(lines) - 20} more")
    return "\n".join(["weights do not fit the model (- missing, + unexpected, ! wrong):", *shown])


def count_parts(names: Iterable[str], prefix: str) -> int:
    """Count the numbered parts below a prefix, such as the blocks of a tower."""
    return len({name[len(prefix) :].split(".")[0] for name in names if name.startswith(prefix)})


def _kind_of_image_tower(names: Iterable[str]) -> str:
    return "ResNet" if _any_starts(names, "visual.layer1.") else "ViT"


def _describe_depths(expected: Iterable[str], found: Iterable[str]) -> list[str]:
    """Say where a tower is of another kind or depth, which explains all lines about its layers."""
    lines: list[str] = []
    # Counters are added to weights that lack them, and so say nothing about the weights.
    weights = [name for name in found if not name.endswith("num_batches_tracked")]
    has_kind, needs_kind = _kind_of_image_tower(weights), _kind_of_image_tower(expected)
    if has_kind != needs_kind:
        lines.append(f"  ! the image tower is a {has_kind}, the model's a {needs_kind}")
    for part, prefix in _DEPTHS.items():
        has, needs = count_parts(weights, prefix), count_parts(expected, prefix)
        if has != needs and has and needs:
            lines.append(f"  ! {part} has {number_of(has, 'layer')}, the model {needs}")
    return lines


def _describe_weight(expected: Tensor, found: Tensor) -> str | None:
    """Say what is wrong with a weight: its shape, or numbers that are not plain and dense."""
    if expected.shape != found.shape:
        return f"is {tuple(found.shape)}, the model has {tuple(expected.shape)}"
    dtypes = WEIGHT_DTYPES if expected.is_floating_point() else COUNTER_DTYPES
    if found.layout != torch.strided or found.is_meta or found.dtype not in dtypes:
        return f"holds {found.dtype} ({found.layout}, on {found.device}), not dense numbers"
    return None


def _rename(key: str, table: Mapping[str, str]) -> str:
    """Replace the name, or the beginning of it, that the table has."""
    for old, new in table.items():
        if key == old or (old.endswith(".") and key.startswith(old)):
            return new + key[len(old) :]
    return key


def _rename_block(key: str, table: Mapping[str, str]) -> str:
    """Rename the part of a key that lies inside a block. The blocks may have either name."""
    return re.sub(
        r"(\.(?:resblocks|layers)\.\d+\.)(.+)",
        lambda match: match[1] + _rename(match[2], table),
        key,
    )
