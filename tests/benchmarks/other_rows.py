"""Rows of `inference.py` without a model: tokenizing, preprocessing, importing; and loading."""

import importlib
import importlib.util
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from libraries import INSTALLED, Library, load, open_clip, tokenizer_of, transformers, weights
from memory import alone, peak_of
from model_rows import shuffled_names
from PIL import Image, ImageOps
from side_by_side import PEERS, Call, Row, with_bytecode_in
from torch import Tensor, nn

import clipkit
from clipkit.checkpoints import registry

RUST = "hf_processors_rs"
LEVELS = 0.05  # the largest difference of normalized pixels where torch resizes and not PIL
CPU = torch.device("cpu")
PAGE = 1024  # float32 numbers


def differing(ids: Tensor, expected: Tensor) -> float:
    """Return how many ids are not as expected, without those after the first end of text."""
    after_end = torch.arange(ids.shape[1]) > ids.argmax(dim=1, keepdim=True)
    ids = F.pad(ids.masked_fill(after_end, 0), (0, expected.shape[1] - ids.shape[1]))
    return float((ids != expected).sum())


def tokenize_rows(root: Path, sizes: tuple[int, ...]) -> Iterator[Row]:
    """Yield rows from texts to ids, with words known to clipkit and with all words forgotten."""
    tokenizer = clipkit.Tokenizer()
    templates = clipkit.prompt_set("imagenet").templates
    texts = [template.format(name) for name in shuffled_names() for template in templates]
    texts = random.Random(0).sample(texts, len(texts))
    peers = {peer: tokenizer_of(peer, root) for peer in INSTALLED}

    def cold(texts: list[str]) -> Tensor:
        for words in tokenizer._words.values():
            words.clear()
        return tokenizer(texts)

    for count in sizes:
        check = partial(differing, expected=tokenizer(texts[:count]))
        for label, ours in {"": tokenizer, ", cold cache": cold}.items():
            ways: dict[str, Callable[[list[str]], Tensor]] = {"clipkit": ours, **peers}
            calls = {name: partial(way, texts[:count]) for name, way in ways.items()}
            yield Row(f"tokenize: {count:,}{label}", calls, check, "prompts", count)


def write_photos(root: Path, count: int) -> list[Path]:
    """Write JPEGs of 640 x 480, each another window of a photograph."""
    photos = sorted(Path(__file__).parents[2].glob("examples/photos/*.jpg"))
    files = [root / f"{i}.jpg" for i in range(count)]
    for i, file in enumerate(files):
        photo = Image.open(photos[i % len(photos)]).convert("RGB")
        center = (i / count, i / count)
        window = ImageOps.fit(photo, (640, 480), Image.Resampling.BICUBIC, centering=center)
        window.save(file, quality=90)
    return files


def processed(processor: Any, file: Path) -> Tensor:
    """Return a file as a processor of transformers prepares it."""
    return processor(images=Image.open(file), return_tensors="pt")["pixel_values"][0]


def ways_to_preprocess(exact: clipkit.Preprocess) -> dict[str, dict[str, Any]]:
    """Return functions of a file, for those who resize by PIL and for those who do by torch."""
    by_pil: dict[str, Any] = {"clipkit": exact}
    by_torch: dict[str, Any] = {"clipkit": replace(exact, backend="tensor")}
    if open_clip:
        transform = open_clip.image_transform(exact.resolution[0], is_train=False)
        by_pil["open_clip"] = lambda file: transform(Image.open(file))
    if transformers:
        by_pil["transformers"] = partial(processed, transformers.CLIPImageProcessorPil())
        by_torch["transformers"] = partial(processed, transformers.CLIPImageProcessor())
    return {"PIL": by_pil, "torch": by_torch}


def in_rust(root: Path) -> Callable[[list[Path]], Tensor] | None:
    """Return hf-processors-rs's way from files to a batch, by its own threads, if it is there."""
    if importlib.util.find_spec(RUST) is None:
        return None
    settings = {"image_processor_type": "CLIPImageProcessor", "size": 224, "crop_size": 224}
    folder = root / "processor"
    folder.mkdir()
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    made = importlib.import_module(RUST).AutoImageProcessor.from_pretrained(
        str(folder), backend="pil"
    )
    return lambda files: torch.from_numpy(made([str(file) for file in files]))


