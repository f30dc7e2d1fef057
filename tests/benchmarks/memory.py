"""Measure the memory that work takes at its peak, in a process of its own. Needs Linux."""

import ctypes
import gc
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any


def kilobytes(file: str, key: str) -> int:
    """Return a number from a file of /proc, such as VmRSS in /proc/self/status."""
    lines = Path(file).read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def peak_of(work: Callable[[], Any]) -> tuple[float, float]:
    """Return the seconds of `work`, and the MiB that it adds at its peak."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed goes back
    # Forget the peak of loading; ru_maxrss would remember even the parent's.
    Path("/proc/self/clear_refs").write_text("5")
    before = kilobytes("/proc/self/status", "VmRSS")
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    return seconds, (kilobytes("/proc/self/status", "VmHWM") - before) / 1024


def alone(function: Callable[..., tuple[float, float]], *args: Any) -> tuple[float, float]:
    """Return what a function returns in a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()
