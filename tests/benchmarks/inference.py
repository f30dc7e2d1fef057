"""Inference side by side with open_clip and transformers, on the same random weights.

    PYTHONPATH=. python tests/benchmarks/inference.py
        [--rows image text classifier tokenize preprocess import load] [--models ViT-B/32 ViT-B/16 ViT-L/14 RN50]
        [--batches 1 8 64] [--seconds 20] [--device cpu] [--full] [--compile] [--quick] [--json FILE]

Of `--models`, any of `clipkit.list_models()`, only the architecture is taken. A peer that is not installed is left out.
Needs Linux. Cost with the defaults: about an hour on two quiet cores, 10 GB of memory and as much disk; `--quick`
measures nothing, and shows in a minute or two that all of it runs.

- image: preprocessed batches of 1, 8 and 64 to unit features, in float32 and bfloat16.
- text: 1, 64 and 1,000 prompts, strings to unit features, once for each kind of text tower.
- classifier: 50 of ImageNet's classes, or with `--full` all, in 80 templates each, by the first of the models.
- tokenize: 1, 1,000 and 80,000 prompts; where the cache is cold, clipkit alone has forgotten all words.
- preprocess: a JPEG of 640 x 480 from its file; 32 of them on two threads. Those who resize by PIL have a row of their
  own, and those who resize by torch.
- import: whole processes, beside one that imports torch alone, which is no peer.
- load: ViT-B/32 and ViT-L/14 from each library's own files; and so that no page of a mapped file is left to be read;
  and the peak of memory of a process that does it.

clipkit runs as `optimize()` makes it. The first call of each contestant is not counted; its output is compared with
that of clipkit as loaded, through torch's plainest kernels in float32, and if any is too far off, it stops there. Then
they take turns, in alternating order, until the row has had its seconds and 3 rounds at least. In bfloat16 the weights
are cast, which is faster than autocast for all. What would take a peer minutes is timed on a random part and
extrapolated in proportion, marked by ~. `--compile` adds torch.compile to each, for peers also with frozen weights: for
clipkit of the image tower, for peers of both. With `--device cuda`, float16 takes the place of float32, images come in
batches of 1 and 256 and are there already, peers encode 1,024 prompts at once, and nothing is extrapolated.

Prints medians; ratios of peers to clipkit, with quartiles over the rounds; and the share that clipkit has of a limit:
the operations of its plain route (for text, those of distinct prefixes) at the rate at which torch's best library
multiplies two large matrices, measured right before and after. They mean little on a busy machine, for which see the
load. Rows of an existing `--json` file are kept or replaced; `report.py` makes a page of it.
"""

import argparse
import importlib
import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import side_by_side
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from report import ratios, shown
from side_by_side import PEERS, Call, Row, hardware, run
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from training import alone, peak_of  # all three beside this file

import clipkit
from clipkit.checkpoints import registry
from clipkit.config import ResNetConfig
from tests.helpers.random_weights import randomize, some_images

HERE = [name for name in PEERS if importlib.util.find_spec(name)]
open_clip: Any = importlib.import_module("open_clip") if "open_clip" in HERE else None
transformers: Any = importlib.import_module("transformers") if "transformers" in HERE else None
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SIZES: dict[str, Any] = {
    "image": (1, 8, 64),
    "text": (1, 64, 1000),
    "classifier": (50,),
    "tokenize": (1, 1000, 80000),
}
PARTS = {
    "text": {"open_clip": 64, "transformers": 256},
    "classifier": {"open_clip": 2, "transformers": 8},
}  # at most
BATCH = {"cpu": 64, "cuda": 1024}  # prompts that peers encode at once
CHECKED = 8  # images of a batch whose features are compared
EXACT, NEAR = 2e-5, 0.02  # largest difference of unit vectors; in bfloat16, 1 - the lowest cosine
RESNET_NEAR = (
    0.25  # the same of a ResNet, whose random weights, unlike trained ones, magnify each rounding
)
LEVELS = 0.05  # largest difference of normalised pixels where torch resizes and not PIL
Side = dict[
    str, Callable[[Any], Tensor]
]  # by section, from images (N, 3, H, W), prompts or names to unit features


# The libraries.


def weights(root: Path, name: str, layout: str = "open_clip") -> str:
    """A folder with the one set of random weights of this architecture."""
    path = root / name.replace("/", "-") / layout
    if not path.exists():
        first = layout == "open_clip"
        model = (
            randomize(clipkit.CLIP(registry.MODELS[name].config))
            if first
            else load("clipkit", weights(root, name))
        )
        model.save_pretrained(path, layout=layout)
    return str(path)


