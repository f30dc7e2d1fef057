"""Put what `inference.py` measured into a page, as a table and a plot.

    python tests/benchmarks/report.py tests/benchmarks/results/inference.json
                                      --page docs/benchmarks.md

The table goes between two comments of the page, the first of which names the JSON file. The plot
goes beside the page, under the page's name and what follows "inference" in the file's, as a .png.
Needs matplotlib. Cost: seconds.
"""

import argparse
import io
import json
from pathlib import Path
from typing import Any

START = "<!-- made by tests/benchmarks/report.py from {} -->"
END = "<!-- end -->"
COLORS = {
    "clipkit": "C0",
    "open_clip": "C1",
    "transformers": "C2",
    "onnxruntime": "C3",
    "openvino": "C4",
}
IN_OPENVINO = "clipkit in OpenVINO"  # has a note of its own, and no line in the plots
COLUMNS = 3  # panels beside each other
SHADES = 64  # of a plot's colors, which keep its file small
Points = list[tuple[int, float]]


def shown(result: dict[str, Any], name: str) -> str:
    """Return a contestant's median, and its rate if there are many items."""
    value, items = result["seconds"][name][1], result["items"]
    rate = f", {items / value:,.4g} {result['unit']}/s" if items > 1 else ""
    mark = "~" if name in result["extrapolated_from"] else ""
    return f"{mark}{1000 * value:,.4g} ms{rate}"


def ratios(result: dict[str, Any]) -> list[str]:
    """Return the ratios of each peer's fastest to clipkit with quartiles, and the notes."""
    peers = [
        f"{name}: **{middle:.2f}** ({low:.2f} to {high:.2f})"
        for name, (low, middle, high) in result["ratios"].items()
    ]
    notes = [f"{result['rounds']} rounds"]
    if result["ours"] != "clipkit":
        notes.append(result["ours"])
    if "share of limit" in result:
        notes.append(f"{result['share of limit']:.2f} of the limit")
    notes += agreement(result)
    notes += in_openvino(result)
    notes += [f"{fact} {value:.2f}" for fact, value in result["facts"].items()]
    notes += [f"{name} from {part}" for name, part in result["extrapolated_from"].items()]
    return ["; ".join(peers), "; ".join(notes)]


def in_openvino(result: dict[str, Any]) -> list[str]:
    """Return a note on clipkit's copy in OpenVINO against the fastest peer, if it was timed."""
    found = list(result.get("ratios in OpenVINO", {}).items())
    if not found:
        return []
    fastest, (low, middle, high) = found[0]
    return [f"clipkit in OpenVINO against {fastest} {middle:.2f} ({low:.2f} to {high:.2f})"]


def agreement(result: dict[str, Any]) -> list[str]:
    """Return a note on how far outputs are off, or none if all are equal."""
    off = result.get("cosine") or result["difference"]
    own = off[result["ours"]]
    theirs = [value for name, value in off.items() if not name.startswith("clipkit")]
    if "cosine" in result:
        return [f"cosine {own:.5f}, peers at least {min(theirs, default=1):.5f}"]
    if any(off.values()):
        return [f"off by {own:.1g}, peers by at most {max(theirs, default=0):.1g}"]
    return []


def table(report: dict[str, Any]) -> str:
    """Return the machine, and a line for each row."""
    kinds = [name.split(":")[0] for name in report["rows"]]
    rows = sorted(report["rows"].values(), key=lambda row: kinds.index(row["name"].split(":")[0]))
    dates = sorted(row["date"][:10] for row in rows)
    machine = "; ".join(f"{key} {value}" for key, value in report["hardware"].items())
    lines = [
        f"{machine}; {dates[0]} to {dates[-1]}.",
        "",
        "| work | clipkit | peer's time / clipkit's (quartiles) | |",
        "| --- | --- | --- | --- |",
    ]
    for row in rows:
        lines.append(f"| {row['name']} | {shown(row, row['ours'])} | {' | '.join(ratios(row))} |")
    return "\n".join(lines)


def panel_of(row: dict[str, Any]) -> str | None:
    """Return the panel of the plot that a row belongs to, if any."""
    if row["name"].startswith("tokenize"):
        return "tokenize, cold cache" if "cold" in row["name"] else "tokenize"
    title, _, size = row["name"].rpartition(", ")
    return title if size == "one" or size[:1].isdigit() else None


def panels_of(report: dict[str, Any]) -> dict[str, dict[str, Points]]:
    """Return items and seconds of each library, for the work that was measured at several sizes."""
    panels: dict[str, dict[str, Points]] = {}
    for row in report["rows"].values():
        title = panel_of(row)
        if title is None:
            continue
        for library in COLORS:
            medians = [
                quartiles[1]
                for name, quartiles in row["seconds"].items()
                if name.startswith(library) and name != IN_OPENVINO
            ]
            if medians:
                points = panels.setdefault(title, {}).setdefault(library, [])
                points.append((row["items"], min(medians)))
    return {title: lines for title, lines in panels.items() if len(lines["clipkit"]) > 1}


def plot(report: dict[str, Any], path: Path) -> None:
    """Write an image of seconds over items, with a panel for each kind of work."""
    from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]
    from matplotlib.ticker import NullLocator  # pyright: ignore[reportMissingImports]
    from PIL import Image

    panels = panels_of(report)
    rows = -(-len(panels) // COLUMNS)
    figure: Any = Figure(figsize=(11, 2.6 * rows), layout="constrained")
    for place, (title, lines) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, COLUMNS, place)
        for library, points in lines.items():
            items, seconds = zip(*sorted(points), strict=True)
            axes.plot(items, seconds, marker="o", color=COLORS[library], label=library)
        axes.set(title=title, xscale="log", yscale="log", xlabel="items", ylabel="seconds")
        sizes = sorted({items for points in lines.values() for items, _ in points})
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.title.set_fontsize(9)
        axes.grid(alpha=0.3)
        if place == 1:
            axes.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=80)
    Image.open(buffer).convert("RGB").quantize(SHADES).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("json", type=Path)
    parser.add_argument("--page", type=Path, required=True)
    args = parser.parse_args()
    report = json.loads(args.json.read_text())
    page = args.page.read_text()
    start = START.format(args.json.name)
    before, found, rest = page.partition(start)
    if not found:
        raise SystemExit(f"{args.page} has no line {start!r}: put one where the table belongs")
    after = rest.partition(END)[2]
    ending = args.json.stem.removeprefix("inference")
    image = args.page.with_name(f"{args.page.stem}{ending}.png")
    plot(report, image)
    link = f"![seconds over items]({image.name})"
    args.page.write_text(f"{before}{start}\n\n{table(report)}\n\n{link}\n\n{END}{after}")


if __name__ == "__main__":
    main()
