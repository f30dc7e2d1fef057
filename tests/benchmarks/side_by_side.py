"""Time libraries that do the same work by turns, one call of each, after their outputs agreed."""

import importlib.metadata
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
import torch.nn.functional as F

import clipkit

# The modules of the peers, and what pip calls them.
PEERS = {
    "open_clip": "open_clip_torch",
    "transformers": "transformers",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "hf_processors_rs": "hf-processors-rs",
}
LEAST_ROUNDS = 3
MOST_ROUNDS = 200
SLICE = 0.005  # seconds of one measurement at least
# Seconds before each measurement, in which the threads of the one before stop waiting actively.
PAUSE = 0.05
# clipkit's copy by `optimize(runtime="openvino")`, which is compared with the peers apart.
IN_OPENVINO = "clipkit in OpenVINO"
Call = Callable[[], Any]
Seconds = dict[str, list[float]]


@dataclass
class Row:
    """Describe what is timed, by contestants whose names start with their library's.

    Attributes:
        name: what it is called in the report.
        contestants: a call for each.
        check: returns by how much an output is off.
        unit: what the items are.
        items: how many there are.
        parts: how many of them a contestant does that does not do all.
        limit: how much an output may be off.
        limits: the same for a contestant with a limit of its own.
        dtype: of the arithmetic.
        flops: operations of all items.
        facts: further figures to report.
    """

    name: str
    contestants: dict[str, Call]
    check: Callable[[Any], float]
    unit: str = ""
    items: int = 1
    parts: dict[str, int] = field(default_factory=dict[str, int])
    limit: float = 0.0
    limits: dict[str, float] = field(default_factory=dict[str, float])
    dtype: torch.dtype = torch.float32
    flops: int = 0
    facts: dict[str, float] = field(default_factory=dict[str, float])


def run(row: Row, budget: float, device: torch.device) -> dict[str, Any]:
    """Time a row for `budget` seconds or `LEAST_ROUNDS` rounds, whichever is longer.

    Returns:
        All that `report.py` shows; seconds and ratios as quartiles.
    """
    off = check(row)
    rates = matmul_rates(row.dtype, device) if row.flops else {}
    load = os.getloadavg()[0]
    seconds = take_turns(row, budget, device)
    medians = {name: median(values) for name, values in seconds.items()}
    own = [name for name in medians if name.startswith("clipkit") and name != IN_OPENVINO]
    ours = min(own, key=medians.__getitem__)
    result = {
        "name": row.name,
        "unit": row.unit,
        "items": row.items,
        "rounds": len(seconds[ours]),
        "ours": ours,
        "date": datetime.now(timezone.utc).isoformat(timespec="minutes"),
        "load": load,
        "facts": row.facts,
        "seconds": {name: quartiles(values) for name, values in seconds.items()},
        "extrapolated_from": extrapolated(row),
    }
    if row.dtype is torch.float32:
        result["difference"] = off
    else:
        result["cosine"] = {name: 1 - value for name, value in off.items()}
    if rates:
        result |= share_of_limit(row, rates, matmul_rates(row.dtype, device), medians[ours])
    if IN_OPENVINO in medians:
        result["ratios in OpenVINO"] = ratios_to(IN_OPENVINO, seconds, medians)
    return result | {"ratios": ratios_to(ours, seconds, medians)}


def check(row: Row) -> dict[str, float]:
    """Return by how much each output is off, and stop if one is off by too much."""
    off = {name: row.check(call()) for name, call in row.contestants.items()}
    wrong = {
        name: value for name, value in off.items() if not value <= row.limits.get(name, row.limit)
    }
    if wrong:
        raise SystemExit(f"{row.name}: outputs differ by too much, nothing is timed: {wrong}")
    return off


