"""Test what clipkit.openai.load takes, gives and refuses."""

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision import transforms

import clipkit
import clipkit.openai as clip
from clipkit import CLIPConfig, PreprocessConfig, ResNetConfig, TextConfig, Tokenizer
from clipkit.checkpoints import hub
from clipkit.checkpoints.registry import MODELS
from clipkit.errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    DownloadError,
    StateDictMismatchError,
    UnknownModelError,
    UnsupportedCheckpointError,
)
from clipkit.models.build import expected_weights
from clipkit.openai import build
from clipkit.openai import model as parts
from tests.helpers.model_files import write_transformers
from tests.helpers.models import RESNET, VIT, random_clip
from tests.helpers.random_weights import some_images
from tests.openai.small import images_for, make_vit, some_ids

NAMES = "RN50 RN101 RN50x4 RN50x16 RN50x64 ViT-B/32 ViT-B/16 ViT-L/14 ViT-L/14@336px".split()


def save(model: torch.nn.Module, path: Path) -> str:
    """Write a model's state dict, and return the path."""
    torch.save(model.state_dict(), path)
    return str(path)


def test_nine_names_are_available() -> None:
    assert clip.available_models() == NAMES


def test_the_names_have_the_addresses_of_openais_archives() -> None:
    url = clip.clip._MODELS["ViT-L/14@336px"]
    assert list(clip.clip._MODELS) == NAMES
    assert url.startswith("https://openaipublic.azureedge.net/clip/models/3035c92b350959924f9f00")
    assert url.endswith("/ViT-L-14-336px.pt")


