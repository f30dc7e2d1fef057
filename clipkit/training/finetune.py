"""Fine-tuning: of a classifier from class folders, and of both towers from captioned pictures."""

import copy
import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipkit.checkpoints.files import replacing, write_weights
from clipkit.classify.heads import LinearHead
from clipkit.classify.zero_shot import TEMPLATES, zero_shot_weights
from clipkit.errors import ConfigError, DataError
from clipkit.features import embed_images
from clipkit.models.clip import CLIP
from clipkit.training import distributed
from clipkit.training.data import Augment, PairBatches, Pairs
from clipkit.training.loop import Trainer
from clipkit.training.optimizer import TrainConfig
from clipkit.training.tasks import ClassificationTask

M = TypeVar("M", bound=nn.Module)


def interpolate(first: M, second: M, alpha: float) -> M:
    """A new module whose weights lie between those of two of the same shape (WiSE-FT, 2109.01903).

    Args:
        first, second: for example a zero-shot model and the same one fine-tuned; the result has the second's dtype.
        alpha: 0 gives the first, 1 the second.

    Raises:
        ConfigError: if alpha is not in 0-1, or the weights do not match.
    """
    _check_alpha(alpha)
    ours, theirs = first.state_dict(), second.state_dict()
    if {k: v.shape for k, v in ours.items()} != {k: v.shape for k, v in theirs.items()}:
        raise ConfigError("interpolate needs two modules of the same weights")
    mixed = {k: ours[k].to(v).lerp(v, alpha) if v.is_floating_point() else v for k, v in theirs.items()}
    between = copy.deepcopy(second)
    between.load_state_dict(mixed)
    return between


def _check_alpha(alpha: float) -> None:
    if not 0 <= alpha <= 1:
        raise ConfigError(f"alpha must be from 0, for the first weights, to 1, for the second, not {alpha!r}")


def fit_head(head: LinearHead, features: Tensor, labels: Tensor, weight_decay: float = 1e-3) -> None:
    """Train a head in place on cached features (N, D) and labels (N,): cross-entropy, held near its start by a penalty.

    The penalty is half of `weight_decay` times the squared distance of a class's weights, averaged over the classes, in
    units of the root mean square weight of the start; of 1 if that is zero.
    """
    start = head.weight.detach().clone()
    unit = start.pow(2).mean().sqrt() or 1.0
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        distance = ((head.weight - start) / unit).pow(2).sum() / len(start)
        loss = F.cross_entropy(head(features), labels) + weight_decay / 2 * distance
        loss.backward()
        return loss

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]


def finetune(
    model: CLIP,
    pairs: Pairs,
    class_names: list[str],
    out: str | os.PathLike[str],
    *,
    templates: tuple[str, ...] = TEMPLATES,
    epochs: int = 10,
    batch_size: int = 64,
    blocks: int | None = None,
    alpha: float = 0.5,
    workers: int = 0,
    config: TrainConfig | None = None,
) -> tuple[CLIP, LinearHead]:
    """Fine-tune a classifier: its head on fixed features; then the image tower with it; then half of the way back.

    The head starts as the zero-shot classifier. The last stage interpolates between zero-shot and fine-tuned weights
    (WiSE-FT), which keeps more of what the model knew about other pictures.

    Args:
        model: to start from; it is not changed.
        pairs: pictures with labels, as `clipkit.training.data.read_folder` gives them.
        class_names: one for each label.
        out: folder for the model, `head.safetensors` and `labels.json`, and in `run` for what `Trainer` leaves.
        templates: of the zero-shot classifier.
        epochs, batch_size: of the second stage; 0 epochs train the head alone.
        blocks: train only so many last blocks of the image tower; None for all that is not locked.
        alpha: 0 for zero-shot, 1 for fine-tuned weights.
        workers: processes that read ahead.
        config: of the second stage, in place of the defaults; `epochs` and `blocks` then have no effect.

    Returns:
        The model and the head, in eval mode.
    """
    _check_alpha(alpha)
    distributed.start(model.device)
    if not pairs.labels or len(class_names) <= max(pairs.labels):
        raise DataError("finetune needs pictures with labels, and a class name for each label")
    batch_size = min(batch_size, len(pairs))
    steps = epochs * (len(pairs) // max(1, batch_size))
    if config is None and steps:
        config = replace(_gentle(steps), image_blocks=blocks)
    seed = config.seed if config else 0
    batches = PairBatches(pairs, batch_size, model.preprocess, None, Augment(0.5, mirror=True), workers, seed)
    zero_shot = LinearHead.from_zero_shot(zero_shot_weights(model, class_names, templates), model.logit_scale)
    tuned, head = copy.deepcopy(model).float(), copy.deepcopy(zero_shot)
    features = embed_images(tuned, pairs.files, workers=workers).to(tuned.device)
    fit_head(head, features, torch.tensor(pairs.labels, device=tuned.device))
    if config:
        task, identity = ClassificationTask(tuned, head), _digest(model, class_names, templates)
        Trainer(task, batches, config, Path(out) / "run", device=tuned.device, identity=identity).fit()
    tuned, head = interpolate(model, tuned, alpha).eval(), interpolate(zero_shot, head, alpha).eval()
    if distributed.rank() == 0:
        tuned.save_pretrained(Path(out) / "model")
        write_weights(head.state_dict(), Path(out) / "head.safetensors")
        with replacing(Path(out) / "labels.json") as partial:
            partial.write_text(json.dumps(class_names, indent=1) + "\n", "utf-8")
    return tuned, head


def finetune_captions(
    model: CLIP,
    pairs: Pairs,
    out: str | os.PathLike[str],
    *,
    epochs: int = 10,
    batch_size: int = 64,
    alpha: float = 0.5,
    workers: int = 0,
    config: TrainConfig | None = None,
) -> CLIP:
    """Fine-tune both towers on captioned pictures by the contrastive loss, and interpolate with the start (WiSE-FT).

    Args:
        model: to start from; it is not changed.
        pairs: pictures with captions.
        out, epochs, batch_size, alpha, workers, config: as in `finetune`.

    Returns:
        The model, in eval mode.
    """
    _check_alpha(alpha)
    batch_size = min(batch_size, len(pairs))
    config = config or _gentle(epochs * (len(pairs) // max(1, batch_size)))
    tuned = copy.deepcopy(model).float()
    batches = PairBatches(pairs, batch_size, model.preprocess, model.tokenizer, workers=workers, seed=config.seed)
    run = Path(out) / "run"
    tuned = Trainer(tuned, batches, config, run, device=tuned.device, identity=_digest(model)).fit()
    tuned = interpolate(model, tuned, alpha).eval()
    if distributed.rank() == 0:
        tuned.save_pretrained(Path(out) / "model")
    return tuned


def _digest(model: CLIP, *others: object) -> str:
    """By which a run knows again what it started from."""
    digest = hashlib.sha256(repr(others).encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _gentle(steps: int) -> TrainConfig:
    """A tenth of the rate of training from scratch or less, lower still near the input, where features are general."""
    return TrainConfig(steps=steps, lr=5e-5, weight_decay=0.1, layer_decay=0.8, log_every=10, save_every=200)
