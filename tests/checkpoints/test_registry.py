"""Check the table of published models, and read names in every spelling."""

import re

import pytest

from clipkit import available_models, list_models
from clipkit.checkpoints import registry
from clipkit.checkpoints.registry import MODELS, find, refuse, unknown, with_tag
from clipkit.config import CLIPConfig, ResNetConfig, ViTConfig
from clipkit.errors import ConfigError, UnknownModelError, UnsupportedCheckpointError
from clipkit.models.build import expected_weights

# Name, embedding, layers, width, patch, resolution, text width, text heads, parameters.
OPENAI = [
    ("RN50", 1024, (3, 4, 6, 3), 64, None, 224, 512, 8, 102_007_137),
    ("RN101", 512, (3, 4, 23, 3), 64, None, 224, 512, 8, 119_688_033),
    ("RN50x4", 640, (4, 6, 10, 6), 80, None, 288, 640, 10, 178_300_601),
    ("RN50x16", 768, (6, 8, 18, 8), 96, None, 384, 768, 12, 290_979_217),
    ("RN50x64", 1024, (3, 15, 36, 10), 128, None, 448, 1024, 16, 623_258_305),
    ("ViT-B/32", 512, 12, 768, 32, 224, 512, 8, 151_277_313),
    ("ViT-B/16", 512, 12, 768, 16, 224, 512, 8, 149_620_737),
    ("ViT-L/14", 768, 24, 1024, 14, 224, 768, 12, 427_616_513),
    ("ViT-L/14@336px", 768, 24, 1024, 14, 336, 768, 12, 427_944_193),
]


def count_parameters(config: CLIPConfig) -> int:
    """Count the weights without the batch statistics, which are no parameters."""
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    return sum(
        value.numel()
        for name, value in expected_weights(config).items()
        if not name.endswith(statistics)
    )


@pytest.mark.parametrize(
    ("name", "embed", "layers", "width", "patch", "size", "text", "heads", "count"), OPENAI
)
def test_openai_models(
    name: str,
    embed: int,
    layers: int | tuple[int, ...],
    width: int,
    patch: int | None,
    size: int,
    text: int,
    heads: int,
    count: int,
) -> None:
    config = MODELS[name].config
    vision = config.vision
    assert config.embed_dim == embed
    assert vision.layers == layers
    assert vision.width == width
    assert vision.head_width == 64
    assert vision.resolution == (size, size)
    assert isinstance(vision, ResNetConfig if patch is None else ViTConfig)
    if isinstance(vision, ViTConfig):
        assert vision.patch_size == patch
        assert vision.activation == "quick_gelu"
        assert vision.mlp_ratio == 4
    assert config.text.width == text
    assert config.text.width // config.text.head_width == heads
    assert config.text.layers == 12
    assert config.text.context_length == 77
    assert config.text.vocab_size == 49408
    assert config.text.activation == "quick_gelu"
    assert count_parameters(config) == count


# Parameters as open_clip's model profile has them, and the heads of both towers.
@pytest.mark.parametrize(
    ("name", "millions", "heads"),
    [
        ("ViT-B-16-plus-240/laion400m_e31", 208.38, (14, 10)),
        ("ViT-H-14/laion2b_s32b_b79k", 986.11, (16, 16)),
        ("ViT-H-14-378/dfn5b", 986.71, (16, 16)),
        ("ViT-g-14/laion2b_s12b_b42k", 1366.68, (16, 16)),
        ("ViT-bigG-14/laion2b_s39b_b160k", 2539.57, (16, 20)),
    ],
)
def test_larger_models(name: str, millions: float, heads: tuple[int, int]) -> None:
    config = MODELS[name].config
    assert round(count_parameters(config) / 1e6, 2) == millions
    assert config.vision.width // config.vision.head_width == heads[0]
    assert config.text.width // config.text.head_width == heads[1]


def test_openai_rows() -> None:
    names = [row[0] for row in OPENAI]
    assert available_models() == names
    for name in names:
        row = MODELS[name]
        assert row.openai is not None
        file, digest = row.openai
        assert re.fullmatch("[0-9a-f]{64}", digest)
        assert file.endswith(".pt")
        assert re.fullmatch(r"[\w.-]+", file)
        assert row.hub.startswith("timm/")
        assert row.hub.endswith(".openai")
    assert MODELS["ViT-L/14@336px"].openai == (
        "ViT-L-14-336px.pt",
        "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
    )
    assert len({row.openai for row in MODELS.values() if row.openai}) == 9


