"""What `inference.py` measured, as a table and a plot in a page.

    python tests/benchmarks/report.py tests/benchmarks/results/inference.json --page docs/benchmarks.md

The table goes between the page's two comments, the plot beside the page under its name, as .png. Needs matplotlib.
"""

import argparse
import json
from pathlib import Path
from typing import Any

START, END = "<!-- made by tests/benchmarks/report.py -->", "<!-- end -->"
COLOURS = {"clipkit": "C0", "open_clip": "C1", "transformers": "C2"}


def shown(result: dict[str, Any], name: str) -> str:
    """A contestant's median, and its rate if there are many items."""
    value, items = result["seconds"][name][1], result["items"]
    rate = f", {items / value:,.4g} {result['unit']}/s" if items > 1 else ""
    return f"{'~' * (name in result['extrapolated_from'])}{1000 * value:,.4g} ms{rate}"


def ratios(result: dict[str, Any]) -> list[str]:
    """Of each peer's fastest to clipkit, with quartiles; and the notes: share of the limit, agreement, facts."""
    peers = [f"{x}: **{q[1]:.2f}** ({q[0]:.2f} to {q[2]:.2f})" for x, q in result["ratios"].items()]
    notes = [
        f"{result['rounds']} rounds",
        *([] if result["ours"] == "clipkit" else [result["ours"]]),
    ]
    if "share of limit" in result:
        notes.append(f"{result['share of limit']:.2f} of the limit")
    off = result.get("cosine") or result["difference"]
    theirs = [value for name, value in off.items() if not name.startswith("clipkit")]
    if "cosine" in result:
        notes.append(
            f"cosine {off[result['ours']]:.5f}, peers at least {min(theirs, default=1):.5f}"
        )
    elif any(off.values()):
        notes.append(
            f"off by {off[result['ours']]:.1g}, peers by at most {max(theirs, default=0):.1g}"
        )
    notes += [f"{fact} {value:.2f}" for fact, value in result["facts"].items()]
    notes += [f"{name} from {part}" for name, part in result["extrapolated_from"].items()]
    return ["; ".join(peers), "; ".join(notes)]


def table(report: dict[str, Any]) -> str:
    """The machine, and a line for each row."""
    kinds = [name.split(":")[0] for name in report["rows"]]
    rows = sorted(report["rows"].values(), key=lambda row: kinds.index(row["name"].split(":")[0]))
    dates = sorted(row["date"][:10] for row in rows)
    lines = [
        "; ".join(f"{key} {value}" for key, value in report["hardware"].items())
        + f"; {dates[0]} to {dates[-1]}.",
        "",
    ]
    lines += [
        "| work | clipkit | peer's time / clipkit's (quartiles) | |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['name']} | {shown(row, row['ours'])} | {' | '.join(ratios(row))} |" for row in rows
    ]
    return "\n".join(lines)


def plot(report: dict[str, Any], path: Path) -> None:
    """Seconds over items, a panel for each kind of work that was measured at several sizes."""
    from matplotlib.figure import Figure

    panels: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for row in report["rows"].values():
        title, _, size = row["name"].rpartition(", ")
        if "cold" in row["name"] or row["name"].startswith("tokenize"):
            title = "tokenize, cold cache" if "cold" in row["name"] else "tokenize"
        elif size != "one" and not size[:1].isdigit():
            continue
        for library in COLOURS:
            best = min(
                (s[1] for name, s in row["seconds"].items() if name.startswith(library)),
                default=None,
            )
            if best is not None:
                panels.setdefault(title, {}).setdefault(library, []).append((row["items"], best))
    panels = {title: lines for title, lines in panels.items() if len(lines["clipkit"]) > 1}
    columns = 3
    figure = Figure(figsize=(11, 2.6 * -(-len(panels) // columns)), layout="constrained")
    for place, (title, lines) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(-(-len(panels) // columns), columns, place)
        for library, points in lines.items():
            axes.plot(
                *zip(*sorted(points), strict=True),
                marker="o",
                color=COLOURS[library],
                label=library,
            )
        axes.set(title=title, xscale="log", yscale="log", xlabel="items", ylabel="seconds")
        axes.title.set_fontsize(9)
        axes.grid(alpha=0.3)
        if place == 1:
            axes.legend(fontsize=8)
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("json", type=Path)
    parser.add_argument("--page", type=Path, required=True)
    args = parser.parse_args()
    report, page = json.loads(args.json.read_text()), args.page.read_text()
    before, after = page.partition(START)[0], page.partition(END)[2]
    image = args.page.with_suffix(".png")
    plot(report, image)
    picture = f"![seconds over items]({image.name})"
    args.page.write_text(f"{before}{START}\n\n{table(report)}\n\n{picture}\n\n{END}{after}")


if __name__ == "__main__":
    main()
