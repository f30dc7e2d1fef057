"""Fruits-360 (95 classes, 2019.01.16), the questions of the Skoltech report, each by its own section of the output.

    python examples/fruits360.py --fruits360 DIR [--model tiny] [--imagenet resnet101 efficientnet_b7] [--sections ...]

Sections: `prompts` (zero-shot with each prompt and with the ensemble), `towers` (a linear probe on CLIP's features
against one on those of ImageNet models of torchvision, whose weights need a network), `heads` (learned prompt weights
against linear heads, on all training pictures), `tuning` (frozen tower, last blocks, all of it: Adam with random crops
and flips, k pictures a class), `upsampling` (bicubic against bilinear), `shots` (k = 1 to 128, five draws), `confused`
(the ten most confused pairs with their IoU). The test pictures are looked at only to report. Writes `fruits360.json` to
`--out`, where `examples/results/README.md` has them for `tiny`. Cost with it: an hour on two cores.
"""

import argparse
import json
import statistics
import tempfile
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from datasets import FRUIT_TEMPLATES, fruits360
from few_shot import captions_of, features_of, measure

import clipkit
from clipkit.classify import metrics
from clipkit.classify.few_shot import fit_head
from clipkit.classify.heads import CosineHead, LinearHead
from clipkit.encode.store import extract_features
from clipkit.training.batches import Augment, PairBatches
from clipkit.training.tasks import ClassificationTask

SHOTS = (1, 2, 4, 8, 16, 32, 64, 128)


def adam(task: torch.nn.Module) -> list[torch.optim.Optimizer]:
    return [torch.optim.Adam([p for p in task.parameters() if p.requires_grad], 3e-4)]