def test_activations_and_preprocessing() -> None:
    """Weights tell neither, so a slip here would quietly cost accuracy."""
    quick = {name for name, row in MODELS.items() if row.config.text.activation == "quick_gelu"}
    assert {name for name in quick if name not in available_models()} == {
        "ViT-B-32/laion400m_e31",
        "ViT-B-32/laion400m_e32",
        "RN50/yfcc15m",
        "RN50/cc12m",
        "RN101/yfcc15m",
        "ViT-L-14/dfn2b",
        "ViT-H-14/dfn5b",
        "ViT-H-14-378/dfn5b",
        *(name for name in MODELS if "metaclip" in name),
    }
    for row in MODELS.values():
        if isinstance(row.config.vision, ViTConfig):
            assert row.config.vision.activation == row.config.text.activation
    assert [n for n, row in MODELS.items() if row.config.preprocess.mean == (0.5, 0.5, 0.5)] == [
        "ViT-L-14/laion2b_s32b_b82k"
    ]
    squashed = [n for n, row in MODELS.items() if row.config.preprocess.resize_mode == "squash"]
    assert squashed == ["ViT-H-14/dfn5b", "ViT-H-14-378/dfn5b"]


def test_every_row_is_reached_by_its_name_and_its_repository() -> None:
    assert list_models() == ["tiny", *MODELS]
    for name, row in MODELS.items():
        assert row.name == name
        assert re.fullmatch(r"[\w-]+/[\w.-]+", row.hub)
        assert row.license
        assert find(name) is row
        assert find(row.hub) is row
        refuse(row.hub)  # is silent: no plain CLIP is refused for its name
    assert len({row.hub for row in MODELS.values()}) == len(MODELS)
    with_openai = len(available_models()) + 2  # and the two of open_clip's ViT-L-14-336
    assert (
        len(registry._BY_SPELLING) == 2 * len(MODELS) + with_openai
    )  # no two spellings fall together


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("ViT-B-32", "ViT-B/32"),
        ("vit-b/32", "ViT-B/32"),
        ("ViT-L-14-336", "ViT-L/14@336px"),
        ("ViT-L-14-336px", "ViT-L/14@336px"),
        ("ViT-L/14@336px", "ViT-L/14@336px"),
        ("rn50X16", "RN50x16"),
        ("ViT-B/16/laion400m_e32", "ViT-B-16/laion400m_e32"),
        ("laion/clip-vit-h-14-laion2b-s32b-b79k", "ViT-H-14/laion2b_s32b_b79k"),
    ],
)
def test_spellings(spelling: str, name: str) -> None:
    assert find(spelling) is MODELS[name]


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("ViT-B/33", "ViT-B/32"),
        ("ViT-L-14-335", "ViT-L/14@336px"),
        ("RN52", "RN50"),
        ("tinny", "tiny"),
        ("ViT-H-14/laion2b", "ViT-H-14/laion2b_s32b_b79k"),
    ],
)
def test_unknown_names_get_suggestions(name: str, close: str) -> None:
    assert find(name) is None
    message = str(unknown(name))
    assert repr(name) in message
    assert "did you mean" in message
    assert close in message
    assert "did you mean" not in str(unknown("zzzzzz"))
    assert "list_models()" in str(unknown("zzzzzz"))
    assert isinstance(unknown(name), UnknownModelError)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("google/siglip-base-patch16-224", "SigLIP"),
        ("timm/ViT-B-16-SigLIP2-256", "SigLIP"),
        ("UCSC-VLAA/ViT-L-14-CLIPA-datacomp1B", "CLIPA"),
        ("timm/vit_large_patch14_clipa_224.datacomp1b", "CLIPA"),
        ("facebook/PE-Core-B16-224", "PE-Core"),
        ("apple/MobileCLIP-S1-OpenCLIP", "MobileCLIP"),
        ("timm/eva02_base_patch16_clip_224.merged2b_s8b_b131k", "EVA"),
        ("timm/eva_giant_patch14_clip_224.laion400m_s11b_b41k", "EVA"),
        ("BAAI/EVA-CLIP-8B", "EVA"),
        ("EVA02-B-16", "EVA"),
        ("laion/CLIP-convnext_base_w-laion2B-s13B-b82K", "ConvNeXt"),
        ("jienengchen/ViTamin-L-336px", "ViTamin"),
        ("laion/CoCa-ViT-B-32-laion2B-s13B-b90k", "CoCa"),
        ("laion/CLIP-ViT-B-32-roberta-base-laion2B-s12B-b32k", "text tower"),
        ("laion/CLIP-ViT-H-14-frozen-xlm-roberta-large-laion5B-s13B-b90k", "text tower"),
        ("facebook/metaclip-2-worldwide-huge-378", "MetaCLIP 2"),
        ("wkcn/TinyCLIP-auto-ViT-22M-32-Text-10M-LAION400M", "pruned TinyCLIP"),
    ],
)
def test_other_models_are_refused_by_name_with_the_reason(name: str, reason: str) -> None:
    assert find(name) is None
    with pytest.raises(
        UnsupportedCheckpointError, match=f"{re.escape(repr(name))} is not a plain CLIP: .*{reason}"
    ):
        refuse(name)


