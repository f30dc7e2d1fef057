"""Learn the words before the class names from a few images a class, as CoOp does (2109.01134).

    python examples/prompt_learning.py --data cifar100=DIR --fresh --rate 0.1
                                       [--model tiny] [--shots 1 4 16] [--draws 1]
                                       [--contexts shared words own] [--batch-size 256]

`examples/datasets.py` says what lies in the folders. A prompt is some context vectors and the class
name; the vectors are learned by gradients through the text tower, whose weights stay as they are.
`PromptLearner` and `learn` are all that it takes. Three kinds of contexts are learned: `shared`, 16
vectors for all classes, from random ones; `words`, 4 for all, from "a photo of a"; and `own`, 16
for each class, from random ones.

Epochs, momentum, decay and the shape of the rate are those that were published. Three things
differ. Image features are computed once, into `--cache`, so images are neither cropped nor flipped
at random. Batches are larger, which costs nothing then; `--batch-size 32` is the published one. And
the published rate of 0.002, the default here, is too low for `tiny`, whose embeddings are larger
than OpenAI's; 0.1 was chosen on the drawn discs of `docs/prompt_learning.md`, on no data set.

Beside the prompts stand zero-shot with a prompt ensemble, `prompt_weights` and `anchored` of
`clipkit.fit_head`, on the draws of `examples/few_shot.py`, which explains `--fresh`. No method sees
an image that it is measured on before it is done.

A JSON with every draw goes to `--out`, a table is printed. Cost with `tiny`, features once
computed: 2 minutes a draw on two cores, half of it for `own` with 16 images a class. Expected on
CIFAR-100, fresh draws, with 4 images a class, means of three draws: zero-shot 65.1 %, `words`
65.3 %, `shared` 61.8 %, `own` 52.7 %.
"""

import argparse
import json
import math
import os
import platform
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from datasets import SETS, class_names_of
from few_shot import Task, read_task
from torch import Tensor, nn

import clipkit

CONTEXT_LENGTH = 16
WORDS = "a photo of a"
KINDS = ("shared", "words", "own")
METHODS = ("prompt_weights", "anchored")
# Of the paper and its code: images a class and epochs, the rates, and what Dassl's SGD does.
EPOCHS = {1: 50, 2: 100, 4: 100, 8: 200, 16: 200}
RATE = 0.002
FIRST_RATE = 1e-5
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
# Theirs are 32. Features of images are there already, so a step takes as long with more.
BATCH = 256
Result = dict[str, Any]


class PromptLearner(nn.Module):
    """Turn class names and a context that is learned into text features.

    Args:
        model: its text tower is used, and never changed.
        names: of the C classes.
        words: to begin from; random vectors if not given.
        own: whether each class has a context of its own.
    """

    def __init__(
        self, model: clipkit.CLIP, names: list[str], words: str = "", own: bool = False
    ) -> None:
        super().__init__()
        self.encode_text = model.encode_text  # so the model's weights are no parameters of this
        context = words or " ".join(["X"] * CONTEXT_LENGTH)
        length = int(model.text.find_ends(model.tokenizer([context]))) - 1
        self.tokens = model.tokenizer([f"{context} {name}." for name in names])  # (C, L)
        embeddings = model.text.token_embedding(self.tokens).detach()  # (C, L, W)
        self.start, found, self.names = embeddings.tensor_split([1, 1 + length], dim=1)
        found = found if words else 0.02 * torch.randn_like(found)  # (C, length, W)
        self.context = nn.Parameter(found if own else found[:1].clone())
        self.shared = 0 if own else 1 + length  # what all rows begin with is computed once

    def forward(self) -> Tensor:
        """Return features of unit length, (C, D)."""
        context = self.context.expand(len(self.tokens), -1, -1)  # (C, length, W)
        embeddings = torch.cat([self.start, context, self.names], dim=1)  # (C, L, W)
        return self.encode_text(
            self.tokens, normalize=True, embeddings=embeddings, shared=self.shared
        )


