"""A small training run for the tests of the loop, in this process or in one that is started and killed.

    python training_worker.py OUT '{"steps": 8, ...}' [STEP]

Batches are random pictures and tokens, a function of the step; each process takes its share. With a STEP the process
is sent SIGTERM while that step begins.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from clipkit import CLIP, CLIPConfig, TextConfig, Tokenizer, ViTConfig, distributed
from clipkit.tokenizer import default_merges
from clipkit.training.batches import Batch, Batches
from clipkit.training.loop import Trainer
from clipkit.training.config import TrainConfig

PAIRS = 8
CONFIG = CLIPConfig(
    embed_dim=32,
    vision=ViTConfig(
        resolution=32, patch_size=16, width=32, layers=2, head_width=16, activation="gelu"
    ),
    text=TextConfig(
        width=32, layers=2, head_width=16, activation="gelu", context_length=16, vocab_size=600
    ),
)


def toy_model() -> CLIP:
    torch.manual_seed(0)
    return CLIP(CONFIG, Tokenizer(default_merges()[:86], context_length=16))


def toy_batches(step: int, stop_at: int = -1) -> Iterator[Batch]:
    """Pictures whose brightness follows the first token, with noise."""
    share = PAIRS // distributed.world_size()
    rows = slice(distributed.rank() * share, (distributed.rank() + 1) * share)
    while True:
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        random = torch.Generator().manual_seed(step)
        tokens = torch.randint(1, 500, (PAIRS, 6), generator=random)
        tokens[:, 0], tokens[:, -1] = 598, 599
        images = (
            torch.randn(PAIRS, 3, 32, 32, generator=random) + tokens[:, 1].view(-1, 1, 1, 1) / 100
        )
        yield Batch(
            (images[rows], tokens[rows]), [f"step {step}, picture {n}" for n in range(PAIRS)[rows]]
        )
        step += 1


def losses(out: Path) -> dict[int, float]:
    """By step, as the log has them."""
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert len({row["step"] for row in rows}) == len(rows)
    return {row["step"]: row["loss"] for row in rows}


def mean_feature(model: CLIP) -> dict[str, float]:
    """A figure of a model, which needs both of its towers."""
    images, tokens = next(toy_batches(0)).inputs
    return {"answer": (model.encode_image(images).mean() + model.encode_text(tokens).mean()).item()}


def run(out: Path, batches: Batches = toy_batches, **values: object) -> CLIP:
    """Train, on the CPU."""
    config = {"lr": 3e-3, "warm_up": 2, "log_every": 1, "save_every": 2} | values
    evaluate = mean_feature if config.get("evaluate_every") else None
    return Trainer(
        toy_model(), batches, TrainConfig(**config), out, evaluate=evaluate, device="cpu"
    ).fit()  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    torch.set_num_threads(
        int(os.environ.get("THREADS", 1))
    )  # to the bit means with as many threads
    stop_at = int(sys.argv[3]) if len(sys.argv) > 3 else -1
    run(Path(sys.argv[1]), lambda step: toy_batches(step, stop_at), **json.loads(sys.argv[2]))
    distributed.stop()
