"""List the published plain-CLIP checkpoints, and find them by name.

Each row says what a checkpoint is made of, where it lies, and its checksum. Sources: openai/CLIP
(model table, checksums), open_clip 3.3 (model configs and pretrained tags), and the model cards of
the hub repositories named in the rows. Activations and head widths cannot be read from weights, so
they stand here.
"""

import difflib
import os
import re
from dataclasses import dataclass, replace
from typing import Literal

from clipkit.config import (
    Activation,
    CLIPConfig,
    PreprocessConfig,
    ResNetConfig,
    TextConfig,
    ViTConfig,
)
from clipkit.errors import ConfigError, UnknownModelError, UnsupportedCheckpointError

OPENAI_ARCHIVES = "https://openaipublic.azureedge.net/clip/models/{sha256}/{file}"


@dataclass(frozen=True)
class Model:
    """Describe a published checkpoint.

    Attributes:
        name: as `clipkit.load` takes it.
        config: the architecture and the preprocessing.
        hub: a repository in open_clip's layout, or in transformers' where that is the only one.
        license: of the weights.
        layout: of the repository.
        openai: (file, SHA-256) of OpenAI's own archive, for OpenAI's models.
    """

    name: str
    config: CLIPConfig
    hub: str
    license: str = "MIT"
    layout: Literal["open_clip", "transformers"] = "open_clip"
    openai: tuple[str, str] | None = None


def _resnet(
    embed: int, layers: tuple[int, int, int, int], width: int, size: int, text: int
) -> CLIPConfig:
    """Describe a model with a ResNet. `text` is the width of the text tower."""
    return CLIPConfig(
        embed_dim=embed,
        vision=ResNetConfig(resolution=(size, size), layers=layers, width=width),
        text=TextConfig(width=text, layers=12, activation="quick_gelu"),
    )


def _vit(
    embed: int,
    width: int,
    layers: int,
    patch: int,
    text: int,
    text_layers: int = 12,
    *,
    size: int = 224,
    head_width: int = 64,
    mlp_ratio: float = 4.0,
) -> CLIPConfig:
    """Describe a model with a vision transformer and QuickGELU in both towers."""
    return CLIPConfig(
        embed_dim=embed,
        vision=ViTConfig(
            resolution=(size, size),
            patch_size=patch,
            width=width,
            layers=layers,
            activation="quick_gelu",
            head_width=head_width,
            mlp_ratio=mlp_ratio,
        ),
        text=TextConfig(width=text, layers=text_layers, activation="quick_gelu"),
    )


def _gelu(config: CLIPConfig) -> CLIPConfig:
    """Return the same model with GELU in both towers. A ResNet has no activation to choose."""
    vision = config.vision
    if isinstance(vision, ViTConfig):
        vision = replace(vision, activation="gelu")
    return replace(config, vision=vision, text=replace(config.text, activation="gelu"))


RN50 = _resnet(1024, (3, 4, 6, 3), 64, 224, 512)
RN101 = _resnet(512, (3, 4, 23, 3), 64, 224, 512)
RN50X4 = _resnet(640, (4, 6, 10, 6), 80, 288, 640)
RN50X16 = _resnet(768, (6, 8, 18, 8), 96, 384, 768)
RN50X64 = _resnet(1024, (3, 15, 36, 10), 128, 448, 1024)
B32 = _vit(512, 768, 12, 32, 512)
B32_256 = _vit(512, 768, 12, 32, 512, size=256)
B16 = _vit(512, 768, 12, 16, 512)
B16_PLUS = _vit(640, 896, 12, 16, 640, size=240)
L14 = _vit(768, 1024, 24, 14, 768)
L14_336 = _vit(768, 1024, 24, 14, 768, size=336)
H14 = _vit(1024, 1280, 32, 14, 1024, 24, head_width=80)
H14_378 = _vit(1024, 1280, 32, 14, 1024, 24, size=378, head_width=80)
G14 = _vit(1024, 1408, 40, 14, 1024, 24, head_width=88, mlp_ratio=4.3637)
BIGG14 = _vit(1280, 1664, 48, 14, 1280, 32, head_width=104, mlp_ratio=4.9231)

