"""Train the embedded checkpoint `tiny` from scratch: a CLIP of 11 million parameters on two public sets of photos.

    python examples/train_tiny.py --tiny-imagenet DIR --cifar100 DIR --out runs/tiny --epochs 16

`--tiny-imagenet` is the folder with `wnids.txt`, `words.txt` and `train/`; `--cifar100` the one with `train/<class>/`,
whose file names keep the noun that each picture was searched by (`apple_s_000027.png`). Every step sees each of the
200 Tiny-ImageNet classes once and 25 of the 100 CIFAR classes once, so that no two captions of a batch mean the same
and the contrastive loss is free of false negatives. Captions are a template around one of the class's names.

Cost: an epoch is 500 steps of 225 pairs; see the model card in clipkit/assets/tiny for the measured time and accuracy.
An interrupted run goes on from its last checkpoint (every 250 steps) when started again. `examples/evaluate_tiny.py`
measures the result.
"""

import argparse
import json
import math
import os
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tqdm import tqdm

from clipkit.config import OPENAI_MEAN, OPENAI_STD, CLIPConfig, ResNetConfig, TextConfig
from clipkit.models.clip import CLIP
from clipkit.tokenizer import Tokenizer
from clipkit.training.losses import clip_loss

CONFIG = CLIPConfig(
    embed_dim=256,
    vision=ResNetConfig(resolution=(64, 64), layers=(2, 2, 3, 1), width=32),
    text=TextConfig(width=96, layers=4, head_width=32, activation="quick_gelu"),
)
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


def read_folder(files: list[Path], side: int, cache: Path) -> np.ndarray:
    """Decode pictures once into one uint8 array (N, side, side, 3), kept at `cache`."""
    if not cache.exists():
        pixels = np.empty((len(files), side, side, 3), np.uint8)
        for i, file in enumerate(tqdm(files, desc=f"decoding {cache.stem}", mininterval=5)):
            with Image.open(file) as image:
                pixels[i] = np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC))
        np.save(cache, pixels)
    return np.load(cache)


class Source:
    """Pictures with names, drawn so that a batch holds each class at most once and an epoch repeats no picture."""

    def __init__(self, pixels: np.ndarray, labels: list[int], names: list[list[str]]) -> None:
        self.pixels, self.names = torch.from_numpy(pixels), names  # names: for each picture, best first
        self.by_class = [np.flatnonzero(np.array(labels) == label) for label in range(max(labels) + 1)]

    def epoch(self, rng: np.random.Generator) -> np.ndarray:
        """Indices (steps, classes)."""
        return np.stack([rng.permutation(members) for members in self.by_class], axis=1)

    def batch(self, indices: np.ndarray, area: float) -> tuple[torch.Tensor, list[str]]:
        """Augmented images (classes, 3, 64, 64) in 0-1 and their captions."""
        captions = []
        for i in indices:
            names = self.names[i]
            name = names[0] if len(names) == 1 or random.random() < 0.85 else random.choice(names[1:])
            captions.append(random.choice(TEMPLATES).format(name))
        return random_crops(self.pixels[torch.from_numpy(indices)], area), captions


