"""Libraries that do the same work, timed by turns: one call of each, again and again, after their outputs agreed."""

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

PEERS = {
    "open_clip": "open_clip_torch",
    "transformers": "transformers",
}  # modules, and what pip calls them
DEVICE = torch.device("cpu")  # of models and inputs; `inference.py` sets it
ROUNDS, MOST, SLICE = (
    3,
    200,
    0.005,
)  # rounds at least and at most; seconds of one measurement at least
Call = Callable[[], Any]


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
    parts: dict[str, int] = field(
        default_factory=dict
    )  # of the items, for a contestant that does not do all
    limit: float = 0.0
    limits: dict[str, float] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    flops: int = 0  # of all items
    facts: dict[str, float] = field(default_factory=dict)


def run(row: Row, budget: float) -> dict[str, Any]:
    """Time a row for `budget` seconds or `ROUNDS` rounds, whichever is longer. Seconds and ratios come as quartiles."""
    off = {name: row.check(call()) for name, call in row.contestants.items()}
    if wrong := {
        name: value for name, value in off.items() if not value <= row.limits.get(name, row.limit)
    }:
        raise SystemExit(f"{row.name}: outputs differ by too much, nothing is timed: {wrong}")
    rates = matmul_rates(row.dtype) if row.flops else {}
    seconds: dict[str, list[float]] = {name: [] for name in row.contestants}
    turn, started, load = 0, time.perf_counter(), os.getloadavg()[0]
    while turn < ROUNDS or (turn < MOST and time.perf_counter() - started < budget):
        for name in list(row.contestants)[:: -1 if turn % 2 else 1]:
            seconds[name].append(
                timed(row.contestants[name]) * row.items / row.parts.get(name, row.items)
            )
        turn += 1
    medians = {name: median(values) for name, values in seconds.items()}
    ours = min((name for name in medians if name.startswith("clipkit")), key=medians.__getitem__)
    result: dict[str, Any] = {
        "name": row.name,
        "unit": row.unit,
        "items": row.items,
        "rounds": turn,
        "ours": ours,
    }
    result |= {
        "date": datetime.now(timezone.utc).isoformat(timespec="minutes"),
        "load": load,
        "facts": row.facts,
    }
    result["seconds"] = {name: quartiles(values) for name, values in seconds.items()}
    result["extrapolated_from"] = {
        x: f"{n} of {row.items:,}" for x, n in row.parts.items() if n < row.items
    }
    half = row.dtype is not torch.float32
    result["cosine" if half else "difference"] = {
        x: 1 - value if half else value for x, value in off.items()
    }
    if rates:
        after = matmul_rates(row.dtype)
        result["matmul FLOP/s"] = rates = {
            name: max(rate, after[name]) for name, rate in rates.items()
        }
        result |= {
            "FLOP": row.flops,
            "share of limit": row.flops / max(rates.values()) / medians[ours],
        }
    result["ratios"] = {}  # of the fastest of each library, the fastest first
    for name in sorted(medians, key=medians.__getitem__):
        known = {other.split()[0] for other in result["ratios"]}
        if name.startswith((*PEERS,)) and name.split()[0] not in known:
            ratios = [
                theirs / own for theirs, own in zip(seconds[name], seconds[ours], strict=True)
            ]
            result["ratios"][name] = quartiles(ratios)
    return result


def timed(call: Call) -> float:
    """Seconds of a call, as the mean of as many as it takes to be measured."""
    count, started = 0, time.perf_counter()
    while count == 0 or time.perf_counter() - started < SLICE:
        call()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        count += 1
    return (time.perf_counter() - started) / count


def matmul_rates(dtype: torch.dtype) -> dict[str, float]:
    """Floating-point operations a second of each of torch's libraries, on square matrices of 2048, on CUDA of 8192."""
    side = 2048 if DEVICE.type == "cpu" else 8192
    x, weight = (torch.randn(side, side).to(DEVICE, dtype) for _ in range(2))
    routes = {"F.linear": partial(F.linear, x, weight)}
    if DEVICE.type == "cpu" and dtype is torch.float32 and torch.backends.mkldnn.is_available():
        routes["oneDNN"] = partial(
            torch.ops.mkldnn._linear_pointwise, x, weight, None, "none", [], ""
        )
    return {
        name: 2 * side**3 / min(timed(route) for _ in range(4)) for name, route in routes.items()
    }


def quartiles(values: list[float]) -> list[float]:
    """The lower one, the median, the upper one."""
    return quantiles(values, n=4, method="inclusive")


def hardware() -> dict[str, Any]:
    """The machine and what runs on it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    about = dict(line.split("\t: ") for line in lines[: lines.index("")] if "\t: " in line)
    about = {key.strip(): value for key, value in about.items()}
    cpu = (
        f"{about.get('model name')} (family {about.get('cpu family')}, model {about.get('model')})"
    )
    out: dict[str, Any] = (
        {"gpu": torch.cuda.get_device_name(DEVICE)} if DEVICE.type == "cuda" else {}
    )
    out |= {"cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    out |= {"clipkit": clipkit.__version__, "torch": torch.__version__}
    installed = {
        d.metadata["Name"].lower().replace("-", "_") for d in importlib.metadata.distributions()
    }
    return out | {
        x: importlib.metadata.version(name) for x, name in PEERS.items() if name in installed
    }
