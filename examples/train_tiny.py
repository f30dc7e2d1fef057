r"""Train the embedded checkpoint `tiny` from scratch: a CLIP of 11 million parameters on two public sets of photos.

    python examples/train_tiny.py --tiny-imagenet DIR --cifar100 DIR --out runs/tiny --epochs 32
    python examples/train_tiny.py --tiny-imagenet DIR --cifar100 DIR --out runs/more --epochs 5 --start tiny \
        --resolution 96 --area 0.25 --lr 8e-4 --muon-lr 2e-3 --weight-decay 0.1

`--tiny-imagenet` is the folder with `wnids.txt`, `words.txt` and `train/`; `--cifar100` the one with `train/<class>/`,
whose file names keep the noun that each picture was searched by (`apple_s_000027.png`). Every step sees each of the
200 Tiny-ImageNet classes once and each of the 100 CIFAR classes once; a class that both have is left out of one of
them, in turn, so that no two captions of a batch mean the same and the contrastive loss is free of false negatives.
Captions are a template around one of the class's names. A quarter of Tiny-ImageNet's pictures are shrunk to CIFAR's
32 pixels first, lest blur give the set away; colours vary. `--start` goes on from a model instead of from scratch.

Muon steps the kernels and matrices, AdamW the rest.

Cost: an epoch is 500 steps of 290 pairs; the model card in clipkit/assets/tiny has the measured time and accuracy.
On a CPU that does other work too, pin the threads (OMP_PROC_BIND=true): each step waits for the slowest of them. An
interrupted run goes on from its last checkpoint when started again. `examples/evaluate_tiny.py` measures the result.
"""

import argparse
import dataclasses
import math
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from clipkit.clip import CLIP
from clipkit.config import OPENAI_MEAN, OPENAI_STD, CLIPConfig, ResNetConfig, TextConfig
from clipkit.tokenizer import Tokenizer
from clipkit.training.batches import Batch
from clipkit.training.loop import Trainer
from clipkit.training.optimizer import TrainConfig

CONFIG = CLIPConfig(
    embed_dim=256,
    vision=ResNetConfig(resolution=(64, 64), layers=(2, 2, 3, 1), width=32),
    text=TextConfig(width=96, layers=4, head_width=32, activation="quick_gelu"),
)
EPOCH = 500  # steps: each picture once
TEMPLATES = [
    "{}",
    "a {}",
    "a photo of a {}.",
    "a photo of the {}.",
    "a picture of a {}",
    "a small photo of a {}.",
    "a blurry photo of a {}.",
    "a low resolution photo of a {}.",
    "a close-up photo of a {}.",
    "a cropped photo of the {}.",
    "a bright photo of a {}.",
    "a dark photo of the {}.",
    "a good photo of a {}.",
    "an image of a {}",
    "one {}.",
    "this is a {}.",
]


def read_folder(files: list[Path], cache: Path) -> np.ndarray:
    """Decode pictures once into one uint8 array (N, 64, 64, 3), kept at `cache`; smaller ones grow as in evaluation."""
    if not cache.exists():
        pixels = np.empty((len(files), 64, 64, 3), np.uint8)
        for i, file in enumerate(tqdm(files, desc=f"decoding {cache.stem}", mininterval=5)):
            with Image.open(file) as image:
                pixels[i] = np.asarray(
                    image.convert("RGB").resize((64, 64), Image.Resampling.BICUBIC)
                )
        np.save(cache, pixels)
    return np.load(cache)


class Source:
    """Pictures with names, drawn so that a batch holds each class at most once and an epoch repeats no picture."""

    def __init__(
        self, pixels: np.ndarray, labels: list[int], names: list[list[str]], blur: float
    ) -> None:
        self.pixels, self.names = (
            torch.from_numpy(pixels),
            names,
        )  # names: for each picture, best first
        self.by_class = [
            np.flatnonzero(np.array(labels) == label) for label in range(max(labels) + 1)
        ]
        self.blur = blur  # the share of pictures that are shrunk to half their size

    def epoch(self, rng: np.random.Generator) -> np.ndarray:
        """Indices (steps, classes)."""
        return np.stack([rng.permutation(members) for members in self.by_class], axis=1)

    def classes(self) -> list[str]:
        return [self.names[members[0]][0].lower() for members in self.by_class]

    def batch(self, indices: np.ndarray, area: float, side: int) -> tuple[torch.Tensor, list[str]]:
        """Augmented images (classes, 3, side, side) in 0-1 and their captions."""
        captions = []
        for i in indices:
            names = self.names[i]
            name = (
                names[0] if len(names) == 1 or random.random() < 0.85 else random.choice(names[1:])
            )
            captions.append(random.choice(TEMPLATES).format(name))
        images = self.pixels[torch.from_numpy(indices)].permute(0, 3, 1, 2).float() / 255
        blurred = torch.rand(len(images)) < self.blur
        small = F.avg_pool2d(images[blurred], 2)
        images[blurred] = F.interpolate(small, scale_factor=2, mode="bicubic").clamp(0, 1)
        return random_colours(random_crops(images, area, side)), captions


