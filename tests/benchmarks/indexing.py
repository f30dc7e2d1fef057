"""Time the indexing of a folder, and how long a search takes from the start of its process.

    PYTHONPATH=. python tests/benchmarks/indexing.py --images FOLDER [--models tiny ViT-B/32]
        [--rounds 3] [--vectors 100000] [--json FILE]

Indexing, in images a second, interleaved, medians of the rounds:

- `clipkit`: `Index.build`, whose threads decode and encode a batch each;
- `in turn`: the same model, decoding a batch and then encoding it, on all processors;
- `rclip's way`: as rclip 3.3 does it: threads that decode with a few batches ahead, ONNX Runtime on
  all processors, batches of 8. It gets the same tower and the same preprocessing.

Beside them, no contestants: decoding alone in one thread, encoding alone on all processors, and
what follows as the most that the processors could do, were none of them ever idle.

Models but `tiny` have random weights: the architecture decides the cost. Then the update of the
unchanged folder.

Searching, in seconds of whole processes: a text that was asked before, one that was not (with
`tiny`), and beside them `import torch` and `import numpy` alone, in turns, medians of five. Then a
collection of as many made-up features at D = 512: opening it and asking a known text, as a process,
and the exact ten nearest in one that is open.

It means little on a busy machine. Cost with the defaults and 2,000 photos: about eight minutes on
two cores.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from side_by_side import processor, with_bytecode_in

from clipkit import CLIP
from clipkit.checkpoints import registry
from clipkit.data.folders import list_images
from clipkit.search import Collection, Index
from clipkit.search.arrays import write_arrays
from clipkit.search.entries import DIGEST, Entries, Entry
from clipkit.search.manifest import Manifest
from clipkit.search.texts import TextCache

BATCH = 32
PART = 320  # images of which decoding and encoding are timed alone
RCLIP_BATCH = 8
RCLIP_AHEAD = 4  # batches
PROCESSES = 5  # of which the median is taken


def load(name: str) -> CLIP:
    """Return the embedded checkpoint, or an architecture at random weights."""
    if name == "tiny":
        return CLIP.from_pretrained(name, device="cpu")
    torch.manual_seed(0)
    return CLIP(registry.MODELS[name].config).eval()


class RclipsWay:
    """Encode files as rclip does, by ONNX Runtime."""

    def __init__(self, model: CLIP, folder: Path) -> None:
        import onnxruntime

        path = folder / "tower.onnx"
        height, width = model.config.vision.resolution
        torch.onnx.export(
            model.visual,
            (torch.rand(2, 3, height, width),),
            path,
            input_names=["input"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
        self._session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self._preprocess = model.preprocess

    def __call__(self, files: list[Path]) -> int:
        """Encode files, and return how many there were."""
        batch: list[NDArray[np.float32]] = []
        count = 0
        for image in self._ahead(files):
            batch.append(image)
            if len(batch) == RCLIP_BATCH:
                count += self._encode(batch)
                batch = []
        return count + (self._encode(batch) if batch else 0)

    def _encode(self, batch: list[NDArray[np.float32]]) -> int:
        features = np.asarray(self._session.run(None, {"input": np.stack(batch)})[0])
        return len(features / np.linalg.norm(features, axis=1, keepdims=True))

    def _ahead(self, files: list[Path]) -> Iterator[NDArray[np.float32]]:
        """Yield prepared images, with some more being prepared in threads."""
        waiting: deque[Future[NDArray[np.float32]]] = deque()
        rest = iter(files)
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:

            def submit() -> None:
                file = next(rest, None)
                if file is not None:
                    waiting.append(threads.submit(lambda: self._preprocess(file).numpy()))

            for _ in range(RCLIP_AHEAD * RCLIP_BATCH):
                submit()
            while waiting:
                future = waiting.popleft()
                submit()
                yield future.result()


def encode_in_turn(model: CLIP, files: list[Path]) -> int:
    """Encode files, batch by batch, and return how many there were."""
    count = 0
    for start in range(0, len(files), BATCH):
        images = torch.stack([model.preprocess(file) for file in files[start : start + BATCH]])
        with torch.inference_mode():
            count += len(model.encode_image(images, normalize=True))
    return count


def time_indexing(name: str, folder: Path, rounds: int) -> dict[str, Any]:
    """Return images a second of each contestant."""
    model = load(name)
    fast = model.optimize()
    files = list_images(folder)
    with tempfile.TemporaryDirectory() as scratch:
        peer = RclipsWay(model, Path(scratch))
        places = iter(range(10_000))

        def build() -> int:
            return len(Index.build(folder, fast, Path(scratch, f"index{next(places)}")))

        contestants: dict[str, Callable[[], int]] = {
            "clipkit": build,
            "in turn": lambda: encode_in_turn(fast, files),
            "rclip's way": lambda: peer(files),
        }
        rates: dict[str, list[float]] = {own: [] for own in contestants}
        for _ in range(rounds):
            for own, work in contestants.items():
                start = time.perf_counter()
                count = work()
                rates[own].append(count / (time.perf_counter() - start))
        index = Index.open(Path(scratch, "index0"), fast)
        start = time.perf_counter()
        assert index.update() == (0, 0, 0, 0, 0)
        unchanged = time.perf_counter() - start
    alone = time_alone(fast, files[:PART])
    return {
        "model": name,
        "images": len(files),
        "rates": rates,
        "unchanged": unchanged,
        **alone,
    }


def time_alone(model: CLIP, files: list[Path]) -> dict[str, float]:
    """Return the images a second of decoding, of encoding, and of processors that never wait."""
    start = time.perf_counter()
    images = [model.preprocess(file) for file in files]
    decoded = time.perf_counter()
    with torch.inference_mode():
        for first in range(0, len(images), BATCH):
            model.encode_image(torch.stack(images[first : first + BATCH]))
    encoded = time.perf_counter()
    processors = len(os.sched_getaffinity(0))
    decoding, encoding = decoded - start, processors * (encoded - decoded)  # of one processor
    return {
        "decoding alone": len(files) / decoding,
        "encoding alone": processors * len(files) / encoding,
        "at most": processors * len(files) / (decoding + encoding),
    }


def made_up(folder: Path, count: int, width: int = 512) -> None:
    """Write an index of as many made-up features, and the feature of one text."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    features = draw.normal(size=(count, width)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    write_arrays({"features": features.astype(np.float16)}, folder / "features-1.safetensors")
    entries = Entries.of(
        Entry(f"{row // 1000:04}/photo {row:07}.jpg", 100_000, row, bytes(DIGEST), row)
        for row in range(count)
    )
    entries.write(folder / "entries-1.safetensors")
    files = ["features-1.safetensors"]
    manifest = Manifest(1, "tiny", width, None, [], False, "entries-1.safetensors", files)
    manifest.write(folder)
    TextCache(folder, width).put(["known"], features[0])