def test_the_embedded_model_is_that_of_clipkit() -> None:
    model, _ = clip.load("tiny", "cpu")
    other, _ = clipkit.load("tiny", "cpu")
    images, ids = some_images(2, 96), clip.tokenize(["a dog", "a cat in jeans"])
    assert not model.training
    with torch.no_grad():
        for found, expected in (
            (model.encode_image(images), other.encode_image(images)),
            (model.encode_text(ids), other.encode_text(ids)),
        ):
            scale = float(expected.abs().max())
            torch.testing.assert_close(found / scale, expected / scale, atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", [VIT, RESNET], ids=["vit", "resnet"])
def test_a_folder_carries_gelu_head_and_mlp_widths(config: CLIPConfig, tmp_path: Path) -> None:
    other = random_clip(config)
    other.save_pretrained(tmp_path)
    model, _ = clip.load(tmp_path, "cpu")
    images = some_images(2, config.vision.resolution)
    with torch.no_grad():
        found, expected = model.encode_image(images), other.encode_image(images)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        found, expected = model.encode_text(some_ids()), other.encode_text(some_ids())
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_float32_weights_of_a_folder_are_not_rounded(tmp_path: Path) -> None:
    other = random_clip(VIT)
    other.save_pretrained(tmp_path)
    model, _ = clip.load(str(tmp_path), "cpu")
    expected = other.state_dict()["text.text_projection"]
    assert torch.equal(model.text_projection, expected)
    assert not torch.equal(expected, expected.half().float())


def test_a_state_dict_is_loaded_by_way_of_half_precision_as_openai_does(tmp_path: Path) -> None:
    vit = make_vit()
    model, preprocess = clip.load(save(vit, tmp_path / "vit.pt"), "cpu")
    assert model.dtype == torch.float32
    assert torch.equal(model.text_projection, vit.text_projection.half().float())
    assert torch.equal(model.ln_final.weight, vit.ln_final.weight)
    assert preprocess.transforms[1].size == (48, 48)


def test_a_file_beside_its_config_is_what_the_config_says(tmp_path: Path) -> None:
    random_clip(VIT).save_pretrained(tmp_path, layout="open_clip")
    model, preprocess = clip.load(tmp_path / "open_clip_model.safetensors", "cpu")
    assert isinstance(model.get_submodule("transformer.resblocks.0.mlp.gelu"), torch.nn.GELU)
    assert model.get_submodule("transformer.resblocks.0.attn").num_heads == 2
    assert preprocess.transforms[0].size == [48, 48]


def test_a_checkpoint_of_training_is_what_its_own_config_says(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({"identity": [VIT.to_dict()], "model": random_clip(VIT).state_dict()}, path)
    model, _ = clip.load(path, "cpu")
    assert model.get_submodule("transformer.resblocks.0.attn").num_heads == 2


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more", b"<html>"])
def test_a_damaged_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "damaged.pt").write_bytes(content)
    with pytest.raises(CorruptCheckpointError, match=r"damaged\.pt"):
        clip.load(tmp_path / "damaged.pt", "cpu")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_prefixes_of_training_loops_are_taken_off(prefix: str, tmp_path: Path) -> None:
    vit = make_vit()
    path = tmp_path / "wrapped.pt"
    state = {prefix + name: value for name, value in vit.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, path)
    model, _ = clip.load(str(path), "cpu")
    assert torch.equal(model.positional_embedding, vit.positional_embedding)


def test_an_archive_of_openais_kind_is_loaded_without_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vit = parts.build_model(make_vit().state_dict())
    path = tmp_path / "archive.pt"
    images, ids = images_for(vit), some_ids()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        script: Any = torch.jit.trace(vit, (images, ids), check_trace=False)
        script.save(str(path))
    monkeypatch.setattr(torch.jit, "load", None)
    model, _ = clip.load(str(path), "cpu")
    assert torch.equal(model.encode_text(ids), vit.float().encode_text(ids))


def test_jit_is_accepted_and_says_what_it_gives() -> None:
    with pytest.warns(UserWarning, match="jit=True gives the ordinary module"):
        model, _ = clip.load("tiny", "cpu", jit=True)
    assert isinstance(model, parts.CLIP)
    sizes: list[Any] = [
        getattr(model, name) for name in ("input_resolution", "context_length", "vocab_size")
    ]
    assert [size.item() for size in sizes] == [96, 77, 49408]
    assert clip.tokenize("a dog", sizes[1]).shape == (1, 77)
    assert model.build_attention_mask().shape == (77, 77)
    assert model.state_dict().keys() == clip.load("tiny", "cpu")[0].state_dict().keys()


def test_arguments_may_be_given_by_name(tmp_path: Path) -> None:
    device = torch.device("cpu")
    model, _ = clip.load(name="tiny", device=device, jit=False, download_root=str(tmp_path))
    assert model.logit_scale.device == device
    assert list(tmp_path.iterdir()) == []


# Published names.


def test_a_published_name_is_the_archive_that_download_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(make_vit(), tmp_path / "ViT-B-32.pt")
    asked: list[tuple[str, str]] = []

    def download(url: str, root: str) -> str:
        asked.append((url, root))
        return path

    monkeypatch.setattr(clip.clip, "_download", download)
    model, _ = clip.load("ViT-B/32", "cpu", download_root="there")
    assert model.visual.input_resolution == 48
    assert asked == [(clip.clip._MODELS["ViT-B/32"], "there")]


def test_download_takes_a_file_of_the_right_digest_without_a_network(tmp_path: Path) -> None:
    path = tmp_path / "mine.pt"
    path.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    assert clip.clip._download(f"https://there/{digest}/mine.pt", str(tmp_path)) == str(path)
    with pytest.raises(DownloadError, match="SHA-256 digest is"):
        clip.clip._download(f"https://there/{'0' * 64}/mine.pt", str(tmp_path))


@pytest.mark.parametrize("url", ["mine.pt", "https://there/mine.pt"])
def test_download_refuses_an_address_without_a_digest(url: str, tmp_path: Path) -> None:
    with pytest.raises(build.SettingError, match=f"SHA-256.*not '{url}'"):
        clip.clip._download(url, str(tmp_path))


def test_without_the_archive_the_hub_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Path:
        raise DownloadError("no archive")

    asked: list[str] = []

    def fetch(repo: str, *_: Any, **__: Any) -> Path:
        asked.append(repo)
        raise DownloadError("no hub")

    monkeypatch.setattr(hub, "fetch_url", fail)
    monkeypatch.setattr(hub, "fetch_hub", fetch)
    with pytest.raises(RuntimeError, match="no hub\nOpenAI's own archive was tried too"):
        clip.load("RN50", "cpu", download_root=tmp_path)
    assert asked == ["timm/resnet50_clip.openai"]


def test_an_address_that_a_program_adds_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(clip.clip._MODELS, "mine", f"https://there/{'0' * 64}/mine.pt")
    assert clip.available_models() == [*NAMES, "mine"]
    with pytest.raises(DownloadError, match="no good copy of https://there/0+/mine"):
        clip.load("mine", "cpu", download_root=tmp_path)


# What is refused.


@pytest.mark.parametrize(
    "name, kind, message",
    [
        ("ViT-B/33", UnknownModelError, r"'ViT-B/33' is no published model.*ViT-B/32"),
        ("no such model", UnknownModelError, "'no such model' is no published model"),
        ("./no-such.pt", CheckpointNotFoundError, r"\./no-such\.pt"),
    ],
)
def test_unknown_names_are_runtime_errors(name: str, kind: type, message: str) -> None:
    with pytest.raises(RuntimeError, match=message) as caught:
        clip.load(name, "cpu")
    assert caught.type is kind


def test_a_device_that_is_not_there_is_a_runtime_error() -> None:
    with pytest.raises(RuntimeError, match="there is no device 'nowhere' here") as caught:
        clip.load("tiny", "nowhere")
    assert isinstance(caught.value, clipkit.errors.ConfigError)


LONGEST = PreprocessConfig(resize_mode="longest")
OBLONG = replace(VIT.vision, resolution=(48, 64))
ODD = ResNetConfig(resolution=(95, 95), layers=(1, 1, 1, 1), width=16)
REFUSED: dict[str, tuple[CLIPConfig, str]] = {
    "oblong": (replace(VIT, vision=OBLONG), "images of 48 x 64 pixels"),
    "odd": (replace(RESNET, vision=ODD), "3 x 3 positions and OpenAI's structure 2 x 2"),
    "end": (replace(VIT, text=replace(VIT.text, end_of_text=7)), "at the id 7"),
    "longest": (replace(VIT, preprocess=LONGEST), "resize_mode='longest' to 48 x 48"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_openais_structure_cannot_express_is_refused(name: str, tmp_path: Path) -> None:
    config, message = REFUSED[name]
    random_clip(config).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedCheckpointError, match=f"{message}.*`import clipkit`"):
        clip.load(tmp_path, "cpu")


def test_the_highest_id_as_end_of_text_is_openais_rule(tmp_path: Path) -> None:
    random_clip(replace(VIT, text=replace(VIT.text, end_of_text=599))).save_pretrained(tmp_path)
    model, _ = clip.load(tmp_path, "cpu")
    assert model.encode_text(some_ids()).shape == (3, 32)


def test_a_tokenizer_of_its_own_is_refused(tmp_path: Path, small_tokenizer: Tokenizer) -> None:
    random_clip(VIT, small_tokenizer).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match=r"Tokenizer\(vocab_size=600.*use model\.tokenizer"):
        clip.load(tmp_path, "cpu")


def test_a_preprocessing_that_is_code_is_refused(tmp_path: Path) -> None:
    model = random_clip(VIT)
    model.preprocess = transforms.ToTensor()
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match=r"ToTensor\(\).*`import clipkit`"):
        clip.load(tmp_path, "cpu")


