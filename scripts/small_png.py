"""Write a figure of the pages as a PNG of few colors, which keeps the repository small."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_small_png(figure: "Figure", path: Path, *, dpi: int, colors: int) -> None:
    """Write a figure at so many dots an inch, and say how large the file is."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi)
    image = Image.open(drawn).convert("RGB").quantize(colors)
    image.save(path, optimize=True)
    print(f"{path.name}: {image.width} x {image.height}, {path.stat().st_size:,} bytes")
