"""Draw docs/few_images.png: accuracy over images a class, from recorded results.

    python scripts/guide_few_images.py

Reads examples/results/few_shot_caltech67_B32.json, which examples/few_shot.py wrote. Needs
clipkit-torch[plots]. Takes a second or two.
"""

import json
from pathlib import Path

from small_png import write_small_png

from clipkit.inspect import plots

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "examples" / "results" / "few_shot_caltech67_B32.json"
TARGET = ROOT / "docs" / "few_images.png"
METHODS = ("anchored", "lp_plus_plus", "cache", "gaussian", "linear_probe")
TITLE = "Caltech-101, 67 classes, ViT-B/32"
DPI = 100
COLORS = 64  # of the file, which is at most 60 KB


def main() -> None:
    """Read the draws, and write the figure."""
    recorded = json.loads(SOURCE.read_text("utf-8"))
    shots: dict[str, dict[str, list[float]]] = recorded["shots"]
    results = {method: {int(k): draws for k, draws in shots[method].items()} for method in METHODS}
    figure = plots.few_shot_curves(results, zero_shot=recorded["zero_shot"], title=TITLE)
    write_small_png(figure, TARGET, dpi=DPI, colors=COLORS)


if __name__ == "__main__":
    main()
