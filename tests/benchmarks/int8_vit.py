"""Measure what a trained vision transformer loses in int8.

    PYTHONPATH=.:examples python tests/benchmarks/int8_vit.py --cifar100 DIR [--images 15000]
        [--epochs 3] [--seed 0] [--json tests/benchmarks/results/int8_vit.json]

No trained vision transformer comes with clipkit, so a small one is trained first: for images of
CIFAR-100's `train/` it learns to give the features of the embedded checkpoint's ResNet, and so has
that checkpoint's texts. Then the images of `test/` are classified without examples by it, in
float32, in torch's int8 and in OpenVINO's (if nncf is installed), with the same texts.

Cost: ten minutes on two cores, for 15,000 images. The tower is a thirtieth of a
ViT-B/32, so outliers of large ones are not in it.
"""

import argparse
import dataclasses
import importlib.util
import json
import math
from collections.abc import Iterator
from pathlib import Path

import datasets
import torch
import torch.nn.functional as F
from int8 import accuracy_of, differences_of, spread
from side_by_side import hardware
from torch import Tensor
from train_tiny import TEMPLATES

import clipkit
from clipkit.encode.embed import prepare_batch

BATCH = 128
CALL = 1000  # images that are prepared at once
RATE = 1e-3  # of learning, at its highest
SIZES = {"patch_size": 16, "width": 192, "layers": 6}


def make_student(teacher: clipkit.CLIP) -> clipkit.CLIP:
    """Return a model with a new vision transformer and the text tower of another."""
    config = teacher.config
    vision = clipkit.ViTConfig(
        resolution=config.vision.resolution, activation=config.text.activation, **SIZES
    )
    model = clipkit.CLIP(dataclasses.replace(config, vision=vision))
    model.text.load_state_dict(teacher.text.state_dict())
    return model


def pixels_of(model: clipkit.CLIP, files: list[Path]) -> Tensor:
    """Return preprocessed images, (N, 3, H, W) float16."""
    parts = [files[start : start + CALL] for start in range(0, len(files), CALL)]
    return torch.cat([prepare_batch(model, part, len(part)).half() for part in parts])


def features_of(model: clipkit.CLIP, pixels: Tensor) -> Tensor:
    """Return unit features of preprocessed images, (N, D)."""
    with torch.no_grad():
        return torch.cat([model.encode_image(part, True) for part in pixels.split(BATCH)])


def batches(pixels: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield an epoch's images, half of them mirrored, with the features to learn."""
    for chosen in torch.randperm(len(pixels)).split(BATCH):
        images = pixels[chosen].float()
        mirrored = torch.rand(len(images)) < 0.5
        images[mirrored] = images[mirrored].flip(-1)
        yield images, targets[chosen]


def train(model: clipkit.CLIP, pixels: Tensor, targets: Tensor, epochs: int) -> None:
    """Let an image tower learn features, by the cosine."""
    steps = epochs * math.ceil(len(pixels) / BATCH)
    optimizer = torch.optim.AdamW(model.visual.parameters(), RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for epoch in range(epochs):
        total = 0.0
        for images, expected in batches(pixels, targets):
            cosine = F.cosine_similarity(model.encode_image(images), expected).mean()
            optimizer.zero_grad()
            (1 - cosine).backward()
            optimizer.step()
            schedule.step()
            total += cosine.item() * len(images)
        print(f"epoch {epoch + 1}: mean cosine {total / len(pixels):.4f}", flush=True)


def quality_of(
    model: clipkit.CLIP, test: clipkit.Pairs, calibration: list[Path]
) -> dict[str, object]:
    """Return accuracies and cosines of the test images, by what computes them."""
    assert test.labels is not None
    labels = torch.tensor(test.labels)
    weights = clipkit.zero_shot_weights(model, datasets.class_names_of(test), TEMPLATES).cpu()
    pixels = pixels_of(model, test.files)
    exact = features_of(model, pixels)
    found: dict[str, object] = {
        "images": len(labels),
        "float32": accuracy_of(weights, exact, labels),
    }
    copies = {"torch": model.optimize(int8=True)}
    if importlib.util.find_spec("nncf") is not None:
        copies["openvino"] = model.optimize(runtime="openvino", calibration=calibration)
    for name, copy in copies.items():
        features = features_of(copy, pixels)
        found[f"int8 in {name}"] = {
            "accuracy": accuracy_of(weights, features, labels),
            **differences_of(weights, exact, features),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cifar100", type=Path, required=True, metavar="DIR")
    parser.add_argument("--images", type=int, default=15000, help="to learn from, all at most")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    teacher = clipkit.CLIP.from_pretrained("tiny", device="cpu")
    train_set = datasets.SETS["cifar100"](args.cifar100, "train")
    # They lie in order of their classes, so they are taken from everywhere.
    places = torch.linspace(0, len(train_set.files) - 1, args.images).long().unique().tolist()
    pixels = pixels_of(teacher, [train_set.files[place] for place in places])
    print(f"{len(pixels)} images to learn from", flush=True)
    model = make_student(teacher)
    train(model, pixels, features_of(teacher.optimize(), pixels), args.epochs)
    test = datasets.SETS["cifar100"](args.cifar100, "test")
    found = quality_of(model.eval(), test, spread(train_set.files))
    print(json.dumps(found, indent=1))
    if args.json:
        known = {"hardware": hardware(torch.device("cpu")), "seed": args.seed}
        known |= {"learned from": len(pixels), "epochs": args.epochs, **found}
        args.json.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