def random_crops(images: torch.Tensor, area: float, side: int) -> torch.Tensor:
    """(N, 3, 64, 64) -> (N, 3, side, side): crops of at least `area` of each picture, half of them flipped."""
    n = len(images)
    ratio = torch.empty(n).uniform_(math.log(3 / 4), math.log(4 / 3)).exp().sqrt()
    share = torch.empty(n).uniform_(area, 1).sqrt()
    width, height = (share * ratio).clamp(max=1), (share / ratio).clamp(max=1)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = width * (torch.randint(0, 2, (n,)) * 2 - 1)
    theta[:, 1, 1] = height
    theta[:, 0, 2] = (torch.rand(n) * 2 - 1) * (1 - width)
    theta[:, 1, 2] = (torch.rand(n) * 2 - 1) * (1 - height)
    grid = F.affine_grid(theta, [n, 3, side, side], align_corners=False)
    mode = "bilinear" if side == 64 else "bicubic"  # pictures that grow do so as in evaluation
    return F.grid_sample(images, grid, mode, padding_mode="reflection", align_corners=False).clamp(
        0, 1
    )


def random_colours(images: torch.Tensor, strength: float = 0.3) -> torch.Tensor:
    """(N, 3, H, W) in 0-1 -> the same: brightness, contrast and saturation each changed by up to `strength`."""
    brightness, contrast, saturation = torch.empty(3, len(images), 1, 1, 1).uniform_(
        1 - strength, 1 + strength
    )
    images = images * brightness
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = mean + (images - mean) * contrast
    grey = images.mean(dim=1, keepdim=True)
    return (grey + (images - grey) * saturation).clamp(0, 1)


def tiny_imagenet(root: Path, cache: Path) -> Source:
    """200 classes x 500 pictures; the names of a class are its WordNet synonyms."""
    words = dict(line.split("\t") for line in (root / "words.txt").read_text().splitlines())
    classes = (root / "wnids.txt").read_text().split()
    files = [sorted((root / "train" / wnid / "images").glob("*.JPEG")) for wnid in classes]
    labels = [label for label, members in enumerate(files) for _ in members]
    synonyms = [[name.strip() for name in words[wnid].split(",")] for wnid in classes]
    pixels = read_folder(
        [file for members in files for file in members], cache / "tiny_imagenet.npy"
    )
    return Source(pixels, labels, [synonyms[label] for label in labels], blur=0.25)


def cifar100(root: Path, cache: Path) -> Source:
    """100 classes x 500 pictures; the names of a picture are its class and the noun in its file name."""
    folders = sorted(folder for folder in (root / "train").iterdir() if folder.is_dir())
    files = [sorted(folder.glob("*.png")) for folder in folders]
    labels = [label for label, members in enumerate(files) for _ in members]
    flat = [file for members in files for file in members]
    names = [
        [file.parent.name.replace("_", " "), file.stem.rsplit("_s_", 1)[0].replace("_", " ")]
        for file in flat
    ]
    return Source(read_folder(flat, cache / "cifar100_64.npy"), labels, names, blur=0)