def load(library: str, folder: str, dtype: torch.dtype = torch.float32) -> Any:
    device = side_by_side.DEVICE
    if library == "clipkit":
        return clipkit.load(folder, device, dtype=dtype)[0]
    if library == "open_clip":
        precision = {
            torch.float32: "fp32",
            torch.bfloat16: "pure_bf16",
            torch.float16: "pure_fp16",
        }[dtype]
        return open_clip.create_model(
            f"local-dir:{folder}", precision=precision, device=device
        ).eval()
    return transformers.CLIPModel.from_pretrained(folder, dtype=dtype).to(device).eval()


def tokenizer_of(peer: str, root: Path) -> Callable[[list[str]], Tensor]:
    if peer == "open_clip":
        return open_clip.tokenize
    smallest = weights(
        root, "TinyCLIP-ViT-8M-16-Text-3M-YFCC15M", peer
    )  # all have the same tokenizer
    fast = transformers.CLIPTokenizer.from_pretrained(smallest)
    return lambda texts: fast(texts, padding=True, return_tensors="pt")["input_ids"]


def clipkit_side(model: clipkit.CLIP) -> Side:
    def classifier(names: list[str]) -> Tensor:
        return clipkit.zero_shot_weights(
            model, {str(i): name for i, name in enumerate(names)}, "imagenet"
        )

    return {
        "image": partial(model.encode_image, normalize=True),
        "text": model.embed_texts,
        "classifier": classifier,
    }


def peer_side(model: Any, tokenizer: Callable[[list[str]], Tensor], dtype: torch.dtype) -> Side:
    plain = hasattr(model, "encode_image")  # open_clip's
    encode_image = (
        model.encode_image
        if plain
        else lambda images: model.get_image_features(images).pooler_output
    )
    # No mask of the padding: a causal tower can do without.
    encode_text = (
        model.encode_text if plain else lambda tokens: model.get_text_features(tokens).pooler_output
    )
    templates = clipkit.prompt_set("imagenet").templates

    def text(texts: list[str]) -> Tensor:
        size = BATCH[side_by_side.DEVICE.type]
        batches = (tokenizer(texts[i : i + size]) for i in range(0, len(texts), size))
        parts = [encode_text(tokens.to(side_by_side.DEVICE)) for tokens in batches]
        return F.normalize(torch.cat(parts), dim=-1)

    def classifier(names: list[str]) -> Tensor:
        return F.normalize(
            torch.stack([text([t.format(x) for t in templates]).mean(dim=0) for x in names]), dim=-1
        )

    return {
        "image": lambda images: F.normalize(encode_image(images.to(dtype)), dim=-1),
        "text": text,
        "classifier": classifier,
    }


def compiled(model: nn.Module, **how: Any) -> nn.Module:
    model = deepcopy(model)
    for tower in (
        "visual",
        "transformer",
        "vision_model",
        "text_model",
    ):  # open_clip's, transformers'
        if hasattr(model, tower):
            getattr(model, tower).compile(**how)
    return model


def sides(
    root: Path, name: str, section: str, dtype: torch.dtype, compile: bool
) -> dict[str, Side]:
    """Every library in every setting that may be its fastest, clipkit first."""
    ways: dict[str, Any] = {
        "compiled": {},
        "frozen": {"options": {"freezing": True}},
    }  # which packs weights too
    if side_by_side.DEVICE.type == "cuda":
        ways = {"compiled": {"mode": "reduce-overhead"}}  # as clipkit's own
    resnet = isinstance(registry.MODELS[name].config.vision, ResNetConfig)
    model = load("clipkit", weights(root, name), dtype)
    out = {"clipkit": clipkit_side(model.optimize())}
    if compile and section == "image":
        out["clipkit compiled"] = clipkit_side(model.optimize(compile=True))
    for peer in HERE:
        if resnet and peer == "transformers":  # which has none
            continue
        models = {peer: load(peer, weights(root, name, peer), dtype)}
        if resnet:
            models[f"{peer} channels_last"] = deepcopy(models[peer]).to(
                memory_format=torch.channels_last
            )
        if compile:
            fixed = (
                {"dynamic": False} if section == "image" else {}
            )  # prompts of each length have a shape of their own
            models |= {
                f"{x} {way}": compiled(y, **fixed, **how)
                for x, y in models.items()
                for way, how in ways.items()
            }
        out |= {x: peer_side(y, tokenizer_of(peer, root), dtype) for x, y in models.items()}
    return out


def reference(root: Path, name: str, section: str, inputs: Any) -> tuple[Tensor, int]:
    """Features of inputs by torch's plainest kernels, and operations that they take."""
    side, plain = (
        clipkit_side(load("clipkit", weights(root, name))),
        torch.backends.mkldnn.flags(enabled=False),
    )
    with (
        torch.no_grad(),
        plain,
        FlopCounterMode(display=False) as counter,
    ):  # it knows no kernel of oneDNN's
        return side[section](inputs), counter.get_total_flops()


