"""clipkit.encode.fingerprints: what they tell apart, and that they outlive versions."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, make_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from clipkit import CLIP, TextConfig
from clipkit.encode.fingerprints import fingerprint, fingerprint_0_1_0
from clipkit.encode.store import extract_features, load_features
from clipkit.errors import DataError
from tests.compat.make import RESNET, VIT, small_model, some_images
from tests.helpers.toy_extraction import toy_model

OLD_FILE = Path(__file__).parents[1] / "compat" / "v0_1_0" / "features.safetensors"

# How version 0.1.0 printed the config of the model of that file.
OLD_CONFIG = (
    "CLIPConfig(embed_dim=16, vision=ViTConfig(width=16, layers=2, activation='quick_gelu', "
    "head_width=8, mlp_ratio=4.0, resolution=(32, 32), patch_size=16), text=TextConfig(width=16, "
    "layers=1, activation='gelu', head_width=8, mlp_ratio=4.0, context_length=16, "
    "vocab_size=522), preprocess=PreprocessConfig(mean=(0.48145466, 0.4578275, 0.40821073), "
    "std=(0.26862954, 0.26130258, 0.27577711), interpolation='bicubic', resize_mode='shortest'))"
)
# What version 0.1.0 computed of two towers, and of a run of fine-tuning.
DIGEST_VIT = "8eb4173d846caa91f77f2fe54af0033938394c858ab3df2126710a25e3a74082"
DIGEST_RESNET = "368881beb9f0716b69cba74f4de8511a07d11d4894fd5573871a0b992494fe51"
DIGEST_RUN = "ae6bec0b2549bd5c3d0b017853a27d5d7df3aafd4a54179e014603e3f13add27"


def make_tower() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 2, stride=2), nn.GELU(), nn.BatchNorm2d(4), nn.Flatten())


def set_weight(tower: nn.Sequential) -> None:
    with torch.no_grad():
        tower[0].get_parameter("weight")[1, 1, 1, 1] += 1e-6


def set_buffer(tower: nn.Sequential) -> None:
    tower[2].get_buffer("running_mean")[2] = 1


def set_attribute(place: int, name: str, value: object) -> Callable[[nn.Sequential], None]:
    return lambda tower: setattr(tower[place], name, value)


def replace_activation(tower: nn.Sequential) -> None:
    tower[1] = nn.ReLU()


def rename(tower: nn.Sequential) -> None:
    tower.__dict__["_modules"] = {f"layer{name}": child for name, child in tower.named_children()}


CHANGES: dict[str, Callable[[nn.Sequential], object]] = {
    "weight": set_weight,
    "buffer": set_buffer,
    "dtype": lambda tower: tower.double(),
    "class": replace_activation,
    "stride": set_attribute(0, "stride", (1, 1)),
    "eps": set_attribute(2, "eps", 1e-3),
    "approximate": set_attribute(1, "approximate", "tanh"),
    "name": rename,
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_computes_something_else_is_told_apart(change: str) -> None:
    tower = make_tower()
    CHANGES[change](tower)
    assert fingerprint(tower) != fingerprint(make_tower())


def test_what_is_said_about_a_module_counts() -> None:
    tower = make_tower()
    assert len({fingerprint(tower), fingerprint(tower, "a"), fingerprint(tower, "b")}) == 3


def test_modes_and_gradients_do_not_count() -> None:
    expected = fingerprint(make_tower())
    assert fingerprint(make_tower().eval().requires_grad_(False)) == expected
    assert fingerprint(make_tower().to(memory_format=torch.channels_last)) == expected  # pyright: ignore[reportCallIssue]


def test_shapes_count_though_the_bytes_are_the_same() -> None:
    wide = nn.Module()
    wide.register_buffer("values", torch.zeros(2, 3))
    high = nn.Module()
    high.register_buffer("values", torch.zeros(3, 2))
    assert fingerprint(wide) != fingerprint(high)


def test_every_dtype_and_shape_has_bytes() -> None:
    module = nn.Module()
    for dtype in (torch.bfloat16, torch.float16, torch.int8, torch.bool, torch.float64):
        module.register_buffer(str(dtype).replace(".", "_"), torch.zeros((), dtype=dtype))
    module.register_buffer("empty", torch.zeros(0, 3))
    assert len(fingerprint(module)) == 64


@pytest.mark.parametrize(
    "one, other",
    [
        (nn.ELU(1.0), nn.ELU(5.0)),
        (nn.Softmax(0), nn.Softmax(1)),
        (nn.Hardtanh(0, 1), nn.Hardtanh(0, 2)),
        (nn.AvgPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1, count_include_pad=False)),
        (nn.Upsample(8, mode="bilinear"), nn.Upsample(8, mode="bilinear", align_corners=True)),
    ],
)
def test_settings_without_weights_tell_modules_apart(one: nn.Module, other: nn.Module) -> None:
    assert fingerprint(one) != fingerprint(other)


def test_torch_may_print_modules_in_other_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new version of torch changes `extra_repr`, and adds attributes to its modules."""
    rows = [(image * 0.1 + 0.5, i) for i, image in enumerate(some_images(3).clamp(-4, 4))]
    out = tmp_path / "features.safetensors"
    first = extract_features(toy_model(), rows, out=out)
    for kind in (nn.Module, nn.Conv2d, nn.LayerNorm, nn.Linear):
        monkeypatch.setattr(kind, "extra_repr", lambda self: "new words")
    monkeypatch.setattr(torch.Tensor, "__repr__", lambda self, **options: "new words")
    model = toy_model()
    for module in model.modules():
        module.__dict__["added_by_a_new_version"] = 1
    again = extract_features(model, rows, out=out)
    assert torch.equal(again.features, first.features)