def time_processes(programs: dict[str, list[str]], env: dict[str, str]) -> dict[str, float]:
    """Return the median seconds of whole processes, which take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(PROCESSES + 1):
        for name, arguments in programs.items():
            start = time.perf_counter()
            run_quietly(arguments, env)
            if turn:  # the first fills the caches of the disk
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(own) for name, own in seconds.items()}


def run_quietly(arguments: list[str], env: dict[str, str]) -> None:
    """Run a program of Python without showing what it prints."""
    command = [sys.executable, *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=env)


def time_searching(folder: Path, vectors: int) -> dict[str, Any]:
    """Return the seconds of searches in whole processes, and of one that is open."""
    with tempfile.TemporaryDirectory() as scratch:
        place, large = Path(scratch, "index"), Path(scratch, "large")
        index = Index.build(folder, load("tiny").optimize(), place, model_name="tiny")
        index.search("a known query")
        made_up(large, vectors)
        query = ["-m", "clipkit", "search", "-f"]
        own = [str(folder), "--index", str(place)]
        programs = {
            "import numpy": ["-c", "import numpy"],
            "import torch": ["-c", "import torch"],
            "known text": [*query, "a known query", *own],
            "known text, no update": [*query, "a known query", *own, "--no-update"],
            f"known text, {vectors:,}": [
                *query, "known", ".", "--index", str(large), "--no-update"
            ],
        }  # fmt: skip
        env = with_bytecode_in(Path(scratch))
        found = time_processes(programs, env)
        new: list[float] = []
        for turn in range(PROCESSES):
            start = time.perf_counter()
            arguments = [*query, f"a new query {turn}", *own, "--device", "cpu"]
            run_quietly(arguments, env)
            new.append(time.perf_counter() - start)
        found["new text"] = statistics.median(new)
        found["open, ten nearest"], found["open, the first"] = time_open(large)
    return {"vectors": vectors, "seconds": found}


def time_open(folder: Path) -> tuple[float, float]:
    """Return the median seconds of an exact search in an open collection, and of the first."""
    collection = Collection(folder)
    start = time.perf_counter()
    collection.search("known")
    first = time.perf_counter() - start
    seconds: list[float] = []
    for _ in range(20):
        start = time.perf_counter()
        collection.search("known")
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), first


def main() -> None:
    """Measure, print tables, and write what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--models", nargs="*", default=["tiny", "ViT-B/32"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    print(f"{processor()}, {len(os.sched_getaffinity(0))} processors, torch {torch.__version__}")
    found: dict[str, Any] = {"processor": processor(), "torch": torch.__version__, "indexing": []}
    for name in args.models:
        row = time_indexing(name, args.images, args.rounds)
        found["indexing"].append(row)
        medians = {own: statistics.median(rates) for own, rates in row["rates"].items()}
        print(f"{name}, {row['images']:,} images, unchanged in {row['unchanged']:.2f} s")
        print(
            f"  decoding alone {row['decoding alone']:.0f} images/s, encoding alone "
            f"{row['encoding alone']:.0f}, at most {row['at most']:.0f}"
        )
        for own, rate in medians.items():
            print(f"  {own:<14} {rate:6.0f} images/s  clipkit / it {medians['clipkit'] / rate:.2f}")
    found["searching"] = time_searching(args.images, args.vectors)
    for own, seconds in found["searching"]["seconds"].items():
        print(f"  {own:<24} {1000 * seconds:7.1f} ms")
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