# What is timed.


def shuffled_names() -> list[str]:
    """ImageNet's, in random order, so that the first of them are a fair sample."""
    names = [own[0] for own in clipkit.prompt_set("imagenet").class_names.values()]
    return random.Random(0).sample(names, len(names))


def distance(found: Tensor, expected: Tensor, exact: bool) -> float:
    """Of the features that both have: the largest difference, or 1 - the lowest cosine."""
    one, other = (
        F.normalize(x.cpu().double(), dim=-1)
        for x in (found[: len(expected)], expected[: len(found)])
    )
    return float((one - other).abs().max() if exact else 1 - (one * other).sum(dim=-1).min())


def model_rows(section: str, unit: str, root: Path, args: argparse.Namespace) -> Iterator[Row]:
    names = args.models[:1] if section == "classifier" else args.models
    if section == "text":  # the first of each kind
        names = [*{registry.MODELS[name].config.text: name for name in names[::-1]}.values()][::-1]
    most: dict[str, int] = PARTS.get(section, {})
    for name in names:
        vision, expected = registry.MODELS[name].config.vision, {}
        for precision, dtype in DTYPES.items():
            contestants, exact = (
                sides(root, name, section, dtype, args.compile),
                dtype is torch.float32,
            )
            for count in SIZES[section]:
                inputs: Any = shuffled_names()[:count]
                if section == "image":
                    inputs = some_images(count, vision.resolution).to(side_by_side.DEVICE)
                if section == "text":
                    inputs = [f"a photo of a {x}." for x in inputs]
                checked = min(count, CHECKED) if section == "image" else count
                if count not in expected:
                    expected[count] = reference(root, name, section, inputs[:checked])
                features, flops = expected[count]
                parts = {x: min(count, most.get(x.split()[0]) or count) for x in contestants}
                bound = {
                    x: partial(side[section], inputs[: parts[x]]) for x, side in contestants.items()
                }
                calls = {x: torch.inference_mode()(call) for x, call in bound.items()}
                title = f"{section}: {name}, {precision}, " + (
                    f"{count:,} {unit}" if count > 1 else "one"
                )
                row = Row(
                    title,
                    calls,
                    partial(distance, expected=features, exact=exact),
                    unit,
                    count,
                    parts,
                )
                row.limit = (
                    EXACT if exact else RESNET_NEAR if isinstance(vision, ResNetConfig) else NEAR
                )
                row.dtype, row.flops = dtype, flops * count // checked
                yield row


def tokenize_rows(root: Path, args: argparse.Namespace) -> Iterator[Row]:
    tokenizer = clipkit.Tokenizer()
    texts = [
        t.format(name)
        for name in shuffled_names()
        for t in clipkit.prompt_set("imagenet").templates
    ]
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
            calls = {
                x: partial(function, texts[:count])
                for x, function in ({"clipkit": ours} | peers).items()
            }
            yield Row(f"tokenize: {count:,}{label}", calls, check, "prompts", count)


def preprocess_rows(root: Path, args: argparse.Namespace) -> Iterator[Row]:
    photos = sorted(Path(__file__).parents[2].glob("examples/photos/*.jpg"))
    files = [root / f"{i}.jpg" for i in range(4 if args.quick else 32)]
    for i, file in enumerate(files):  # each another window of a photograph
        photo, centre = (
            Image.open(photos[i % len(photos)]).convert("RGB"),
            (i / len(files), i / len(files)),
        )
        ImageOps.fit(photo, (640, 480), Image.Resampling.BICUBIC, centering=centre).save(
            file, quality=90
        )
    config = registry.MODELS["ViT-B/32"].config
    exact = clipkit.Preprocess(config.vision.resolution, config.preprocess)
    by_pil: dict[str, Any] = {"clipkit": exact}
    by_torch: dict[str, Any] = {"clipkit": replace(exact, backend="tensor")}

    def process(processor: Any, file: Path) -> Tensor:
        return processor(images=Image.open(file), return_tensors="pt")["pixel_values"][0]

    if open_clip:
        transform = open_clip.image_transform(config.vision.resolution[0], is_train=False)
        by_pil["open_clip"] = lambda file: transform(Image.open(file))
    if transformers:
        by_pil["transformers"] = partial(process, transformers.CLIPImageProcessorPil())
        by_torch["transformers"] = partial(process, transformers.CLIPImageProcessor())
    with ThreadPoolExecutor(2) as pool:
        for label, each, some in (
            ("a JPEG", map, files[:1]),
            ("JPEGs on two threads", pool.map, files),
        ):
            expected = torch.stack([exact(file) for file in some])
            check = partial(lambda expected, found: float((found - expected).abs().max()), expected)
            for kind, ways in {"PIL": by_pil, "torch": by_torch}.items():
                calls = {
                    x: lambda way=way, e=each, s=some: torch.stack([*e(way, s)])
                    for x, way in ways.items()
                }
                row = Row(f"preprocess by {kind}: {label}", calls, check, "images", len(some))
                row.limit, row.limits = (
                    (0, {"transformers": 1e-6}) if kind == "PIL" else (LEVELS, {})
                )
                yield row