# Files of 0.1.0


def old_rows() -> list[tuple[torch.Tensor, int]]:
    """Return the images that `tests/compat/make.py` gave to version 0.1.0."""
    images = [(image * 0.1 + 0.5).clamp(0, 1) for image in some_images(3)]
    return list(zip(images, [2, 0, 1], strict=True))


def old_digest(module: nn.Module) -> str:
    """Compute the digest of weights as version 0.1.0 did, of a model with `OLD_CONFIG`."""
    sha = hashlib.sha256(f"({OLD_CONFIG}, {nn.Module.__repr__(module)})".encode())
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        sha.update(f"{name}{value.dtype}".encode())
        sha.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


@pytest.fixture
def old_file(tmp_path: Path) -> Path:
    """Return a file of 0.1.0, as this version of torch would print its model.

    The file itself is real. Its fingerprint of the weights holds what torch printed then.
    """
    tensors = load_file(OLD_FILE)
    info = json.loads(tensors["clipkit_features"].numpy().tobytes())
    model = small_model(VIT)
    info["made_of"]["weights"] = old_digest(model.visual)
    text = bytearray(json.dumps(info).encode())
    tensors["clipkit_features"] = torch.frombuffer(text, dtype=torch.uint8)
    save_file(tensors, tmp_path / "features.safetensors")
    return tmp_path / "features.safetensors"


class Refusing(CLIP):
    """Encode nothing: what is there already must be read."""

    def encode_image(self, image: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        raise AssertionError("encoded again")


def refusing() -> CLIP:
    model = small_model(VIT)
    model.__class__ = Refusing
    return model


def test_a_finished_file_of_0_1_0_is_read(old_file: Path) -> None:
    before = old_file.read_bytes()
    found = extract_features(refusing(), old_rows(), out=old_file)
    assert torch.equal(found.features, load_features(OLD_FILE).features)
    assert old_file.read_bytes() == before


def test_work_that_0_1_0_began_goes_on(old_file: Path) -> None:
    out = old_file.with_name("whole.safetensors")
    parts = Path(f"{out}.parts")
    parts.mkdir()
    shutil.move(old_file, parts / "0-3.safetensors")
    found = extract_features(refusing(), old_rows(), out=out)
    assert torch.equal(found.features, load_features(OLD_FILE).features)
    assert torch.equal(load_features(out).features, found.features)
    assert not parts.exists()
    extract_features(refusing(), old_rows(), out=out)  # by the new fingerprint now


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": old_rows()[::-1]}, "other images or transform: delete"),
        ({"normalize": False}, "other normalize: delete"),
        ({"model": small_model(VIT).double()}, "other weights: delete"),
    ],
)
def test_a_file_of_0_1_0_with_other_features_is_refused(
    old_file: Path, change: dict[str, Any], message: str
) -> None:
    given: dict[str, Any] = {"model": refusing(), "images": old_rows(), "out": old_file} | change
    with pytest.raises(DataError, match=rf"{message}.* Version 0.1.0 wrote it.* load_features"):
        extract_features(**given)


@pytest.mark.skipif(
    "bias=True" not in repr(nn.LayerNorm(1)), reason="this torch prints modules in other words"
)
def test_the_real_file_of_0_1_0_is_read(tmp_path: Path) -> None:
    """The digests in it were computed by version 0.1.0, under a torch that prints as this one."""
    out = Path(shutil.copy(OLD_FILE, tmp_path / "features.safetensors"))
    found = extract_features(refusing(), old_rows(), out=out)
    assert torch.equal(found.features, load_features(OLD_FILE).features)


@pytest.mark.skipif(
    "bias=True" not in repr(nn.LayerNorm(1)), reason="this torch prints modules in other words"
)
def test_models_have_the_digests_of_0_1_0() -> None:
    """Version 0.1.0 computed these, for feature files and for fine-tuning."""
    vit = small_model(VIT)
    resnet = small_model(RESNET)
    assert fingerprint_0_1_0(vit.visual, vit.config) == DIGEST_VIT
    assert fingerprint_0_1_0(resnet.visual, resnet.config) == DIGEST_RESNET
    assert fingerprint_0_1_0(vit, ["cat"], [["a cat."]]) == DIGEST_RUN


def test_a_field_that_differs_from_its_default_counts() -> None:
    tower = make_tower()
    config = small_model(VIT).config
    ending = replace(config, text=replace(config.text, end_of_text=5))
    assert fingerprint(tower, ending) != fingerprint(tower, config)
    assert fingerprint_0_1_0(tower, ending) != fingerprint_0_1_0(tower, config)


def test_a_field_that_a_later_version_adds_does_not_count() -> None:
    """Files must outlive versions: a new optional field leaves all digests as they were."""
    tower = make_tower()
    config = small_model(VIT).config
    later = make_dataclass(
        "TextConfig", [("added", bool, False)], bases=(TextConfig,), frozen=True, kw_only=True
    )
    newer = replace(config, text=later(**asdict(config.text)))
    changed = replace(config, text=later(**asdict(config.text), added=True))
    assert fingerprint(tower, newer) == fingerprint(tower, config)
    assert fingerprint(tower, changed) != fingerprint(tower, config)
