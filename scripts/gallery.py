"""Draw the figures of docs/gallery.md that no other script draws.

    python scripts/gallery.py [--only FILE ...] [--out DIR] [--browser PATH] [--vit NAME]

They come from recorded results (`examples/results`), and from the embedded checkpoint on the photos
in `examples/photos`. `--browser /usr/bin/chromium` also takes a picture of a contact sheet, and
`--vit ViT-B/32` draws the views of a vision transformer, which is downloaded. Needs
clipkit-torch[plots]. Cost: half a minute. Each file has at most 60 KB.
"""

import argparse
import io
import json
import random
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

import clipkit
from clipkit.inspect import draw_overlay, plots
from clipkit.inspect.plot_style import add_axes, new_figure, set_labels, set_title
from clipkit.inspect.robustness_figures import RobustnessFigures, RobustnessRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "examples" / "results"
PHOTOS = {
    name: ROOT / "examples" / "photos" / f"{file}.jpg"
    for name, file in {"cat": "cat", "cup of coffee": "coffee", "rocket": "rocket"}.items()
}
CLASSES = ("cat", "rocket", "cup of coffee")  # from left to right
LARGEST = 60_000  # bytes of a file
CROPS = 60  # of each photo, in `confusions` and `embedding`
METHODS = ("anchored", "lp_plus_plus", "gaussian", "clap", "proker", "linear_probe")


def few_shot() -> "Figure":
    """Draw accuracy over images a class, of some methods on recorded draws."""
    result = json.loads((RESULTS / "few_shot_whu_L14.json").read_text("utf-8"))
    draws = {
        method: {int(k): own for k, own in result["shots"][method].items()} for method in METHODS
    }
    title = "aerial photos, 19 classes, ViT-L/14"
    return plots.few_shot_curves(draws, zero_shot=result["zero_shot"], title=title)


def robustness() -> "Figure":
    """Draw accuracy and confidence of a recorded classifier on corrupted images."""
    result = json.loads((RESULTS / "robustness_caltech101.json").read_text("utf-8"))
    every: list[dict[str, Any]] = [
        {**row, "interval": tuple(row["interval"])} for row in result["rows"]
    ]
    rows = [RobustnessRow(**row) for row in every]
    names = ("images", "accuracy", "confidence", "seed", "left_out", "skipped")
    values: dict[str, Any] = {name: result[name] for name in names}
    found = RobustnessFigures(**values, interval=tuple(result["interval"]), rows=rows)
    return plots.robustness_figure(found)


def heat_maps() -> "Figure":
    """Draw where three texts are in three photos that stand side by side."""
    model = tiny()
    row = torch.cat([model.preprocess(photo) for photo in PHOTOS.values()], dim=2)  # (3, 96, 288)
    texts = ("a photo of a cat", "a cup of coffee", "a rocket in the sky")
    found = [clipkit.inspect.explain(model, row, text) for text in texts]
    maps = {text: one.upsample() for text, one in zip(texts, found, strict=True)}
    return plots.heat_map(found[0].pixels, maps, columns=2)


def overlay() -> Image.Image:
    """Paint the class of each pixel over three photos that stand side by side."""
    row, mapper = side_by_side(240), map_classes()
    return draw_overlay(row, mapper.indices(row), mapper.labels)


def segmentation() -> "Figure":
    """Draw the same as a figure."""
    row, mapper = side_by_side(240), map_classes()
    return plots.segmentation(row, mapper.indices(row), mapper.labels)


def map_classes() -> clipkit.inspect.ClassMapper:
    """Return what tells the three photos apart, pixel by pixel."""
    return clipkit.inspect.ClassMapper(tiny(), list(CLASSES), refine=True)


def confusions() -> "Figure":
    """Draw which photo's small parts are taken for which other photo's."""
    crops, labels = draw_crops()
    classifier = clipkit.ImageClassifier.zero_shot(tiny(), list(PHOTOS))
    found = [one.top(1)[0][0] for one in classifier.predict(crops)]
    counts = Counter(pair for pair in zip(labels, found, strict=True) if pair[0] != pair[1])
    mistakes: dict[tuple[str, str], list[Image.Image]] = {pair: [] for pair in counts}
    for crop, label, name in zip(crops, labels, found, strict=True):
        if label != name:
            mistakes[label, name].append(crop)
    pairs = [(*pair, float(count)) for pair, count in counts.most_common(3)]
    return plots.confusion_pairs(pairs, PHOTOS, mistakes=mistakes, unit="parts")


def embedding() -> "Figure":
    """Draw the features of many parts of three photos as points."""
    crops, labels = draw_crops()
    features = tiny().embed_images(crops).numpy()
    return plots.embedding_map(features, labels, title="parts of three photos")


def attention() -> "Figure":
    """Draw what each token of a text looks at, layer by layer."""
    text = "a photo of a cat"
    maps = clipkit.inspect.text_attention_maps(tiny(), text)[0].mean(dim=1)  # (layers, L, L)
    tokens = ["start", *text.split(), "end"]
    figure = new_figure(2.3 * len(maps), 3.3)
    grid = figure.add_gridspec(1, len(maps))
    for layer, own in enumerate(maps):
        axes = add_axes(figure, grid[0, layer])
        axes.imshow(own.numpy(), vmin=0, vmax=1, cmap="cividis")
        axes.set_xticks(range(len(tokens)), tokens, rotation=90)
        axes.set_yticks(range(len(tokens)), tokens if layer == 0 else [])
        set_title(axes, f"block {layer}")
        set_labels(axes, "looks at", "" if layer else "token")
    return figure


