"""Fine-tune low-rank changes of both towers (CLIP-LoRA, 2405.18541), where held-out images allow.

Low-rank changes learn fast from few images, and on some data they end below zero-shot. So a part of
the images is held out first, and says what is kept: zero-shot, a fitted head, or the changes.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from clipkit import distributed
from clipkit.classify.classifier import ImageClassifier
from clipkit.classify.few_shot import fit_head
from clipkit.classify.fitting import Folds, calibrate, held_out, is_clearly_lower, make_folds
from clipkit.classify.heads import CosineHead, Head
from clipkit.classify.seen import SEEN
from clipkit.classify.zero_shot import weights_of_prompts
from clipkit.clip import CLIP
from clipkit.data.labelled import Pairs
from clipkit.encode.embed import embed_images
from clipkit.encode.features import Features
from clipkit.encode.store import extract_features
from clipkit.models.low_rank import lora, merge_lora
from clipkit.training.batches import Augment, PairBatches
from clipkit.training.config import TrainConfig
from clipkit.training.interpolation import interpolate_weights
from clipkit.training.out import check_run_folder
from clipkit.training.plan import check_options, decide_alpha, plan_low_rank
from clipkit.training.stage import RUN, Stage, train_stage
from clipkit.training.tasks import PromptTask

ZERO_SHOT, HEAD, LOW_RANK = "zero_shot", "anchored", "low_rank"  # what is chosen from

_OF_IMAGES = ("images", "counts", "skipped", SEEN)  # what provenance says of them, not of a head
# Standard errors. One would not do: a single image that is right now, all others being as before,
# is one.
_ERRORS = 2
_FOLDS = 2  # the changes are trained once for each, on the other images


@dataclass(frozen=True)
class LowRank:
    """Say how low-rank changes are trained, and whether held-out images decide on them.

    Args:
        rank: of the changes.
        guard: whether they are only kept if images that were held out are told apart better.
        alpha: 0 for the start, 1 for the changes as they were trained.
        config: how to train on all images. On a part of them there are as many fewer steps.
        batch_size: images of a step.
        workers: processes that read ahead.
    """

    rank: int
    guard: bool
    alpha: float
    config: TrainConfig
    batch_size: int
    workers: int = 0


def plan_changes(
    model: CLIP,
    pairs: Pairs,
    rank: int,
    *,
    guard: bool = True,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    alpha: float | None = None,
    workers: int = 0,
    config: TrainConfig | None = None,
) -> LowRank:
    """Return how to train, of the options of `finetune`.

    Raises:
        DataError, ConfigError: as `finetune`.
    """
    given: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "lr": lr}
    check_options(model, pairs, **given, alpha=alpha, lora=rank, guard=guard, config=config)
    size, config = plan_low_rank(pairs, **given, config=config)
    return LowRank(rank, guard, decide_alpha(alpha, rank), config, size, workers)


def finetune_low_rank(
    start: ImageClassifier, pairs: Pairs, how: LowRank, out: Path
) -> ImageClassifier:
    """Return the classifier that tells held-out images apart best, fitted on all images.

    Args:
        start: zero-shot, of the model to start from. Its head is fitted, in place.
        pairs: images with labels.
        how: to train the changes.
        out: folder for what `Trainer` leaves, in `run`.

    Returns:
        A classifier without changes: they are added to the weights. Its provenance has what was
        chosen, and what each choice made of the images that were held out.
    """
    check_run_folder(out / RUN)
    distributed.start(start.model.device)
    found = _extract(start.model, pairs, how.workers)
    assert found.labels is not None  # they are the numbers of the images that can be read
    sound = pairs.select(cast("list[int]", found.labels.tolist()))
    # With their paths: by features alone a tuned model would not know its images again.
    start.fit(replace(found, labels=torch.tensor(sound.labels, device="cpu")))
    chosen, about = _choose(start, sound, found.features, how, out)
    about = {"lora": {"chosen": chosen, "rank": how.rank} | about}
    if chosen == HEAD:
        start.provenance |= about
        return start.eval()
    seen = {name: start.provenance[name] for name in _OF_IMAGES if name in start.provenance}
    if chosen == ZERO_SHOT:
        start.head = start.zero_shot_head
        start.provenance = {"method": ZERO_SHOT} | seen | about
        return start.eval()
    classifier = _adapted(start, train_changes(start, sound, how, out / RUN))
    settings = {"method": "finetune", "alpha": how.alpha, "steps": how.config.steps}
    classifier.provenance = settings | seen | about
    return classifier


def train_changes(start: ImageClassifier, pairs: Pairs, how: LowRank, out: Path) -> CLIP:
    """Return a model with low-rank changes that were trained on all of some images, merged.

    Args:
        start: a classifier of the model to start from, which is not changed.
        pairs: images with labels of its classes.
        how: to train, on all of these images.
        out: folder for what `Trainer` leaves.

    Returns:
        The model, in eval mode and float32.
    """
    torch.manual_seed(how.config.seed)  # the changes begin at random
    model = lora(start.model, how.rank).float()
    batches = PairBatches(
        pairs,
        min(how.batch_size, len(pairs)),
        model.preprocess,
        tokenizer=None,
        augment=Augment(0.5, mirror=True),
        workers=how.workers,
        seed=how.config.seed,
    )
    task = PromptTask(model, start.prompts)
    stage = Stage(how.config, batches, out)
    trained = train_stage(task, stage, start.model, start.labels, start.prompts, how.rank)
    return interpolate_weights(start.model, merge_lora(trained), how.alpha).eval()


def _extract(model: CLIP, pairs: Pairs, workers: int) -> Features:
    """Return the features of the images that can be read; their labels are the images' numbers."""
    rows = [(file, number) for number, file in enumerate(pairs.files)]
    shared = distributed.group() is not None
    return extract_features(model, rows, workers=workers, shared=shared)


