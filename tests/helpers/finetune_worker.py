"""Fine-tune a toy classifier in one of several processes.

    python finetune_worker.py HOW IMAGES OUT

HOW is "tower" for all stages, "head" for the first process alone and without a group, "head in a
group" for the same in a group that exists, "head in all" for all processes without a group. Each
process that fine-tunes leaves its weights in OUT, and a mark if it saved the classifier.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from clipkit import CLIP, ImageClassifier, Pairs, Tokenizer, distributed
from clipkit.data.labelled import read_folder
from clipkit.tokenizer import default_merges
from clipkit.training.config import TrainConfig
from clipkit.training.finetune import finetune
from tests.helpers.toy_data import toy_config

QUICK = TrainConfig(steps=2, lr=1e-3, warm_up=1, save_every=0)


class MarkedClassifier(ImageClassifier):
    """Leave a mark beside the folder that this process saves to."""

    def save(self, folder: str | os.PathLike[str]) -> None:
        (Path(folder).parent / f"saved by {os.environ['RANK']}").touch()
        super().save(folder)


def tune(how: str, pairs: Pairs, out: Path) -> ImageClassifier:
    """Fine-tune as `how` says."""
    torch.manual_seed(0)
    model = CLIP(toy_config(), Tokenizer(default_merges()[:86], context_length=16)).eval()
    if how == "tower":
        return finetune(model, pairs, out, batch_size=4, config=QUICK)
    classifier = finetune(model, pairs, out, head_only=True)
    assert dist.is_initialized() == (how == "head in a group")
    return classifier


def main(how: str, images: str, out: str) -> None:
    """Do what this process has to do."""
    torch.set_num_threads(1)
    if how == "head in a group":
        distributed.start(torch.device("cpu"))
    rank = int(os.environ["RANK"])
    if rank == 0 or how in ("tower", "head in all"):
        Path(out).mkdir(parents=True, exist_ok=True)
        classifier = tune(how, read_folder(Path(images)), Path(out) / "out")
        torch.save(classifier.state_dict(), Path(out) / f"{rank}.pt")
    distributed.stop()


if __name__ == "__main__":
    import clipkit.training.finetune

    clipkit.training.finetune.ImageClassifier = MarkedClassifier
    main(*sys.argv[1:])
