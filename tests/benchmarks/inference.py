"""Inference side by side with open_clip and transformers, each at its fastest settings, on the same random weights.

    PYTHONPATH=. python tests/benchmarks/inference.py
        [--rows image text classifier tokenize preprocess import load] [--models ViT-B/32 ViT-B/16 ViT-L/14 RN50]
        [--seconds 20] [--full] [--compile] [--quick] [--json FILE] [--markdown FILE]

Of `--models`, any of `clipkit.list_models()`, only the architecture is taken. A peer that is not installed is left out.
Needs Linux. Runs on the CPU. Cost with the defaults: about an hour on two quiet cores, 10 GB of memory and as much
disk; `--quick` measures nothing, and shows in a minute or two that all of it runs.

- image: preprocessed batches of 1, 8 and 64 to unit features, in float32 and bfloat16, and the share that clipkit
  reaches of a limit: the operations that its layers have to do, at the rate at which torch's best library multiplies
  two matrices of 2048 x 2048, measured right before and after.
- text: 1, 64 and 1,000 prompts, strings to unit features, once for each kind of text tower.
- classifier: 50 of ImageNet's classes, or with `--full` all, in 80 templates each, by the first of the models.
- tokenize: 1, 1,000 and 80,000 prompts; where the cache is cold, clipkit alone has forgotten all words.
- preprocess: a JPEG of 640 x 480 from its file; 32 of them on two threads.
- import: whole processes, beside one that imports torch alone, which is no peer.
- load: ViT-B/32 and ViT-L/14 from each library's own files; and the peak of memory of a process that does it.

The first call of each contestant is not counted; its output is compared with clipkit's, in bfloat16 with clipkit's in
float32, and if any is too far off, it stops there. Then they take turns, in alternating order, until the row has had
its seconds and 3 rounds at least. In bfloat16, peers run both with weights cast and with autocast. What would take a
peer minutes is timed on a random part and extrapolated in proportion, marked by ~. `--compile` adds torch.compile to
each: for clipkit of the image tower, for peers of both. Prints medians, and the ratio of the fastest peer to clipkit
with its quartiles over the rounds. They mean little on a busy machine, for which see the load.
"""

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from training import alone, peak_of  # beside this file

import clipkit
from clipkit import registry
from clipkit.config import ResNetConfig
from tests.random_weights import randomise, some_images

PEERS = {"open_clip": "open_clip_torch", "transformers": "transformers"}  # modules, and what pip calls them
HERE = [name for name in PEERS if importlib.util.find_spec(name)]
open_clip: Any = importlib.import_module("open_clip") if "open_clip" in HERE else None
transformers: Any = importlib.import_module("transformers") if "transformers" in HERE else None
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SIZES = {"image": (1, 8, 64), "text": (1, 64, 1000), "classifier": (50,), "tokenize": (1, 1000, 80000)}
PARTS = {"text": {"open_clip": 64, "transformers": 256}, "classifier": {"open_clip": 2, "transformers": 8}}  # at most
BATCH = 64  # prompts that peers encode at once
ROUNDS, MOST, SLICE = 3, 200, 0.005  # rounds at least and at most; seconds of one measurement at least
EXACT, NEAR = 2e-5, 0.02  # largest difference of unit vectors; in bfloat16, 1 - the lowest cosine
LEVELS = 0.05  # largest difference of normalised pixels where torch resizes and not PIL
Call = Callable[[], Any]
Side = dict[str, Callable[[Any], Tensor]]  # by section, from images (N, 3, H, W), prompts or names to unit features


@dataclass
class Row:
    """What is timed: contestants by names that start with their library's.

    `check` tells by how much an output is off, which must not exceed the contestant's own limit, or `limit`.
    """

    name: str
    contestants: dict[str, Call]
    check: Callable[[Any], float]
    unit: str = ""  # what the items are
    items: int = 1
    parts: dict[str, int] = field(default_factory=dict)  # of the items, for a contestant that does not do all
    limit: float = 0.0
    limits: dict[str, float] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    flops: int = 0  # of all items
    facts: dict[str, float] = field(default_factory=dict)


def timed(call: Call) -> float:
    count, started = 0, time.perf_counter()
    while count == 0 or time.perf_counter() - started < SLICE:
        call()
        count += 1
    return (time.perf_counter() - started) / count


