"""From files in every layout to one model and back; what is decided, what is refused, and what is left untouched."""

import copy
import hashlib
import json
import os
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import clipkit
from clipkit import CLIP, CLIPConfig, Tokenizer
from clipkit.checkpoints import layouts, registry
from clipkit.checkpoints import load as load_module
from clipkit.checkpoints.describe import to_open_clip, to_transformers
from clipkit.checkpoints.resize import resize_positions
from clipkit.checkpoints.weights import read_weights
from clipkit.errors import (
    CheckpointNotFoundError,
    ConfigError,
    CorruptCheckpointError,
    StateDictMismatchError,
    TokenizerError,
    UnknownModelError,
    UnsafeCheckpointError,
    UnsupportedCheckpointError,
)
from clipkit.files import sha256, write_weights
from clipkit.models.build import expected_weights
from clipkit.tokenizer import default_merges
from tests.helpers.hub_server import HubServer

CPU = {"device": "cpu"}


def assert_same(actual: CLIP, expected: CLIP) -> None:
    """The same config, names, dtypes and bits."""
    assert actual.config == expected.config
    state = actual.state_dict()
    assert state.keys() == expected.state_dict().keys()
    for name, value in expected.state_dict().items():
        assert state[name].dtype == value.dtype and torch.equal(state[name], value), name


def write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values), "utf-8")


# Every way in which the weights of one model are published. Each writes into a folder and returns the weight file.


def clipkit_folder(model: CLIP, folder: Path) -> Path:
    write_json(folder / "config.json", {"format": "clipkit", "model": model.config.to_dict()})
    write_weights(model.state_dict(), folder / "model.safetensors")
    return folder / "model.safetensors"


def open_clip(model: CLIP, folder: Path, name: str = "open_clip_model.safetensors") -> Path:
    state = layouts.from_canonical(model.state_dict(), "openai")
    state["logit_scale"] = state["logit_scale"].reshape(1)  # as some files have it
    write_json(folder / "open_clip_config.json", to_open_clip(model.config))
    if name.endswith(".bin"):
        torch.save(state, folder / name)
    else:
        write_weights(state, folder / name)
    return folder / name


def open_clip_bin(model: CLIP, folder: Path) -> Path:
    return open_clip(model, folder, "open_clip_pytorch_model.bin")


def open_clip_g14(model: CLIP, folder: Path) -> Path:
    return open_clip(model, folder, "open_clip_pytorch_model.safetensors")


def custom_text(model: CLIP, folder: Path) -> Path:
    values = to_open_clip(model.config)
    values["model_cfg"]["custom_text"] = True
    write_json(folder / "open_clip_config.json", values)
    state = model.state_dict() | {"text.attn_mask": torch.zeros(16, 16)}
    torch.save(state, folder / "open_clip_pytorch_model.bin")
    return folder / "open_clip_pytorch_model.bin"


def training_checkpoint(model: CLIP, folder: Path) -> Path:
    """As open_clip's training loop writes under DistributedDataParallel and torch.compile."""
    write_json(folder / "open_clip_config.json", to_open_clip(model.config))
    state = layouts.from_canonical(model.state_dict(), "openai")
    state = {f"module._orig_mod.{name}": value for name, value in state.items()}
    torch.save(
        {"epoch": 3, "name": "run", "state_dict": state, "optimizer": {"state": {}}},
        folder / "epoch_3.pt",
    )
    return folder / "epoch_3.pt"


def transformers(model: CLIP, folder: Path) -> Path:
    for name, values in to_transformers(model.config, Tokenizer([])).items():
        write_json(folder / name, values)
    write_weights(
        layouts.from_canonical(model.state_dict(), "transformers"), folder / "model.safetensors"
    )
    return folder / "model.safetensors"