def rename_to_clipkit(tmp_path: Path) -> Path:
    torch.save(random_clip(VIT).state_dict(), tmp_path / "theirs.pt")
    return tmp_path / "theirs.pt"


def rename_to_transformers(tmp_path: Path) -> Path:
    path = write_transformers(random_clip(VIT), tmp_path)
    return path.rename(tmp_path / "theirs.safetensors")


@pytest.mark.parametrize("write", [rename_to_clipkit, rename_to_transformers])
def test_a_bare_file_of_other_names_is_refused(
    write: Callable[[Path], Path], tmp_path: Path
) -> None:
    path = write(tmp_path)
    with pytest.raises(UnsupportedCheckpointError, match=r"theirs.*must have OpenAI's names"):
        clip.load(path, "cpu")


def test_wrong_shapes_are_shown(tmp_path: Path) -> None:
    state = make_vit().state_dict()
    state["text_projection"] = state["text_projection"][:, :7]
    del state["ln_final.bias"]
    torch.save(state, tmp_path / "cut.pt")
    message = r"cut\.pt: (?s:.)*- ln_final\.bias(?s:.)*! text_projection is \(128, 7\)"
    with pytest.raises(StateDictMismatchError, match=message):
        clip.load(tmp_path / "cut.pt", "cpu")