def matmul_rate(dtype: torch.dtype) -> float:
    """Floating-point operations a second of the best of torch's libraries."""
    x, weight = (torch.randn(2048, 2048).to(dtype) for _ in range(2))
    routes = [partial(F.linear, x, weight)]
    if dtype is torch.float32 and torch.backends.mkldnn.is_available():
        routes.append(partial(torch.ops.mkldnn._linear_pointwise, x, weight, None, "none", [], ""))
    return 2 * 2048**3 / min(timed(route) for route in routes * 4)


def run(row: Row, budget: float) -> dict[str, Any]:
    outputs = {name: call() for name, call in row.contestants.items()}
    off = {name: row.check(output) for name, output in outputs.items()}
    if wrong := {name: value for name, value in off.items() if not value <= row.limits.get(name, row.limit)}:
        raise SystemExit(f"{row.name}: outputs differ by too much, nothing is timed: {wrong}")
    outputs.clear()
    rates = [matmul_rate(row.dtype)] if row.flops else []
    seconds: dict[str, list[float]] = {name: [] for name in row.contestants}
    turn, started = 0, time.perf_counter()
    while turn < ROUNDS or (turn < MOST and time.perf_counter() - started < budget):
        for name in list(row.contestants)[:: -1 if turn % 2 else 1]:
            seconds[name].append(timed(row.contestants[name]) * row.items / row.parts.get(name, row.items))
        turn += 1
    medians = {name: median(values) for name, values in seconds.items()}
    ours = min((name for name in medians if name.startswith("clipkit")), key=medians.__getitem__)
    peer = min((name for name in medians if name.startswith((*PEERS,))), key=medians.__getitem__, default=None)
    result: dict[str, Any] = {"name": row.name, "unit": row.unit, "items": row.items, "rounds": turn}
    result |= {"ours": ours, "peer": peer, "load": os.getloadavg()[0], "facts": row.facts}
    result["seconds"] = {name: quartiles(values) for name, values in seconds.items()}
    result["extrapolated_from"] = {x: f"{n} of {row.items:,}" for x, n in row.parts.items() if n < row.items}
    half = row.dtype is torch.bfloat16
    result["cosine" if half else "difference"] = {x: 1 - value if half else value for x, value in off.items()}
    if rates:
        result["matmul FLOP/s"] = max(*rates, matmul_rate(row.dtype))
        result |= {"FLOP": row.flops, "share of limit": row.flops / result["matmul FLOP/s"] / medians[ours]}
    if peer:
        result["ratio"] = quartiles([x / y for x, y in zip(seconds[peer], seconds[ours], strict=True)])
    return result


def quartiles(values: list[float]) -> list[float]:
    """The lower one, the median, the upper one."""
    return quantiles(values, n=4, method="inclusive")


def shown(result: dict[str, Any], name: str) -> str:
    value, items = result["seconds"][name][1], result["items"]
    rate = f" = {items / value:.4g} {result['unit']}/s" if items > 1 else ""
    return f"{'~' * (name in result['extrapolated_from'])}{1000 * value:.4g} ms{rate}"


def cells(result: dict[str, Any]) -> list[str]:
    ours, peer, ratio, notes, theirs = result["ours"], result["peer"], "", [], ""
    if peer:
        theirs, ratio = f"{shown(result, peer)}, {peer}", "{1:.2f} ({0:.2f} to {2:.2f})".format(*result["ratio"])
    if "share of limit" in result:
        notes.append(f"{result['share of limit']:.2f} of the limit")
    if "cosine" in result:
        notes.append(f"cosine {result['cosine'][ours]:.5f}, of all at least {min(result['cosine'].values()):.5f}")
    else:
        notes.append(f"largest difference {max(result['difference'].values()):.1g}")
    notes += [f"{fact} {value:.2f}" for fact, value in result["facts"].items()]
    notes += [f"{name} from {part}" for name, part in result["extrapolated_from"].items()]
    return [result["name"], shown(result, ours), theirs, ratio, "; ".join(notes)]


def markdown(report: dict[str, Any]) -> str:
    table = [["work", "clipkit", "fastest peer", "ratio (quartiles)", ""], ["---"] * 5, *map(cells, report["rows"])]
    lines = ["; ".join(f"{key} {value}" for key, value in report["hardware"].items()), ""]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in table]) + "\n"


