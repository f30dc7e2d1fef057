"""Draw docs/home.png: what the embedded checkpoint says of two photos of examples/photos.

    python scripts/site_home.py

Needs clipkit-torch[plots]. Takes a few seconds.
"""

from pathlib import Path

from small_png import write_small_png

import clipkit
from clipkit.inspect import plots

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "docs" / "home.png"
NAMES = ["cat", "dog", "cup of coffee", "bicycle", "rocket", "lighthouse"]
TRUTH = {"cat": "cat", "coffee": "cup of coffee"}
DPI = 110  # a panel is 4.9 inches wide
COLORS = 64  # of the file, which is at most 60 KB


def main() -> None:
    """Classify the photos, and write the figure."""
    classifier = clipkit.ImageClassifier.zero_shot("tiny", NAMES)
    files = [ROOT / "examples" / "photos" / f"{name}.jpg" for name in TRUTH]
    predictions = classifier.predict(files)
    figure = plots.prediction_panels(files, predictions, list(TRUTH.values()), k=4, columns=1)
    write_small_png(figure, TARGET, dpi=DPI, colors=COLORS)


if __name__ == "__main__":
    main()
