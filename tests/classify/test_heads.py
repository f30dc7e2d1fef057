"""clipkit.classify.heads: logits against formulas in NumPy, as one layer, and as files."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from clipkit import CLIP, zero_shot_weights
from clipkit.classify.heads import (
    CosineHead,
    Head,
    LinearHead,
    WeightedPromptHead,
)
from clipkit.classify.saved_heads import HEADS, load_head, save_head
from clipkit.config import CLIPConfig
from clipkit.errors import CheckpointNotFoundError, ConfigError, CorruptCheckpointError
from clipkit.files import write_weights
from clipkit.tokenizer import Tokenizer

KINDS = sorted(HEADS)
CLASSES = 5
PROMPTS = 4
WIDTH = 7
IMAGES = 6


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def tensors_of(kind: str) -> dict[str, Tensor]:
    """Return random arguments of a head's constructor, none of them neutral."""
    weight = unit(CLASSES, WIDTH, seed=1)
    scale = torch.tensor(2.5)
    if kind == "LinearHead":
        return {"weight": 3 * weight, "bias": torch.linspace(-1, 1, CLASSES)}
    if kind == "CosineHead":
        return {"weight": weight, "logit_scale": scale}
    if kind == "AdaptedHead":
        return {
            "weight": 3 * weight,
            "bias": torch.linspace(-1, 1, CLASSES),
            "means": unit(CLASSES, WIDTH, seed=6),
            "variances": 0.02 + 0.1 * unit(CLASSES, WIDTH, seed=7).square(),
        }
    if kind == "WeightedPromptHead":
        random = torch.Generator().manual_seed(3)
        return {
            "captions": unit(CLASSES, PROMPTS, WIDTH, seed=2),
            "logit_scale": scale,
            "prompt_weights": torch.rand(CLASSES, PROMPTS, generator=random),
        }
    return {
        "weight": weight,
        "logit_scale": scale,
        "keys": unit(IMAGES, WIDTH, seed=4),
        "values": F.one_hot(torch.arange(IMAGES) % CLASSES, CLASSES),
        "alpha": torch.tensor(1.7),
        "beta": torch.tensor(5.5),
    }


def make(kind: str) -> Head:
    return HEADS[kind](**tensors_of(kind))


def oracle(kind: str, features: Tensor) -> NDArray[np.float64]:
    """Return the logits by the formula, in float64."""
    t = {name: tensor.double().numpy() for name, tensor in tensors_of(kind).items()}
    x = features.double().numpy()
    if kind == "LinearHead":
        return x @ t["weight"].T + t["bias"]
    if kind == "AdaptedHead":
        start = x @ t["weight"].T + t["bias"]
        start = start - np.log(np.exp(start).sum(axis=1, keepdims=True))
        distances = (x[:, None] - t["means"]) ** 2 / t["variances"]  # (N, C, D)
        return start - (distances + np.log(t["variances"])).sum(axis=2) / 2 / 50
    if kind == "WeightedPromptHead":
        mixed = (t["prompt_weights"][:, :, None] * t["captions"]).sum(axis=1)
        lengths = np.linalg.norm(mixed, axis=1, keepdims=True)
        return np.exp(t["logit_scale"]) * x @ (mixed / lengths).T
    zero_shot = np.exp(t["logit_scale"]) * x @ t["weight"].T
    if kind == "CosineHead":
        return zero_shot
    near = np.array([[np.exp(-t["beta"] * (1 - row @ key)) for key in t["keys"]] for row in x])
    return zero_shot + t["alpha"] * near @ t["values"]


# Logits


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 9])
def test_logits_against_numpy(kind: str, count: int) -> None:
    features = unit(count, WIDTH, seed=5)
    logits = make(kind)(features)
    assert logits.dtype == torch.float32
    assert logits.shape == (count, CLASSES)
    expected = oracle(kind, features)
    np.testing.assert_allclose(logits.detach().numpy(), expected, rtol=1e-5, atol=1e-5)


