"""Measure what an image tower of int8 loses, and what it gains, beside OpenVINO's own int8.

    PYTHONPATH=.:examples python tests/benchmarks/int8.py [--tiny-imagenet DIR] [--cifar100 DIR]
        [--models ViT-B/32] [--batches 1 8] [--photos DIR] [--seconds 15] [--json FILE]

- Quality: the embedded checkpoint as loaded and by `optimize(runtime="openvino", calibration=)`,
  calibrated on 100 images that are not tested on: zero-shot accuracy with the prompts of
  `train_tiny.py`, and the cosines of the features. On CIFAR-100 they come from `train/`. Of
  Tiny-ImageNet every hundredth image of `val/` is taken, and the others are tested on.
- Speed and size: towers of `--models` at random weights: `optimize(int8=True)` in torch, and
  `optimize(runtime="openvino", calibration=)` with 100 images of `--photos`, beside the same
  quantization written by hand (NNCF, then OpenVINO), and all in float32. A file's size is that of
  OpenVINO's own format. What a trained vision transformer loses is measured by `int8_vit.py`.

Cost: about 15 minutes on two cores for both data sets and ViT-B/32. Needs nncf and openvino.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
import torch.nn.functional as F
from report import ratios, shown
from side_by_side import Row, hardware, run
from torch import Tensor
from train_tiny import TEMPLATES

import clipkit
from clipkit.checkpoints import registry
from clipkit.data.folders import list_images
from clipkit.encode.embed import prepare_batch
from clipkit.models.openvino_int8 import quantize
from clipkit.models.openvino_package import import_openvino
from tests.helpers.random_weights import randomize

CALIBRATED_ON = 100
CALL = 250  # images of a batch


def accuracy_of(weights: Tensor, features: Tensor, labels: Tensor) -> float:
    """Return the share of images whose likeliest class, of weights (classes, D), is theirs."""
    return ((features @ weights.T).argmax(dim=1) == labels).double().mean().item()


def spread(files: list[Path]) -> list[Path]:
    """Return files to calibrate on, from everywhere among those that there are."""
    return files[:: max(1, len(files) // CALIBRATED_ON)][:CALIBRATED_ON]


def split_of(name: str, root: Path) -> tuple[clipkit.Pairs, list[Path], list[int]]:
    """Return the images to test on, files to calibrate on, and the places of the tested ones."""
    pairs = datasets.SETS[name](root, "test")
    places = list(range(len(pairs)))
    if name == "cifar100":
        others = datasets.SETS[name](root, "train").files
        return pairs, spread(others), places
    step = len(pairs) // CALIBRATED_ON
    chosen = places[::step]
    return pairs, [pairs.files[i] for i in chosen], sorted(set(places) - set(chosen))


def quality_of(name: str, root: Path) -> dict[str, float]:
    """Return the accuracies and cosines of a data set, in float32 and int8."""
    pairs, calibration, places = split_of(name, root)
    files = [pairs.files[i] for i in places]
    assert pairs.labels is not None  # every image of these sets has one
    labels = torch.tensor([pairs.labels[i] for i in places])
    model = clipkit.CLIP.from_pretrained("tiny", device="cpu")
    fast = model.optimize(runtime="openvino", calibration=calibration)
    exact = model.embed_images(files, batch_size=CALL, progress=True)
    found = fast.embed_images(files, batch_size=CALL, progress=True)
    weights = clipkit.zero_shot_weights(model, datasets.class_names_of(pairs), TEMPLATES).cpu()
    return {
        "images": len(files),
        "float32": accuracy_of(weights, exact, labels),
        "int8": accuracy_of(weights, found, labels),
        **differences_of(weights, exact, found),
    }


def differences_of(weights: Tensor, exact: Tensor, found: Tensor) -> dict[str, float]:
    """Return how near features are to exact ones, (N, D), and how often the choice is the same."""
    cosines = (exact * found).sum(dim=1)
    choices = [(features @ weights.T).argmax(dim=1) for features in (exact, found)]
    return {
        "mean cosine": cosines.mean().item(),
        "least cosine": cosines.min().item(),
        "same first choice": (choices[0] == choices[1]).double().mean().item(),
    }


def graph_of(model: clipkit.CLIP, pixels: Tensor | None) -> Any:
    """Return a tower in OpenVINO as its manual does it: in int8 if there are pixels."""
    example = torch.zeros(2, 3, *model.config.vision.resolution)
    graph = import_openvino().convert_model(model.visual, example_input=example)
    if pixels is None:
        return graph
    is_transformer = not isinstance(model.config.vision, clipkit.ResNetConfig)
    return quantize(graph, pixels, is_transformer=is_transformer)


def megabytes_of(graph: Any) -> float:
    """Return the MB that a graph takes on disk."""
    with tempfile.TemporaryDirectory() as folder:
        import_openvino().save_model(graph, Path(folder) / "x.xml", compress_to_fp16=False)
        return sum(file.stat().st_size for file in Path(folder).iterdir()) / 1e6


def compiled_for(graph: Any, shape: tuple[int, ...]) -> Any:
    """Return a graph compiled for batches of one shape, as clipkit does it."""
    fixed = graph.clone()
    fixed.reshape(list(shape))
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
    }
    return import_openvino().compile_model(fixed, "CPU", settings)


def speed_rows(name: str, batches: list[int], photos: Path) -> Iterator[Row]:
    """Yield a row for each size of batches."""
    model = randomize(clipkit.CLIP(registry.MODELS[name].config)).eval().requires_grad_(False)
    files = spread(list_images(photos))
    pixels = prepare_batch(model, files, CALIBRATED_ON)
    fast = model.optimize(runtime="openvino", calibration=files)
    copies = {
        "clipkit int8": model.optimize(int8=True),
        "clipkit int8 in openvino": fast,
        "clipkit float32": model.optimize(),
    }
    graphs = {"int8": graph_of(model, pixels), "float32": graph_of(model, None)}
    facts = {f"MB of {title}": megabytes_of(graph) for title, graph in graphs.items()}
    for count in batches:
        batch = pixels[:count]
        expected = model.encode_image(batch, normalize=True)
        calls: dict[str, Any] = {
            title: partial(copy.encode_image, batch, normalize=True)
            for title, copy in copies.items()
        }
        for title, graph in graphs.items():
            compiled = compiled_for(graph, tuple(batch.shape))
            calls[f"openvino {title}"] = partial(run_by_hand, compiled, batch)
        size = f"{count} images" if count > 1 else "one"
        row = Row(f"int8: {name}, {size}", calls, partial(off, expected=expected), "images", count)
        row.dtype, row.limit, row.facts = torch.int8, 0.1, facts
        yield row


def run_by_hand(compiled: Any, batch: Tensor) -> Tensor:
    """Return unit features of a batch."""
    return F.normalize(torch.from_numpy(compiled([batch.numpy()])[0]), dim=-1)


def off(found: Tensor, expected: Tensor) -> float:
    """Return 1 - the mean cosine."""
    return float(1 - F.cosine_similarity(found, expected).mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny-imagenet", type=Path, metavar="DIR")
    parser.add_argument("--cifar100", type=Path, metavar="DIR")
    parser.add_argument("--models", nargs="+", default=[], choices=registry.MODELS, metavar="NAME")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--photos", type=Path, help="a folder of photos to calibrate on")
    parser.add_argument("--seconds", type=float, default=15, help="of each row")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.models and args.photos is None:
        parser.error("--models needs --photos")
    device = torch.device("cpu")
    known = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    known |= {"hardware": hardware(device)}
    with torch.inference_mode():
        for name in ("tiny_imagenet", "cifar100"):
            root = getattr(args, name)
            if root is not None:
                known.setdefault("quality", {})[name] = quality_of(name, root)
                print(name, known["quality"][name], flush=True)
        for name in args.models:
            for row in speed_rows(name, args.batches, args.photos):
                result = run(row, args.seconds, device)
                known.setdefault("rows", {})[row.name] = result
                print(row.name, *(f"{n} {shown(result, n)}" for n in result["seconds"]), sep=" | ")
                print(*ratios(result), flush=True)
    if args.json:
        args.json.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