def vit_views(model: clipkit.CLIP) -> "Figure":
    """Draw filters, positions and distances of attention of a vision transformer."""
    figure = new_figure(10.0, 3.4)
    grid = figure.add_gridspec(1, 3)
    filters = clipkit.inspect.patch_filters(model)  # (28, size, size, 3)
    show_tiles(figure, grid[0, 0], filters.unflatten(0, (4, 7)), "filters of the patches")
    similarity = clipkit.inspect.position_similarity(model)  # (rows, columns, rows, columns)
    show_tiles(figure, grid[0, 1], similarity[..., None], "alike positions")
    images = torch.stack([model.preprocess(photo) for photo in PHOTOS.values()])
    distance = clipkit.inspect.attention_distance(model, images)  # (layers, heads)
    axes = add_axes(figure, grid[0, 2])
    for layer, own in enumerate(distance.tolist()):
        axes.scatter([layer] * len(own), own, s=14, color="#0072B2")
    set_title(axes, "how far each head looks")
    set_labels(axes, "block", "pixels")
    return figure


def show_tiles(figure: "Figure", place: Any, tiles: Tensor, title: str) -> None:
    """Show tiles (rows, columns, h, w, channels) as one image with lines between them."""
    framed = torch.nn.functional.pad(tiles, (0, 0, 0, 1, 0, 1), value=1.0)
    pixels = framed.permute(0, 2, 1, 3, 4).flatten(2, 3).flatten(0, 1)  # (rows x h, columns x w, c)
    axes = add_axes(figure, place)
    axes.imshow(pixels.squeeze(-1).numpy(), cmap="cividis")
    axes.set_xticks([])
    axes.set_yticks([])
    set_title(axes, title)


def tiny() -> clipkit.CLIP:
    """Return the embedded checkpoint."""
    return clipkit.CLIP.from_pretrained("tiny", device="cpu")


def side_by_side(side: int) -> Image.Image:
    """Return the middles of the photos in a row, each a square of so many pixels."""
    row = Image.new("RGB", (side * len(PHOTOS), side))
    for place, name in enumerate(CLASSES):
        photo = Image.open(PHOTOS[name]).convert("RGB")
        short = min(photo.size)
        left, top = (photo.width - short) // 2, (photo.height - short) // 2
        square = photo.crop((left, top, left + short, top + short))
        row.paste(square.resize((side, side), Image.Resampling.BICUBIC), (place * side, 0))
    return row


def draw_crops() -> tuple[list[Image.Image], list[str]]:
    """Return random square parts of the photos, and the name of the photo of each."""
    draw = random.Random(0)
    crops: list[Image.Image] = []
    labels: list[str] = []
    for name, file in PHOTOS.items():
        photo = Image.open(file).convert("RGB")
        for _ in range(CROPS):
            side = round(draw.uniform(0.3, 0.8) * min(photo.size))
            left, top = draw.randint(0, photo.width - side), draw.randint(0, photo.height - side)
            crops.append(photo.crop((left, top, left + side, top + side)))
            labels.append(name)
    return crops, labels


# What is drawn, by its file. Figures with photos in them are JPEGs.
FIGURES: dict[str, Callable[[], "Figure | Image.Image"]] = {
    "dense.jpg": overlay,
    "explain.jpg": heat_maps,
    "gallery_attention.png": attention,
    "gallery_confusions.jpg": confusions,
    "gallery_embedding.png": embedding,
    "gallery_few_shot.png": few_shot,
    "gallery_robustness.png": robustness,
    "gallery_segmentation.jpg": segmentation,
}


def photograph_sheet(browser: str) -> Image.Image:
    """Return what a browser in dark colors shows of a contact sheet of the photos."""
    query = "a photo of a cat"
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")
    looks = ("--blink-settings=preferredColorScheme=0", "--window-size=830,450")
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder, "photos")
        shutil.copytree(PHOTOS["cat"].parent, photos)
        sheet, picture = Path(folder, "sheet.html"), Path(folder, "sheet.png")
        index = clipkit.search.Index.build(photos, tiny())
        found = index.search(query)
        clipkit.search.write_sheet(found, sheet, title=query, total=len(index))
        command = [browser, *flags, *looks, f"--screenshot={picture}", sheet.as_uri()]
        subprocess.run(command, check=True, capture_output=True)
        return Image.open(picture).convert("RGB")


def write(drawn: "Figure | Image.Image", file: Path) -> None:
    """Write a figure as the sharpest file that is small enough.

    Raises:
        ValueError: if none is.
    """
    for sharpness in (100, 90, 80, 70, 60, 50):
        image = drawn if isinstance(drawn, Image.Image) else as_image(drawn, sharpness)
        content = io.BytesIO()
        if file.suffix == ".jpg":
            image.save(content, "JPEG", quality=min(sharpness, 85), optimize=True)
        else:
            image.quantize(64).save(content, "PNG", optimize=True)
        if content.tell() <= LARGEST:
            file.write_bytes(content.getvalue())
            print(f"{file.name}: {image.width} x {image.height}, {content.tell():,} bytes")
            return
    raise ValueError(f"{file.name} does not fit into {LARGEST:,} bytes")


def as_image(figure: "Figure", dpi: int) -> Image.Image:
    """Return a figure as an image of so many dots an inch."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi)
    return Image.open(drawn).convert("RGB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(FIGURES), metavar="FILE")
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    parser.add_argument("--browser", metavar="PATH", help="that can take pictures without a screen")
    parser.add_argument("--vit", metavar="NAME", help="a vision transformer, which is downloaded")
    args = parser.parse_args()
    for name in args.only or FIGURES:
        write(FIGURES[name](), args.out / name)
    if args.browser:
        write(photograph_sheet(args.browser), args.out / "search.jpg")
    if args.vit:
        model = clipkit.CLIP.from_pretrained(args.vit)
        write(vit_views(model), args.out / "gallery_vit_views.png")


if __name__ == "__main__":
    main()