TRAINED = {
    "LinearHead": {"weight", "bias"},
    "CosineHead": {"weight", "logit_scale"},
    "WeightedPromptHead": {"prompt_weights", "logit_scale"},
    "CacheHead": {"keys"},
    "AdaptedHead": {"weight", "bias"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_can_be_trained(kind: str) -> None:
    head = make(kind)
    assert {name for name, _ in head.named_parameters()} == TRAINED[kind]
    assert set(head.state_dict()) == set(tensors_of(kind))
    head(unit(3, WIDTH)).square().sum().backward()
    for weight in head.parameters():
        assert weight.grad is not None
        assert weight.grad.any()


DTYPES = [torch.float16, torch.bfloat16, torch.float64]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_precision_gives_float32(kind: str, dtype: torch.dtype) -> None:
    head = HEADS[kind](**{name: tensor.to(dtype) for name, tensor in tensors_of(kind).items()})
    assert {tensor.dtype for tensor in head.state_dict().values()} == {torch.float32}
    features = unit(3, WIDTH).to(dtype)
    logits = head(features)
    assert logits.dtype == torch.float32
    assert logits.equal(head(features.float()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_cast_head_stays_in_float32(kind: str, dtype: torch.dtype) -> None:
    head = make(kind)
    cast = copy.deepcopy(head).to(dtype)
    features = unit(3, WIDTH)
    assert {value.dtype for value in cast.state_dict().values()} == {torch.float32}
    assert cast(features).equal(head(features))
    assert cast.scale == head.scale


def test_a_cast_head_keeps_what_half_precision_cannot_hold() -> None:
    head = LinearHead(torch.full((2, WIDTH), 1e6))
    logits = head(unit(3, WIDTH))
    assert head.half()(unit(3, WIDTH)).equal(logits)
    assert logits.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_changes_nothing(kind: str, dtype: torch.dtype) -> None:
    head, features = make(kind), unit(3, WIDTH)
    expected = head(features)
    with torch.autocast("cpu", dtype):
        logits = head(features)
        rounded = head(features.to(dtype))
        assert torch.is_autocast_enabled("cpu")
    assert logits.dtype == torch.float32
    assert logits.equal(expected)
    assert rounded.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_its_own(kind: str) -> None:
    given = tensors_of(kind)
    head = HEADS[kind](**given)
    before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    for tensor in given.values():
        tensor += 1
    for name, tensor in head.state_dict().items():
        assert tensor.equal(before[name])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(2, WIDTH + 1), (2, WIDTH - 1), (WIDTH,), (1, 2, WIDTH)])
def test_features_of_another_shape(kind: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=rf"features of shape \(N, {WIDTH}\), not \({shape[0]},"):
        make(kind)(torch.zeros(shape))


# Zero-shot


@pytest.mark.parametrize(
    ("count", "classes", "width"),
    [(1, 1, 1), (1, 3, 5), (13, 7, 31), (64, 100, 512), (33, 10, 767)],
)
@pytest.mark.parametrize("log_scale", [math.log(100), 2.6592, 0.0])
def test_linear_start_equals_zero_shot_to_the_bit(
    count: int, classes: int, width: int, log_scale: float
) -> None:
    weight = unit(classes, width, seed=1)
    scale = torch.tensor(log_scale)
    features = unit(count, width, seed=2)
    cosine = CosineHead(weight, scale)
    linear = LinearHead.from_zero_shot(weight, scale)
    assert cosine(features).equal(linear(features))
    assert cosine.to_linear()(features).equal(linear(features))
    assert not linear.bias.any()
    assert linear.weight.requires_grad
    assert linear.scale == pytest.approx(math.exp(log_scale))


def test_zero_shot_start_equals_the_model(
    vit_config: CLIPConfig, small_tokenizer: Tokenizer
) -> None:
    torch.manual_seed(0)
    model = CLIP(vit_config, small_tokenizer).eval()
    images = torch.randn(5, 3, 48, 48)
    names = ["cat", "dog", "a b c"]
    tokens = small_tokenizer([f"a photo of a {name}." for name in names])
    with torch.no_grad():
        expected, _ = model(images, tokens)
        head = LinearHead.from_zero_shot(zero_shot_weights(model, names), model.logit_scale)
        logits = head(model.encode_image(images, normalize=True))
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_even_prompt_weights_are_the_ensemble() -> None:
    captions = unit(CLASSES, PROMPTS, WIDTH, seed=2)
    ensemble = CosineHead(F.normalize(captions.mean(dim=1), dim=-1), torch.tensor(2.5))
    head = WeightedPromptHead(captions, torch.tensor(2.5))
    torch.testing.assert_close(head(unit(9, WIDTH)), ensemble(unit(9, WIDTH)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(head.prompt_weights, torch.full((CLASSES, PROMPTS), 1 / PROMPTS))


def test_ragged_prompts() -> None:
    """A class of 1 to 4 prompts, zeros elsewhere, is as if alone, whatever the zeros weigh."""
    captions = unit(CLASSES, PROMPTS, WIDTH, seed=2)
    features = unit(9, WIDTH, seed=5)
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
def test_to_linear(kind: str) -> None:
    head = make(kind)
    features = unit(9, WIDTH, seed=5)
    linear = head.to_linear()
    assert type(linear) is LinearHead
    assert (linear.classes, linear.width) == (CLASSES, WIDTH)
    assert linear.scale == head.scale
    torch.testing.assert_close(linear(features), head(features), rtol=1e-6, atol=1e-6)
    before = head(features)
    torch.nn.init.zeros_(linear.weight)
    assert head(features).equal(before)
    assert linear.weight.is_leaf
    assert linear.bias.is_leaf


def test_cache_is_not_linear() -> None:
    with pytest.raises(
        ConfigError, match="CacheHead is not linear in the features.*another method"
    ):
        make("CacheHead").to_linear()


def test_scale_is_what_multiplies_cosines() -> None:
    for kind in ("CosineHead", "WeightedPromptHead", "CacheHead"):
        assert make(kind).scale == pytest.approx(math.exp(2.5))
    assert make("LinearHead").scale is None
    assert LinearHead(torch.ones(2, 3), scale=7.5).scale == 7.5


# Files

LABELS = ["cat", "größe", 'a "b"\n', "", "犬"]
PROVENANCE = {
    "method": "anchored",
    "strength": 0.1,
    "counts": [1, 2, 3, 4, 5],
    "data": {"seed": 0, "none": None},
}


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind: str, tmp_path: Path) -> None:
    head = make(kind)
    path = tmp_path / "head.safetensors"
    features = unit(9, WIDTH, seed=5)
    save_head(head, path, LABELS, PROVENANCE)
    loaded, labels, provenance = load_head(path)
    assert type(loaded) is type(head)
    assert labels == LABELS
    assert provenance == PROVENANCE
    assert not loaded.training
    assert list(tmp_path.iterdir()) == [path]
    assert loaded.state_dict().keys() == head.state_dict().keys()
    for name, tensor in loaded.state_dict().items():
        assert tensor.equal(head.state_dict()[name])
    assert loaded(features).equal(head(features))
    assert loaded.scale == head.scale
    save_head(loaded, path, labels)  # over the file that it came from
    assert load_head(path)[2] == {}
    assert loaded(features).equal(head(features))


@pytest.mark.parametrize("scale", [None, 12.5])
def test_the_scale_is_saved_with_the_head(tmp_path: Path, scale: float | None) -> None:
    """And what the provenance says of it is only for people."""
    path = tmp_path / "head.safetensors"
    save_head(LinearHead(torch.ones(5, 7), scale=scale), path, LABELS, {"scale": 3.0})
    head, _, provenance = load_head(path)
    assert head.scale == scale
    assert provenance == {"scale": 3.0}


@pytest.mark.parametrize("scale", [None, 12.5])
def test_version_0_1_0_had_the_scale_in_the_provenance(tmp_path: Path, scale: float | None) -> None:
    path = tmp_path / "head.safetensors"
    provenance = {} if scale is None else {"scale": scale}
    write_weights(tensors_of("LinearHead"), path, about(provenance=provenance))
    head, _, found = load_head(path)
    assert head.scale == scale
    assert found == provenance


def test_wrong_number_of_labels(tmp_path: Path) -> None:
    for labels in (LABELS[:4], [*LABELS, "dog"], []):
        with pytest.raises(
            ConfigError, match=f"a head of 5 classes needs as many labels, not {len(labels)}"
        ):
            save_head(make("LinearHead"), tmp_path / "head.safetensors", labels)
    assert not list(tmp_path.iterdir())


def about(**changes: object) -> dict[str, str]:
    """Return the metadata of a head, as version 0.1.0 wrote them."""
    values = {"head": "LinearHead", "labels": LABELS, "provenance": {}} | changes
    return {"clipkit": json.dumps(values)}


@pytest.mark.parametrize(
    ("metadata", "names", "match"),
    [
        (about(scale=-1), "weight bias", "is no head that clipkit saved .*scale is -1"),
        (about(scale="x"), "weight bias", "is no head that clipkit saved"),
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
def test_a_file_that_is_no_head(
    tmp_path: Path, metadata: dict[str, str] | None, names: str, match: str
) -> None:
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
