"""Time a step of prompt learning by clipkit's `embeddings=` and by a text encoder as CoOp has it.

    PYTHONPATH=. python tests/benchmarks/prompt_learning.py [--classes 100] [--seconds 120]

A step is the forward of all classes' prompts, 16 context vectors and the name each, the loss of 32
image features, and the backward to the context. The model is the text tower of ViT-B/32 in float32
with random weights. CoOp's text encoder (2109.01134) passes all 77 positions through OpenAI's
transformer, positions first, norms every token and then picks the end of text. It is built here,
from that description, over the `clip` package, or over open_clip where that is not installed. No
weight wants a gradient, on either side.

clipkit does it in two ways: with `shared=`, which computes the context that all classes have once,
and without, as contexts of each class's own need it.

All give features and the gradient of the context, which must agree before anything is timed. Then
they take turns, in alternating order. Printed are the differences, relative to the largest value;
quartiles of seconds a step and of the ratio; and the processor. They mean little on a busy machine,
for which see the load. Cost: `--seconds`, or 3 rounds where they take longer, and the weights.
"""

import argparse
import importlib
import importlib.util
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from side_by_side import Row, hardware, quartiles, take_turns
from torch import Tensor, nn

import clipkit
from clipkit.checkpoints import registry
from tests.helpers.random_weights import randomize

NAME = "ViT-B/32"
CONTEXT_LENGTH = 16
IMAGES = 32
SCALE = 100.0
LIMIT = 1e-4  # of the relative differences; float noise of 12 blocks is a hundredth of it
CPU = torch.device("cpu")
Encode = Callable[[Tensor, Tensor], Tensor]


class ByHand(nn.Module):
    """Encode prompts that are given as embeddings, by the parts of OpenAI's model or a like one.

    Args:
        model: has the parts of the text tower.
        positions_first: whether its transformer takes (L, N, W) and knows its mask, as OpenAI's.
    """

    def __init__(self, model: Any, positions_first: bool) -> None:
        super().__init__()
        self.model = model
        self.positions_first = positions_first

    def forward(self, tokens: Tensor, embeddings: Tensor) -> Tensor:
        """Return features (N, D) of token ids (N, L) and their embeddings (N, L, W)."""
        x = embeddings + self.model.positional_embedding  # (N, L, W)
        if self.positions_first:
            x = self.model.transformer(x.transpose(0, 1)).transpose(0, 1)
        else:
            x = self.model.transformer(x, attn_mask=self.model.attn_mask)
        x = self.model.ln_final(x)
        rows = torch.arange(len(x))
        return x[rows, tokens.argmax(dim=-1)] @ self.model.text_projection  # (N, W) -> (N, D)


def build_peer(weights: dict[str, Tensor]) -> tuple[str, ByHand]:
    """Return the name of the peer, and its encoder with these weights, of OpenAI's names."""
    if importlib.util.find_spec("clip"):
        model: Any = importlib.import_module("clip.model").build_model(dict(weights))
        model = model.float()  # it has rounded its weights to half
        positions_first = True
    else:
        open_clip: Any = importlib.import_module("open_clip")
        model = open_clip.create_model(NAME.replace("/", "-"), force_quick_gelu=True)
        positions_first = False
    model.load_state_dict(weights)
    encoder = ByHand(model.eval().requires_grad_(False), positions_first)
    return "clip" if positions_first else "open_clip", encoder