def take_turns(row: Row, budget: float, device: torch.device) -> Seconds:
    """Return the seconds of all items for each contestant, round by round, in alternating order."""
    seconds: Seconds = {name: [] for name in row.contestants}
    rounds = 0
    started = time.perf_counter()
    while rounds < LEAST_ROUNDS or (
        rounds < MOST_ROUNDS and time.perf_counter() - started < budget
    ):
        for name in list(row.contestants)[:: -1 if rounds % 2 else 1]:
            scale = row.items / row.parts.get(name, row.items)
            time.sleep(PAUSE)
            seconds[name].append(timed(row.contestants[name], device) * scale)
        rounds += 1
    return seconds


def extrapolated(row: Row) -> dict[str, str]:
    """Return which contestants did only a part, and how much of it."""
    return {
        name: f"{count} of {row.items:,}" for name, count in row.parts.items() if count < row.items
    }


def share_of_limit(
    row: Row, before: dict[str, float], after: dict[str, float], seconds: float
) -> dict[str, Any]:
    """Return the rates of matrix products, and which share of the best one `seconds` are."""
    rates = {name: max(rate, after[name]) for name, rate in before.items()}
    share = row.flops / max(rates.values()) / seconds
    return {"matmul FLOP/s": rates, "FLOP": row.flops, "share of limit": share}


def ratios_to(ours: str, seconds: Seconds, medians: dict[str, float]) -> dict[str, list[float]]:
    """Return the ratios of each peer's fastest contestant to ours, the fastest peer first."""
    found: dict[str, list[float]] = {}
    known: set[str] = set()
    for name in sorted(medians, key=medians.__getitem__):
        library = name.split()[0]
        if library not in PEERS or library in known:
            continue
        known.add(library)
        pairs = zip(seconds[name], seconds[ours], strict=True)
        found[name] = quartiles([theirs / own for theirs, own in pairs])
    return found


def timed(call: Call, device: torch.device) -> float:
    """Return the seconds of a call, as the mean of as many as it takes to be measured."""
    count = 0
    started = time.perf_counter()
    while count == 0 or time.perf_counter() - started < SLICE:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        count += 1
    return (time.perf_counter() - started) / count


def matmul_rates(dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    """Return the operations a second of torch's libraries on large square matrices."""
    on_cpu = device.type == "cpu"
    side = 2048 if on_cpu else 8192
    x, weight = (torch.randn(side, side).to(device, dtype) for _ in range(2))
    routes: dict[str, Call] = {"F.linear": partial(F.linear, x, weight)}
    if on_cpu and dtype is torch.float32 and torch.backends.mkldnn.is_available():
        product = torch.ops.mkldnn._linear_pointwise
        routes["oneDNN"] = partial(product, x, weight, None, "none", [], "")
    return {
        name: 2 * side**3 / min(timed(route, device) for _ in range(4))
        for name, route in routes.items()
    }


def quartiles(values: list[float]) -> list[float]:
    """Return the lower quartile, the median and the upper one."""
    return quantiles(values, n=4, method="inclusive")


def hardware(device: torch.device) -> dict[str, Any]:
    """Return the machine and the versions of what runs on it."""
    about: dict[str, Any] = {}
    if device.type == "cuda":
        about["gpu"] = torch.cuda.get_device_name(device)
    about |= {"cpu": processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    about |= {"clipkit": clipkit.__version__, "torch": torch.__version__}
    for module, distribution in PEERS.items():
        try:
            about[module] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return about


def with_bytecode_in(folder: Path) -> dict[str, str]:
    """Return the environment of a program whose bytecode is kept in a folder after its first run.

    So it is for programs that pip has installed, whatever this environment says of it. Without its
    bytecode `import torch` takes several times as long.
    """
    found = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return found | {"PYTHONPYCACHEPREFIX": str(folder / "bytecode")}


def processor() -> str:
    """Return the name, family and model of the CPU."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    first = [line.partition(":") for line in lines[: lines.index("")]]
    about = {key.strip(): value.strip() for key, _, value in first}
    generation = f"family {about.get('cpu family')}, model {about.get('model')}"
    return f"{about.get('model name')} ({generation})"