def test_build_model_refuses_what_is_no_clip() -> None:
    with pytest.raises(CorruptCheckpointError, match="not the weights of a CLIP: a, b"):
        parts.build_model({"a": torch.zeros(1), "b": torch.zeros(1)})


def test_build_model_refuses_widths_that_have_no_heads() -> None:
    state = parts.CLIP(8, 32, 1, 32, 16, 4, 50, 64, 1, 1, vision_head_width=16).state_dict()
    with pytest.raises(RuntimeError, match=r"width 32 is not a multiple of head_width 64"):
        parts.build_model(state)


def test_build_model_counts_heads_as_openai_does() -> None:
    state = parts.CLIP(8, 32, 1, 160, 16, 4, 50, 96, 1, 1, vision_head_width=80).state_dict()
    model = parts.build_model(state)
    assert model.get_submodule("visual.transformer.resblocks.0.attn").num_heads == 2
    assert model.get_submodule("transformer.resblocks.0.attn").num_heads == 1


def test_other_mlp_widths_tell_another_kind_of_model() -> None:
    state = parts.CLIP(8, 32, 1, 64, 16, 4, 50, 64, 1, 1, vision_mlp_width=200).state_dict()
    with pytest.raises(RuntimeError, match=r"an MLP is 200 wide where OpenAI's have 4 x 64"):
        parts.build_model(state)


def test_weights_of_tiny_alone_do_not_tell_that_its_heads_are_32_wide(tmp_path: Path) -> None:
    """By OpenAI's rule its text tower would have one head, and other features without an error."""
    model, _ = clip.load("tiny", "cpu")
    torch.save(model.state_dict(), tmp_path / "tiny.pt")
    for load in (
        lambda: parts.build_model(model.state_dict()),
        lambda: clip.load(tmp_path / "tiny.pt", "cpu"),
    ):
        with pytest.raises(RuntimeError, match="of these shapes are tiny, which have other heads"):
            load()


@pytest.mark.parametrize("name", ["ViT-H-14/laion2b_s32b_b79k", "ViT-B-16-plus-240/laion400m_e31"])
def test_sizes_that_only_other_models_have_are_refused(name: str) -> None:
    with pytest.raises(RuntimeError, match=f"of these shapes are .*{name}.*config="):
        build.config_of(expected_weights(MODELS[name].config))


@pytest.mark.parametrize("name", NAMES)
def test_openais_own_sizes_are_read_from_the_weights(name: str) -> None:
    config = MODELS[name].config
    assert build.config_of(expected_weights(config)) == config


def test_counters_that_old_files_lack_are_added(resnet: parts.CLIP) -> None:
    state = {k: v for k, v in resnet.state_dict().items() if "num_batches" not in k}
    state["visual.bn1.num_batches_tracked"] = torch.tensor(2.0)
    model = parts.build_model(state)
    assert int(model.state_dict()["visual.bn1.num_batches_tracked"]) == 2
    assert int(model.state_dict()["visual.bn2.num_batches_tracked"]) == 0


def test_text_sizes_come_from_the_config() -> None:
    arguments = build.arguments_of(
        replace(VIT, text=TextConfig(width=64, layers=1, activation="gelu", vocab_size=70))
    )
    assert arguments["transformer_heads"] == 1
    assert arguments["vocab_size"] == 70