def random_crops(pixels: torch.Tensor, area: float) -> torch.Tensor:
    """uint8 (N, H, W, 3) -> float (N, 3, 64, 64) in 0-1: crops of at least `area` of it, half of them flipped."""
    n = len(pixels)
    images = pixels.permute(0, 3, 1, 2).float() / 255
    ratio = torch.empty(n).uniform_(math.log(3 / 4), math.log(4 / 3)).exp().sqrt()
    side = torch.empty(n).uniform_(area, 1).sqrt()
    width, height = (side * ratio).clamp(max=1), (side / ratio).clamp(max=1)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = width * (torch.randint(0, 2, (n,)) * 2 - 1)
    theta[:, 1, 1] = height
    theta[:, 0, 2] = (torch.rand(n) * 2 - 1) * (1 - width)
    theta[:, 1, 2] = (torch.rand(n) * 2 - 1) * (1 - height)
    grid = F.affine_grid(theta, [n, 3, 64, 64], align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def tiny_imagenet(root: Path, cache: Path) -> Source:
    """200 classes x 500 pictures; the names of a class are its WordNet synonyms."""
    words = dict(line.split("\t") for line in (root / "words.txt").read_text().splitlines())
    classes = (root / "wnids.txt").read_text().split()
    files = [sorted((root / "train" / wnid / "images").glob("*.JPEG")) for wnid in classes]
    labels = [label for label, members in enumerate(files) for _ in members]
    synonyms = [[name.strip() for name in words[wnid].split(",")] for wnid in classes]
    pixels = read_folder([file for members in files for file in members], 64, cache / "tiny_imagenet.npy")
    return Source(pixels, labels, [synonyms[label] for label in labels])


def cifar100(root: Path, cache: Path) -> Source:
    """100 classes x 500 pictures; the names of a picture are its class and the noun in its file name."""
    folders = sorted(folder for folder in (root / "train").iterdir() if folder.is_dir())
    files = [sorted(folder.glob("*.png")) for folder in folders]
    labels = [label for label, members in enumerate(files) for _ in members]
    flat = [file for members in files for file in members]
    names = [[file.parent.name.replace("_", " "), file.stem.rsplit("_s_", 1)[0].replace("_", " ")] for file in flat]
    return Source(read_folder(flat, 32, cache / "cifar100.npy"), labels, names)


def parameter_groups(model: CLIP, weight_decay: float) -> list[dict]:
    """Matrices and kernels decay; norms, biases, embeddings and the temperature do not."""
    decays = [p for n, p in model.named_parameters() if p.ndim > 1 and "embedding" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim <= 1 or "embedding" in n]
    return [{"params": decays, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny-imagenet", type=Path, required=True)
    parser.add_argument("--cifar100", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"))
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1.6e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--area", type=float, default=0.5, help="the smallest share of a picture that a crop keeps")
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    sources = [tiny_imagenet(args.tiny_imagenet, args.out), cifar100(args.cifar100, args.out)]
    torch.manual_seed(0)
    tokenizer = Tokenizer()
    model = CLIP(CONFIG, tokenizer).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, args.weight_decay), lr=args.lr, betas=(0.9, 0.98), fused=True)
    epoch_steps = 500
    steps, warm_up = args.epochs * epoch_steps, epoch_steps
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (OPENAI_MEAN, OPENAI_STD))

    first, seconds = 0, 0.0
    checkpoint = args.out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, seconds = state["step"], state["seconds"]
    order: list[np.ndarray] = []
    started, running = time.perf_counter() - seconds, 0.0
    for step in tqdm(range(first, steps), initial=first, total=steps, mininterval=30):
        if step % epoch_steps == 0 or not order:
            rng = np.random.default_rng(step // epoch_steps)
            order = [source.epoch(rng) for source in sources]
        random.seed(step)
        torch.manual_seed(step)
        rows = [o[step % epoch_steps] for o in order]
        rows[1] = rows[1][step % 4 :: 4]  # a quarter of the CIFAR classes, in turn
        parts = [source.batch(row, args.area) for source, row in zip(sources, rows, strict=True)]
        images = ((torch.cat([p[0] for p in parts]) - mean) / std).contiguous(memory_format=torch.channels_last)
        tokens = tokenizer([caption for p in parts for caption in p[1]])
        progress = max(0.0, (step - warm_up) / (steps - warm_up))
        rate = args.lr * min((step + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16):
            image_features, text_features = model.encode_image(images), model.encode_text(tokens)
        loss = clip_loss(image_features, text_features, model.logit_scale)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        running += loss.item()
        if (step + 1) % 50 == 0:
            seconds = time.perf_counter() - started
            row = {"step": step + 1, "loss": running / 50, "scale": model.logit_scale.exp().item(), "lr": rate}
            with (args.out / "log.jsonl").open("a") as log:
                log.write(json.dumps(row | {"seconds": round(seconds)}) + "\n")
            running = 0.0
        if (step + 1) % 250 == 0 or step + 1 == steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state | {"step": step + 1, "seconds": seconds}, checkpoint.with_suffix(".part"))
            os.replace(checkpoint.with_suffix(".part"), checkpoint)
    with torch.no_grad():  # the rows of tokens that no caption has are still noise; zeros say nothing, and compress
        seen = optimizer.state[model.text.token_embedding.weight]["exp_avg_sq"].sum(dim=1) > 0
        model.text.token_embedding.weight *= seen[:, None]
    model.eval().save_pretrained(args.out / "model", dtype=torch.float16)


if __name__ == "__main__":
    main()