class Experiment:
    """Features of both splits, and the zero-shot head, which all sections start from."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.model = args, clipkit.CLIP.from_pretrained(args.model, dtype=torch.float32)
        self.cache = args.cache / args.model.replace("/", "-")
        self.fast, root = self.model.optimize(), args.fruits360
        self.train, self.labels, self.names = features_of(
            self.fast, "fruits360", root, "train", self.cache
        )
        self.test, self.answers, _ = features_of(self.fast, "fruits360", root, "test", self.cache)
        self.captions = captions_of(self.model, self.names, FRUIT_TEMPLATES)  # (C, K, D)
        self.zero_shot = self.cosine(self.captions)

    def cosine(self, captions: torch.Tensor) -> CosineHead:
        weights = torch.nn.functional.normalize(captions.mean(dim=1), dim=-1)
        return CosineHead(weights, self.model.logit_scale.detach().cpu())

    def fit(
        self, method: str, support: torch.Tensor | None = None, seed: int = 0, **options: Any
    ) -> float:
        chosen = torch.arange(len(self.labels)) if support is None else support
        head, _ = fit_head(
            self.train[chosen], self.labels[chosen], self.zero_shot, method, seed, **options
        )
        return measure(head, self.test, self.answers)

    @cached_property
    def linear_probe(self) -> float:
        """On all training pictures: minutes, unless `few_shot.py` has left it in `--out`."""
        file = self.args.out / "few_shot_fruits360.json"
        known = json.loads(file.read_text()) if file.exists() else {}
        return (
            known["all"]["accuracy"]
            if known.get("model") == self.args.model
            else self.fit("linear_probe")
        )

    def prompts(self) -> dict[str, float]:
        each = {
            template: measure(self.cosine(self.captions[:, i : i + 1]), self.test, self.answers)
            for i, template in enumerate(FRUIT_TEMPLATES)
        }
        return each | {"ensemble": measure(self.zero_shot, self.test, self.answers)}

    def towers(self) -> dict[str, Any]:
        import torchvision

        results: dict[str, Any] = {self.args.model: self.linear_probe}
        for name in self.args.imagenet:
            try:
                weights: Any = torchvision.models.get_model_weights(name).DEFAULT  # pyright: ignore
                tower = torchvision.models.get_model(name, weights=weights)
            except OSError as error:  # urllib's errors are, too
                results[name] = f"not run: {error}"
                continue
            setattr(tower, "fc" if hasattr(tower, "fc") else "classifier", torch.nn.Identity())
            results[name] = self.probe(tower, name, weights.transforms())
        return results

    def probe(self, tower: torch.nn.Module, name: str, transform: Any) -> float:
        """A linear probe on another tower's features."""
        sides = []
        for split in ("train", "test"):
            files = fruits360(self.args.fruits360, split).files
            out = self.cache.parent / name / f"fruits360-{split}.safetensors"
            out.parent.mkdir(parents=True, exist_ok=True)
            sides.append(
                extract_features(tower, files, out=out, transform=transform, progress=True).features
            )
        blank = CosineHead(
            sides[0].new_zeros(len(self.names), sides[0].shape[1]), torch.tensor(0.0)
        )
        head, _ = fit_head(sides[0], self.labels, blank, "linear_probe")
        return measure(head, sides[1], self.answers)

    def heads(self) -> dict[str, float]:
        methods = {"prompt_weights": {"captions": self.captions}, "gaussian": {}, "anchored": {}}
        return {name: self.fit(name, **options) for name, options in methods.items()} | {
            "linear_probe": self.linear_probe
        }

    def tuning(self) -> dict[str, float]:
        """Adam on k pictures a class: the head alone, with the last blocks, with the whole tower; without WiSE-FT."""
        pairs = fruits360(self.args.fruits360, "train")
        support = clipkit.sample_shots(self.labels, self.args.tuning_shots)
        few = pairs.select(support.tolist())
        results = {"zero-shot": measure(self.zero_shot, self.test, self.answers)}
        results["frozen, anchored head"] = self.fit("anchored", support)
        steps = self.args.tuning_epochs * (len(few) // 64)
        for name, blocks in {"last blocks": 1, "whole tower": None}.items():
            model = clipkit.CLIP.from_pretrained(self.args.model, dtype=torch.float32)
            started, _ = fit_head(
                self.train[support], self.labels[support], self.zero_shot, "anchored"
            )
            head = started.to_linear()
            augment = Augment(0.5, mirror=True)
            batches = PairBatches(few, 64, model.preprocess, None, augment, workers=0)
            config = clipkit.TrainConfig(
                steps=steps, warm_up=steps // 10, image_blocks=blocks, save_every=0
            )
            with tempfile.TemporaryDirectory() as folder:
                clipkit.Trainer(
                    ClassificationTask(model, head), batches, config, folder, optimizers=adam
                ).fit()
            results[name] = self.accuracy_of(model, head)
        return results

    def accuracy_of(self, model: clipkit.CLIP, head: LinearHead) -> float:
        files = fruits360(self.args.fruits360, "test").files
        features = extract_features(model.optimize(), files, batch_size=250).features
        return measure(head.eval(), features, self.answers)

    def upsampling(self) -> dict[str, dict[str, float]]:
        """The whole pipeline with either resize; `tiny` takes 64 pixels and shrinks the pictures, others enlarge."""
        results, support = {}, clipkit.sample_shots(self.labels, self.args.tuning_shots)
        few, rest = (fruits360(self.args.fruits360, split) for split in ("train", "test"))
        few = few.select(support.tolist())
        for mode in ("bicubic", "bilinear"):
            resize = replace(self.model.config.preprocess, interpolation=mode)
            transform = clipkit.Preprocess(self.model.config.vision.resolution, resize)
            seen, unseen = (
                extract_features(
                    self.fast, pairs.files, transform=transform, batch_size=250
                ).features
                for pairs in (few, rest)
            )
            head, _ = fit_head(seen, self.labels[support], self.zero_shot)
            results[mode] = {
                "zero-shot": measure(self.zero_shot, unseen, self.answers),
                f"anchored, k = {self.args.tuning_shots}": measure(head, unseen, self.answers),
            }
        return results

    def shots(self) -> dict[str, dict[int, list[float]]]:
        methods = ("random_linear", "zero_shot_linear", "anchored")
        return {
            method: {
                k: [
                    self.fit(method, clipkit.sample_shots(self.labels, k, seed), seed)
                    for seed in range(self.args.draws)
                ]
                for k in SHOTS
            }
            for method in methods
        }

    def confused(self) -> dict[str, list[tuple[str, str, float]]]:
        """Of zero-shot, and of the anchored head on 16 pictures a class."""
        support = clipkit.sample_shots(self.labels, 16)
        fitted, _ = fit_head(self.train[support], self.labels[support], self.zero_shot)
        results = {}
        for name, head in {"zero-shot": self.zero_shot, "anchored, k = 16": fitted}.items():
            with torch.no_grad():
                predicted = head(self.test).argmax(dim=1)
            matrix = metrics.confusion_matrix(predicted, self.answers, len(self.names))
            pairs = metrics.most_confused(matrix)
            results[name] = [(self.names[i], self.names[j], iou) for i, j, iou in pairs]
        return results


SECTIONS = ("prompts", "towers", "heads", "tuning", "upsampling", "shots", "confused")


def show(section: str, result: Any) -> None:
    print(f"\n**{section}**\n")
    for name, value in result.items():
        if isinstance(value, dict):
            cells = [
                f"{k}: {statistics.mean(v):.1%} ± {statistics.stdev(v) if len(v) > 1 else 0:.1%}"
                if isinstance(v, list)
                else f"{k}: {v:.1%}"
                for k, v in value.items()
            ]
            print(f"- {name}: {', '.join(cells)}")
        elif isinstance(value, list):
            print(
                f"- {name}: "
                + "; ".join(f"{first} / {second} {iou:.0%}" for first, second, iou in value)
            )
        else:
            print(
                f"- {name}: {value:.1%}" if isinstance(value, float) else f"- {name}: {value}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fruits360", type=Path, required=True, metavar="DIR")
    parser.add_argument("--model", default="tiny")
    parser.add_argument(
        "--imagenet", nargs="*", default=[], metavar="NAME", help="models of torchvision"
    )
    parser.add_argument("--sections", nargs="+", default=SECTIONS, choices=SECTIONS)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--tuning-shots", type=int, default=16)
    parser.add_argument("--tuning-epochs", type=int, default=10)
    parser.add_argument("--cache", type=Path, default=Path("runs/features"))
    parser.add_argument("--out", type=Path, default=Path("examples/results"))
    args = parser.parse_args()
    experiment = Experiment(args)
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "fruits360.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    if results.get("model", args.model) != args.model:
        raise SystemExit(f"{file} is of {results['model']}: give another --out")
    results |= {"model": args.model, "draws": args.draws}
    for section in args.sections:
        results[section] = getattr(experiment, section)()
        file.write_text(json.dumps(results, indent=1) + "\n")
        show(section, results[section])


if __name__ == "__main__":
    main()
