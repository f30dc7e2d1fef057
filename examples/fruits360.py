"""Answer the questions of the Skoltech report on Fruits-360 (95 classes, 2019.01.16), by sections.

    python examples/fruits360.py --fruits360 DIR [--model tiny] [--sections NAME ...]
                                 [--imagenet resnet101 efficientnet_b7]

Sections:

- `prompts`: zero-shot with each prompt and with the ensemble.
- `towers`: a linear probe on CLIP's features against one on those of torchvision's ImageNet models,
  which need a network.
- `heads`: learned prompt weights against linear heads, on all training images.
- `tuning`: frozen tower, last blocks, all of it; Adam with random crops and flips, k images each.
- `upsampling`: bicubic against bilinear.
- `shots`: k = 1 to 128, five draws.
- `confused`: the ten most confused pairs with their IoU.

The test images are looked at only to report. Writes `fruits360.json` to `--out`. Cost with `tiny`:
an hour on two cores. Expected with it (`examples/results`): zero-shot 3.8 %, `anchored` 93.3 % with
16 images a class and 98.5 % with all.
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
from few_shot import captions_of, cosine_head, features_of, measure
from torch import Tensor, nn

import clipkit
from clipkit.classify import metrics

SHOTS = (1, 2, 4, 8, 16, 32, 64, 128)
SECTIONS = ("prompts", "towers", "heads", "tuning", "upsampling", "shots", "confused")
Figures = dict[str, float]


def adam(task: nn.Module) -> list[torch.optim.Optimizer]:
    """Return the optimizer of the report."""
    trained = [parameter for parameter in task.parameters() if parameter.requires_grad]
    return [torch.optim.Adam(trained, 3e-4)]


class Experiment:
    """Hold the features of both splits and the zero-shot head, from which all sections start."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.root: Path = args.fruits360
        self.model = clipkit.CLIP.from_pretrained(args.model, dtype=torch.float32)
        self.fast = self.model.optimize()
        self.cache: Path = args.cache / args.model.replace("/", "-")
        self.train, self.labels, self.names = features_of(
            self.fast, "fruits360", self.root, "train", self.cache
        )
        self.test, self.answers, _ = features_of(
            self.fast, "fruits360", self.root, "test", self.cache
        )
        self.captions = captions_of(self.model, self.names, FRUIT_TEMPLATES)  # (C, K, D)
        self.zero_shot = cosine_head(self.model, self.captions)

    def fit(self, method: str, support: Tensor | None = None, seed: int = 0) -> float:
        """Return the accuracy of a head fitted on some training images, or on all of them."""
        return self.measure(self.fitted(method, support, seed))

    def fitted(self, method: str, support: Tensor | None = None, seed: int = 0) -> clipkit.Head:
        chosen = torch.arange(len(self.labels)) if support is None else support
        features, labels = self.train[chosen], self.labels[chosen]
        captions = self.captions if method == "prompt_weights" else None
        head, _ = clipkit.fit_head(
            features, labels, self.zero_shot, method, seed=seed, captions=captions
        )
        return head

    def measure(self, head: clipkit.Head) -> float:
        return measure(head, self.test, self.answers)

    def pairs(self, support: Tensor) -> clipkit.Pairs:
        """Return some of the training images."""
        return fruits360(self.root, "train").select([int(index) for index in support])

    @cached_property
    def linear_probe(self) -> float:
        """Return the accuracy of a probe on all training images.

        It takes minutes, unless `few_shot.py` has left it in `--out`.
        """
        file = self.args.out / "few_shot_fruits360.json"
        known = json.loads(file.read_text()) if file.exists() else {}
        if known.get("model") == self.args.model:
            return known["all"]["accuracy"]
        return self.fit("linear_probe")

    def prompts(self) -> Figures:
        """Measure zero-shot with each prompt and with the ensemble."""
        figures: Figures = {}
        for i, template in enumerate(FRUIT_TEMPLATES):
            own = self.captions[:, i : i + 1]  # (C, 1, D)
            figures[template] = self.measure(cosine_head(self.model, own))
        return figures | {"ensemble": self.measure(self.zero_shot)}

    def towers(self) -> dict[str, Any]:
        """Measure linear probes on CLIP's features and on those of ImageNet models."""
        from torchvision import models

        results: dict[str, Any] = {self.args.model: self.linear_probe}
        for name in self.args.imagenet:
            weights: Any = models.get_model_weights(name)
            try:
                tower: nn.Module = models.get_model(name, weights=weights.DEFAULT)
            except OSError as error:  # the errors of urllib are OSErrors
                results[name] = f"not run: {error}"
                continue
            last_layer = "fc" if hasattr(tower, "fc") else "classifier"
            setattr(tower, last_layer, nn.Identity())
            results[name] = self.probe(tower, name, weights.DEFAULT.transforms())
        return results

    def probe(self, tower: nn.Module, name: str, transform: Any) -> float:
        """Return the accuracy of a linear probe on another tower's features."""
        folder = self.cache.parent / name
        folder.mkdir(parents=True, exist_ok=True)
        features: list[Tensor] = []
        for split in ("train", "test"):
            files = fruits360(self.root, split).files
            out = folder / f"fruits360-{split}.safetensors"
            found = clipkit.extract_features(
                tower, files, out=out, transform=transform, progress=True
            )
            features.append(found.features)
        train, test = features
        weights = train.new_zeros(len(self.names), train.shape[1])  # (C, D)
        blank = clipkit.CosineHead(weights, torch.tensor(0.0))
        head, _ = clipkit.fit_head(train, self.labels, blank, "linear_probe")
        return measure(head, test, self.answers)

    def heads(self) -> Figures:
        """Measure heads on all training images."""
        methods = ("prompt_weights", "gaussian", "anchored")
        return {name: self.fit(name) for name in methods} | {"linear_probe": self.linear_probe}

    def tuning(self) -> Figures:
        """Measure Adam on k images a class: head alone, last blocks, whole tower; no WiSE-FT."""
        support = clipkit.sample_shots(self.labels, self.args.tuning_shots)
        results = {"zero-shot": self.measure(self.zero_shot)}
        results["frozen, anchored head"] = self.fit("anchored", support)
        results["last blocks"] = self.tuned(support, blocks=1)
        results["whole tower"] = self.tuned(support, blocks=None)
        return results

    def tuned(self, support: Tensor, blocks: int | None) -> float:
        """Return the accuracy after training so many last blocks, or all, with the head."""
        few = self.pairs(support)
        model = clipkit.CLIP.from_pretrained(self.args.model, dtype=torch.float32)
        head = self.fitted("anchored", support).to_linear()
        augment = clipkit.Augment(0.5, mirror=True)
        batches = clipkit.PairBatches(few, 64, model.preprocess, None, augment, workers=0)
        steps = self.args.tuning_epochs * (len(few) // 64)
        config = clipkit.TrainConfig(
            steps=steps, warm_up=steps // 10, image_blocks=blocks, save_every=0
        )
        task = clipkit.ClassificationTask(model, head)
        with tempfile.TemporaryDirectory() as folder:
            clipkit.Trainer(task, batches, config, folder, optimizers=adam).fit()
        files = fruits360(self.root, "test").files
        features = clipkit.extract_features(model.optimize(), files, batch_size=250).features
        return measure(head.eval(), features, self.answers)

    def upsampling(self) -> dict[str, Figures]:
        """Measure the whole pipeline with either resize.

        `tiny` takes fewer pixels than the images have and shrinks them; others enlarge them.
        """
        support = clipkit.sample_shots(self.labels, self.args.tuning_shots)
        few = self.pairs(support).files
        rest = fruits360(self.root, "test").files
        results: dict[str, Figures] = {}
        for mode in ("bicubic", "bilinear"):
            resize = replace(self.model.config.preprocess, interpolation=mode)
            transform = clipkit.Preprocess(self.model.config.vision.resolution, resize)
            seen, unseen = (self.encoded(files, transform) for files in (few, rest))
            head, _ = clipkit.fit_head(seen, self.labels[support], self.zero_shot)
            results[mode] = {
                "zero-shot": measure(self.zero_shot, unseen, self.answers),
                f"anchored, k = {self.args.tuning_shots}": measure(head, unseen, self.answers),
            }
        return results

    def encoded(self, files: list[Path], transform: clipkit.Preprocess) -> Tensor:
        found = clipkit.extract_features(self.fast, files, transform=transform, batch_size=250)
        return found.features

    def shots(self) -> dict[str, dict[int, list[float]]]:
        """Measure three heads for every number of images a class, draw by draw."""
        return {
            method: {k: self.draws(method, k) for k in SHOTS}
            for method in ("random_linear", "zero_shot_linear", "anchored")
        }

    def draws(self, method: str, shots: int) -> list[float]:
        return [
            self.fit(method, clipkit.sample_shots(self.labels, shots, seed), seed)
            for seed in range(self.args.draws)
        ]

    def confused(self) -> dict[str, list[tuple[str, str, float]]]:
        """Find the pairs that zero-shot, and the anchored head on 16 images a class, confuse."""
        support = clipkit.sample_shots(self.labels, 16)
        heads = {
            "zero-shot": self.zero_shot,
            "anchored, k = 16": self.fitted("anchored", support),
        }
        results: dict[str, list[tuple[str, str, float]]] = {}
        for name, head in heads.items():
            with torch.no_grad():
                predicted = head(self.test).argmax(dim=1)
            matrix = metrics.confusion_matrix(predicted, self.answers, len(self.names))
            pairs = metrics.most_confused(matrix)
            results[name] = [(self.names[i], self.names[j], iou) for i, j, iou in pairs]
        return results


def shown(value: Any) -> str:
    """Return a figure, the figures of several draws, pairs or whole tables as one line."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {shown(inner)}" for key, inner in value.items())
    if isinstance(value, float):
        return f"{value:.1%}"
    if isinstance(value, list) and isinstance(value[0], float):
        spread = statistics.stdev(value) if len(value) > 1 else 0.0
        return f"{statistics.mean(value):.1%} ± {spread:.1%}"
    if isinstance(value, list):
        return "; ".join(f"{first} / {second} {iou:.0%}" for first, second, iou in value)
    return str(value)


def show(section: str, result: dict[str, Any]) -> None:
    """Print one section as a list."""
    print(f"\n**{section}**\n")
    for name, value in result.items():
        print(f"- {name}: {shown(value)}", flush=True)


def read_arguments() -> argparse.Namespace:
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
    return parser.parse_args()


def main() -> None:
    args = read_arguments()
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
