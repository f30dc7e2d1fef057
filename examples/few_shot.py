"""The ladder of heads on k pictures a class: CIFAR-100, Caltech-101 or Fruits-360, five draws, every method.

    python examples/few_shot.py --data cifar100=DIR caltech101=DIR fruits360=DIR [--model tiny] [--plot]

`examples/datasets.py` says what lies in the folders. The features of a set are computed once, into `--cache`. For each
set: zero-shot with a prompt ensemble; a linear probe on all training pictures; and for k = 1, 2, 4, 8, 16 every method
of `clipkit.classify.few_shot`, each on the same five random draws from the training pictures, measured on all test
pictures. No method sees a picture that it is measured on before it is done. A model that was trained on a set's
training pictures knows them better than any others, so its support set would mislead: `--fresh` draws from every second
test picture of each class, and measures on the rest. Writes a JSON with every draw, a table and, with `--plot`, a
picture of the curves for each set to `--out`; `examples/results` has tables. Cost with `tiny`, features once computed:
minutes a set.
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from datasets import SETS, TEMPLATES
from torch import Tensor
from tqdm import tqdm

import clipkit
from clipkit.classify.few_shot import METHODS, fit_head
from clipkit.classify.heads import CosineHead, Head
from clipkit.classify.metrics import accuracy
from clipkit.encode.embed import embed_texts
from clipkit.encode.store import extract_features

SHOTS = (1, 2, 4, 8, 16)
NAMES = [
    "random_linear",
    "zero_shot_linear",
    "prompt_weights",
    "cache",
    "cache_finetuned",
    "gaussian",
    "linear_probe",
]
NAMES.append("anchored")
assert sorted(NAMES) == sorted(METHODS)


def features_of(
    model: clipkit.CLIP, name: str, root: Path, split: str, cache: Path
) -> tuple[Tensor, Tensor, list[str]]:
    pairs = SETS[name](root, split)
    cache.mkdir(parents=True, exist_ok=True)
    rows = list(zip(pairs.files, pairs.labels or [], strict=True))
    found = extract_features(
        model, rows, out=cache / f"{name}-{split}.safetensors", batch_size=250, progress=True
    )
    assert found.labels is not None
    return found.features, found.labels, pairs.class_names or []


def captions_of(model: clipkit.CLIP, names: list[str], templates: tuple[str, ...]) -> Tensor:
    prompts = [template.replace("{}", name) for name in names for template in templates]
    return embed_texts(model, prompts).unflatten(0, (len(names), -1)).cpu()


def measure(head: Head, features: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return accuracy(head(features).argmax(dim=1), labels)


def halve(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of half of each class's pictures, and of the rest."""
    first = torch.cat([torch.nonzero(labels == label).flatten()[::2] for label in labels.unique()])
    rest = torch.ones(len(labels), dtype=torch.bool)
    rest[first] = False
    return first, rest.nonzero().flatten()


def experiment(
    model: clipkit.CLIP, name: str, root: Path, cache: Path, draws: int, fresh: bool = False
) -> dict[str, Any]:
    test_features, test_labels, names = features_of(model, name, root, "test", cache)
    if fresh:
        first, rest = halve(test_labels)
        features, labels = test_features[first], test_labels[first]
        test_features, test_labels = test_features[rest], test_labels[rest]
    else:
        features, labels, train_names = features_of(model, name, root, "train", cache)
        assert names == train_names
    captions = captions_of(model, names, TEMPLATES[name])
    weights = torch.nn.functional.normalize(captions.mean(dim=1), dim=-1)
    zero_shot = CosineHead(weights, model.logit_scale.detach().cpu())
    result: dict[str, Any] = {
        "set": f"{name}{'_fresh' * fresh}",
        "train": len(labels),
        "test": len(test_labels),
        "classes": len(names),
    }
    result["zero_shot"] = measure(zero_shot, test_features, test_labels)
    started = time.perf_counter()
    probe, chosen = fit_head(features, labels, zero_shot, "linear_probe")
    result["all"] = {"accuracy": measure(probe, test_features, test_labels), "C": chosen["C"]}
    result["all"]["seconds"] = time.perf_counter() - started
    cells: dict[str, dict[str, list[float]]] = {method: {} for method in NAMES}
    seconds: dict[str, float] = dict.fromkeys(NAMES, 0.0)
    chosen_strengths: dict[str, list[float]] = {}
    for shots in tqdm(SHOTS, desc=name):
        for draw in range(draws):
            support = clipkit.sample_shots(labels, shots, seed=draw)
            for method in NAMES:
                options = {"captions": captions} if method == "prompt_weights" else {}
                started = time.perf_counter()
                head, chosen = fit_head(
                    features[support], labels[support], zero_shot, method, seed=draw, **options
                )
                seconds[method] += time.perf_counter() - started
                cells[method].setdefault(str(shots), []).append(
                    measure(head, test_features, test_labels)
                )
                if method == "anchored":
                    chosen_strengths.setdefault(str(shots), []).append(chosen["strength"])
    return result | {"shots": cells, "fit_seconds": seconds, "strengths": chosen_strengths}


