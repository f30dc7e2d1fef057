"""Draw the figures of the explanations in docs/, all from what is in the repository.

    python scripts/figures.py              # all of them, in less than a minute
    python scripts/figures.py text_tree    # those that are named

They show the embedded model on the photos of examples/photos, and one table of docs/few_shot.md.
Each is at most 60 KB, on white, and can be read when it is 700 pixels wide.
"""

import io
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

import clipkit
from clipkit.inspect import attention_maps, plots
from clipkit.inspect.plot_style import (
    BLUE,
    COLORS,
    INK,
    LINE,
    MARKERS,
    MUTED,
    SKY,
    TEXT,
    VERMILION,
    Look,
    add_axes,
    add_grid,
    add_legend,
    in_percent,
    new_figure,
    pixels_of,
    set_labels,
    set_title,
    show_pixels,
    write_text,
)
from clipkit.models.prefixes import sort_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PHOTOS = [ROOT / "examples" / "photos" / f"{name}.jpg" for name in ("cat", "coffee", "rocket")]
NAMES = ["cat", "cup of coffee", "rocket"]
LABELS = [*NAMES, "dog", "bicycle", "lighthouse"]
WIDTH = 7.0  # inches, which is 700 pixels at 100 a inch
DOTS = 140  # pixels an inch in a file, for sharp screens
LARGEST = 60_000  # bytes of a file
CENTER = Look(horizontal="center", vertical="center", size=TEXT)
QUIET = Look(horizontal="center", vertical="center", color=MUTED)


def canvas(figure: "Figure", width: float, height: float) -> "Axes":
    """Return axes without any line, on which boxes are drawn at places in units of their own."""
    axes = add_axes(figure)
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    return axes


def draw_box(axes: "Axes", place: tuple[float, float, float, float], fill: str, edge: str) -> None:
    """Draw a box with round corners: left, bottom, width, height."""
    from matplotlib.patches import FancyBboxPatch

    left, bottom, width, height = place
    style = "round,pad=0,rounding_size=0.6"
    axes.add_patch(
        FancyBboxPatch(
            (left, bottom), width, height, boxstyle=style, facecolor=fill, edgecolor=edge, lw=1.0
        )
    )


