"""Fine-tuning: of a classifier from class folders, and of both towers from captioned pictures."""

import copy
import os
from dataclasses import replace
from pathlib import Path
from typing import TypeVar, cast

from torch import nn

from clipkit import distributed
from clipkit.classify.classifier import ImageClassifier
from clipkit.classify.heads import Head, LinearHead
from clipkit.clip import CLIP
from clipkit.data.labelled import Pairs
from clipkit.encode.store import digest
from clipkit.errors import ConfigError, DataError
from clipkit.prompts import TEMPLATES, Templates
from clipkit.training.batches import Augment, PairBatches
from clipkit.training.loop import Trainer
from clipkit.training.optimizer import TrainConfig
from clipkit.training.tasks import ClassificationTask

M = TypeVar("M", bound=nn.Module)


def interpolate(first: M, second: M, alpha: float) -> M:
    """A new module whose weights lie between those of two of the same shape (WiSE-FT, 2109.01903).

    Args:
        first, second: for example a zero-shot model and the same one fine-tuned, or two heads, of which each becomes
            a `LinearHead`; the result has the second's dtype.
        alpha: 0 gives the first, 1 the second.

    Raises:
        ConfigError: if alpha is not in 0-1, or the weights do not match.
    """
    _check_alpha(alpha)
    if isinstance(first, Head) and isinstance(second, Head):
        first, second = cast(M, first.to_linear()), cast(M, second.to_linear())
    ours, theirs = first.state_dict(), second.state_dict()
    if {k: v.shape for k, v in ours.items()} != {k: v.shape for k, v in theirs.items()}:
        raise ConfigError("interpolate needs two modules of the same weights")
    mixed = {
        k: ours[k].to(v).lerp(v, alpha) if v.is_floating_point() else v for k, v in theirs.items()
    }
    between = copy.deepcopy(second)
    between.load_state_dict(mixed)
    return between


def _check_alpha(alpha: float) -> None:
    if not 0 <= alpha <= 1:
        raise ConfigError(
            f"alpha must be from 0, for the first weights, to 1, for the second, not {alpha!r}"
        )


def finetune(
    model: CLIP,
    pairs: Pairs,
    class_names: list[str],
    out: str | os.PathLike[str],
    *,
    templates: Templates = TEMPLATES,
    epochs: int = 20,
    batch_size: int = 64,
    blocks: int | None = None,
    alpha: float = 0.5,
    lr: float | None = None,
    workers: int = 0,
    config: TrainConfig | None = None,
) -> ImageClassifier:
    """Fine-tune a classifier: its head on fixed features; then the image tower with it; then half of the way back.

    The head is fitted by `anchored` from the zero-shot classifier. The last stage interpolates between zero-shot and
    fine-tuned weights (WiSE-FT), which keeps more of what the model knew about other pictures.

    Args:
        model: to start from; it is not changed.
        pairs: pictures with labels, as `clipkit.training.batches.read_folder` gives them.
        class_names: one for each label.
        out: folder for the classifier, which `ImageClassifier.load` reads, and in `run` for what `Trainer` leaves.
        templates: of the zero-shot classifier.
        epochs, batch_size: of the second stage; 0 epochs train the head alone.
        blocks: train only so many last blocks of the image tower; None for all that is not locked.
        alpha: 0 for zero-shot, 1 for fine-tuned weights.
        lr: the peak of the learning rate; by default 5e-5 times the square of 512 / the text tower's width, 1e-3 at
            most: 5e-5 for ViT-B, 2e-5 for ViT-L.
        workers: processes that read ahead.
        config: of the second stage, in place of the defaults; `epochs`, `blocks` and `lr` then have no effect.

    Returns:
        The classifier, in eval mode.
    """
    _check_alpha(alpha)
    distributed.start(model.device)
    if not pairs.labels or len(class_names) <= max(pairs.labels):
        raise DataError("finetune needs pictures with labels, and a class name for each label")
    batch_size = min(batch_size, len(pairs))
    steps = epochs * (len(pairs) // max(1, batch_size))
    if config is None and steps:
        config = replace(_gentle(model, steps, lr), image_blocks=blocks)
    seed = config.seed if config else 0
    batches = PairBatches(
        pairs, batch_size, model.preprocess, None, Augment(0.5, mirror=True), workers, seed
    )
    start = ImageClassifier.zero_shot(model, class_names, templates)
    start.fit(
        list(zip(pairs.files, pairs.labels, strict=True)), workers=workers
    )  # without broken pictures
    head, tuned = start.head.to_linear(), copy.deepcopy(model).float()
    zero_shot = LinearHead(
        start.provenance.pop("scale") * start.zero_shot_head.weight
    )  # as sure of itself as the head
    if config:
        task, identity = ClassificationTask(tuned, head), digest(model, class_names, start.prompts)
        Trainer(
            task, batches, config, Path(out) / "run", device=tuned.device, identity=identity
        ).fit()
    tuned, head = (
        interpolate(model, tuned, alpha).eval(),
        interpolate(zero_shot, head, alpha).eval(),
    )
    provenance = start.provenance | {"method": "finetune", "epochs": epochs, "alpha": alpha}
    classifier = ImageClassifier(
        tuned, head, start.labels, start.zero_shot_head, start.prompts, provenance
    )
    if distributed.rank() == 0:
        classifier.save(out)
    return classifier


def finetune_captions(
    model: CLIP,
    pairs: Pairs,
    out: str | os.PathLike[str],
    *,
    epochs: int = 20,
    batch_size: int = 64,
    alpha: float = 0.5,
    lr: float | None = None,
    workers: int = 0,
    config: TrainConfig | None = None,
) -> CLIP:
    """Fine-tune both towers on captioned pictures by the contrastive loss, and interpolate with the start (WiSE-FT).

    Args:
        model: to start from; it is not changed.
        pairs: pictures with captions.
        out, epochs, batch_size, alpha, lr, workers, config: as in `finetune`.

    Returns:
        The model, in eval mode.
    """
    _check_alpha(alpha)
    batch_size = min(batch_size, len(pairs))
    config = config or _gentle(model, epochs * (len(pairs) // max(1, batch_size)), lr)
    tuned = copy.deepcopy(model).float()
    batches = PairBatches(
        pairs, batch_size, model.preprocess, model.tokenizer, workers=workers, seed=config.seed
    )
    run = Path(out) / "run"
    tuned = Trainer(tuned, batches, config, run, device=tuned.device, identity=digest(model)).fit()
    tuned = interpolate(model, tuned, alpha).eval()
    if distributed.rank() == 0:
        tuned.save_pretrained(Path(out) / "model")
    return tuned


def _gentle(model: CLIP, steps: int, lr: float | None) -> TrainConfig:
    """A tenth of the rate of training from scratch or less, lower still near the input, where features are general."""
    lr = min(1e-3, 5e-5 * (512 / model.config.text.width) ** 2) if lr is None else lr
    return TrainConfig(
        steps=steps, lr=lr, weight_decay=0.1, layer_decay=0.8, log_every=10, save_every=200
    )