def largest_difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max())


def preprocess_rows(root: Path, count: int) -> Iterator[Row]:
    """Yield rows from JPEG files to tensors, one file and many on two threads."""
    files = write_photos(root, count)
    config = registry.MODELS["ViT-B/32"].config
    exact = clipkit.Preprocess(config.vision.resolution, config.preprocess)
    rust = in_rust(root)

    def stacked(run: Any, way: Any, some: list[Path]) -> Tensor:
        return torch.stack(list(run(way, some)))

    with ThreadPoolExecutor(2) as pool:
        for label, run, some in (
            ("a JPEG", map, files[:1]),
            ("JPEGs on two threads", pool.map, files),
        ):
            expected = torch.stack([exact(file) for file in some])
            check = partial(largest_difference, expected=expected)
            for kind, ways in ways_to_preprocess(exact).items():
                calls = {name: partial(stacked, run, way, some) for name, way in ways.items()}
                if rust and kind == "PIL":
                    calls[RUST] = partial(rust, some)
                row = Row(f"preprocess by {kind}: {label}", calls, check, "images", len(some))
                if kind == "PIL":
                    row.limits = {"transformers": 1e-6}
                else:
                    row.limit = LEVELS
                yield row


def import_rows(root: Path) -> Iterator[Row]:
    """Yield a row of whole processes that import a library."""
    env = with_bytecode_in(root)
    statements = {
        "clipkit": "import clipkit",
        "torch alone": "import torch",
        "open_clip": "import open_clip",
        # Without a name it would import nothing.
        "transformers": "from transformers import CLIPModel",
    }
    calls: dict[str, Call] = {
        name: partial(subprocess.run, [sys.executable, "-c", code], env=env, check=True)
        for name, code in statements.items()
        if name not in PEERS or name in INSTALLED
    }
    yield Row("import: a process", calls, lambda output: 0.0)


def loaded(library: Library, folder: str) -> Any:
    """Load a model and read a number of each page, because a file may be mapped and not read."""
    model = load(library, folder, CPU)
    for weight in model.parameters():
        weight.detach().flatten()[::PAGE].sum()
    return model


def load_cost(library: Library, folder: str) -> tuple[float, float]:
    """Return seconds and MiB of loading, once all that is imported late is there."""
    load(library, folder, CPU)
    return peak_of(partial(loaded, library, folder))


def fill_memory(model: nn.Module) -> nn.Module:
    """Fill as much fresh memory as a model takes, and return the model."""
    sizes = [weight.nbytes for weight in model.parameters()]
    filled = [torch.empty(size, dtype=torch.uint8).fill_(1) for size in sizes]
    assert len(filled) == len(sizes)  # all of it is held at once
    return model


def checksum(model: nn.Module) -> float:
    return sum(
        float(weight.detach().abs().sum(dtype=torch.float64)) for weight in model.parameters()
    )


def load_rows(root: Path, models: list[str]) -> Iterator[Row]:
    """Yield rows of loading from each library's own files, on the CPU."""
    libraries: list[Library] = ["clipkit", *INSTALLED]
    for name in models:
        folders: dict[Library, str] = {x: weights(root, name, x) for x in libraries}
        model = clipkit.load(weights(root, name), "cpu")[0]
        total = checksum(model)
        size = sum(weight.nbytes for weight in model.parameters()) / 2**20  # MiB

        def check(model: nn.Module, total: float = total) -> float:
            return abs(checksum(model) / total - 1)

        facts = {
            f"{library}'s peak over weights": alone(load_cost, library, folder)[1] / size
            for library, folder in folders.items()
        }
        loads: dict[str, Call] = {x: partial(load, x, y, CPU) for x, y in folders.items()}
        # clipkit copies what others leave in the file: that costs at least as much as this.
        loads["memory alone"] = partial(fill_memory, model)
        yield Row(f"load: {name}", loads, check, limit=1e-9, facts=facts)
        read: dict[str, Call] = {x: partial(loaded, x, y) for x, y in folders.items()}
        yield Row(f"load: {name}, and each page read", read, check, limit=1e-9)
