"""Train the embedded checkpoint `tiny` from scratch: a CLIP of 11 million parameters.

    python examples/train_tiny.py --tiny-imagenet DIR --cifar100 DIR [--out runs/tiny]
                                  [--epochs 32]
    python examples/train_tiny.py --tiny-imagenet DIR --cifar100 DIR --out runs/more
        --start tiny --epochs 5 --resolution 96 --area 0.25 --lr 8e-4 --muon-lr 2e-3
        --weight-decay 0.1

`--tiny-imagenet` is the folder with `wnids.txt`, `words.txt` and `train/`; `--cifar100` is the one
with `train/<class>/`, where file names keep the noun that each image was searched by
(`apple_s_000027.png`). Every step sees each of the 200 Tiny-ImageNet classes once and each of the
100 CIFAR classes once. A class that both have is left out of one of them, in turn, so that no two
captions of a batch mean the same and the contrastive loss is free of false negatives. Captions are
a template around one of the class's names. A quarter of Tiny-ImageNet's images are shrunk to
CIFAR's 32 pixels first, so that blur does not give the set away; colors vary. `--start` goes on
from a model instead of from scratch. Muon steps the kernels and matrices, AdamW the rest.

Cost: an epoch is 500 steps of 290 pairs; five epochs at 96 pixels took 90 minutes on two cores. On
a CPU that does other work too, pin the threads (OMP_PROC_BIND=true), because each step waits for
the slowest of them. An interrupted run goes on from its last checkpoint when it is started again.
`examples/evaluate_tiny.py` measures the result; the card in clipkit/assets/tiny says how the
published weights were made. Expected of those: top-1 of 50.9 % on Tiny-ImageNet and 65.1 % on
CIFAR-100.
"""

import argparse
import dataclasses
import math
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

import clipkit
from clipkit import CLIP, Batch, CLIPConfig, ResNetConfig, TextConfig, Tokenizer, TrainConfig
from clipkit.config import OPENAI_MEAN, OPENAI_STD

CONFIG = CLIPConfig(
    embed_dim=256,
    vision=ResNetConfig(resolution=(64, 64), layers=(2, 2, 3, 1), width=32),
    text=TextConfig(width=96, layers=4, head_width=32, activation="quick_gelu"),
)
EPOCH = 500  # steps: each image once
Pixels = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]
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


def read_pixels(files: list[Path], cache: Path) -> Pixels:
    """Decode images once into one array (N, 64, 64, 3), kept at `cache`.

    Smaller images grow as they do in evaluation.
    """
    if not cache.exists():
        pixels = np.empty((len(files), 64, 64, 3), np.uint8)
        for i, file in enumerate(tqdm(files, desc=f"decoding {cache.stem}", mininterval=5)):
            with Image.open(file) as image:
                small = image.convert("RGB").resize((64, 64), Image.Resampling.BICUBIC)
                pixels[i] = np.asarray(small)
        np.save(cache, pixels)
    return np.load(cache)


class Source:
    """Draw named images so that a batch holds each class once and an epoch repeats no image.

    Args:
        pixels: (N, 64, 64, 3).
        labels: N classes.
        names: for each image its names, the best first.
        blur: the share of images that are shrunk to half their size.
    """

    def __init__(
        self, pixels: Pixels, labels: list[int], names: list[list[str]], blur: float
    ) -> None:
        self.pixels = torch.from_numpy(pixels)
        self.names = names
        self.blur = blur
        classes = range(max(labels) + 1)
        self.by_class = [np.flatnonzero(np.array(labels) == label) for label in classes]

    def epoch(self, rng: np.random.Generator) -> Indices:
        """Return indices (steps, classes)."""
        return np.stack([rng.permutation(members) for members in self.by_class], axis=1)

    def classes(self) -> list[str]:
        """Return the best name of each class."""
        return [self.names[members[0]][0].lower() for members in self.by_class]

    def batch(self, indices: Indices, area: float, side: int) -> tuple[Tensor, list[str]]:
        """Return augmented images (classes, 3, side, side) in 0-1, and their captions."""
        captions = [caption_of(self.names[i]) for i in indices]
        images = self.pixels[torch.from_numpy(indices)]  # (N, 64, 64, 3)
        images = images.permute(0, 3, 1, 2).float() / 255  # (N, 3, 64, 64)
        blurred = torch.rand(len(images)) < self.blur
        small = F.avg_pool2d(images[blurred], 2)
        images[blurred] = F.interpolate(small, scale_factor=2, mode="bicubic").clamp(0, 1)
        return random_colors(random_crops(images, area, side)), captions