def import_rows(root: Path, args: argparse.Namespace) -> Iterator[Row]:
    # Bytecode is kept where this run alone finds it, whatever the environment says of it.
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    env["PYTHONPYCACHEPREFIX"] = str(root / "bytecode")
    statements = {
        "clipkit": "import clipkit",
        "torch alone": "import torch",
        "open_clip": "import open_clip",
    }
    statements["transformers"] = (
        "from transformers import CLIPModel"  # without a name it would import nothing
    )
    statements = {x: code for x, code in statements.items() if x not in PEERS or x in HERE}
    run = partial(subprocess.run, env=env, check=True)
    calls: dict[str, Call] = {
        x: partial(run, [sys.executable, "-c", code]) for x, code in statements.items()
    }
    yield Row("import: a process", calls, lambda output: 0.0)


def loaded(library: str, folder: str) -> Any:
    model = load(library, folder)
    for (
        weight
    ) in model.parameters():  # one number of each page, as a file may be mapped and not read
        weight.detach().flatten()[::1024].sum()
    return model


def load_cost(library: str, folder: str) -> tuple[float, float]:
    load(library, folder)  # imports what is imported late
    return peak_of(partial(loaded, library, folder))


def load_rows(root: Path, args: argparse.Namespace) -> Iterator[Row]:
    def checksum(model: nn.Module) -> float:
        return sum(
            float(weight.detach().abs().sum(dtype=torch.float64)) for weight in model.parameters()
        )

    for name in (name for name in args.models if name in ("ViT-B/32", "ViT-L/14")):
        folders = {library: weights(root, name, library) for library in ("clipkit", *HERE)}
        total = checksum(model := load("clipkit", weights(root, name)))
        check = partial(lambda total, model: abs(checksum(model) / total - 1), total)
        size = sum(weight.nbytes for weight in model.parameters()) / 2**20
        facts = {
            f"{x}'s peak over weights": alone(load_cost, x, y)[1] / size for x, y in folders.items()
        }
        for label, way in {"": load, ", and each page read": loaded}.items():
            calls = {x: partial(way, x, y) for x, y in folders.items()}
            yield Row(
                f"load: {name}{label}", calls, check, limit=1e-9, facts=facts if way is load else {}
            )


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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    models = ["ViT-B/32", "ViT-B/16", "ViT-L/14", "RN50"]
    parser.add_argument(
        "--models", nargs="+", choices=registry.MODELS, default=models, metavar="NAME"
    )
    parser.add_argument("--batches", nargs="+", type=int, help="sizes of batches of images")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    for name in ("--full", "--compile", "--quick"):
        parser.add_argument(name, action="store_true")
    args = parser.parse_args()
    torch._dynamo.config.recompile_limit = (
        1000  # the copies share their code, each size is one, and 8 is the default
    )
    if args.device == "cuda":
        side_by_side.DEVICE = torch.device("cuda")
        DTYPES.pop("float32")
        DTYPES["float16"] = torch.float16
        SIZES["image"] = (1, 256)
        PARTS.clear()
        if "load" in args.rows:
            args.rows.remove("load")  # of which the memory is measured on the CPU
    if args.full:
        SIZES["classifier"] = (1000,)
    if args.quick:
        args.seconds = 0
        SIZES.update({"image": (1, 2), "text": (1, 2), "classifier": (1,), "tokenize": (1, 100)})
    SIZES["image"] = args.batches or SIZES["image"]
    for name in PEERS.keys() - HERE:
        print(f"{name} is not installed and left out")
    about, rows = hardware(), {}
    if args.quick and args.json and args.json.exists():
        raise SystemExit(
            f"--quick would put rows that measure nothing into {args.json}: name a new file"
        )
    if args.json and args.json.exists():
        before = json.loads(args.json.read_text())
        if before["hardware"] != about:
            raise SystemExit(
                f"{args.json} was measured with {before['hardware']}, not {about}: name another file"
            )
        rows = before["rows"]
    print(about)
    with tempfile.TemporaryDirectory() as folder:
        for row in (row for section in args.rows for row in SECTIONS[section](Path(folder), args)):
            rows[row.name] = result = run(row, args.seconds)
            print(
                "", *(f"  {name:32}{shown(result, name)}" for name in result["seconds"]), sep="\n"
            )
            print(row.name, *ratios(result), flush=True, sep=" | ")
            if args.json:  # after each row, so that nothing measured is lost
                args.json.write_text(json.dumps({"hardware": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