@pytest.mark.parametrize(
    "name",
    [
        "someone/clipart-vit-b-32",
        "someone/geneva-clip",
        "siglip/clip-vit-b-32",
        "a/retrieval-clip",
        "b/alcoca-1",
        "someone/my-eva-clip2",
        "user/clip-vitamins-classifier",
        "user/coca-cola-clip",
    ],
)
def test_names_that_only_resemble_theirs_pass(name: str) -> None:
    refuse(name)


# TinyCLIP's four models, as their own files state them (github.com/microsoft/Cream, TinyCLIP,
# src/open_clip/model_configs): width, layers and patch of the image tower; width, heads and layers
# of the text tower.
TINY_CLIPS = {
    "ViT-8M-16-Text-3M-YFCC15M": (256, 10, 16, 256, 4, 3),
    "ViT-39M-16-Text-19M-YFCC15M": (512, 12, 16, 512, 8, 6),
    "ViT-40M-32-Text-19M-LAION400M": (512, 12, 32, 512, 8, 6),
    "ViT-61M-32-Text-29M-LAION400M": (640, 12, 32, 512, 8, 9),
}


def test_tiny_clips_are_those_of_their_makers() -> None:
    rows = [name for name in MODELS if name.startswith("TinyCLIP")]
    assert rows == [f"TinyCLIP-{name}" for name in TINY_CLIPS]
    for name, published in TINY_CLIPS.items():
        row = MODELS[f"TinyCLIP-{name}"]
        vision, text = row.config.vision, row.config.text
        assert isinstance(vision, ViTConfig)
        sizes = (vision.width, vision.layers, vision.patch_size)
        assert (*sizes, text.width, text.heads, text.layers) == published
        assert (row.config.embed_dim, vision.resolution, vision.head_width) == (512, (224, 224), 64)
        assert vision.activation == text.activation == "gelu"
        assert row.hub == f"wkcn/TinyCLIP-{name}"


@pytest.mark.parametrize(
    ("name", "tag", "expected"),
    [
        ("ViT-B-32-quickgelu", "openai", "ViT-B/32"),
        ("RN50-quickgelu", "openai", "RN50"),
        ("ViT-L-14-336-quickgelu", "openai", "ViT-L/14@336px"),
        ("ViT-H-14-quickgelu", "dfn5b", "ViT-H-14/dfn5b"),
    ],
)
def test_names_of_open_clip_with_quickgelu_have_its_tags(
    name: str, tag: str, expected: str
) -> None:
    assert find(str(with_tag(name, tag))) == find(expected)


def test_weights_with_gelu_have_no_name_with_quickgelu() -> None:
    with pytest.raises(ConfigError, match="no tag of 'ViT-B-32-quickgelu'"):
        with_tag("ViT-B-32-quickgelu", "laion2b_s34b_b79k")