class Step:
    """Do a step of prompt learning: C classes, one context for all of them, a batch of images.

    Args:
        model: for the tokens and their embeddings.
        classes: C.
    """

    def __init__(self, model: clipkit.CLIP, classes: int) -> None:
        names = list(clipkit.prompt_set("cifar100").class_names)
        names = [names[i % len(names)] for i in range(classes)]
        texts = [" ".join(["X"] * CONTEXT_LENGTH) + f" {name}." for name in names]
        self.tokens = model.tokenizer(texts)  # (C, 77)
        embeddings = model.text.token_embedding(self.tokens).detach()  # (C, 77, W)
        self.start, found, self.names = embeddings.tensor_split([1, 1 + CONTEXT_LENGTH], dim=1)
        seeded = torch.Generator().manual_seed(0)
        self.context = nn.Parameter(0.02 * torch.randn(found.shape[1:], generator=seeded))
        images = torch.randn(IMAGES, model.config.embed_dim, generator=seeded)
        self.images = F.normalize(images, dim=-1)  # (B, D)
        self.labels = torch.randint(classes, (IMAGES,), generator=seeded)

    def run(self, encode: Encode) -> tuple[Tensor, Tensor]:
        """Return features (C, D) and the gradient of the context (16, W)."""
        context = self.context.expand(len(self.tokens), -1, -1)
        embeddings = torch.cat([self.start, context, self.names], dim=1)  # (C, 77, W)
        features = F.normalize(encode(self.tokens, embeddings), dim=-1)
        loss = F.cross_entropy(SCALE * self.images @ features.T, self.labels)
        (gradient,) = torch.autograd.grad(loss, self.context)
        return features.detach(), gradient


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference, relative to the largest value."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def compare(ours: dict[str, Encode], peer: str, theirs: Encode, step: Step) -> Row:
    """Return what is timed, after features and gradients agreed."""
    expected = step.run(theirs)
    for label, encode in ours.items():
        pairs = zip(("features", "gradient"), step.run(encode), expected, strict=True)
        off = {name: difference(own, other) for name, own, other in pairs}
        shown = ", ".join(f"{name} {off[name]:.1e}" for name in off)
        print(f"relative differences of {label}: {shown}")
        if not max(off.values()) <= LIMIT:
            raise SystemExit(f"they differ by more than {LIMIT}, nothing is timed")
    contestants = {label: partial(step.run, encode) for label, encode in ours.items()}
    contestants[peer] = partial(step.run, theirs)
    return Row("prompt learning", contestants, check=lambda _: 0.0)


def report(row: Row, peer: str, seconds: dict[str, list[float]]) -> None:
    """Print quartiles of seconds and of the ratio, round by round."""
    for name in row.contestants:
        low, middle, high = quartiles(seconds[name])
        print(f"{name}: {middle:.3f} s a step ({low:.3f} to {high:.3f})")
    for name in row.contestants:
        if name == peer:
            continue
        ratios = [t / own for t, own in zip(seconds[peer], seconds[name], strict=True)]
        low, middle, high = quartiles(ratios)
        print(f"{name}: {middle:.1f} times as fast ({low:.1f} to {high:.1f}, {len(ratios)} rounds)")


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=120, help="3 rounds at least")
    return parser.parse_args()


def main() -> None:
    args = read_arguments()
    model = randomize(clipkit.CLIP(registry.MODELS[NAME].config)).eval().requires_grad_(False)
    # Ours has the parts of the text tower under a name; the other names are the same.
    weights = {name.removeprefix("text."): value for name, value in model.state_dict().items()}
    peer, by_hand = build_peer(weights)

    def rows(tokens: Tensor, embeddings: Tensor) -> Tensor:
        return model.encode_text(tokens, embeddings=embeddings)

    def shared(tokens: Tensor, embeddings: Tensor) -> Tensor:
        begin = 1 + CONTEXT_LENGTH  # the start of text, and the context
        return model.encode_text(tokens, embeddings=embeddings, shared=begin)

    ours = {"clipkit, shared=17": shared, "clipkit": rows}

    about = {**hardware(CPU), "peer": peer, "load": os.getloadavg()[0]}
    print(", ".join(f"{key}: {value}" for key, value in about.items()))
    row = compare(ours, peer, by_hand, Step(model, args.classes))
    report(row, peer, take_turns(row, args.seconds, CPU))


if __name__ == "__main__":
    main()