def caption_of(names: list[str]) -> str:
    """Return a random template around one of the names, mostly the first."""
    name = names[0]
    if len(names) > 1 and random.random() >= 0.85:
        name = random.choice(names[1:])
    return random.choice(TEMPLATES).format(name)


def random_crops(images: Tensor, area: float, side: int) -> Tensor:
    """Return crops of at least `area` of each image, half of them flipped.

    Args:
        images: (N, 3, 64, 64).
        area: the smallest share.
        side: height and width of the crops.

    Returns:
        (N, 3, side, side).
    """
    n = len(images)
    ratio = torch.empty(n).uniform_(math.log(3 / 4), math.log(4 / 3)).exp().sqrt()
    share = torch.empty(n).uniform_(area, 1).sqrt()
    width = (share * ratio).clamp(max=1)
    height = (share / ratio).clamp(max=1)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = width * (torch.randint(0, 2, (n,)) * 2 - 1)
    theta[:, 1, 1] = height
    theta[:, 0, 2] = (torch.rand(n) * 2 - 1) * (1 - width)
    theta[:, 1, 2] = (torch.rand(n) * 2 - 1) * (1 - height)
    grid = F.affine_grid(theta, [n, 3, side, side], align_corners=False)
    mode = "bilinear" if side == 64 else "bicubic"  # images that grow do so as in evaluation
    crops = F.grid_sample(images, grid, mode, padding_mode="reflection", align_corners=False)
    return crops.clamp(0, 1)


def random_colors(images: Tensor, strength: float = 0.3) -> Tensor:
    """Change brightness, contrast and saturation of images (N, 3, H, W) in 0-1 at random."""
    factors = torch.empty(3, len(images), 1, 1, 1).uniform_(1 - strength, 1 + strength)
    brightness, contrast, saturation = factors
    images = images * brightness
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = mean + (images - mean) * contrast
    gray = images.mean(dim=1, keepdim=True)
    return (gray + (images - gray) * saturation).clamp(0, 1)


def tiny_imagenet(root: Path, cache: Path) -> Source:
    """Return 200 classes of 500 images; the names of a class are its WordNet synonyms."""
    words = dict(line.split("\t") for line in (root / "words.txt").read_text().splitlines())
    classes = (root / "wnids.txt").read_text().split()
    files = [sorted((root / "train" / wnid / "images").glob("*.JPEG")) for wnid in classes]
    labels = [label for label, members in enumerate(files) for _ in members]
    synonyms = [[name.strip() for name in words[wnid].split(",")] for wnid in classes]
    flat = [file for members in files for file in members]
    pixels = read_pixels(flat, cache / "tiny_imagenet.npy")
    return Source(pixels, labels, [synonyms[label] for label in labels], blur=0.25)


def cifar100(root: Path, cache: Path) -> Source:
    """Return 100 classes of 500 images; the names of an image are its class and its file's noun."""
    folders = sorted(folder for folder in (root / "train").iterdir() if folder.is_dir())
    files = [sorted(folder.glob("*.png")) for folder in folders]
    labels = [label for label, members in enumerate(files) for _ in members]
    flat = [file for members in files for file in members]
    names = [
        [file.parent.name.replace("_", " "), file.stem.rsplit("_s_", 1)[0].replace("_", " ")]
        for file in flat
    ]
    return Source(read_pixels(flat, cache / "cifar100_64.npy"), labels, names, blur=0)


class Batches:
    """Make the pairs of a step: an image of each class.

    A class that both sources know comes from one of them in turn.
    """

    def __init__(self, sources: list[Source], area: float, side: int) -> None:
        self.sources = sources
        self.area = area
        self.side = side
        self.tokenizer = Tokenizer()
        shared = set(sources[0].classes()) & set(sources[1].classes())
        self.own = [
            np.array([name not in shared for name in source.classes()]) for source in sources
        ]
        self.mean = torch.tensor(OPENAI_MEAN).view(3, 1, 1)  # (3,) -> (3, 1, 1)
        self.std = torch.tensor(OPENAI_STD).view(3, 1, 1)  # (3,) -> (3, 1, 1)

    def __call__(self, step: int) -> Iterator[Batch]:
        """Yield the batches from a step on, without end."""
        while True:
            epoch, within = divmod(step, EPOCH)
            rng = np.random.default_rng(epoch)
            orders = [source.epoch(rng) for source in self.sources]
            for row in range(within, EPOCH):
                yield self.batch(step, [order[row] for order in orders])
                step += 1

    def batch(self, step: int, rows: list[Indices]) -> Batch:
        """Return the batch of a step, whatever was drawn before it."""
        random.seed(step)
        torch.manual_seed(step)
        rows[step % 2] = rows[step % 2][self.own[step % 2]]
        parts = [
            source.batch(row, self.area, self.side)
            for source, row in zip(self.sources, rows, strict=True)
        ]
        images = torch.cat([images for images, _ in parts])
        captions = [caption for _, captions in parts for caption in captions]
        return Batch(((images - self.mean) / self.std, self.tokenizer(captions)))