def learn(
    learner: PromptLearner,
    features: Tensor,
    labels: Tensor,
    scale: Tensor,
    epochs: int,
    rate: float = RATE,
    batch_size: int = BATCH,
) -> None:
    """Fit the context to image features (N, D) of unit length and labels (N,).

    Args:
        learner: what is learned.
        features, labels: of the images.
        scale: what cosines are multiplied by.
        epochs: how often each image is seen.
        rate: the highest learning rate.
        batch_size: of the images.
    """
    sgd = torch.optim.SGD(learner.parameters(), momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    for epoch in range(epochs):
        sgd.param_groups[0]["lr"] = rate_of(epoch, epochs, rate)
        for batch in torch.randperm(len(labels)).split(batch_size):
            loss = F.cross_entropy(scale * features[batch] @ learner().T, labels[batch])
            sgd.zero_grad()
            loss.backward()
            sgd.step()


def rate_of(epoch: int, epochs: int, rate: float) -> float:
    """Return the learning rate of an epoch: one to warm up, then half a cosine."""
    if epoch == 0:
        return FIRST_RATE
    return rate * (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2


@dataclass(frozen=True)
class Experiment:
    """Hold a model without gradients, what heads are fitted on, and the names of its classes."""

    model: clipkit.CLIP
    task: Task
    names: list[str]
    rate: float
    batch_size: int

    def learn(self, kind: str, support: Tensor, epochs: int) -> clipkit.CosineHead:
        """Return the head of prompts that were learned from some of the images."""
        words = WORDS if kind == "words" else ""
        learner = PromptLearner(self.model, self.names, words, own=kind == "own")
        features, labels = self.task.features[support], self.task.labels[support]
        scale = self.model.logit_scale.exp()
        learn(learner, features, labels, scale, epochs, self.rate, self.batch_size)
        with torch.no_grad():
            return clipkit.CosineHead(learner(), self.model.logit_scale)

    def run(self, kinds: list[str], shots: int, draw: int) -> Result:
        """Return the accuracy and the seconds of every method on one draw."""
        support = clipkit.sample_shots(self.task.labels, shots, seed=draw)
        figures: Result = {}
        for method in (*METHODS, *kinds):
            torch.manual_seed(draw)
            started = time.perf_counter()
            if method in METHODS:
                head, _ = self.task.fit(method, support, seed=draw)
            else:
                head = self.learn(method, support, EPOCHS[shots])
            seconds = time.perf_counter() - started
            figures[method] = {"accuracy": self.task.measure(head), "seconds": seconds}
            print(f"{shots} a class, draw {draw}, {method}: {figures[method]}", flush=True)
        return figures


def measure_set(name: str, root: Path, args: argparse.Namespace) -> Result:
    """Return all figures of one set."""
    model = clipkit.CLIP.from_pretrained(args.model)
    cache = args.cache / args.model.replace("/", "-")
    task = read_task(model.optimize(), name, root, cache, args.fresh)
    names = class_names_of(SETS[name](root, "test"))
    # Only the context is learned: gradients of the weights would be computed for nothing.
    frozen = model.requires_grad_(False)
    experiment = Experiment(frozen, task, names, args.rate, args.batch_size)
    return {
        "set": f"{name}_fresh" if args.fresh else name,
        "model": args.model,
        "rate": args.rate,
        "batch_size": args.batch_size,
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}",
        "classes": len(names),
        "test": len(task.test_labels),
        "zero_shot": task.measure(task.zero_shot),
        "shots": {
            str(shots): [experiment.run(args.contexts, shots, draw) for draw in range(args.draws)]
            for shots in args.shots
        },
    }


def table(result: Result) -> str:
    """Return mean and spread over the draws, in per cent."""
    columns: dict[str, list[dict[str, Result]]] = result["shots"]
    lines = [
        f"**{result['set']}**: {result['classes']} classes, {result['test']:,} test images. "
        f"Zero-shot {result['zero_shot']:.1%}.",
        "",
        "| method | " + " | ".join(f"k = {shots}" for shots in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    first = next(iter(columns.values()))[0]
    for method in first:
        cells = [cell([draw[method]["accuracy"] for draw in draws]) for draws in columns.values()]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(values: list[float]) -> str:
    """Return mean and standard deviation in per cent."""
    mean = f"{100 * statistics.mean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", required=True, metavar="SET=DIR")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 4, 16], choices=EPOCHS)
    parser.add_argument("--contexts", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--rate", type=float, default=RATE, help="the highest learning rate")
    parser.add_argument("--batch-size", type=int, default=BATCH)
    parser.add_argument("--cache", type=Path, default=Path("runs/features"))
    parser.add_argument("--out", type=Path, default=Path("examples/results"))
    parser.add_argument(
        "--fresh", action="store_true", help="draw from half of the test images, measure on others"
    )
    return parser.parse_args()


def main() -> None:
    args = read_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, root in (entry.split("=", 1) for entry in args.data):
        result = measure_set(name, Path(root), args)
        file = args.out / f"prompt_learning_{result['set']}.json"
        file.write_text(json.dumps(result, indent=1) + "\n")
        print(f"\n{table(result)}\n", flush=True)


if __name__ == "__main__":
    main()