class Batches:
    """Pairs for a step: a picture of each class; of what both sources know, from one of them in turn."""

    def __init__(self, sources: list[Source], area: float, side: int) -> None:
        self.sources, self.area, self.side, self.tokenizer = sources, area, side, Tokenizer()
        shared = set(sources[0].classes()) & set(sources[1].classes())
        self.own = [
            np.array([name not in shared for name in source.classes()]) for source in sources
        ]
        self.mean, self.std = (
            torch.tensor(values).view(3, 1, 1) for values in (OPENAI_MEAN, OPENAI_STD)
        )

    def __call__(self, step: int) -> Iterator[Batch]:
        while True:
            epoch, within = divmod(step, EPOCH)
            rng = np.random.default_rng(epoch)
            orders = [source.epoch(rng) for source in self.sources]
            for row in range(within, EPOCH):
                random.seed(step)
                torch.manual_seed(step)
                rows = [order[row] for order in orders]
                rows[step % 2] = rows[step % 2][self.own[step % 2]]
                parts = [
                    source.batch(row, self.area, self.side)
                    for source, row in zip(self.sources, rows, strict=True)
                ]
                images = (torch.cat([images for images, _ in parts]) - self.mean) / self.std
                yield Batch(
                    (
                        images,
                        self.tokenizer([caption for _, captions in parts for caption in captions]),
                    )
                )
                step += 1


def as_matrix(x: Tensor) -> Tensor:
    """A kernel as a matrix (out, height x width x in), which shares its memory where channels come last."""
    return x.permute(0, 2, 3, 1).flatten(1) if x.ndim == 4 else x


class Muon(torch.optim.Muon):
    """torch's Muon, for convolution kernels too."""

    def __init__(self, parameters: Iterable[nn.Parameter], **options: Any) -> None:
        self.sources = list(parameters)
        matrices = [nn.Parameter(as_matrix(p.detach())) for p in self.sources]
        assert all(
            m.data_ptr() == p.data_ptr() for m, p in zip(matrices, self.sources, strict=True)
        )
        super().__init__(matrices, **options)

    def step(self, closure: Callable[[], float] | None = None) -> None:
        for matrix, source in zip(self.param_groups[0]["params"], self.sources, strict=True):
            matrix.grad = None if source.grad is None else as_matrix(source.grad)
        super().step(closure)


def optimizers(
    task: nn.Module, lr: float, muon_lr: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """Muon for kernels and the text tower's matrices; AdamW for the rest, without decay on all that is no matrix."""
    groups: dict[str, list[nn.Parameter]] = {"muon": [], "decay": [], "plain": []}
    for name, parameter in task.named_parameters():
        kind = (
            "plain"
            if parameter.ndim < 2 or "embedding" in name
            else "decay"
            if "attnpool" in name
            else "muon"
        )
        groups[kind].append(parameter)
    muon = Muon(
        groups["muon"], lr=muon_lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    rest = [
        {"params": groups["decay"], "weight_decay": weight_decay},
        {"params": groups["plain"], "weight_decay": 0.0},
    ]
    return [muon, torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), fused=True)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny-imagenet", type=Path, required=True)
    parser.add_argument("--cifar100", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"))
    parser.add_argument("--epochs", type=int, default=32)
    parser.add_argument(
        "--start", help="a checkpoint to go on from, such as tiny; from scratch without"
    )
    parser.add_argument("--lr", type=float, default=1.2e-3, help="of AdamW")
    parser.add_argument("--muon-lr", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument(
        "--area", type=float, default=0.4, help="the smallest share of a picture that a crop keeps"
    )
    parser.add_argument(
        "--resolution", type=int, default=64, help="of the pictures; a multiple of 32"
    )
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    sources = [tiny_imagenet(args.tiny_imagenet, args.out), cifar100(args.cifar100, args.out)]
    batches = Batches(sources, args.area, args.resolution)
    torch.manual_seed(0)
    if args.start:
        model = CLIP.from_pretrained(args.start, resolution=args.resolution)
    else:
        vision = dataclasses.replace(CONFIG.vision, resolution=args.resolution)
        model = CLIP(dataclasses.replace(CONFIG, vision=vision), batches.tokenizer)
    config = TrainConfig(
        steps=args.epochs * EPOCH, warm_up=300, precision="bfloat16", save_every=250
    )
    make = lambda task: optimizers(task, args.lr, args.muon_lr, args.weight_decay)  # noqa: E731
    trainer = Trainer(model, batches, config, args.out, optimizers=make)
    trainer.fit()
    with (
        torch.no_grad()
    ):  # the rows of tokens that no caption has are still noise; zeros say nothing, and compress
        moments = trainer.optimizers[1].state[model.text.token_embedding.weight]["exp_avg_sq"]
        model.text.token_embedding.weight *= moments.sum(dim=1, keepdim=True) > 0
    model.save_pretrained(args.out / "model", dtype=torch.float16)


if __name__ == "__main__":
    main()