def as_matrix(x: Tensor) -> Tensor:
    """Return a kernel as a matrix that shares its memory where channels come last."""
    if x.ndim != 4:
        return x
    return x.permute(0, 2, 3, 1).flatten(1)  # (out, in, h, w) -> (out, h * w * in)


class Muon(torch.optim.Muon):
    """Run torch's Muon on convolution kernels too."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        self.sources = list(parameters)
        matrices = [nn.Parameter(as_matrix(source.detach())) for source in self.sources]
        for matrix, source in zip(matrices, self.sources, strict=True):
            assert matrix.data_ptr() == source.data_ptr()
        super().__init__(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Step the matrices, and with them the kernels."""
        for matrix, source in zip(self.param_groups[0]["params"], self.sources, strict=True):
            matrix.grad = None if source.grad is None else as_matrix(source.grad)
        super().step(closure)


def kind_of(name: str, parameter: nn.Parameter) -> str:
    """Return which optimizer a parameter goes to."""
    if parameter.ndim < 2 or "embedding" in name:
        return "plain"
    return "decay" if "attnpool" in name else "muon"


def optimizers(
    task: nn.Module, lr: float, muon_lr: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """Return Muon for kernels and the text tower's matrices, and AdamW for the rest.

    Nothing decays but matrices.
    """
    groups: dict[str, list[nn.Parameter]] = {"muon": [], "decay": [], "plain": []}
    for name, parameter in task.named_parameters():
        groups[kind_of(name, parameter)].append(parameter)
    rest = [
        {"params": groups["decay"], "weight_decay": weight_decay},
        {"params": groups["plain"], "weight_decay": 0.0},
    ]
    return [
        Muon(groups["muon"], lr=muon_lr, weight_decay=weight_decay),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), fused=True),
    ]


def start_model(start: str | None, resolution: int, tokenizer: Tokenizer) -> CLIP:
    """Return the model to go on from, or one with random weights."""
    if start is not None:
        return CLIP.from_pretrained(start, resolution=resolution)
    vision = dataclasses.replace(CONFIG.vision, resolution=resolution)
    return CLIP(dataclasses.replace(CONFIG, vision=vision), tokenizer)


@torch.no_grad()
def clear_unseen_tokens(model: CLIP, adamw: torch.optim.Optimizer) -> None:
    """Set the rows of tokens that no caption has to zero.

    They are still the noise of the start; zeros say nothing, and compress.
    """
    moments = adamw.state[model.text.token_embedding.weight]["exp_avg_sq"]
    model.text.token_embedding.weight *= moments.sum(dim=1, keepdim=True) > 0


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny-imagenet", type=Path, required=True, metavar="DIR")
    parser.add_argument("--cifar100", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"))
    parser.add_argument("--epochs", type=int, default=32)
    parser.add_argument(
        "--start", help="a checkpoint to go on from, such as tiny; from scratch if not given"
    )
    parser.add_argument("--lr", type=float, default=1.2e-3, help="of AdamW")
    parser.add_argument("--muon-lr", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument(
        "--area", type=float, default=0.4, help="the smallest share of an image that a crop keeps"
    )
    parser.add_argument(
        "--resolution", type=int, default=64, help="of the images; a multiple of 32"
    )
    return parser.parse_args()


def main() -> None:
    args = read_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    sources = [tiny_imagenet(args.tiny_imagenet, args.out), cifar100(args.cifar100, args.out)]
    batches = Batches(sources, args.area, args.resolution)
    torch.manual_seed(0)
    model = start_model(args.start, args.resolution, batches.tokenizer)
    config = TrainConfig(
        steps=args.epochs * EPOCH, warm_up=300, precision="bfloat16", save_every=250
    )

    def make(task: nn.Module) -> list[torch.optim.Optimizer]:
        return optimizers(task, args.lr, args.muon_lr, args.weight_decay)

    trainer = clipkit.Trainer(model, batches, config, args.out, optimizers=make)
    trainer.fit()
    clear_unseen_tokens(model, trainer.optimizers[1])
    model.save_pretrained(args.out / "model", dtype=torch.float16)


if __name__ == "__main__":
    main()
