"""Measure zero-shot accuracy with a prompt ensemble: the figures of the embedded checkpoint's model card.

    python examples/evaluate_tiny.py [--tiny-imagenet DIR] [--cifar100 DIR] [--cifar10 DIR] [--caltech101 DIR]

`--tiny-imagenet` is the folder with `wnids.txt`, `words.txt` and `val/`; `--cifar100` and `--cifar10` those with
`test/<class>/`; `--caltech101` the one with `101_ObjectCategories/` and `test.txt`, its clutter left out. A class
goes by its first WordNet synonym or its folder's name; the templates are those of `train_tiny.py`. Cost: under
three minutes on two cores.
"""

import argparse
from pathlib import Path

import datasets
import torch
from train_tiny import TEMPLATES

import clipkit
from clipkit.encode.embed import embed_images

SETS = ("tiny_imagenet", "cifar100", "cifar10", "caltech101")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in SETS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, metavar="DIR")
    parser.add_argument("--model", default="tiny")
    args = parser.parse_args()
    model = clipkit.CLIP.from_pretrained(args.model).optimize()
    print("| set | prompts | top-1 | top-5 |\n|---|---|---|---|")
    for name in SETS:
        if not (root := getattr(args, name)):
            continue
        pairs = datasets.SETS[name](root, "test")
        class_names = pairs.class_names or []
        features = embed_images(model, pairs.files, batch_size=250, progress=True)
        for templates in (TEMPLATES, ["a photo of a {}."]):
            weights = clipkit.zero_shot_weights(model, class_names, templates).cpu()
            top = (features @ weights.T).topk(5).indices == torch.tensor(pairs.labels)[
                :, None
            ]  # (N, 5)
            top1, top5 = top[:, 0].double().mean().item(), top.any(dim=1).double().mean().item()
            print(
                f"| {name} ({len(pairs):,}) | {len(templates)} | {top1:.2%} | {top5:.2%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
