"""Measure zero-shot accuracy with a prompt ensemble: the figures of the embedded checkpoint's model card.

    python examples/evaluate_tiny.py --tiny-imagenet DIR --cifar100 DIR [--model tiny]

`--tiny-imagenet` is the folder with `wnids.txt`, `words.txt` and `val/`; `--cifar100` the one with `test/<class>/`. A
class goes by its first WordNet synonym or its folder's name; the templates are those of `train_tiny.py`. Cost: under
two minutes on two cores.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm
from train_tiny import TEMPLATES

import clipkit


def tiny_imagenet(root: Path) -> tuple[list[Path], list[int], list[str]]:
    """The 10,000 labelled validation pictures: files, labels, class names."""
    words = dict(line.split("\t") for line in (root / "words.txt").read_text().splitlines())
    classes = (root / "wnids.txt").read_text().split()
    rows = [line.split("\t") for line in (root / "val" / "val_annotations.txt").read_text().splitlines()]
    files = [root / "val" / "images" / row[0] for row in rows]
    return files, [classes.index(row[1]) for row in rows], [words[wnid].split(",")[0] for wnid in classes]


def cifar100(root: Path) -> tuple[list[Path], list[int], list[str]]:
    """The 10,000 test pictures: files, labels, class names."""
    folders = sorted(folder for folder in (root / "test").iterdir() if folder.is_dir())
    pairs = [(file, label) for label, folder in enumerate(folders) for file in sorted(folder.glob("*.png"))]
    return [p[0] for p in pairs], [p[1] for p in pairs], [folder.name.replace("_", " ") for folder in folders]


@torch.inference_mode()
def image_features(model: clipkit.CLIP, files: list[Path], batch: int = 250) -> torch.Tensor:
    """Unit vectors, (N, D) float32."""
    starts = tqdm(range(0, len(files), batch), unit_scale=batch, unit="image", mininterval=5)
    features = [
        model.encode_image(torch.stack([model.preprocess(file) for file in files[start : start + batch]]))
        for start in starts
    ]
    return F.normalize(torch.cat(features).float(), dim=-1).cpu()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny-imagenet", type=Path, required=True)
    parser.add_argument("--cifar100", type=Path, required=True)
    parser.add_argument("--model", default="tiny")
    args = parser.parse_args()
    model = clipkit.CLIP.from_pretrained(args.model)
    for name, (files, labels, class_names) in {
        "Tiny-ImageNet val": tiny_imagenet(args.tiny_imagenet),
        "CIFAR-100 test": cifar100(args.cifar100),
    }.items():
        features = image_features(model, files)
        for prompts, templates in (("one prompt", ["a photo of a {}."]), ("ensemble", TEMPLATES)):
            weights = clipkit.zero_shot_weights(model, class_names, templates).cpu()
            top = (features @ weights.T).topk(5).indices == torch.tensor(labels)[:, None]  # (N, 5)
            top1, top5 = top[:, 0].float().mean().item(), top.any(dim=1).float().mean().item()
            print(f"{name}, {prompts} ({len(templates)}): top-1 {top1:.2%}, top-5 {top5:.2%} of {len(labels)}")


if __name__ == "__main__":
    main()