def draw_arrow(axes: "Axes", start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draw an arrow between two places."""
    axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": MUTED, "lw": 1.2})


@torch.no_grad()
def data_flow(model: clipkit.CLIP) -> "Figure":
    """Draw how a photo and texts become probabilities."""
    images, tokens = prepare(model)
    logits, _ = model(images[:1], tokens)
    figure = new_figure(WIDTH, 2.9)
    axes = canvas(figure, 70, 29)
    photo = axes.inset_axes((0.0, 16.2, 14.0, 9.6), transform=axes.transData)
    show_pixels(photo, pixels_of(PHOTOS[0]))
    for line, name in enumerate(NAMES):
        write_text(axes, 0, 9.6 - 3 * line, f"a photo of a\u00a0{name}"[:26], Look(size=TEXT - 1))
    rows = [
        (21.0, "preprocess", f"(N, {', '.join(map(str, images.shape[1:]))})", "image tower"),
        (7.0, "tokenizer", f"(M, {tokens.shape[1]})", "text tower"),
    ]
    for height, first, shape, tower in rows:
        for left, title, below in (
            (20.5, first, shape),
            (35.5, tower, f"({shape[1]}, {model.config.embed_dim})"),
        ):
            draw_box(axes, (left, height - 3, 12, 6), "#eaf3f9", BLUE)
            write_text(axes, left + 6, height + 1.1, title, CENTER)
            write_text(axes, left + 6, height - 1.4, below, QUIET)
        draw_arrow(axes, (32.6, height), (35.4, height))
        draw_arrow(axes, (47.6, height), (50.9, 14 + (height - 14) / 2))
        draw_arrow(axes, (16.6, height), (20.4, height))
    draw_box(axes, (51, 4, 18.5, 20), "#fdf1ea", VERMILION)
    shares = logits.softmax(dim=-1)[0].tolist()
    found = [f"{share:.1%} {name}" for name, share in zip(NAMES, shares, strict=True)]
    told = ["unit length", "cosines, (N, M)", "times exp(logit_scale)", "softmax over texts"]
    for line, text in enumerate([*told, *found]):
        look = CENTER if line < len(told) else QUIET
        write_text(axes, 60.2, 22 - 2.65 * line, text, look)
    return figure


def prepare(model: clipkit.CLIP) -> tuple[Tensor, Tensor]:
    """Return the three photos, (3, 3, H, W), and the ids of their captions, (3, L)."""
    images = torch.stack([model.preprocess(photo) for photo in PHOTOS])
    return images, model.tokenizer([f"a photo of a {name}" for name in NAMES])


@torch.no_grad()
def contrastive(model: clipkit.CLIP) -> "Figure":
    """Draw cosines of photos and captions, and what the softmax makes of rows and columns."""
    images, tokens = prepare(model)
    cosines = (
        model.encode_image(images, normalize=True) @ model.encode_text(tokens, normalize=True).T
    )
    logits = model.logit_scale.exp() * cosines
    figure = new_figure(WIDTH, 2.7)
    grid = figure.add_gridspec(3, 4, width_ratios=[0.62, 1, 1, 1])
    for row, photo in enumerate(PHOTOS):
        show_pixels(add_axes(figure, grid[row, 0]), pixels_of(photo))
    tables = [
        ("cosines", cosines, "{:.2f}"),
        ("softmax of each row", logits.softmax(dim=1), "{:.1%}"),
        ("softmax of each column", logits.softmax(dim=0), "{:.1%}"),
    ]
    for column, (title, table, form) in enumerate(tables, start=1):
        axes = add_axes(figure, grid[:, column])
        draw_table(axes, table, form)
        set_title(axes, title, size=TEXT)
    return figure


def draw_table(axes: "Axes", table: Tensor, form: str) -> None:
    """Draw numbers (3, 3) as cells, the larger the darker."""
    axes.imshow(table.numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, numbers in enumerate(table.tolist()):
        for column, number in enumerate(numbers):
            color = "white" if number > 0.55 else INK
            look = Look(size=TEXT, color=color, horizontal="center", vertical="center")
            write_text(axes, column, row, form.format(number), look)
    axes.set_yticks([])
    axes.set_xticks(range(3), ["cat", "cup of\ncoffee", "rocket"])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


@torch.no_grad()
def temperature(model: clipkit.CLIP) -> "Figure":
    """Draw the probabilities of a photo's labels over the number that multiplies cosines."""
    texts = model.embed_texts([f"a photo of a {name}" for name in LABELS])
    cosines = model.embed_images([PHOTOS[0]]) @ texts.T  # (1, 6)
    scales = torch.logspace(0, 2, 101)
    shares = (scales[:, None] * cosines).softmax(dim=1)  # (101, 6)
    figure = new_figure(WIDTH, 3.0)
    axes = add_axes(figure)
    lines = [
        axes.plot(scales.numpy(), shares[:, place].numpy(), color=COLORS[place], lw=1.8)[0]
        for place in range(len(LABELS))
    ]
    for place, line in enumerate(lines):
        line.set_marker(MARKERS[place])
        line.set_markevery(slice(5 + place, None, 20))
        line.set_markersize(5)
    own = model.logit_scale.exp().item()
    axes.axvline(own, color=MUTED, lw=1.0, linestyle="--")
    look = Look(size=TEXT, color=MUTED, horizontal="right")
    write_text(axes, own * 0.96, 0.55, f"learned: {own:.1f}", look)
    axes.set_xscale("log")
    axes.set_xlim(1, 100)
    axes.set_xticks([1, 3, 10, 30, 100], ["1", "3", "10", "30", "100"])
    axes.set_xticks([], minor=True)
    axes.set_ylim(0, 1)
    in_percent(axes)
    add_grid(axes)
    set_labels(axes, "scale: cosines are multiplied by it", "probability")
    add_legend(figure, lines, LABELS)
    return figure


@torch.no_grad()
def prompts(model: clipkit.CLIP) -> "Figure":
    """Draw the cosines of the cat photo with ImageNet's 80 prompts, and with their means."""
    templates = clipkit.prompt_set("imagenet").templates
    names = ["cat", "dog", "lighthouse", "rocket"]
    photo = model.embed_images([PHOTOS[0]])  # (1, D)
    means = clipkit.zero_shot_weights(model, names, templates) @ photo[0]  # (C,)
    random = torch.Generator().manual_seed(0)
    figure = new_figure(WIDTH, 2.6)
    axes = add_axes(figure)
    for place, name in enumerate(names):
        texts = model.embed_texts([template.format(name) for template in templates])
        cosines = (texts @ photo[0]).numpy()  # (80,)
        heights = place + 0.5 * (torch.rand(len(cosines), generator=random).numpy() - 0.5)
        axes.scatter(cosines, heights, s=20, color=COLORS[place], alpha=0.5, linewidths=0)
        mean = means[place].item()
        axes.plot([mean, mean], [place - 0.38, place + 0.38], color=INK, lw=2)
    axes.set_yticks(range(len(names)), names, fontsize=TEXT)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.grid(True, axis="x", color=LINE, linewidth=0.6)
    set_labels(axes, "cosine with the cat photo")
    return figure


def attention_pool(model: clipkit.CLIP) -> "Figure":
    """Draw which places of the map the attention pool weighs, for a photo of 288 pixels."""
    side = 288
    config = model.config.preprocess
    images = clipkit.Preprocess((side, side), config)(PHOTOS[0]).unsqueeze(0)
    weights = attention_maps(model, images)[0, 0, :, 0, 1:]  # (heads, places)
    rows = math.isqrt(weights.shape[1])
    maps = weights.unflatten(1, (rows, rows))  # (heads, rows, rows)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.mean, config.std))
    pixels = ((images[0] * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    photo = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    places = weights.mean(dim=0).argsort(descending=True)[:2]  # those that count most
    chosen = weights[:, places].argmax(dim=0).tolist()  # the head that looks there most
    shown = {f"mean of {len(maps)} heads": maps.mean(dim=0)}
    shown |= {f"head {head}": maps[head] for head in chosen}
    return plots.heat_map(photo, shown, columns=2)


def text_tree(model: clipkit.CLIP) -> "Figure":
    """Draw the tree of five prompts: what each row has of its own, and where it branches off."""
    texts = ["photo of a cat.", "photo of a cat asleep.", "photo of a dog.", "photo of the moon."]
    tokens = model.tokenizer([*(f"a {text}" for text in texts), "a drawing of a cat."])
    ends = model.text.find_ends(tokens)
    rows, _ = sort_rows(tokens.numpy(), ends.numpy())
    figure = new_figure(WIDTH, 2.3)
    axes = canvas(figure, 71, 23)
    owners: list[int] = []  # the line in which each column of the path was computed
    before: list[int] = []
    for line, padded in enumerate(rows.tolist()):
        row = [token for token in padded if token >= 0]
        pairs = zip(row, before, strict=False)
        shared = next((n for n, (one, other) in enumerate(pairs) if one != other), len(before))
        for column, token in enumerate(row):
            draw_token(axes, column, line, name_of(model, token), is_own=column >= shared)
        if line:
            branch(axes, shared, owners[shared - 1], line)
        owners = [*owners[:shared], *[line] * (len(row) - shared)]
        before = row
    return figure


def name_of(model: clipkit.CLIP, token: int) -> str:
    """Return a token as text."""
    special = {model.tokenizer.sot_token: "start", model.tokenizer.eot_token: "end"}
    return special.get(token) or model.tokenizer.decode([token])


STEP, TALL = 7.9, 4.6  # units from column to column, and from line to line


def draw_token(axes: "Axes", column: int, line: int, text: str, *, is_own: bool) -> None:
    """Draw a token: in a box if it is computed here, as gray text if a line above has it."""
    left, bottom = STEP * column + 0.4, 19 - TALL * line
    if is_own:
        draw_box(axes, (left, bottom, STEP - 1.6, 3.2), "#d6e9f5", BLUE)
        if column:
            middle = bottom + 1.6
            axes.plot([left - 1.6, left], [middle, middle], color=BLUE, lw=1.2)
    look = CENTER if is_own else Look(horizontal="center", vertical="center", color="#8a8a8a")
    write_text(axes, left + (STEP - 1.6) / 2, bottom + 1.5, text, look)


def branch(axes: "Axes", column: int, above: int, line: int) -> None:
    """Draw a line from the token before a column down to where a row goes on by itself."""
    x = STEP * column - 0.4
    axes.plot([x, x], [19 - TALL * above + 1.6, 19 - TALL * line + 1.6], color=BLUE, lw=1.2)
    # It ends at the box, and hides the piece that would lead to a gray token.
    y = 19 - TALL * line + 1.6
    axes.plot([x - 0.9, x - 0.1], [y, y], color="white", lw=2.5)


def anchored(_: clipkit.CLIP) -> "Figure":
    """Draw the gain over zero-shot by strength, with one image a class, from docs/few_shot.md."""
    strengths, gains = read_strengths((DOCS / "few_shot.md").read_text("utf-8"))
    figure = new_figure(WIDTH, 3.4)
    axes = add_axes(figure)
    lines = [
        axes.plot(strengths, values, color=COLORS[place], marker=MARKERS[place], lw=1.6)[0]
        for place, values in enumerate(gains.values())
    ]
    axes.axhline(0, color=INK, lw=1.0)
    axes.axvline(0.1, color=SKY, lw=6, alpha=0.35, zorder=0)
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.set_xticks(strengths, [f"{value:g}" for value in strengths])
    axes.set_xticks([], minor=True)
    axes.grid(True, axis="y", color=LINE, linewidth=0.6)
    set_labels(axes, "strength of the pull to the texts", "points above zero-shot")
    add_legend(figure, lines, list(gains))
    return figure


def read_strengths(page: str) -> tuple[list[float], dict[str, list[float]]]:
    """Return the strengths, and for each set the points above zero-shot at each of them.

    Raises SystemExit if the page has no such table.
    """
    found = re.search(r"^\| one image a class \|(.+)\n\|[-|]+\|\n((?:\|.+\n)+)", page, re.M)
    if found is None:
        raise SystemExit("docs/few_shot.md has no table that begins with 'one image a class'")
    header = [cell.strip() for cell in found[1].strip(" |").split("|")]
    strengths = [float(cell) for cell in header[1:-1]]
    gains: dict[str, list[float]] = {}
    for line in found[2].splitlines():
        name, zero_shot, *values = (cell.strip() for cell in line.strip(" |").split("|"))
        if "pairs" not in name:
            gains[name] = [float(value) - float(zero_shot) for value in values[:-1]]
    return strengths, gains


FIGURES: dict[str, Callable[[clipkit.CLIP], "Figure"]] = {
    "data_flow.png": data_flow,
    "contrastive.png": contrastive,
    "temperature.png": temperature,
    "prompts.png": prompts,
    "attention_pool.jpg": attention_pool,
    "text_tree.png": text_tree,
    "anchored.png": anchored,
}


def save(figure: "Figure", path: Path) -> None:
    """Write a figure, a PNG in few colors; or raise SystemExit if it is too large."""
    buffer = io.BytesIO()
    is_photo = path.suffix == ".jpg"
    figure.savefig(buffer, format="png", facecolor="white", dpi=100 if is_photo else DOTS)
    image = Image.open(buffer).convert("RGB")
    if is_photo:
        image.save(path, quality=76, optimize=True)
    else:
        image.quantize(128).save(path, optimize=True)
    size = path.stat().st_size
    if size > LARGEST:
        raise SystemExit(f"{path.name} has {size:,} bytes, more than {LARGEST:,}")
    print(f"{path.name}: {image.width} x {image.height}, {size:,} bytes")


def main() -> None:
    chosen = sys.argv[1:]
    model = clipkit.CLIP.from_pretrained("tiny", device="cpu")
    for name, draw in FIGURES.items():
        if not chosen or Path(name).stem in chosen:
            save(draw(model), DOCS / name)


if __name__ == "__main__":
    main()