HALF = PreprocessConfig(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
SQUASH = PreprocessConfig(resize_mode="squash")
NC = "CC-BY-NC-4.0"

# SHA-256 of OpenAI's nine archives (github.com/openai/CLIP, clip/clip.py)
SHA256 = {
    "RN50": "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
    "RN101": "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599",
    "RN50x4": "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd",
    "RN50x16": "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa",
    "RN50x64": "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c",
    "ViT-B/32": "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    "ViT-B/16": "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
    "ViT-L/14": "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
    "ViT-L/14@336px": "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
}


def _openai(name: str, config: CLIPConfig, hub: str) -> Model:
    """Make the row of one of OpenAI's models."""
    file = re.sub("[/@]", "-", name) + ".pt"
    return Model(name, config, f"timm/{hub}.openai", openai=(file, SHA256[name]))


_ROWS = (
    # OpenAI (2103.00020)
    _openai("RN50", RN50, "resnet50_clip"),
    _openai("RN101", RN101, "resnet101_clip"),
    _openai("RN50x4", RN50X4, "resnet50x4_clip"),
    _openai("RN50x16", RN50X16, "resnet50x16_clip"),
    _openai("RN50x64", RN50X64, "resnet50x64_clip"),
    _openai("ViT-B/32", B32, "vit_base_patch32_clip_224"),
    _openai("ViT-B/16", B16, "vit_base_patch16_clip_224"),
    _openai("ViT-L/14", L14, "vit_large_patch14_clip_224"),
    _openai("ViT-L/14@336px", L14_336, "vit_large_patch14_clip_336"),
    # LAION-400M, YFCC15M, CC12M (open_clip; the B/32 runs used QuickGELU, the others did not)
    Model("ViT-B-32/laion400m_e31", B32, "timm/vit_base_patch32_clip_224.laion400m_e31"),
    Model("ViT-B-32/laion400m_e32", B32, "timm/vit_base_patch32_clip_224.laion400m_e32"),
    Model("ViT-B-16/laion400m_e31", _gelu(B16), "timm/vit_base_patch16_clip_224.laion400m_e31"),
    Model("ViT-B-16/laion400m_e32", _gelu(B16), "timm/vit_base_patch16_clip_224.laion400m_e32"),
    Model("ViT-L-14/laion400m_e31", _gelu(L14), "timm/vit_large_patch14_clip_224.laion400m_e31"),
    Model("ViT-L-14/laion400m_e32", _gelu(L14), "timm/vit_large_patch14_clip_224.laion400m_e32"),
    Model(
        "ViT-B-16-plus-240/laion400m_e31",
        _gelu(B16_PLUS),
        "timm/vit_base_patch16_plus_clip_240.laion400m_e31",
    ),
    Model("RN50/yfcc15m", RN50, "timm/resnet50_clip.yfcc15m"),
    Model("RN50/cc12m", RN50, "timm/resnet50_clip.cc12m"),
    Model("RN101/yfcc15m", RN101, "timm/resnet101_clip.yfcc15m"),
    # LAION-2B (laion.ai; L/14 alone was trained with mean = std = 0.5)
    Model("ViT-B-32/laion2b_s34b_b79k", _gelu(B32), "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
    Model("ViT-B-16/laion2b_s34b_b88k", _gelu(B16), "laion/CLIP-ViT-B-16-laion2B-s34B-b88K"),
    Model(
        "ViT-L-14/laion2b_s32b_b82k",
        replace(_gelu(L14), preprocess=HALF),
        "laion/CLIP-ViT-L-14-laion2B-s32B-b82K",
    ),
    Model("ViT-H-14/laion2b_s32b_b79k", _gelu(H14), "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"),
    Model("ViT-g-14/laion2b_s12b_b42k", _gelu(G14), "laion/CLIP-ViT-g-14-laion2B-s12B-b42K"),
    Model("ViT-g-14/laion2b_s34b_b88k", _gelu(G14), "laion/CLIP-ViT-g-14-laion2B-s34B-b88K"),
    Model(
        "ViT-bigG-14/laion2b_s39b_b160k", _gelu(BIGG14), "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k"
    ),
    # DataComp (2304.14108)
    Model(
        "ViT-B-32/datacomp_xl_s13b_b90k", _gelu(B32), "laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K"
    ),
    Model(
        "ViT-B-32-256/datacomp_s34b_b86k",
        _gelu(B32_256),
        "laion/CLIP-ViT-B-32-256x256-DataComp-s34B-b86K",
    ),
    Model(
        "ViT-B-16/datacomp_xl_s13b_b90k", _gelu(B16), "laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K"
    ),
    Model(
        "ViT-L-14/datacomp_xl_s13b_b90k", _gelu(L14), "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K"
    ),
    # DFN (2309.17425); DFN2B ViT-B/16 is left out because its sources disagree on the activation
    Model("ViT-L-14/dfn2b", L14, "apple/DFN2B-CLIP-ViT-L-14", "Apple"),
    Model("ViT-L-14/dfn2b_s39b", _gelu(L14), "apple/DFN2B-CLIP-ViT-L-14-39B", "Apple"),
    Model("ViT-H-14/dfn5b", replace(H14, preprocess=SQUASH), "apple/DFN5B-CLIP-ViT-H-14", "Apple"),
    Model(
        "ViT-H-14-378/dfn5b",
        replace(H14_378, preprocess=SQUASH),
        "apple/DFN5B-CLIP-ViT-H-14-378",
        "Apple",
    ),
    # MetaCLIP (2309.16671)
    Model("ViT-B-32/metaclip_400m", B32, "timm/vit_base_patch32_clip_224.metaclip_400m", NC),
    Model("ViT-B-32/metaclip_2pt5b", B32, "timm/vit_base_patch32_clip_224.metaclip_2pt5b", NC),
    Model("ViT-B-16/metaclip_400m", B16, "timm/vit_base_patch16_clip_224.metaclip_400m", NC),
    Model("ViT-B-16/metaclip_2pt5b", B16, "timm/vit_base_patch16_clip_224.metaclip_2pt5b", NC),
    Model("ViT-L-14/metaclip_400m", L14, "timm/vit_large_patch14_clip_224.metaclip_400m", NC),
    Model("ViT-L-14/metaclip_2pt5b", L14, "timm/vit_large_patch14_clip_224.metaclip_2pt5b", NC),
    Model("ViT-H-14/metaclip_2pt5b", H14, "timm/vit_huge_patch14_clip_224.metaclip_2pt5b", NC),
    Model(
        "ViT-bigG-14/metaclip_2pt5b",
        BIGG14,
        "timm/vit_gigantic_patch14_clip_224.metaclip_2pt5b",
        NC,
    ),
    # TinyCLIP (2309.12314; configs in github.com/microsoft/Cream, trained without QuickGELU)
    *(
        Model(
            f"TinyCLIP-ViT-{name}",
            _gelu(config),
            f"wkcn/TinyCLIP-ViT-{name}",
            layout="transformers",
        )
        for name, config in (
            ("8M-16-Text-3M-YFCC15M", _vit(512, 256, 10, 16, 256, 3)),
            ("39M-16-Text-19M-YFCC15M", _vit(512, 512, 12, 16, 512, 6)),
            ("40M-32-Text-19M-LAION400M", _vit(512, 512, 12, 32, 512, 6)),
            ("61M-32-Text-29M-LAION400M", _vit(512, 640, 12, 32, 512, 9)),
        )
    ),
)

MODELS: dict[str, Model] = {row.name: row for row in _ROWS}


def _spelling(name: str) -> str:
    """Return one form for all spellings: `ViT-B/32`, `vit-b-32` and `ViT-B_32` are one model."""
    return "".join(c if c.isalnum() else "-" for c in name.lower())


_OPENAI_ROWS = [row for row in _ROWS if row.openai]
_BY_SPELLING = (
    {_spelling(key): row for row in _ROWS for key in (row.name, row.hub)}
    | {"vit-l-14-336": MODELS["ViT-L/14@336px"]}  # open_clip's name for it
    | {f"{_spelling(row.name)}-openai": row for row in _OPENAI_ROWS}
    | {"vit-l-14-336-openai": MODELS["ViT-L/14@336px"]}
)

# open_clip's architectures by their names there, without the activation. "-quickgelu" after the
# name means QuickGELU, and GELU is the default (open_clip, src/open_clip/model_configs).
_ARCHITECTURES = {
    "rn50": RN50,
    "rn101": RN101,
    "rn50x4": RN50X4,
    "rn50x16": RN50X16,
    "rn50x64": RN50X64,
    "vit-b-32": B32,
    "vit-b-32-256": B32_256,
    "vit-b-16": B16,
    "vit-b-16-plus-240": B16_PLUS,
    "vit-l-14": L14,
    "vit-l-14-336": L14_336,
    "vit-h-14": H14,
    "vit-h-14-378": H14_378,
    "vit-g-14": G14,
    "vit-bigg-14": BIGG14,
}
_QUICK = "-quickgelu"


def find(name: str) -> Model | None:
    """Return the row of a published name in any spelling or of a hub id, or None.

    Example:
        >>> find("vit-b-32").hub
        'timm/vit_base_patch32_clip_224.openai'
    """
    return _BY_SPELLING.get(_spelling(name))


def architecture(name: str, activation: Activation | None = None) -> CLIPConfig | None:
    """Return the architecture of a name; see `clipkit.checkpoints.load.published_config`."""
    spelling = _spelling(name.removeprefix("hf-hub:"))
    quick = _ARCHITECTURES.get(spelling.removesuffix(_QUICK))
    if quick is None or "/" in name or "@" in name:
        row = find(name.removeprefix("hf-hub:"))
        return None if row is None else row.config
    if spelling.endswith(_QUICK):
        return quick
    if isinstance(quick.vision, ViTConfig):
        return _gelu(quick)
    if activation is None:
        raise ConfigError(
            f"{name!r} is OpenAI's name of a model with QuickGELU in its text tower, and "
            f"open_clip's name of one with GELU: say '{name}/openai' or '{name}{_QUICK}' for "
            f"QuickGELU, '{name}' with activation='gelu' for GELU, or give a CLIPConfig"
        )
    return _gelu(quick) if activation == "gelu" else quick


def clear_name(row: Model) -> str:
    """Return a name of a published model that means one architecture only.

    Example:
        >>> clear_name(MODELS["RN50"])
        'RN50/openai'
    """
    is_ambiguous = row.openai is not None and isinstance(row.config.vision, ResNetConfig)
    return f"{row.name}/openai" if is_ambiguous else row.name


def unknown(name: str) -> UnknownModelError:
    """Make the error for a name that means nothing, with the names that come close."""
    names = {_spelling(known): known for known in ["tiny", *MODELS]}
    matches = difflib.get_close_matches(_spelling(name), names, n=3, cutoff=0.5)
    close = [names[match] for match in matches]
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return UnknownModelError(
        f"{name!r:.300} is no published model, no hub id (owner/name) and no existing path: {hint}"
        "`clipkit.list_models()` names them all"
    )


def with_tag(name: str | os.PathLike[str], tag: str | None) -> str | os.PathLike[str]:
    """Return the published name of an architecture with a tag, or the name alone without a tag.

    Raises:
        ConfigError: if nothing is published under the tag.

    Example:
        >>> with_tag("ViT-B-32", "laion2b_s34b_b79k")
        'ViT-B-32/laion2b_s34b_b79k'
    """
    if tag is None:
        return name
    if isinstance(name, str) and find(f"{name}/{tag}") is not None:
        return f"{name}/{tag}"
    if isinstance(name, str) and _spelling(name).endswith(_QUICK):  # as open_clip calls it too
        row = find(f"{name[: -len(_QUICK)]}/{tag}")
        if row is not None and row.config.text.activation == "quick_gelu":
            return row.name
    raise ConfigError(
        f"pretrained={tag!r:.60} is no tag of {name!r:.60}: `clipkit.list_models()` names them "
        "all, as 'ViT-B-32/laion2b_s34b_b79k'. Weights in a file: load(file, config=name)"
    )


# A name that begins like one of ours is no hub id, but one of ours mistyped.
LIKE_PUBLISHED = re.compile(r"(vit-(b|l|h|g|bigg)|rn\d+(x\d+)?)\b", re.IGNORECASE)

# A name that matches one of these tells that the model is not a plain CLIP, and why.
NOT_PLAIN = {
    r"siglip": "SigLIP has another loss and other towers",
    r"clipa(v2)?(?![a-z])": "CLIPA has another text tokenizer and pooling",
    r"(?<![a-z])pe[-_]core": "PE-Core has other towers",
    r"mobileclip": "MobileCLIP has other towers",
    r"(?<![a-z])eva(\d|[-_](clip|giant|large|base|g|e|b|l)[-_])": "EVA has other towers",
    r"convnext": "its image tower is a ConvNeXt",
    r"vitamin[-_](s|b|l|xl)": "its image tower is a ViTamin",
    r"(?<![a-z])coca[-_](vit|roberta|base)": "CoCa has a decoder and an attentional pool",
    r"roberta|xlm|nllb|mt5": "its text tower is another model",
    r"worldwide|metaclip-2-": "MetaCLIP 2 has another tokenizer and text tower",
    r"tinyclip-(auto|resnet)": "it is a pruned TinyCLIP, whose layers differ in width",
}


def refuse(name: str) -> None:
    """Raise `UnsupportedCheckpointError` if the name tells that the model is not a plain CLIP."""
    for pattern, reason in NOT_PLAIN.items():
        if re.search(pattern, name.lower().rsplit("/", 1)[-1]):
            raise UnsupportedCheckpointError(f"{name!r} is not a plain CLIP: {reason}")


def available_models() -> list[str]:
    """Return the names of OpenAI's nine models, as their package does; `list_models` has all.

    Example:
        >>> available_models()[0]
        'RN50'
    """
    return [row.name for row in _ROWS if row.openai]


def list_models() -> list[str]:
    """Return every name that `clipkit.load` knows, the embedded checkpoint first.

    Example:
        >>> list_models()[:2]
        ['tiny', 'RN50']
    """
    return ["tiny", *MODELS]
