"""A stage of fine-tuning: train a task on some batches, and go on where it was stopped."""

from dataclasses import dataclass
from pathlib import Path

from clipkit.clip import CLIP
from clipkit.encode.fingerprints import fingerprint, fingerprint_0_1_0
from clipkit.prompts import as_words
from clipkit.training.batches import PairBatches
from clipkit.training.config import TrainConfig
from clipkit.training.loop import Trainer
from clipkit.training.state import CHECKPOINT
from clipkit.training.tasks import Task

RUN = "run"  # the folder in `out` for what a Trainer leaves


@dataclass(frozen=True)
class Stage:
    """Hold what a stage needs: how to train, on what, and where to leave the run."""

    config: TrainConfig
    batches: PairBatches
    out: Path


def train_stage(
    task: CLIP | Task,
    stage: Stage,
    start: CLIP,
    labels: list[str] | None = None,
    prompts: list[list[str]] | None = None,
    *more: object,
) -> CLIP:
    """Train a task, or go on from the checkpoint of the same run.

    Args:
        task: with a copy of the start.
        stage: how to train, and on what.
        start: the model that the run is known by.
        labels, prompts: of a classifier; the run is known by them as well.
        more: values that the run is known by, too.
    """
    about = [] if labels is None else [labels, prompts, *more]
    former: list[str] = []
    if (stage.out / CHECKPOINT).exists():  # or they would be computed for nothing
        former = [fingerprint_0_1_0(start, *about)]
        if labels is not None:  # those of folders had spaces then
            former.append(fingerprint_0_1_0(start, [*map(as_words, labels)], prompts))
    trainer = Trainer(
        task,
        stage.batches,
        stage.config,
        stage.out,
        device=start.device,
        identity=fingerprint(start, *about),
        former_identities=former,
    )
    return trainer.fit()