def table(result: dict[str, Any]) -> str:
    """Mean and spread over the draws, per cent; the best of each column in bold."""
    means = {
        m: {k: 100 * statistics.mean(v) for k, v in row.items()}
        for m, row in result["shots"].items()
    }
    best = {k: max(row[str(k)] for row in means.values()) for k in SHOTS}
    lines = [
        f"**{result['set']}**: {result['classes']} classes, {result['test']:,} test pictures. Zero-shot "
        f"{result['zero_shot']:.1%}; linear probe on all {result['train']:,} others "
        f"{result['all']['accuracy']:.1%} (C = {result['all']['C']:.3g}).",
        "",
        "| method | " + " | ".join(f"k = {k}" for k in SHOTS) + " |",
        "|---" * (len(SHOTS) + 1) + "|",
    ]
    for method, row in result["shots"].items():
        cells = []
        for k in SHOTS:
            spread = 100 * statistics.stdev(row[str(k)]) if len(row[str(k)]) > 1 else 0
            text = f"{means[method][str(k)]:.1f} ± {spread:.1f}"
            cells.append(f"**{text}**" if means[method][str(k)] == best[k] else text)
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def summary(results: list[dict[str, Any]]) -> str:
    """In how many cells `anchored` is at or above zero-shot, and at or above every other method."""
    above, first, total = 0, 0, 0
    for result in results:
        for k in SHOTS:
            mean = {method: statistics.mean(row[str(k)]) for method, row in result["shots"].items()}
            above += mean["anchored"] >= result["zero_shot"]
            first += mean["anchored"] >= max(mean.values())
            total += 1
    return f"`anchored` is at or above zero-shot in {above} of {total} cells, at or above every other in {first}."


def plot(result: dict[str, Any], path: Path) -> None:
    import matplotlib  # pyright: ignore[reportMissingImports]

    matplotlib.use("Agg")
    from matplotlib import pyplot  # pyright: ignore[reportMissingImports]

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for method in (
        "random_linear",
        "zero_shot_linear",
        "linear_probe",
        "gaussian",
        "cache_finetuned",
        "anchored",
    ):
        row = result["shots"][method]
        means = [100 * statistics.mean(row[str(k)]) for k in SHOTS]
        axes.plot(
            SHOTS, means, marker="o", label=method, linewidth=2.5 if method == "anchored" else 1.2
        )
    axes.axhline(100 * result["zero_shot"], color="grey", linestyle="--", label="zero-shot")
    axes.axhline(
        100 * result["all"]["accuracy"], color="black", linestyle=":", label="probe on all"
    )
    axes.set(
        xscale="log", xticks=SHOTS, xticklabels=SHOTS, xlabel="pictures a class", ylabel="top-1, %"
    )
    axes.set_title(result["set"])
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", required=True, metavar="SET=DIR")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--cache", type=Path, default=Path("runs/features"))
    parser.add_argument("--out", type=Path, default=Path("examples/results"))
    parser.add_argument("--plot", action="store_true")
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="draw from half of the test pictures, measure on the rest",
    )
    args = parser.parse_args()
    model = clipkit.CLIP.from_pretrained(args.model).optimize()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, root in (entry.split("=", 1) for entry in args.data):
        cache = args.cache / args.model.replace("/", "-")
        result = experiment(model, name, Path(root), cache, args.draws, args.fresh)
        name = result["set"]
        result |= {
            "model": args.model,
            "draws": args.draws,
            "hardware": f"{os.cpu_count()} cores, {platform.machine()}",
        }
        (args.out / f"few_shot_{name}.json").write_text(json.dumps(result, indent=1) + "\n")
        if args.plot:
            plot(result, args.out / f"few_shot_{name}.png")
        print(f"\n{table(result)}\n", flush=True)
    found = [json.loads(file.read_text()) for file in sorted(args.out.glob("few_shot_*.json"))]
    print(summary([result for result in found if result["model"] == args.model]))


if __name__ == "__main__":
    main()
