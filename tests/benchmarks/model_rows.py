"""Rows of `inference.py` that run a model: images, texts and zero-shot classifiers."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from libraries import Section, Setting, Side, is_resnet, reference, sides
from side_by_side import Row
from torch import Tensor

import clipkit
from clipkit.checkpoints import registry
from tests.helpers.random_weights import some_images

CHECKED = 8  # images of a batch whose features are compared
EXACT = 2e-5  # the largest difference of unit vectors in float32
NEAR = 0.02  # 1 - the lowest cosine in half precision
RESNET_NEAR = 0.25  # random weights of a ResNet, unlike trained ones, magnify each rounding
UNITS: dict[Section, str] = {"image": "images", "text": "prompts", "classifier": "classes"}


@dataclass(frozen=True)
class Plan:
    """Hold what to measure of a section.

    Attributes:
        models: published names, of which the architecture is taken.
        dtypes: precisions by name.
        sizes: numbers of items.
        parts: how many items a library does at most, for one that would take minutes.
    """

    models: list[str]
    dtypes: dict[str, torch.dtype]
    sizes: tuple[int, ...]
    parts: dict[str, int]


def shuffled_names() -> list[str]:
    """Return ImageNet's names in random order, so that the first of them are a fair sample."""
    names = [own[0] for own in clipkit.prompt_set("imagenet").class_names.values()]
    return random.Random(0).sample(names, len(names))


def distance(found: Tensor, expected: Tensor, exact: bool) -> float:
    """Return how far the features that both have are apart.

    Returns:
        The largest difference, or 1 - the lowest cosine.
    """
    count = min(len(found), len(expected))
    one = F.normalize(found[:count].cpu().double(), dim=-1)
    other = F.normalize(expected[:count].cpu().double(), dim=-1)
    if exact:
        return float((one - other).abs().max())
    return float(1 - (one * other).sum(dim=-1).min())


def inputs_of(section: Section, name: str, count: int, device: torch.device) -> Any:
    """Return images, prompts or class names."""
    if section == "image":
        return some_images(count, registry.MODELS[name].config.vision.resolution).to(device)
    names = shuffled_names()[:count]
    return [f"a photo of a {x}." for x in names] if section == "text" else names


def limit_of(name: str, dtype: torch.dtype) -> float:
    """Return how far features may be apart."""
    if dtype is torch.float32:
        return EXACT
    return RESNET_NEAR if is_resnet(name) else NEAR


def rows_of(section: Section, plan: Plan, setting: Setting) -> Iterator[Row]:
    """Yield a row for each model, precision and number of items."""
    for name in plan.models:
        expected = {count: expected_of(section, name, count, setting) for count in plan.sizes}
        for precision, dtype in plan.dtypes.items():
            contestants = sides(name, section, dtype, setting)
            for count in plan.sizes:
                inputs = inputs_of(section, name, count, setting.device)
                row = row_of(section, contestants, inputs, count, plan.parts)
                size = f"{count:,} {row.unit}" if count > 1 else "one"
                row.name = f"{section}: {name}, {precision}, {size}"
                row.dtype, row.limit = dtype, limit_of(name, dtype)
                features, row.flops = expected[count]
                row.check = partial(distance, expected=features, exact=dtype is torch.float32)
                yield row


def expected_of(section: Section, name: str, count: int, setting: Setting) -> tuple[Tensor, int]:
    """Return the features to compare with, and the operations of all items."""
    checked = min(count, CHECKED) if section == "image" else count
    inputs = inputs_of(section, name, count, setting.device)
    features, flops = reference(name, section, inputs[:checked], setting)
    return features, flops * count // checked


def row_of(
    section: Section, contestants: dict[str, Side], inputs: Any, count: int, most: dict[str, int]
) -> Row:
    """Return a row in which each contestant does all items, or as many as it may."""
    parts = {name: min(count, most.get(name.split()[0]) or count) for name in contestants}
    calls = {
        name: torch.inference_mode()(partial(side.of(section), inputs[: parts[name]]))
        for name, side in contestants.items()
    }
    return Row("", calls, lambda output: 0.0, UNITS[section], count, parts)
