"""clipkit.classify.heads: each head's logits against its formula in NumPy, as one layer, and as a file."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit import CLIP, zero_shot_weights
from clipkit.classify.heads import (
    HEADS,
    CosineHead,
    Head,
    LinearHead,
    WeightedPromptHead,
    load_head,
    save_head,
)
from clipkit.config import CLIPConfig
from clipkit.errors import CheckpointNotFoundError, ConfigError, CorruptCheckpointError
from clipkit.files import write_weights
from clipkit.tokenizer import Tokenizer

KINDS = sorted(HEADS)
CLASSES, PROMPTS, WIDTH, PICTURES = 5, 4, 7, 6


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def tensors_of(kind: str) -> dict[str, Tensor]:
    """Random arguments, none of them neutral."""
    weight, scale = unit(CLASSES, WIDTH, seed=1), torch.tensor(2.5)
    values = F.one_hot(torch.arange(PICTURES) % CLASSES, CLASSES)
    return {
        "LinearHead": {"weight": 3 * weight, "bias": torch.linspace(-1, 1, CLASSES)},
        "CosineHead": {"weight": weight, "logit_scale": scale},
        "WeightedPromptHead": {
            "captions": unit(CLASSES, PROMPTS, WIDTH, seed=2),
            "logit_scale": scale,
            "prompt_weights": torch.rand(CLASSES, PROMPTS, generator=torch.Generator().manual_seed(3)),
        },
        "CacheHead": {
            "weight": weight, "logit_scale": scale, "keys": unit(PICTURES, WIDTH, seed=4), "values": values,
            "alpha": torch.tensor(1.7), "beta": torch.tensor(5.5),
        },
    }[kind]  # fmt: skip


def make(kind: str) -> Head:
    return HEADS[kind](**tensors_of(kind))


def oracle(kind: str, features: Tensor) -> np.ndarray:
    """The formula, in float64."""
    t = {name: tensor.double().numpy() for name, tensor in tensors_of(kind).items()}
    x = features.double().numpy()
    if kind == "LinearHead":
        return x @ t["weight"].T + t["bias"]
    if kind == "WeightedPromptHead":
        mixed = (t["prompt_weights"][:, :, None] * t["captions"]).sum(axis=1)
        return (
            np.exp(t["logit_scale"]) * x @ (mixed / np.linalg.norm(mixed, axis=1, keepdims=True)).T
        )
    zero_shot = np.exp(t["logit_scale"]) * x @ t["weight"].T
    if kind == "CosineHead":
        return zero_shot
    near = np.array([[np.exp(-t["beta"] * (1 - row @ key)) for key in t["keys"]] for row in x])
    return zero_shot + t["alpha"] * near @ t["values"]


# Logits


@pytest.mark.parametrize("kind", KINDS)
def test_logits_against_numpy(kind: Any) -> None:
    for pictures in (1, 9):
        features = unit(pictures, WIDTH, seed=5)
        logits = make(kind)(features)
        assert logits.dtype == torch.float32 and logits.shape == (pictures, CLASSES)
        np.testing.assert_allclose(
            logits.detach().numpy(), oracle(kind, features), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("kind", KINDS)
def test_what_can_be_trained(kind: Any) -> None:
    trained = {
        "LinearHead": {"weight", "bias"}, "CosineHead": {"weight", "logit_scale"},
        "WeightedPromptHead": {"prompt_weights", "logit_scale"}, "CacheHead": {"keys"},
    }[kind]  # fmt: skip
    head = make(kind)
    assert {name for name, _ in head.named_parameters()} == trained
    assert set(head.state_dict()) == set(tensors_of(kind))
    head(unit(3, WIDTH)).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in head.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_precision_gives_float32(kind: Any, dtype: torch.dtype) -> None:
    head = HEADS[kind](**{name: tensor.to(dtype) for name, tensor in tensors_of(kind).items()})
    assert {tensor.dtype for tensor in head.state_dict().values()} == {torch.float32}
    features = unit(3, WIDTH).to(dtype)
    logits = head(features)
    assert logits.dtype == torch.float32
    assert logits.equal(head(features.float()))


@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_its_own(kind: Any) -> None:
    given = tensors_of(kind)
    head = HEADS[kind](**given)
    before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    for tensor in given.values():
        tensor += 1
    assert all(tensor.equal(before[name]) for name, tensor in head.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(2, WIDTH + 1), (2, WIDTH - 1), (WIDTH,), (1, 2, WIDTH)])
def test_features_of_another_shape(kind: Any, shape: Any) -> None:
    with pytest.raises(ConfigError, match=rf"features of shape \(N, {WIDTH}\), not \({shape[0]},"):
        make(kind)(torch.zeros(shape))


# Zero-shot


@pytest.mark.parametrize(
    "pictures, classes, width", [(1, 1, 1), (1, 3, 5), (13, 7, 31), (64, 100, 512), (33, 10, 767)]
)
@pytest.mark.parametrize("log_scale", [math.log(100), 2.6592, 0.0])
def test_linear_start_equals_zero_shot_to_the_bit(
    pictures, classes: int, width: int, log_scale
) -> None:
    weight, scale, features = (
        unit(classes, width, seed=1),
        torch.tensor(log_scale),
        unit(pictures, width, seed=2),
    )
    cosine, linear = CosineHead(weight, scale), LinearHead.from_zero_shot(weight, scale)
    assert cosine(features).equal(linear(features)) and cosine.to_linear()(features).equal(
        linear(features)
    )
    assert not linear.bias.any() and linear.weight.requires_grad


def test_zero_shot_start_equals_the_model(
    vit_config: CLIPConfig, small_tokenizer: Tokenizer
) -> None:
    torch.manual_seed(0)
    model = CLIP(vit_config, small_tokenizer).eval()
    images, names = torch.randn(5, 3, 48, 48), ["cat", "dog", "a b c"]
    with torch.no_grad():
        expected, _ = model(images, small_tokenizer([f"a photo of a {name}." for name in names]))
        head = LinearHead.from_zero_shot(zero_shot_weights(model, names), model.logit_scale)
        torch.testing.assert_close(
            head(model.encode_image(images, normalize=True)), expected, rtol=1e-5, atol=1e-5
        )


def test_even_prompt_weights_are_the_ensemble() -> None:
    captions = unit(CLASSES, PROMPTS, WIDTH, seed=2)
    ensemble = CosineHead(F.normalize(captions.mean(dim=1), dim=-1), torch.tensor(2.5))
    head = WeightedPromptHead(captions, torch.tensor(2.5))
    torch.testing.assert_close(head(unit(9, WIDTH)), ensemble(unit(9, WIDTH)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(head.prompt_weights, torch.full((CLASSES, PROMPTS), 1 / PROMPTS))


def test_ragged_prompts() -> None:
    """Classes with 1 to 4 prompts, zeros elsewhere: each is as if it were alone, whatever its missing ones weigh."""
    captions, features = unit(CLASSES, PROMPTS, WIDTH, seed=2), unit(9, WIDTH, seed=5)
    counts = [1, 4, 2, 3, 4]
    for row, count in zip(captions, counts, strict=True):
        row[count:] = 0
    weights = torch.rand(CLASSES, PROMPTS, generator=torch.Generator().manual_seed(3))
    head = WeightedPromptHead(captions, torch.tensor(2.5), weights)
    logits = head(features)
    for i, count in enumerate(counts):
        alone = WeightedPromptHead(
            captions[i : i + 1, :count], torch.tensor(2.5), weights[i : i + 1, :count]
        )
        torch.testing.assert_close(logits[:, i : i + 1], alone(features), rtol=1e-5, atol=1e-5)
    logits.square().sum().backward()
    assert head.prompt_weights.grad is not None
    assert not head.prompt_weights.grad[~captions.any(dim=-1)].any()


# One layer


@pytest.mark.parametrize("kind", ["LinearHead", "CosineHead", "WeightedPromptHead"])
def test_to_linear(kind: Any) -> None:
    head, features = make(kind), unit(9, WIDTH, seed=5)
    linear = head.to_linear()
    assert type(linear) is LinearHead and (linear.classes, linear.width) == (CLASSES, WIDTH)
    torch.testing.assert_close(linear(features), head(features), rtol=1e-6, atol=1e-6)
    before = head(features)
    torch.nn.init.zeros_(linear.weight)
    assert head(features).equal(before)
    assert linear.weight.is_leaf and linear.bias.is_leaf


def test_cache_is_not_linear() -> None:
    with pytest.raises(ConfigError, match="a CacheHead is not linear in the features"):
        make("CacheHead").to_linear()


# Files

LABELS = ["cat", "größe", 'a "b"\n', "", "犬"]
PROVENANCE = {
    "method": "anchored",
    "strength": 0.1,
    "counts": [1, 2, 3, 4, 5],
    "data": {"seed": 0, "none": None},
}


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind: Any, tmp_path: Path) -> None:
    head, path, features = make(kind), tmp_path / "head.safetensors", unit(9, WIDTH, seed=5)
    save_head(head, path, LABELS, PROVENANCE)
    loaded, labels, provenance = load_head(path)
    assert type(loaded) is type(head) and (labels, provenance) == (LABELS, PROVENANCE)
    assert not loaded.training and list(tmp_path.iterdir()) == [path]
    assert loaded.state_dict().keys() == head.state_dict().keys()
    assert all(
        tensor.equal(head.state_dict()[name]) for name, tensor in loaded.state_dict().items()
    )
    assert loaded(features).equal(head(features))
    save_head(loaded, path, labels)  # over the file that it came from
    assert load_head(path)[2] == {} and loaded(features).equal(head(features))


def test_wrong_number_of_labels(tmp_path: Path) -> None:
    for labels in (LABELS[:4], [*LABELS, "dog"], []):
        with pytest.raises(
            ConfigError, match=f"a head of 5 classes needs as many labels, not {len(labels)}"
        ):
            save_head(make("LinearHead"), tmp_path / "head.safetensors", labels)
    assert not list(tmp_path.iterdir())


def about(**changes: object) -> dict[str, str]:
    return {
        "clipkit": json.dumps({"head": "LinearHead", "labels": LABELS, "provenance": {}} | changes)
    }


@pytest.mark.parametrize(
    "metadata, names, match",
    [
        (None, "weight bias", "is no head that clipkit saved"),
        ({"clipkit": "{"}, "weight bias", "is no head that clipkit saved"),
        ({"clipkit": "[]"}, "weight bias", "is no head that clipkit saved"),
        (about(head="Linear"), "weight bias", "is no head that clipkit saved .*'Linear'"),
        (about(head="CosineHead"), "weight bias", "is no head that clipkit saved .*bias"),
        (about(), "bias", "is no head that clipkit saved .*weight"),
        (about(), "weight bias logit_scale", "is no head that clipkit saved .*logit_scale"),
        (about(labels=5), "weight bias", "is no head that clipkit saved"),
        (about(labels=["cat", "dog"]), "weight bias", "has 2 labels for 5 classes"),
    ],
)
def test_a_file_that_is_no_head(tmp_path: Path, metadata, names: list[str], match: str) -> None:
    path = tmp_path / "head.safetensors"
    tensors = tensors_of("LinearHead") | {"logit_scale": torch.tensor(2.5)}
    write_weights({name: tensors[name] for name in names.split()}, path, metadata)
    with pytest.raises(CorruptCheckpointError, match=match):
        load_head(path)


def test_a_missing_or_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    with pytest.raises(CheckpointNotFoundError, match=r"head\.safetensors"):
        load_head(path)
    save_head(make("CacheHead"), path, LABELS)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-1], b"", b"x" * 100):
        path.write_bytes(damaged)
        with pytest.raises(CorruptCheckpointError, match=r"head\.safetensors"):
            load_head(path)
    torch.save(make("LinearHead").state_dict(), path)  # weights, but of no head's file
    with pytest.raises(CorruptCheckpointError, match=r"head\.safetensors"):
        load_head(path)