def _adapted(start: ImageClassifier, model: CLIP) -> ImageClassifier:
    """Return the zero-shot classifier of a tuned model, with the prompts of the start."""
    weights = weights_of_prompts(model, start.prompts)
    heads = [CosineHead(weights, model.logit_scale).eval() for _ in range(2)]
    return ImageClassifier(
        model, heads[0], start.labels, heads[1], start.prompts, templates=start.templates
    )


def _choose(
    start: ImageClassifier, pairs: Pairs, features: Tensor, how: LowRank, out: Path
) -> tuple[str, dict[str, Any]]:
    """Return what to keep, and how the choices did on images that were held out.

    Where no class has two images none can be held out, and the head alone is kept.

    Args:
        start: with the zero-shot head.
        pairs: N images with labels.
        features: (N, D), of the start's model.
        how: to train the changes.
        out: folder for the runs.
    """
    if not how.guard:
        return LOW_RANK, {}
    labels = torch.tensor(pairs.labels, device="cpu")
    generator = torch.Generator("cpu").manual_seed(how.config.seed)
    folds = make_folds(labels, generator, _FOLDS)
    if not folds:
        return HEAD, {"held_out": {"images": 0}}
    logits = {ZERO_SHOT: _held_out(lambda rest: start.zero_shot_head, features, folds)}
    device = start.model.device

    def fit(rest: Tensor) -> Head:
        return fit_head(features[rest], labels[rest], start.zero_shot_head, HEAD)[0].to(device)

    logits[HEAD] = _held_out(fit, features, folds)
    logits[LOW_RANK] = _held_out_by_changes(start, pairs, folds, how, out)
    chosen, figures = choose(logits, held_out(labels, folds))
    # Processes may differ in the last bits, and must not choose differently.
    return distributed.gather_objects(chosen)[0], {"held_out": figures}


def _held_out(fit: Callable[[Tensor], Head], features: Tensor, folds: Folds) -> Tensor:
    """Return the logits of the images that are held out (M, C), by heads fitted on the others."""
    parts: list[Tensor] = []
    for rest, out in folds:
        head = fit(rest)
        with torch.no_grad():
            parts.append(head(features[out].to(next(head.parameters()).device)).cpu())
    return torch.cat(parts)


def _held_out_by_changes(
    start: ImageClassifier, pairs: Pairs, folds: Folds, how: LowRank, out: Path
) -> Tensor:
    """Return the logits (M, C) of held-out images, by changes that were trained on the others."""
    parts: list[Tensor] = []
    for number, (rest, held) in enumerate(folds, start=1):
        part = pairs.select(_places(rest))
        steps = max(1, round(how.config.steps * len(part) / len(pairs)))
        fewer = replace(how, config=replace(how.config, steps=steps))
        model = train_changes(start, part, fewer, out / RUN / f"fold_{number}")
        classifier = _adapted(start, model)
        features = embed_images(model, pairs.select(_places(held)).files, workers=how.workers)
        with torch.no_grad():
            parts.append(classifier.head(features.to(model.device)).cpu())
    return torch.cat(parts)


def _places(mask: Tensor) -> list[int]:
    """Return where a mask (N,) is true."""
    return cast("list[int]", mask.nonzero().flatten().tolist())


def choose(logits: dict[str, Tensor], answers: Tensor) -> tuple[str, dict[str, Any]]:
    """Return which choice to keep, and its figures beside those of the others.

    The better one of zero-shot and head is kept, unless the loss of the low-rank changes is lower
    by more than two standard errors, and their accuracy no lower. Losses are compared at the best
    temperature of each, so that none wins or loses by how sure it is of itself.

    Args:
        logits: for each choice, (M, C) of the images that were held out.
        answers: (M,), their labels.

    Returns:
        A key of `logits`; and the number of images, with the mean loss and the accuracy of each
        choice, as JSON.
    """
    losses = {name: calibrate(rows, answers)[0] for name, rows in logits.items()}
    right = {
        name: (rows.argmax(dim=1) == answers).double().mean().item()
        for name, rows in logits.items()
    }
    means = {name: values.mean().item() for name, values in losses.items()}
    figures: dict[str, Any] = {"images": len(answers)}
    figures |= {name: {"loss": means[name], "accuracy": right[name]} for name in logits}
    kept = ZERO_SHOT if means[ZERO_SHOT] <= means[HEAD] else HEAD
    is_better = right[LOW_RANK] >= max(right[ZERO_SHOT], right[HEAD])
    if is_better and is_clearly_lower(losses[LOW_RANK], losses[kept], _ERRORS):
        kept = LOW_RANK
    return kept, figures
