"""Write the files of `v0_1_0`, with version 0.1.0 of clipkit installed.

    python tests/compat/make.py tests/compat/v0_1_0

Run once, at version 0.1.0. Later versions must read what it wrote, and give the same numbers (see
`test_old_files.py`). The models are so small that all of it takes less than a megabyte.
"""

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import clipkit
from clipkit import (
    CLIP,
    CLIPConfig,
    ImageClassifier,
    ResNetConfig,
    TextConfig,
    Tokenizer,
    ViTConfig,
)
from clipkit.tokenizer import default_merges

TEXT = TextConfig(
    width=16, layers=1, head_width=8, activation="gelu", context_length=16, vocab_size=522
)
VIT = ViTConfig(
    resolution=(32, 32), patch_size=16, width=16, layers=2, head_width=8, activation="quick_gelu"
)
RESNET = ResNetConfig(resolution=(32, 32), layers=(1, 1, 1, 1), width=2, head_width=16)
NAMES = ["cat", "dog", "red car"]
METHODS = ("anchored", "cache", "prompt_weights", "gaussian", "linear_probe")


def small_model(vision: Any) -> CLIP:
    """Return a model of random weights with a tokenizer of eight merges."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(default_merges()[:8], context_length=16)
    return CLIP(CLIPConfig(embed_dim=16, vision=vision, text=TEXT), tokenizer).eval()


def some_images(count: int) -> torch.Tensor:
    """Return (count, 3, 32, 32) float32 of noise."""
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def some_features() -> tuple[torch.Tensor, torch.Tensor]:
    """Return unit features (12, 16) of three classes and their labels (12,)."""
    random = torch.Generator().manual_seed(2)
    labels = torch.arange(12) % 3
    centers = torch.randn(3, 16, generator=random)
    features = centers[labels] + 0.5 * torch.randn(12, 16, generator=random)
    return F.normalize(features, dim=-1), labels


def batches(step: int, stop_at: int = -1) -> Iterator[Any]:
    """Yield batches of 4 pairs that depend on the step alone; at `stop_at` ask the run to stop."""
    from clipkit.training.data import Batch  # pyright: ignore[reportMissingImports]

    while True:
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        random = torch.Generator().manual_seed(step)
        tokens = torch.randint(1, 500, (4, 6), generator=random)
        tokens[:, 0], tokens[:, -1] = 520, 521
        yield Batch((torch.randn(4, 3, 32, 32, generator=random), tokens))
        step += 1


def main(out: Path) -> None:
    """Write models, classifiers, features, a stopped training run, and what they compute."""
    expected: dict[str, torch.Tensor] = {}
    texts = ["a red car", "cats and dogs"]
    for kind, vision in (("vit", VIT), ("resnet", RESNET)):
        model = small_model(vision)
        model.save_pretrained(out / kind)
        expected[f"{kind}.images"] = model.encode_image(some_images(2)).detach()
        expected[f"{kind}.texts"] = model.embed_texts(texts)
    model = small_model(VIT)
    features, labels = some_features()
    for method in METHODS:
        classifier = ImageClassifier.zero_shot(model, NAMES, ["a {}.", "my {}."])
        classifier.fit(features, labels, method).save(out / f"classifier_{method}")
        shutil.rmtree(out / f"classifier_{method}" / "model")  # the same as in `vit`
        expected[f"classifier_{method}"] = classifier.probabilities(features)
    pictures = [(image * 0.1 + 0.5).clamp(0, 1) for image in some_images(3)]
    rows = list(zip(pictures, [2, 0, 1], strict=True))
    found = clipkit.extract_features(model, rows, out=out / "features.safetensors")
    expected["features"] = found.features
    config = clipkit.TrainConfig(steps=6, warm_up=2, lr=1e-3, log_every=1, save_every=2)
    run = out / "run"
    try:
        clipkit.Trainer(
            small_model(VIT), lambda step: batches(step, 3), config, run, device="cpu"
        ).fit()
    except SystemExit:
        print("stopped as asked")
    whole = clipkit.Trainer(small_model(VIT), batches, config, out / "whole", device="cpu").fit()
    shutil.rmtree(out / "whole")
    shutil.rmtree(run / "tensorboard", ignore_errors=True)
    expected["trained"] = torch.cat([p.detach().flatten() for p in whole.parameters()])
    save_file({k: v.contiguous() for k, v in expected.items()}, out / "expected.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
