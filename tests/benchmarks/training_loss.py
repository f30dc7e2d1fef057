"""Compare clipkit's contrastive loss, which works in tiles, with the plain formula."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from memory import alone, kilobytes, peak_of
from torch import Tensor

from clipkit.training import losses

WIDTH = 512
FEW = 4096  # pairs of the comparison of values, at most
TILES = 8


def plain(images: Tensor, texts: Tensor, logit_scale: Tensor) -> Tensor:
    """Return the formula of figure 3 of 2103.00020."""
    logits = logit_scale.exp() * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    labels = torch.arange(len(logits))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


LOSSES: dict[str, Callable[..., Tensor]] = {"clip_loss": losses.clip_loss, "plain": plain}


def pairs_of(count: int) -> list[Tensor]:
    """Return features (count, 512) of images and of texts near them, and the log temperature."""
    seeded = torch.Generator().manual_seed(0)
    images, noise = (torch.randn(count, WIDTH, generator=seeded) for _ in range(2))
    return [x.requires_grad_() for x in (images, images + 4 * noise, torch.tensor(2.6592))]


def loss_and_gradients(kind: str, inputs: list[Tensor]) -> list[Tensor]:
    loss = LOSSES[kind](*inputs)
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


def loss_cost(kind: str, count: int) -> tuple[float, float]:
    """Return seconds and MiB of a loss, once all that is loaded late is there."""
    loss_and_gradients(kind, pairs_of(64))
    inputs = pairs_of(count)
    return peak_of(lambda: loss_and_gradients(kind, inputs))


def pairs_that_fit(count: int) -> int:
    """Return for how many pairs the free memory has room, by halves of `count`."""
    free = 1024 * kilobytes("/proc/meminfo", "MemAvailable")
    while 5 * 4 * count**2 > free:  # the plain formula holds 4 to 5 matrices of scores
        count //= 2
    return count


def compare_losses(count: int, repeats: int) -> dict[str, Any]:
    """Return seconds, MiB and differences of the two losses."""
    fits = pairs_that_fit(count)
    kinds = dict.fromkeys([("clip_loss", count), ("clip_loss", fits), ("plain", fits)])
    costs: dict[str, tuple[list[float], list[float]]] = {
        f"{kind}, {pairs}": ([], []) for kind, pairs in kinds
    }
    for _ in range(repeats):
        for kind, pairs in kinds:
            seconds, megabytes = alone(loss_cost, kind, pairs)
            costs[f"{kind}, {pairs}"][0].append(seconds)
            costs[f"{kind}, {pairs}"][1].append(megabytes)
    few = min(count, FEW)
    return {"seconds, MiB": costs, f"clip_loss and plain, {few} pairs": differences(few)}


def differences(count: int) -> dict[str, float]:
    """Return by how much the value and the gradients in tiles differ from the plain ones."""
    with mock.patch.object(losses, "TILE", count**2 // TILES):
        tiled = loss_and_gradients("clip_loss", pairs_of(count))
    exact = loss_and_gradients("plain", pairs_of(count))
    found: dict[str, float] = {}
    names = ("value", "image gradients", "text gradients", "scale's")
    for name, ours, theirs in zip(names, tiled, exact, strict=True):
        off = (ours - theirs).abs().max().item()
        found[name] = off
        found[f"{name}, relative to the largest"] = off / theirs.abs().max().item()
    return found
