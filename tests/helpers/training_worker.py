"""A small training run for the tests of the loop, in this process or in one that is stopped.

    python training_worker.py OUT '{"steps": 8, ...}' [STEP SIGNAL...]

Batches are random images and tokens, a function of the step; each process takes its share. With a
STEP the process sends itself the signals, such as SIGTERM, while that step begins.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from clipkit import CLIP, CLIPConfig, TextConfig, Tokenizer, ViTConfig, distributed
from clipkit.tokenizer import default_merges
from clipkit.training.batches import Batch, Batches
from clipkit.training.config import TrainConfig
from clipkit.training.loop import Trainer

PAIRS = 8
CONFIG = CLIPConfig(
    embed_dim=32,
    vision=ViTConfig(
        resolution=(32, 32), patch_size=16, width=32, layers=2, head_width=16, activation="gelu"
    ),
    text=TextConfig(
        width=32, layers=2, head_width=16, activation="gelu", context_length=16, vocab_size=600
    ),
)
START, END = 598, 599  # the last ids of the vocabulary


def toy_model() -> CLIP:
    """Return a model of random weights, always the same."""
    torch.manual_seed(0)
    return CLIP(CONFIG, Tokenizer(default_merges()[:86], context_length=16))


def toy_batches(
    step: int, stop_at: int = -1, signals: Sequence[signal.Signals] = (signal.SIGTERM,)
) -> Iterator[Batch]:
    """Yield batches of 8 images whose brightness follows the first token, with noise."""
    share = PAIRS // distributed.world_size()
    rows = slice(distributed.rank() * share, (distributed.rank() + 1) * share)
    while True:
        if step == stop_at:
            for number in signals:
                os.kill(os.getpid(), number)
        random = torch.Generator().manual_seed(step)
        tokens = torch.randint(1, 500, (PAIRS, 6), generator=random)
        tokens[:, 0] = START
        tokens[:, -1] = END
        brightness = tokens[:, 1].view(-1, 1, 1, 1) / 100  # (8,) -> (8, 1, 1, 1)
        images = torch.randn(PAIRS, 3, 32, 32, generator=random) + brightness
        names = [f"step {step}, image {number}" for number in range(PAIRS)]
        yield Batch((images[rows], tokens[rows]), names[rows])
        step += 1


def rows_of_log(out: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's log."""
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def losses(out: Path) -> dict[int, float]:
    """Return the losses in a run's log by step. No step may be there twice."""
    rows = rows_of_log(out)
    by_step = {row["step"]: row["loss"] for row in rows}
    assert len(by_step) == len(rows)
    return by_step


def state_of(out: Path) -> dict[str, Any]:
    """Return what a run's checkpoint holds."""
    return torch.load(out / "checkpoint.pt", weights_only=True)


def mean_feature(model: CLIP) -> dict[str, float]:
    """Return a figure of a model that needs both of its towers."""
    images, tokens = next(toy_batches(0)).inputs
    mean = model.encode_image(images).mean() + model.encode_text(tokens).mean()
    return {"answer": mean.item()}


def quick_config(**values: Any) -> TrainConfig:
    """Return a config for a few steps, all of them logged."""
    defaults = {"steps": 2, "lr": 3e-3, "warm_up": 2, "log_every": 1, "save_every": 2}
    return TrainConfig.from_dict({**defaults, **values})


def run(out: Path, batches: Batches = toy_batches, **values: Any) -> CLIP:
    """Train the toy model on the CPU. The values are fields of TrainConfig."""
    evaluate = mean_feature if values.get("evaluate_every") else None
    config = quick_config(**values)
    return Trainer(toy_model(), batches, config, out, evaluate=evaluate, device="cpu").fit()


def main(out: str, values: str, stop_at: str = "-1", *names: str, leave: bool = True) -> None:
    """Train as the command line says, and leave the other processes unless that is said not to."""
    # Runs are the same to the bit only with as many threads.
    torch.set_num_threads(int(os.environ.get("THREADS", "1")))
    signals = [signal.Signals[name] for name in names]
    run(Path(out), lambda step: toy_batches(step, int(stop_at), signals), **json.loads(values))
    if leave:
        distributed.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