def hardware() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    date, load = datetime.now(timezone.utc).isoformat(timespec="minutes"), os.getloadavg()[0]
    out = {"date": date, "cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "load": load}
    out |= {"clipkit": clipkit.__version__, "torch": torch.__version__}
    return out | {name: importlib.metadata.version(PEERS[name]) for name in HERE}


# The libraries.


def weights(root: Path, name: str, layout: str = "open_clip") -> str:
    """A folder with the one set of random weights of this architecture."""
    path = root / name.replace("/", "-") / layout
    if not path.exists():
        first = layout == "open_clip"
        model = randomise(clipkit.CLIP(registry.MODELS[name].config)) if first else load("clipkit", weights(root, name))
        model.save_pretrained(path, layout=layout)
    return str(path)


def load(library: str, folder: str, dtype: torch.dtype = torch.float32) -> Any:
    if library == "clipkit":
        return clipkit.load(folder, "cpu", dtype=dtype)[0]
    if library == "open_clip":
        precision = "fp32" if dtype is torch.float32 else "pure_bf16"
        return open_clip.create_model(f"local-dir:{folder}", precision=precision).eval()
    return transformers.CLIPModel.from_pretrained(folder, dtype=dtype).eval()


def tokenizer_of(peer: str, root: Path) -> Callable[[list[str]], Tensor]:
    if peer == "open_clip":
        return open_clip.tokenize
    smallest = weights(root, "TinyCLIP-ViT-8M-16-Text-3M-YFCC15M", peer)  # all have the same tokenizer
    fast = transformers.CLIPTokenizer.from_pretrained(smallest)
    return lambda texts: fast(texts, padding=True, return_tensors="pt")["input_ids"]


def clipkit_side(model: clipkit.CLIP) -> Side:
    def classifier(names: list[str]) -> Tensor:
        return clipkit.zero_shot_weights(model, {str(i): name for i, name in enumerate(names)}, "imagenet")

    return {"image": partial(model.encode_image, normalize=True), "text": model.embed_texts, "classifier": classifier}


def peer_side(model: Any, tokenizer: Callable[[list[str]], Tensor], autocast: bool, dtype: torch.dtype) -> Side:
    plain = hasattr(model, "encode_image")  # open_clip's
    encode_image = model.encode_image if plain else lambda images: model.get_image_features(images).pooler_output
    # No mask of the padding: a causal tower can do without.
    encode_text = model.encode_text if plain else lambda tokens: model.get_text_features(tokens).pooler_output
    templates = clipkit.prompt_set("imagenet").templates
    context = partial(torch.autocast, "cpu", torch.bfloat16) if autocast else nullcontext

    def image(images: Tensor) -> Tensor:
        with context():
            return F.normalize(encode_image(images.to(dtype)), dim=-1)

    def text(texts: list[str]) -> Tensor:
        with context():
            parts = [encode_text(tokenizer(texts[i : i + BATCH])) for i in range(0, len(texts), BATCH)]
        return F.normalize(torch.cat(parts), dim=-1)

    def classifier(names: list[str]) -> Tensor:
        return F.normalize(torch.stack([text([t.format(x) for t in templates]).mean(dim=0) for x in names]), dim=-1)

    return {"image": image, "text": text, "classifier": classifier}


def compiled(model: nn.Module) -> nn.Module:
    model = deepcopy(model)
    for tower in ("visual", "transformer", "vision_model", "text_model"):  # open_clip's, transformers'
        if hasattr(model, tower):
            getattr(model, tower).compile()
    return model


def sides(root: Path, name: str, dtype: torch.dtype, compile: bool) -> dict[str, Side]:
    """Every library in every setting that may be its fastest, clipkit first."""
    resnet = isinstance(registry.MODELS[name].config.vision, ResNetConfig)
    model = load("clipkit", weights(root, name), dtype)
    out = {"clipkit": clipkit_side(model.optimize() if resnet else model)}
    if compile:
        out["clipkit compiled"] = clipkit_side(model.optimize(compile=True))
    settings = {"": (False, torch.float32)}
    if dtype is torch.bfloat16:
        settings = {" bfloat16": (False, dtype), " autocast": (True, torch.float32)}
    for peer in HERE:
        if resnet and peer == "transformers":  # which has none
            continue
        tokenizer = tokenizer_of(peer, root)
        for label, (autocast, own) in settings.items():
            models = {peer + label: load(peer, weights(root, name, peer), own)}
            if resnet:
                last = deepcopy(models[peer + label]).to(memory_format=torch.channels_last)
                models[f"{peer}{label} channels_last"] = last
            if compile:
                models |= {f"{x} compiled": compiled(y) for x, y in models.items()}
            out |= {x: peer_side(y, tokenizer, autocast, own) for x, y in models.items()}
    return out


# What is timed.


def shuffled_names() -> list[str]:
    """ImageNet's, in random order, so that the first of them are a fair sample."""
    names = [own[0] for own in clipkit.prompt_set("imagenet").class_names.values()]
    return random.Random(0).sample(names, len(names))


def distance(found: Tensor, expected: Tensor, exact: bool) -> float:
    """Of features from the first that were expected: the largest difference, or 1 - the lowest cosine."""
    one, other = (F.normalize(x.double(), dim=-1) for x in (found, expected[: len(found)]))
    return float((one - other).abs().max() if exact else 1 - (one * other).sum(dim=-1).min())


def model_rows(section: str, unit: str, root: Path, args: argparse.Namespace) -> Iterator[Row]:
    names = args.models[:1] if section == "classifier" else args.models
    if section == "text":  # the first of each kind
        names = [*{registry.MODELS[name].config.text: name for name in names[::-1]}.values()][::-1]
    most: dict[str, int] = PARTS.get(section, {})
    for name in names:
        resolution = registry.MODELS[name].config.vision.resolution
        with FlopCounterMode(display=False) as counter:  # with gradients, every product is one of torch's own
            load("clipkit", weights(root, name)).encode_image(some_images(1, resolution))
        expected: dict[int, Tensor] = {}
        for precision, dtype in DTYPES.items():
            contestants, exact = sides(root, name, dtype, args.compile), dtype is torch.float32
            if section != "image":
                contestants.pop("clipkit compiled", None)  # its text tower is as it was
            for count in SIZES[section]:
                inputs: Any = some_images(count, resolution) if section == "image" else shuffled_names()[:count]
                if section == "text":
                    inputs = [f"a photo of a {x}." for x in inputs]
                parts = {x: min(count, most.get(x.split()[0]) or count) for x in contestants}
                bound = {x: partial(side[section], inputs[: parts[x]]) for x, side in contestants.items()}
                calls = {x: torch.inference_mode()(call) for x, call in bound.items()}
                if count not in expected:
                    expected[count] = calls["clipkit"]()
                check = partial(distance, expected=expected[count], exact=exact)
                title = f"{section}: {name}, {precision}, " + (f"{count:,} {unit}" if count > 1 else "one")
                row = Row(title, calls, check, unit, count, parts)
                row.limit, row.dtype = EXACT if exact else NEAR, dtype
                row.flops = count * counter.get_total_flops() if section == "image" else 0
                yield row


def tokenize_rows(root: Path, args: argparse.Namespace) -> Iterator[Row]:
    tokenizer = clipkit.Tokenizer()
    texts = [t.format(name) for name in shuffled_names() for t in clipkit.prompt_set("imagenet").templates]
    texts = random.Random(0).sample(texts, len(texts))
    peers = {peer: tokenizer_of(peer, root) for peer in HERE}

    def cold(texts: list[str]) -> Tensor:
        for words in tokenizer._words.values():
            words.clear()
        return tokenizer(texts)

    def differing(ids: Tensor, expected: Tensor) -> float:
        """Ids that are not as expected, those after the first end of text left out."""
        ids = ids.masked_fill(torch.arange(ids.shape[1]) > ids.argmax(dim=1, keepdim=True), 0)
        return float((F.pad(ids, (0, expected.shape[1] - ids.shape[1])) != expected).sum())

    for count in SIZES["tokenize"]:
        check = partial(differing, expected=tokenizer(texts[:count]))
        for label, ours in {"": tokenizer, ", cold cache": cold}.items():
            calls = {x: partial(function, texts[:count]) for x, function in ({"clipkit": ours} | peers).items()}
            yield Row(f"tokenize: {count:,}{label}", calls, check, "prompts", count)


def preprocess_rows(root: Path, args: argparse.Namespace) -> Iterator[Row]:
    photos = sorted(Path(__file__).parents[2].glob("examples/photos/*.jpg"))
    files = [root / f"{i}.jpg" for i in range(4 if args.quick else 32)]
    for i, file in enumerate(files):  # each another window of a photograph
        photo, centre = Image.open(photos[i % len(photos)]).convert("RGB"), (i / len(files), i / len(files))
        ImageOps.fit(photo, (640, 480), Image.Resampling.BICUBIC, centering=centre).save(file, quality=90)
    config = registry.MODELS["ViT-B/32"].config
    ways: dict[str, Any] = {"clipkit": clipkit.Preprocess(config.vision.resolution, config.preprocess)}

    def process(processor: Any, file: Path) -> Tensor:
        return processor(images=Image.open(file), return_tensors="pt")["pixel_values"][0]

    if open_clip:
        transform = open_clip.image_transform(config.vision.resolution[0], is_train=False)
        ways["open_clip"] = lambda file: transform(Image.open(file))
    if transformers:
        ways["transformers"] = partial(process, transformers.CLIPImageProcessor())
        ways["transformers PIL"] = partial(process, transformers.CLIPImageProcessorPil())
    with ThreadPoolExecutor(2) as pool:
        for name, each, some in (("a JPEG", map, files[:1]), ("JPEGs on two threads", pool.map, files)):
            calls = {x: lambda way=way, e=each, s=some: torch.stack([*e(way, s)]) for x, way in ways.items()}
            check = partial(lambda expected, found: float((found - expected).abs().max()), calls["clipkit"]())
            row = Row(f"preprocess: {name}", calls, check, "images", len(some))
            row.limits = {x: LEVELS for x in ways if x.startswith("transformers")}
            yield row


def import_rows(root: Path, args: argparse.Namespace) -> Iterator[Row]:
    # Bytecode is kept where this run alone finds it, whatever the environment says of it.
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    env["PYTHONPYCACHEPREFIX"] = str(root / "bytecode")
    statements = {"clipkit": "import clipkit", "torch alone": "import torch", "open_clip": "import open_clip"}
    statements["transformers"] = "from transformers import CLIPModel"  # without a name it would import nothing
    statements = {x: code for x, code in statements.items() if x not in PEERS or x in HERE}
    run = partial(subprocess.run, env=env, check=True)
    calls: dict[str, Call] = {x: partial(run, [sys.executable, "-c", code]) for x, code in statements.items()}
    yield Row("import: a process", calls, lambda output: 0.0)


def loaded(library: str, folder: str) -> Any:
    model = load(library, folder)
    for weight in model.parameters():  # one number of each page, as a file may be mapped and not read
        weight.detach().flatten()[::1024].sum()
    return model


def load_cost(library: str, folder: str) -> tuple[float, float]:
    load(library, folder)  # imports what is imported late
    return peak_of(partial(loaded, library, folder))


def load_rows(root: Path, args: argparse.Namespace) -> Iterator[Row]:
    def checksum(model: nn.Module) -> float:
        return sum(float(weight.detach().abs().sum(dtype=torch.float64)) for weight in model.parameters())

    for name in (name for name in args.models if name in ("ViT-B/32", "ViT-L/14")):
        folders = {library: weights(root, name, library) for library in ("clipkit", *HERE)}
        total = checksum(model := load("clipkit", weights(root, name)))
        check = partial(lambda total, model: abs(checksum(model) / total - 1), total)
        row = Row(f"load: {name}", {x: partial(loaded, x, y) for x, y in folders.items()}, check, limit=1e-9)
        size = sum(weight.nbytes for weight in model.parameters()) / 2**20
        row.facts = {f"{x}'s peak over weights": alone(load_cost, x, y)[1] / size for x, y in folders.items()}
        yield row


SECTIONS: dict[str, Callable[[Path, argparse.Namespace], Iterator[Row]]] = {
    "image": partial(model_rows, "image", "images"),
    "text": partial(model_rows, "text", "prompts"),
    "classifier": partial(model_rows, "classifier", "classes"),
    "tokenize": tokenize_rows,
    "preprocess": preprocess_rows,
    "import": import_rows,
    "load": load_rows,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    models = ["ViT-B/32", "ViT-B/16", "ViT-L/14", "RN50"]
    parser.add_argument("--models", nargs="+", choices=registry.MODELS, default=models, metavar="NAME")
    parser.add_argument("--seconds", type=float, default=20)
    for name in ("--full", "--compile", "--quick"):
        parser.add_argument(name, action="store_true")
    for name in ("--json", "--markdown"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args()
    if args.full:
        SIZES["classifier"] = (1000,)
    if args.quick:
        args.seconds = 0
        SIZES.update({"image": (1, 2), "text": (1, 2), "classifier": (1,), "tokenize": (1, 100)})
    for name in PEERS.keys() - HERE:
        print(f"{name} is not installed and left out")
    report: dict[str, Any] = {"hardware": hardware(), "rows": []}
    print(report["hardware"])
    with tempfile.TemporaryDirectory() as folder:
        for row in (row for section in args.rows for row in SECTIONS[section](Path(folder), args)):
            result = run(row, args.seconds)
            report["rows"].append(result)
            print("", *(f"  {name:32}{shown(result, name)}" for name in result["seconds"]), sep="\n")
            print(*cells(result), sep=" | ", flush=True)
            if args.json:  # after each row, so that nothing measured is lost
                args.json.write_text(json.dumps(report, indent=1) + "\n")
            if args.markdown:
                args.markdown.write_text(markdown(report))


if __name__ == "__main__":
    main()
