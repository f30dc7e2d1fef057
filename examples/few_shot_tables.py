"""Tables of what `few_shot.py` measured: means, spreads and paired differences over the draws."""

import math
import statistics
from collections.abc import Iterator
from typing import Any

Result = dict[str, Any]
OURS = "anchored"


def draws_of(result: Result, method: str, shots: int) -> list[float]:
    """Return the accuracies of all draws of a cell; none if it was not measured."""
    found: list[float] = result["shots"].get(method, {}).get(str(shots), [])
    return found


def shots_of(result: Result) -> list[int]:
    """Return the numbers of images a class that were measured."""
    measured: dict[str, list[float]] = result["shots"].get(OURS, {})
    return [int(shots) for shots, draws in measured.items() if draws]


def table(result: Result) -> str:
    """Return mean and standard deviation over the draws, in per cent; each column's best in bold.

    Below are the paired differences of `anchored` to zero-shot and to the best other method, with
    their standard errors, in points.
    """
    shots = shots_of(result)
    probe = result.get("all")
    reference = f" Linear probe on the whole pool {probe['accuracy']:.1%}." if probe else ""
    lines = [
        f"**{result['set']}** ({result['model']}): {result['classes']} classes, a pool of "
        f"{result['train']:,} images, {result['test']:,} to measure on, {result['draws']} draws. "
        f"Zero-shot {result['zero_shot']:.1%}.{reference}",
        "",
        "| method | " + " | ".join(f"k = {k}" for k in shots) + " |",
        "|---" * (len(shots) + 1) + "|",
    ]
    best = {k: max(mean_of(result, name, k) for name in result["shots"]) for k in shots}
    for method in result["shots"]:
        cells = [_cell(result, method, k, bold=best[k]) for k in shots]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    above = [_difference(to_zero_shot(result, k)) for k in shots]
    lines.append("| *anchored less zero-shot* | " + " | ".join(above) + " |")
    ahead = [_difference(to_best(result, k)[1]) for k in shots]
    lines.append("| *anchored less the best other* | " + " | ".join(ahead) + " |")
    return "\n".join(lines)


def mean_of(result: Result, method: str, shots: int) -> float:
    """Return the mean accuracy of a cell, or minus infinity if it was not measured."""
    draws = draws_of(result, method, shots)
    return statistics.mean(draws) if draws else -math.inf


def to_zero_shot(result: Result, shots: int) -> list[float]:
    """Return by how much `anchored` is above zero-shot in each draw."""
    return [value - result["zero_shot"] for value in draws_of(result, OURS, shots)]


def to_best(result: Result, shots: int) -> tuple[str, list[float]]:
    """Return the best other method of a cell, and by how much `anchored` is above it by draw.

    The best is picked with the result in sight, among methods measured on as many draws. Without
    any the name is empty, and so is the list.
    """
    ours = draws_of(result, OURS, shots)
    others = [
        name
        for name in result["shots"]
        if name != OURS and len(draws_of(result, name, shots)) == len(ours)
    ]
    if not others:
        return "", []
    best = max(others, key=lambda name: mean_of(result, name, shots))
    pairs = zip(ours, draws_of(result, best, shots), strict=True)
    return best, [own - other for own, other in pairs]


def standard_error(differences: list[float]) -> float:
    """Return the standard error of the mean of paired differences."""
    if len(differences) < 2:
        return 0.0
    return statistics.stdev(differences) / math.sqrt(len(differences))


def _cell(result: Result, method: str, shots: int, bold: float) -> str:
    draws = draws_of(result, method, shots)
    if not draws:
        return "-"
    spread = statistics.stdev(draws) if len(draws) > 1 else 0.0
    text = f"{100 * statistics.mean(draws):.1f} ± {100 * spread:.1f}"
    return f"**{text}**" if statistics.mean(draws) == bold else text


def _difference(differences: list[float]) -> str:
    if not differences:
        return "-"
    mean = 100 * statistics.mean(differences)
    return f"{mean:+.1f} ± {100 * standard_error(differences):.1f}"


def cells(results: list[Result]) -> Iterator[tuple[Result, int]]:
    """Yield each set with each number of images a class."""
    for result in results:
        for shots in shots_of(result):
            yield result, shots


def overview(results: list[Result]) -> str:
    """Return one table of all sets: `anchored`, and the best other method where that is better.

    In a cell are the mean accuracies in per cent. The other one is given where it is ahead by more
    than one standard error of the paired difference.
    """
    shots = sorted({k for _, k in cells(results)})
    lines = [
        "| set | model | classes | zero-shot | " + " | ".join(f"k = {k}" for k in shots) + " |",
        "|---" * (len(shots) + 4) + "|",
    ]
    for result in results:
        row = [
            result["set"],
            result["model"],
            str(result["classes"]),
            f"{100 * result['zero_shot']:.1f}",
        ]
        lines.append("| " + " | ".join(row + [_both(result, k) for k in shots]) + " |")
    return "\n".join(lines)


def _both(result: Result, shots: int) -> str:
    if shots not in shots_of(result):
        return ""
    own = f"{100 * mean_of(result, OURS, shots):.1f}"
    name, differences = to_best(result, shots)
    if not name or statistics.mean(differences) >= -standard_error(differences):
        return f"**{own}**"
    return f"{own} ({name} {100 * mean_of(result, name, shots):.1f})"


def summary(results: list[Result]) -> str:
    """Return how `anchored` stands to the best other method and to zero-shot, over all cells."""
    return f"{_beside_others(results)}\n{_beside_zero_shot(results)}"


def _beside_others(results: list[Result]) -> str:
    first = within = count = 0
    behind: list[tuple[float, str]] = []
    for result, shots in cells(results):
        name, differences = to_best(result, shots)
        if not name:
            continue
        mean = statistics.mean(differences)
        count += 1
        first += mean >= 0
        within += mean >= -standard_error(differences)
        behind.append((mean, f"{result['set']}, k = {shots}, {name}"))
    worst, where = min(behind)
    return (
        f"Of {count} cells, `anchored` is first in {first}, and first or within one standard "
        f"error of the first in {within}. Furthest behind: {100 * worst:+.1f} points ({where})."
    )


def _beside_zero_shot(results: list[Result]) -> str:
    below: list[str] = []
    draws: list[float] = []
    for result, shots in cells(results):
        gains = to_zero_shot(result, shots)
        draws += gains
        mean = statistics.mean(gains)
        if mean < -standard_error(gains):
            below.append(f"{result['set']}, k = {shots}: {100 * mean:+.2f}")
    lost = [gain for gain in draws if gain < 0]
    return (
        f"Its mean is below zero-shot by more than one standard error in {len(below)} cells "
        f"({'; '.join(below) or 'none'}). It is below in {len(lost)} of {len(draws)} draws, by "
        f"{-100 * min(lost, default=0.0):.1f} points at most."
    )