def transformers_bin(model: CLIP, folder: Path) -> Path:
    """As old versions wrote it, with the positions' indices among the weights."""
    transformers(model, folder).unlink()
    state = layouts.from_canonical(model.state_dict(), "transformers")
    for tower, count in (("vision", 10), ("text", 16)):
        state[f"{tower}_model.embeddings.position_ids"] = torch.arange(count)[None]
    torch.save(state, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


def transformers_shards(model: CLIP, folder: Path) -> Path:
    transformers(model, folder).unlink()
    state = layouts.from_canonical(model.state_dict(), "transformers")
    names = sorted(state)
    index = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        shard = f"model-{number:05}-of-00002.safetensors"
        write_weights({name: state[name] for name in part}, folder / shard)
        index |= dict.fromkeys(part, shard)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": index})
    return folder / "model.safetensors.index.json"


Write = Callable[[CLIP, Path], Path]
FOR_ALL: list[Write] = [
    clipkit_folder,
    open_clip,
    open_clip_bin,
    open_clip_g14,
    custom_text,
    training_checkpoint,
]
FOR_VIT: list[Write] = [transformers, transformers_bin, transformers_shards]


@pytest.mark.parametrize("write", FOR_ALL)
def test_every_layout(clip: CLIP, tmp_path: Path, write: Write) -> None:
    check_folder_and_file(clip, write, tmp_path)


@pytest.mark.parametrize("write", FOR_VIT)
def test_every_layout_of_transformers(vit: CLIP, tmp_path: Path, write: Write) -> None:
    check_folder_and_file(vit, write, tmp_path)


def check_folder_and_file(model: CLIP, write: Write, folder: Path) -> None:
    weights = write(model, folder)
    loaded, preprocess = clipkit.load(folder, "cpu")
    assert_same(loaded, model)
    assert preprocess == model.preprocess
    assert not any(module.training for module in loaded.modules())
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert all(value.is_contiguous() for value in loaded.state_dict().values())
    # JSON beside a file of no published name might belong to another
    config = model.config if write is training_checkpoint else None
    assert_same(CLIP.from_pretrained(str(weights), config=config, **CPU), model)


def test_old_batch_norms_without_counters(resnet: CLIP, tmp_path: Path) -> None:
    path = clipkit_folder(resnet, tmp_path)
    state = {
        name: value
        for name, value in resnet.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    write_weights(state, path)
    loaded = CLIP.from_pretrained(tmp_path, **CPU).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
    assert loaded["visual.bn1.num_batches_tracked"] == 0


def test_embedded_checkpoint() -> None:
    model, preprocess = clipkit.load("tiny", "cpu")
    assert model.dtype == torch.float32 and model.vocab_size == 49408 and model.context_length == 77
    assert preprocess == model.preprocess and preprocess.resolution == (96, 96)
    assert CLIP.from_pretrained("tiny", device="cpu").config == model.config


# OpenAI's archives


class Norm(nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.float()).to(input.dtype)


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, width // 64)
        self.ln_1 = Norm(width)
        linear = OrderedDict(
            c_fc=nn.Linear(width, 4 * width), gelu=QuickGELU(), c_proj=nn.Linear(4 * width, width)
        )
        self.mlp = nn.Sequential(linear)
        self.ln_2 = Norm(width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Blocks(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList([Block(width), Block(width)])

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x.transpose(0, 1)  # (N, L, W) -> (L, N, W), as MultiheadAttention had it then
        for block in self.resblocks:
            x = block(x, mask)
        return x.transpose(0, 1)


class Vision(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 128, 16, 16, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(128))
        self.positional_embedding = nn.Parameter(torch.randn(10, 128))
        self.ln_pre, self.transformer, self.ln_post = Norm(128), Blocks(128), Norm(128)
        self.proj = nn.Parameter(torch.randn(128, 32) / 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).flatten(2).transpose(1, 2)
        first = self.class_embedding.to(x.dtype).expand(len(x), 1, 128)
        x = self.ln_pre(torch.cat([first, x], dim=1) + self.positional_embedding.to(x.dtype))
        return self.ln_post(self.transformer(x)[:, 0]) @ self.proj


class OpenAIStyle(nn.Module):
    """OpenAI's names, arithmetic and mixture of dtypes, written plainly: every token is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.visual, self.transformer = Vision(), Blocks(64)
        self.token_embedding = nn.Embedding(600, 64)
        self.positional_embedding = nn.Parameter(torch.randn(16, 64))
        self.ln_final = Norm(64)
        self.text_projection = nn.Parameter(torch.randn(64, 32) / 8)
        self.logit_scale = nn.Parameter(torch.tensor(4.6))
        for name, value in (("input_resolution", 48), ("context_length", 16), ("vocab_size", 600)):
            self.register_buffer(name, torch.tensor(value))

    def halve(self) -> "OpenAIStyle":
        """Convolutions, linear layers, attention and projections in float16, the rest in float32."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | nn.MultiheadAttention):
                module.half()
        self.visual.proj.data, self.text_projection.data = (
            self.visual.proj.half(),
            self.text_projection.half(),
        )
        return self.eval()

    def encode_text(self, tokens: Tensor) -> Tensor:
        dtype = self.visual.conv1.weight.dtype
        x = (self.token_embedding(tokens) + self.positional_embedding).to(dtype)
        mask = torch.full((16, 16), float("-inf"), dtype=dtype).triu(1)
        x = self.ln_final(self.transformer(x, mask))
        return x[torch.arange(len(x)), tokens.argmax(dim=-1)] @ self.text_projection

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return self.visual(images.to(self.visual.conv1.weight.dtype)), self.encode_text(tokens)


def some_tokens() -> Tensor:
    """Two rows that end at different places, with 599 as the end of text."""
    tokens = torch.zeros(2, 16, dtype=torch.int64)
    tokens[0, :4] = torch.tensor([598, 5, 6, 599])
    tokens[1, :7] = torch.tensor([598, 7, 8, 9, 300, 400, 599])
    return tokens


@pytest.fixture(scope="module")
def openai_model() -> OpenAIStyle:
    torch.manual_seed(0)
    model = OpenAIStyle()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ln_" in name or name.endswith("bias"):
                parameter += 0.2 * torch.randn_like(parameter)
    return model.halve()


@pytest.fixture(scope="module")
def archive(openai_model: OpenAIStyle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "ViT-small.pt"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, which is why only tests use it
        inputs = (torch.randn(2, 3, 48, 48), some_tokens())
        torch.jit.trace(openai_model, inputs, check_trace=False).save(str(path))
    return path


def check_openai_model(model: CLIP, original: OpenAIStyle) -> None:
    config = model.config
    assert (config.vision.resolution, config.text.context_length, config.text.vocab_size) == (
        (48, 48),
        16,
        600,
    )
    assert (
        config.text.activation == "quick_gelu"
        and config.vision.head_width == config.text.head_width == 64
    )
    expected = original.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name.removeprefix("text.")].float()), name
    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        image_features, text_features = copy.deepcopy(original).float()(images, some_tokens())
        torch.testing.assert_close(model.encode_image(images), image_features, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            model.encode_text(some_tokens()), text_features, atol=1e-5, rtol=1e-5
        )
        cosines = F.normalize(image_features, dim=-1) @ F.normalize(text_features, dim=-1).T
        assert (cosines[0] - cosines[1]).abs().max() > 0.01  # else nothing has been shown
        logits, transposed = model(images, some_tokens())
        torch.testing.assert_close(
            logits, original.logit_scale.exp() * cosines, atol=1e-3, rtol=1e-5
        )
        assert torch.equal(logits, transposed.T)


def test_openai_archive_without_torch_jit(
    archive: Path, openai_model: OpenAIStyle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("torch was asked to load the archive")

    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(torch.jit, "load", refuse)
    check_openai_model(clipkit.load(archive, "cpu")[0], openai_model)
    half = CLIP.from_pretrained(archive, dtype=torch.float16, **CPU)
    assert {value.dtype for name, value in half.state_dict().items() if name != "logit_scale"} == {
        torch.float16
    }
    assert torch.equal(half.visual.proj, openai_model.visual.proj)


def test_what_is_asked_must_not_contradict_an_openai_archive(archive: Path) -> None:
    assert CLIP.from_pretrained(archive, activation="quick_gelu", head_width=64, **CPU)
    with pytest.raises(ConfigError, match=r"vision\.activation: 'quick_gelu' / 'gelu'"):
        CLIP.from_pretrained(archive, activation="gelu", **CPU)


@pytest.fixture
def small_row(monkeypatch: pytest.MonkeyPatch, hub: HubServer, archive: Path) -> registry.Model:
    """ViT-B/32 as if it were OpenAIStyle, with the archive served beside the hub."""
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    config = CLIP.from_pretrained(archive, **CPU).config
    row = replace(registry.MODELS["ViT-B/32"], config=config, openai=("ViT-B-32.pt", digest))
    for spelling in ("vit-b-32", registry._spelling(row.hub)):
        monkeypatch.setitem(registry._BY_SPELLING, spelling, row)
    monkeypatch.setattr(registry, "OPENAI_ARCHIVES", hub.url + "/clip/{sha256}/{file}")
    hub.add_blob(f"/clip/{digest}/ViT-B-32.pt", archive.read_bytes())
    return row


@pytest.mark.parametrize("name", ["ViT-B/32", "ViT-B-32"])
def test_published_name_from_openai_when_the_hub_has_it_not(
    small_row: registry.Model, openai_model: OpenAIStyle, hub: HubServer, tmp_path: Path, name: str
) -> None:
    model, _ = clipkit.load(name, "cpu", download_root=str(tmp_path))
    check_openai_model(model, openai_model)
    assert [path.name for path in tmp_path.glob("*.pt")] == ["ViT-B-32.pt"]


def test_published_name_from_the_hub(
    small_row: registry.Model,
    openai_model: OpenAIStyle,
    hub: HubServer,
    tmp_path: Path,
    archive: Path,
) -> None:
    folder = tmp_path / "saved"
    CLIP.from_pretrained(archive, **CPU).save_pretrained(
        str(folder), layout="open_clip", dtype=torch.float16
    )
    hub.add_repo(small_row.hub, {path.name: path.read_bytes() for path in folder.iterdir()})
    model = CLIP.from_pretrained("ViT-B/32", cache_dir=tmp_path / "cache", **CPU)
    assert torch.equal(model.visual.proj, openai_model.visual.proj.float())
    assert not list(tmp_path.rglob("*.pt"))

    # The same with a config.json that contradicts the row, in what weights cannot show
    values = json.loads((folder / "open_clip_config.json").read_text())
    values["model_cfg"]["quick_gelu"] = False
    repo = hub.repos[small_row.hub].revisions["main"]
    hub.add_repo(small_row.hub, repo | {"open_clip_config.json": json.dumps(values).encode()})
    told = r"otherwise than the registry says of 'ViT-B/32' .*vision\.activation: 'gelu' / 'quick_gelu'; text\.activation"
    with pytest.raises(ConfigError, match=told):
        CLIP.from_pretrained("ViT-B/32", cache_dir=tmp_path / "cache", **CPU)
    settled = CLIP.from_pretrained(
        "ViT-B/32", cache_dir=tmp_path / "cache", config=small_row.config, **CPU
    )
    assert settled.config == small_row.config


def test_options_reach_the_hub(hub: HubServer, vit: CLIP, tmp_path: Path) -> None:
    vit.save_pretrained(tmp_path / "saved")
    content = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    hub.add_repo("someone/private", content, token="hf_secret", revision="v2")
    hub.add_repo("someone/private", {}, token="hf_secret")
    options = {
        "revision": "v2",
        "token": "hf_secret",
        "cache_dir": tmp_path / "cache",
        "device": "cpu",
    }
    assert_same(clipkit.load("someone/private", **options)[0], vit)
    hub.stop()
    assert_same(CLIP.from_pretrained("someone/private", local_files_only=True, **options), vit)


# Weights that come alone


@pytest.fixture
def bare(vit: CLIP, tmp_path: Path) -> Path:
    torch.save(layouts.from_canonical(vit.state_dict(), "openai"), tmp_path / "bare.pt")
    return tmp_path / "bare.pt"


def test_bare_state_dict_needs_to_be_told(
    bare: Path, vit: CLIP, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = r"bare\.pt comes without a config.* pass config= with the published name .* or activation= and head_width="
    for options in ({}, {"activation": "gelu"}, {"head_width": 32}):
        with pytest.raises(ConfigError, match=told):
            CLIP.from_pretrained(bare, **options, **CPU)
    assert_same(CLIP.from_pretrained(bare, config=vit.config, **CPU), vit)
    row = replace(registry.MODELS["ViT-B/32"], config=vit.config)
    monkeypatch.setitem(registry._BY_SPELLING, "vit-b-32", row)
    for name in ("ViT-B/32", "vit-b-32"):
        assert_same(CLIP.from_pretrained(bare, config=name, **CPU), vit)
    with pytest.raises(UnknownModelError, match="'ViT-B/31' is no published model.*ViT-B/32"):
        CLIP.from_pretrained(bare, config="ViT-B/31", **CPU)
    with pytest.raises(ConfigError, match="vision.head_width: 32 / 48"):
        CLIP.from_pretrained(bare, config=vit.config, head_width=48, **CPU)


def test_bare_state_dict_by_activation_and_head_width(tmp_path: Path) -> None:
    vision = clipkit.ViTConfig(
        resolution=32, patch_size=8, width=64, layers=1, activation="gelu", head_width=16
    )
    text = clipkit.TextConfig(
        width=64, layers=1, activation="gelu", context_length=8, vocab_size=520
    )
    model = CLIP(CLIPConfig(embed_dim=16, vision=vision, text=text)).eval()
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    assert_same(
        CLIP.from_pretrained(tmp_path / "bare.pt", activation="gelu", head_width=16, **CPU), model
    )
    with pytest.raises(ConfigError, match="width 64 is not a multiple of head_width 48"):
        CLIP.from_pretrained(tmp_path / "bare.pt", activation="gelu", head_width=48, **CPU)


def test_bare_state_dict_of_the_embedded_model(tmp_path: Path) -> None:
    """Whose text heads are narrow, so its name is the only way to say what it is."""
    model = CLIP.from_pretrained("tiny", **CPU)
    torch.save(model.state_dict(), tmp_path / "tuned.pt")
    assert_same(CLIP.from_pretrained(tmp_path / "tuned.pt", config="tiny", **CPU), model)


@pytest.mark.parametrize(
    ("name", "others", "not_one"),
    [
        (
            "ViT-B/32",
            ["ViT-B-32/laion400m_e31", "ViT-B-32/laion2b_s34b_b79k", "ViT-B-32/metaclip_400m"],
            "ViT-B/16",
        ),
        ("RN50", ["RN50/yfcc15m", "RN50/cc12m"], "RN101"),
        ("ViT-g-14/laion2b_s12b_b42k", ["ViT-g-14/laion2b_s34b_b88k"], "ViT-L/14"),
    ],
)
def test_published_names_of_the_same_shape_are_listed(
    tmp_path: Path, name: str, others: list[str], not_one: str
) -> None:
    shapes = expected_weights(registry.MODELS[name].config)
    weights = {
        key: torch.zeros(()).expand(value.shape) for key, value in shapes.items()
    }  # one number each on disk
    torch.save(weights, tmp_path / "bare.pt")
    with pytest.raises(ConfigError, match=r"of this shape are (.*)\)") as caught:
        CLIP.from_pretrained(tmp_path / "bare.pt", **CPU)
    listed = str(caught.value).split("of this shape are ")[1].split(")")[0].split(", ")
    assert {name, *others} <= set(listed) and not_one not in listed


# Contradictions and mismatches


def test_json_against_what_is_asked(clip: CLIP, tmp_path: Path) -> None:
    clipkit_folder(clip, tmp_path)
    assert CLIP.from_pretrained(tmp_path, activation="gelu", head_width=32, **CPU)
    with pytest.raises(
        ConfigError, match=r"contradicts what was asked .*text\.activation: 'gelu' / 'quick_gelu'"
    ):
        CLIP.from_pretrained(tmp_path, activation="quick_gelu", **CPU)
    with pytest.raises(ConfigError, match=r"\(checkpoint / asked\): vision\.head_width: 32 / 16"):
        CLIP.from_pretrained(tmp_path, head_width=16, **CPU)


def test_json_against_the_weights(vit: CLIP, tmp_path: Path) -> None:
    clipkit_folder(vit, tmp_path)
    wrong = replace(vit.config, embed_dim=16, vision=replace(vit.config.vision, layers=3))
    write_json(tmp_path / "config.json", {"format": "clipkit", "model": wrong.to_dict()})
    with pytest.raises(StateDictMismatchError) as caught:
        CLIP.from_pretrained(tmp_path, **CPU)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"{tmp_path / 'model.safetensors'}: weights do not fit the model")
    assert "  - visual.transformer.resblocks.2.attn.in_proj_weight (288, 96)" in lines
    assert lines[-2:] == [
        "  ! text.text_projection is (64, 32), the model has (64, 16)",
        "  ! visual.proj is (96, 32), the model has (96, 16)",
    ]


@pytest.mark.parametrize("write", [clipkit_folder, open_clip, transformers])
def test_missing_unexpected_and_misshapen_weights(vit: CLIP, tmp_path: Path, write: Write) -> None:
    path = write(vit, tmp_path)
    state = read_weights(path)
    bias = next(name for name in state if name.endswith(("ln_final.bias", "final_layer_norm.bias")))
    state[bias] = torch.zeros(5)
    del state[
        next(name for name in state if "ln_post.weight" in name or "post_layernorm.weight" in name)
    ]
    write_weights(state | {"extra": torch.zeros(2, 3)}, path)
    with pytest.raises(StateDictMismatchError) as caught:
        CLIP.from_pretrained(tmp_path, **CPU)
    assert str(caught.value).splitlines()[1:] == [
        "  - visual.ln_post.weight (96,)",
        "  + extra (2, 3)",
        "  ! text.ln_final.bias is (5,), the model has (64,)",
    ]


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("logit_bias", "SigLIP"),
        ("text_decoder.resblocks.0.ln_1.weight", "CoCa"),
        ("visual.trunk.stem.0.weight", "ConvNeXt"),
        ("text.transformer.embeddings.word_embeddings.weight", "RoBERTa"),
        ("image_encoder.model.head.proj", "MobileCLIP"),
    ],
)
def test_other_models_are_refused_by_their_keys(
    vit: CLIP, tmp_path: Path, key: str, reason: str
) -> None:
    torch.save(vit.state_dict() | {key: torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(
        UnsupportedCheckpointError,
        match=rf"other\.pt: these weights are not a plain CLIP: .*{reason}",
    ):
        CLIP.from_pretrained(tmp_path / "other.pt", activation="gelu", head_width=64, **CPU)


@pytest.mark.parametrize(
    ("prefix", "reason"),
    [("visual.", "no text tower"), ("text.", "no image tower")],
)
def test_a_lone_tower_is_refused(vit: CLIP, tmp_path: Path, prefix: str, reason: str) -> None:
    torch.save(
        {k: v for k, v in vit.state_dict().items() if k.startswith(prefix)}, tmp_path / "tower.pt"
    )
    with pytest.raises(UnsupportedCheckpointError, match=reason):
        CLIP.from_pretrained(tmp_path / "tower.pt", **CPU)


def test_other_models_are_refused_by_their_json(vit: CLIP, tmp_path: Path) -> None:
    open_clip(vit, tmp_path)
    values = to_open_clip(vit.config)
    values["model_cfg"]["multimodal_cfg"] = {"layers": 12}
    write_json(tmp_path / "open_clip_config.json", values)
    with pytest.raises(UnsupportedCheckpointError, match="not a plain CLIP: multimodal_cfg"):
        CLIP.from_pretrained(tmp_path, **CPU)
    assert_same(
        CLIP.from_pretrained(tmp_path, config=vit.config, **CPU), vit
    )  # for whoever knows better


# What loading leaves alone, and what it does not copy


@pytest.mark.parametrize("write", [clipkit_folder, open_clip, transformers])
def test_what_was_read_is_neither_changed_nor_copied(
    vit: CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write
) -> None:
    write(vit, tmp_path)
    seen: dict[str, Tensor] = {}
    copies: dict[str, Tensor] = {}

    def read(
        path: Path, read_weights: Callable[[Path], dict[str, Tensor]] = read_weights
    ) -> dict[str, Tensor]:
        seen.update(read_weights(path))
        copies.update({name: value.clone() for name, value in seen.items()})
        return seen

    monkeypatch.setattr(load_module, "read_weights", read)
    random_state = torch.get_rng_state()
    model = CLIP.from_pretrained(tmp_path, **CPU)
    assert torch.equal(torch.get_rng_state(), random_state)  # nothing was initialized
    assert seen.keys() == copies.keys() and all(
        torch.equal(seen[name], value) for name, value in copies.items()
    )
    assert not any(value.requires_grad for value in seen.values())

    read_at = {value.data_ptr() for value in seen.values()}
    copied = {name for name, value in model.state_dict().items() if value.data_ptr() not in read_at}
    if write is transformers:  # whose fused and transposed weights do not lie on disk as such
        assert all("in_proj" in name or "proj" in name.split(".")[-1] for name in copied) and copied
    else:
        assert copied == set()
    resized = CLIP.from_pretrained(tmp_path, resolution=64, **CPU)
    assert resized.visual.resolution == (64, 64)
    assert all(torch.equal(seen[name], value) for name, value in copies.items())


def test_training_does_not_reach_the_file(vit: CLIP, tmp_path: Path) -> None:
    path = clipkit_folder(vit, tmp_path)
    digest = sha256(path)
    model = CLIP.from_pretrained(tmp_path, **CPU)
    images = torch.randn(2, 3, 48, 48)
    clipkit.clip_loss(
        model.encode_image(images), model.encode_text(some_tokens()), model.logit_scale
    ).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter += 1
    assert sha256(path) == digest
    assert_same(CLIP.from_pretrained(tmp_path, **CPU), vit)


def test_copies_and_pickles(clip: CLIP, tmp_path: Path) -> None:
    clip.save_pretrained(tmp_path)
    model = CLIP.from_pretrained(tmp_path, **CPU)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_same(other, clip)
        assert not other.training
        assert {p.data_ptr() for p in other.parameters()}.isdisjoint(
            {p.data_ptr() for p in model.parameters()}
        )


# Device, dtype, resolution


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype(clip: CLIP, tmp_path: Path, dtype: torch.dtype) -> None:
    clipkit_folder(clip, tmp_path)
    model, _ = clipkit.load(tmp_path, "cpu", dtype=dtype)
    assert model.dtype == dtype
    for name, value in clip.state_dict().items():
        kept = (
            name == "logit_scale" or not value.is_floating_point()
        )  # exp(logit_scale) would lose its third digit
        assert torch.equal(model.state_dict()[name], value if kept else value.to(dtype)), name


def test_half_precision_files_become_float32_on_the_cpu(vit: CLIP, tmp_path: Path) -> None:
    vit.save_pretrained(tmp_path, dtype=torch.bfloat16)
    model = CLIP.from_pretrained(tmp_path, **CPU)
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    assert torch.equal(model.visual.proj, vit.visual.proj.bfloat16().float())


@pytest.mark.parametrize("dtype", [torch.int8, "float16"])
def test_dtypes_that_are_none(vit: CLIP, tmp_path: Path, dtype: Any) -> None:
    clipkit_folder(vit, tmp_path)
    with pytest.raises(
        ConfigError, match=f"dtype must be a float dtype such as .*, not .*{str(dtype)}"
    ):
        CLIP.from_pretrained(tmp_path, dtype=dtype, **CPU)
    with pytest.raises(ConfigError, match="dtype must be a float dtype"):
        vit.save_pretrained(tmp_path / "saved", dtype=dtype)
    assert not (tmp_path / "saved").exists()


def test_device(vit: CLIP, tmp_path: Path) -> None:
    clipkit_folder(vit, tmp_path)
    model = CLIP.from_pretrained(tmp_path, device=torch.device("meta"))
    assert {value.device.type for value in model.state_dict().values()} == {"meta"}


@pytest.mark.gpu
def test_default_dtype_on_cuda(vit: CLIP, tmp_path: Path) -> None:
    for stored, expected in (
        (None, torch.float16),
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.bfloat16),
    ):
        vit.save_pretrained(tmp_path, dtype=stored)
        model = CLIP.from_pretrained(tmp_path)
        assert model.device.type == "cuda" and model.dtype == expected
        assert {p.device.type for p in model.parameters()} == {"cuda"}
        features = model.encode_image(torch.zeros(1, 3, 48, 48))
        assert features.device.type == "cuda" and features.dtype == expected
        assert CLIP.from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize(
    ("which", "resolution", "grid"),
    [
        ("vit", 80, (5, 5)),
        ("vit", (32, 64), (2, 4)),
        ("vit", (100, 17), (6, 1)),
        ("resnet", 128, (4, 4)),
        ("resnet", (96, 160), (3, 5)),
    ],
)
def test_resolution(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    which: str,
    resolution: Any,
    grid: tuple[int, int],
) -> None:
    original: CLIP = request.getfixturevalue(which)
    clipkit_folder(original, tmp_path)
    model, preprocess = clipkit.load(tmp_path, "cpu", resolution=resolution)
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    assert (
        model.config.vision.resolution
        == model.visual.resolution
        == preprocess.resolution
        == (height, width)
    )
    assert model.visual.input_resolution == resolution
    key = (
        "visual.positional_embedding" if which == "vit" else "visual.attnpool.positional_embedding"
    )
    before, after = original.state_dict()[key], model.state_dict()[key]
    old = original.config.vision.grid
    assert torch.equal(after, resize_positions(before, old, grid)) and torch.equal(
        after[0], before[0]
    )
    assert len(after) == 1 + grid[0] * grid[1]
    for name, value in original.state_dict().items():
        assert name == key or torch.equal(model.state_dict()[name], value), name
    features = model.encode_image(torch.randn(2, 3, height, width))
    assert features.shape == (2, 32) and features.isfinite().all()

    model.save_pretrained(str(tmp_path / "resized"))
    assert_same(CLIP.from_pretrained(tmp_path / "resized", **CPU), model)


def test_the_same_resolution_changes_nothing(clip: CLIP, tmp_path: Path) -> None:
    clipkit_folder(clip, tmp_path)
    assert_same(
        CLIP.from_pretrained(tmp_path, resolution=clip.visual.input_resolution, **CPU), clip
    )


@pytest.mark.parametrize("resolution", [0, -64, (64,), "64", (64, 8)])
def test_impossible_resolutions(clip: CLIP, tmp_path: Path, resolution: Any) -> None:
    clipkit_folder(clip, tmp_path)
    with pytest.raises(ConfigError, match="resolution|larger than"):
        CLIP.from_pretrained(tmp_path, resolution=resolution, **CPU)


# Damage


def test_truncated_files(vit: CLIP, archive: Path, tmp_path: Path) -> None:
    for write in (clipkit_folder, open_clip_bin):
        path = write(vit, tmp_path)
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(
            CorruptCheckpointError,
            match=rf"{path.name} \([\d,]+ bytes\) cannot be read as .*Delete it",
        ):
            CLIP.from_pretrained(path, **CPU)
    (tmp_path / "cut.pt").write_bytes(archive.read_bytes()[:5000])
    with pytest.raises(
        CorruptCheckpointError, match=r"cut\.pt \(5,000 bytes\) cannot be read as a torch archive"
    ):
        CLIP.from_pretrained(tmp_path / "cut.pt", **CPU)
    (tmp_path / "empty.pt").touch()
    with pytest.raises(CorruptCheckpointError, match=r"empty\.pt \(0 bytes\) is empty"):
        CLIP.from_pretrained(tmp_path / "empty.pt", **CPU)


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("name", ["open_clip_pytorch_model.bin", "model.safetensors", "epoch_1.pt"])
def test_malicious_pickle_runs_nothing(vit: CLIP, tmp_path: Path, name: str) -> None:
    torch.save(vit.state_dict() | {"extra": Evil(tmp_path / "owned")}, tmp_path / name)
    with pytest.raises(
        UnsafeCheckpointError,
        match=r"asks for \w+\.mkdir, which weights do not need; nothing .*was run",
    ):
        CLIP.from_pretrained(tmp_path / name, **CPU)
    assert not (tmp_path / "owned").exists()


def test_state_dicts_of_something_else(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "linear.pt")
    with pytest.raises(
        CorruptCheckpointError,
        match=r"linear\.pt: these are not the weights of a CLIP: bias, weight",
    ):
        CLIP.from_pretrained(tmp_path / "linear.pt", **CPU)


def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"there is no file or folder '.*/none\.pt'"):
        clipkit.load(tmp_path / "none.pt")
    with pytest.raises(UnknownModelError, match="did you mean .*ViT-B/32"):
        clipkit.load("ViT-B/33")


def test_jit_is_declined() -> None:
    with pytest.raises(
        ConfigError, match=r"jit=True asks for TorchScript.*torch\.compile\(model\)"
    ):
        clipkit.load("tiny", "cpu", True)


# Saving


@pytest.mark.parametrize("layout", ["clipkit", "open_clip", "transformers"])
def test_saved_and_loaded_bit_for_bit(vit: CLIP, tmp_path: Path, layout: Any) -> None:
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    first, second, *rest = default_merges()[:86]
    model = CLIP(vit.config, Tokenizer([second, first, *rest], context_length=16))
    model.load_state_dict(before)
    model.save_pretrained(str(tmp_path / "deep" / "folder"), layout=layout)
    loaded = CLIP.from_pretrained(tmp_path / "deep" / "folder", **CPU)
    assert_same(loaded, vit)
    assert loaded.tokenizer == model.tokenizer
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("layout", ["clipkit", "open_clip"])
def test_resnet_saved_and_loaded_bit_for_bit(resnet: CLIP, tmp_path: Path, layout: Any) -> None:
    resnet.save_pretrained(tmp_path, layout=layout)
    assert_same(CLIP.from_pretrained(tmp_path, **CPU), resnet)


@pytest.mark.parametrize("layout", ["clipkit", "open_clip", "transformers"])
def test_saved_in_half_precision(
    vit: CLIP, small_tokenizer: Tokenizer, tmp_path: Path, layout: Any
) -> None:
    model = copy.deepcopy(vit)
    model._tokenizer = small_tokenizer
    model.save_pretrained(tmp_path, layout=layout, dtype=torch.float16)
    weights = next(tmp_path.glob("*.safetensors"))
    stored = read_weights(weights)
    assert stored.pop("logit_scale").dtype == torch.float32
    assert {value.dtype for value in stored.values()} == {torch.float16}
    expected = copy.deepcopy(vit).half()
    expected.logit_scale = vit.logit_scale
    assert_same(CLIP.from_pretrained(tmp_path, dtype=torch.float16, **CPU), expected)
    assert model.dtype == torch.float32


def test_saving_over_the_folder_that_was_loaded(clip: CLIP, tmp_path: Path) -> None:
    """The weights are still mapped from the file that is replaced."""
    clip.save_pretrained(tmp_path)
    model = CLIP.from_pretrained(tmp_path, **CPU)
    with torch.no_grad():
        model.logit_scale += 1
    model.save_pretrained(str(tmp_path))
    loaded = CLIP.from_pretrained(tmp_path, **CPU)
    assert_same(loaded, model)
    assert loaded.logit_scale == clip.logit_scale + 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("write", [open_clip, open_clip_bin])
def test_saving_where_other_weights_would_be_loaded(
    vit: CLIP, tmp_path: Path, write: Write
) -> None:
    path = write(vit, tmp_path)
    model = CLIP.from_pretrained(tmp_path, **CPU)
    with pytest.raises(
        ConfigError,
        match=f"holds {path.name}, which load would take instead: save to another folder",
    ):
        model.save_pretrained(str(tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [path.name, "open_clip_config.json"]
    )
    with torch.no_grad():
        model.logit_scale += 1
    model.save_pretrained(str(tmp_path), layout="open_clip")
    assert_same(CLIP.from_pretrained(tmp_path, **CPU), model)


def test_layouts_that_cannot_be(vit: CLIP, resnet: CLIP, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="layout must be 'clipkit', 'open_clip' or 'transformers', not 'openai'"
    ):
        vit.save_pretrained(tmp_path / "x", layout="openai")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="transformers has no CLIP with a ResNet"):
        full = CLIP(replace(resnet.config, text=replace(resnet.config.text, vocab_size=49408)))
        full.save_pretrained(tmp_path / "x", layout="transformers")
    assert not (tmp_path / "x").exists()


def test_failed_save_leaves_what_was_there(
    vit: CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vit.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        vit.save_pretrained(tmp_path, dtype=torch.float16)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_transformers_layout_brings_the_merges(tmp_path: Path) -> None:
    """Without them transformers' tokenizer knows no words. clipkit needs no reminder of its own table."""
    vision = clipkit.ViTConfig(resolution=32, patch_size=32, width=64, layers=1, activation="gelu")
    text = clipkit.TextConfig(width=64, layers=1, activation="gelu")
    model = CLIP(CLIPConfig(embed_dim=16, vision=vision, text=text))
    model.save_pretrained(str(tmp_path), layout="transformers")
    lines = (tmp_path / "merges.txt").read_text("utf-8").splitlines()
    assert lines[0].startswith("#version") and tuple(lines[1:]) == default_merges()
    loaded = CLIP.from_pretrained(tmp_path, **CPU)
    assert loaded._tokenizer is None and loaded.tokenizer.is_default


def test_own_merges_travel(vit: CLIP, small_tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = copy.deepcopy(vit)
    model._tokenizer = small_tokenizer
    model.save_pretrained(tmp_path)
    loaded = CLIP.from_pretrained(tmp_path, **CPU)
    assert loaded.tokenizer == small_tokenizer and loaded.tokenizer.vocab_size == 600
    tokens = loaded.tokenizer("a photo of a dog")
    torch.testing.assert_close(
        loaded.encode_text(tokens), model.encode_text(tokens), atol=1e-6, rtol=1e-6
    )
    with pytest.raises(
        TokenizerError, match="ids run from 0 to 49407, but this model knows 0 to 599"
    ):
        loaded.encode_text(clipkit.tokenize("a photo of a dog", context_length=16))

    (tmp_path / "merges.txt").write_text("\n".join(small_tokenizer.merges[:-1]), "utf-8")
    with pytest.raises(ConfigError, match=r"merges\.txt makes 599 tokens, the model has 600"):
        CLIP.from_pretrained(tmp_path, **CPU)
    (tmp_path / "merges.txt").write_text("no merge", "utf-8")
    with pytest.raises(TokenizerError, match="merge 0, 'no merge', must join"):
        CLIP.from_pretrained(tmp_path, **CPU)


def test_merges_of_a_transformers_repository(
    vit: CLIP, small_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """There, their place beside the weights says that they belong together."""
    model = copy.deepcopy(vit)
    model._tokenizer = small_tokenizer
    model.save_pretrained(tmp_path, layout="transformers")
    values = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert values.pop("tokenizer") == "merges.txt"
    write_json(tmp_path / "config.json", values)
    assert CLIP.from_pretrained(tmp_path, **CPU).tokenizer == small_tokenizer


def test_merges_of_a_model_that_lay_there_before_are_not_taken(
    vit: CLIP, small_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    other = copy.deepcopy(vit)
    other._tokenizer = small_tokenizer
    other.save_pretrained(tmp_path)
    CLIP.from_pretrained("tiny", **CPU).save_pretrained(tmp_path)
    assert CLIP.from_pretrained(tmp_path, **CPU).tokenizer.is_default


def test_a_vocabulary_without_its_tokenizer(vit: CLIP, tmp_path: Path) -> None:
    vit.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="600 tokens and the standard tokenizer 49408"):
        _ = CLIP.from_pretrained(tmp_path, **CPU).tokenizer
