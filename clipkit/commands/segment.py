"""`clipkit segment`: paint the classes of each pixel over photos."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from clipkit.commands.command import DONE, FAILED, SOME_LEFT_OUT, Command, add_out
from clipkit.commands.display import Style, tell_skipped, typed
from clipkit.commands.inputs import find_images, images_among, read_labels
from clipkit.commands.model_choice import load_model, read_templates
from clipkit.commands.model_options import ModelChoice, add_model, take_model
from clipkit.data.decode import read_image
from clipkit.errors import ConfigError, ImageError
from clipkit.files import check_output, replacing, write_json
from clipkit.inspect.areas import color_of, share_text, shares_of
from clipkit.inspect.class_maps import ClassMapper, MapMethod
from clipkit.inspect.overlay import draw_overlay
from clipkit.visible import visible

if TYPE_CHECKING:
    from PIL.Image import Image

_OVERLAY, _MASK = ".overlay.png", ".mask.png"  # behind the name of a photo
_LABELS = "labels.json"  # the labels in the order of the numbers in masks
_PALETTE = 256  # classes that an image with a palette can have


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "clipkit segment IMAGE ... --labels LABEL ... -o DIR [OPTION ...]"
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="files, folders or globs")
    parser.add_argument("--labels", nargs="+", metavar="LABEL", help="class names to look for")
    parser.add_argument(
        "--labels-file",
        metavar="FILE",
        help="the same from a file, one in each line, or a JSON object from labels to lists of "
        "names, of which the best counts at each pixel",
    )
    parser.add_argument(
        "--background",
        nargs="+",
        metavar="NAME",
        help="what else there may be, such as wall sky, which is left unpainted",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="P",
        help="leave pixels unpainted at which no label has this probability",
    )
    parser.add_argument(
        "--templates",
        nargs="+",
        metavar="TEXT",
        help="texts with {} where the label goes, averaged; or the name of a prompt set "
        "(default: imagenet)",
    )
    parser.add_argument("--masks", action="store_true", help=f"write masks too, and {_LABELS}")
    parser.add_argument(
        "--refine", action="store_true", help="let the classes follow the edges in the photo"
    )
    parser.add_argument(
        "--method",
        choices=["neighbors", "values", "queries"],
        help="how the last attention is read (default: neighbors, of a ResNet values)",
    )
    _add_sizes(parser)
    add_out(parser, help="the folder to write NAME.overlay.png and NAME.mask.png to")
    add_model(parser)


def _add_sizes(parser: argparse.ArgumentParser) -> None:
    """Add the sizes of windows, in pixels."""
    parser.add_argument(
        "--window", type=int, metavar="N", help="side of a window (default: the model's)"
    )
    parser.add_argument(
        "--stride",
        type=int,
        metavar="N",
        help="pixels from one window to the next (default: half a window)",
    )
    parser.add_argument(
        "--short-side",
        type=int,
        metavar="N",
        help="to which the shorter side of a photo is resized (default: one and a half windows)",
    )


def segment(
    *,
    images: list[str],
    labels: list[str] | None,
    labels_file: str | None,
    background: list[str] | None,
    threshold: float | None,
    templates: list[str] | None,
    masks: bool,
    refine: bool,
    method: MapMethod | None,
    window: int | None,
    stride: int | None,
    short_side: int | None,
    out: Path,
    choice: ModelChoice,
) -> int:
    """Write each photo with the classes painted over it, and print how much each class covers.

    Returns:
        0 if all images were painted, 1 if some were left out, 2 if none could be painted.
    """
    _check(images, labels, labels_file, background, threshold)
    check_output(out, "folder")
    names = read_labels(labels, labels_file)
    found, problems = find_images(images)
    paths = [path for path in found if not _is_own(path, out)]
    if found and not paths:
        problems.append(f"no photo, only what this command wrote to {out} before")
    if not paths:
        tell_skipped(problems)
        return FAILED
    mapper = ClassMapper(
        load_model(choice),
        names,
        "imagenet" if templates is None else read_templates(templates),
        background=background if background is not None else threshold,
        method=method,
        window=window,
        stride=stride,
        short_side=short_side,
        refine=refine,
    )
    has_background = background is not None or threshold is not None
    writer = _Writer(out, mapper.labels, len(mapper.labels) - 1 if has_background else None, masks)
    written = 0
    for path, name in zip(paths, _names_of(paths), strict=True):
        try:
            photo = read_image(path)
            indices = mapper.indices(photo)
        except ImageError as error:
            problems.append(str(error))
            continue
        writer.write(photo, indices, name)
        _print_shares(path, mapper.labels, indices)
        written += 1
    tell_skipped(problems)
    if not written:
        return FAILED
    return SOME_LEFT_OUT if problems else DONE


def _check(
    images: list[str],
    labels: list[str] | None,
    labels_file: str | None,
    background: list[str] | None,
    threshold: float | None,
) -> None:
    """Raise `ConfigError` unless there are images and labels, and one kind of background."""
    for option, words in (("--labels", labels), ("--background", background)):
        if swallowed := images_among(words or []):
            raise ConfigError(
                f"{option} takes all words behind it, {' and '.join(swallowed)} as well: write "
                f"images first, as in  clipkit segment {typed(*images, *swallowed)} --labels ..."
            )
    if not images:
        raise ConfigError("there is no image: clipkit segment IMAGE ... --labels LABEL ... -o DIR")
    if labels is None and labels_file is None:
        raise ConfigError("give --labels (or --labels-file) to look for")
    if background is not None and threshold is not None:
        raise ConfigError("--background and --threshold both say what stays unpainted: leave one")
    if threshold is not None and not 0 <= threshold <= 1:
        raise ConfigError(f"--threshold must be a probability from 0 to 1, not {threshold}")


def _is_own(path: Path, out: Path) -> bool:
    """Return whether a file in the output folder is named as those that were written there."""
    return path.name.endswith((_OVERLAY, _MASK)) and path.parent.resolve() == out.resolve()


def _names_of(paths: Sequence[Path]) -> list[str]:
    """Return a name for the files of each image: its own, with a number if others have it too."""
    names: list[str] = []
    taken: set[str] = set()
    for path in paths:
        name, number = path.stem, 2
        while name.lower() in taken:  # some file systems take a and A for the same
            name, number = f"{path.stem}-{number}", number + 1
        taken.add(name.lower())
        names.append(name)
    return names


@dataclass(frozen=True)
class _Writer:
    """Write what was made of each photo into a folder.

    Attributes:
        folder: made if it does not exist.
        labels: of all classes.
        background: the number of the class that is not painted, if there is one.
        masks: whether to write masks, and the labels with the first of them.
    """

    folder: Path
    labels: list[str]
    background: int | None
    masks: bool

    def write(self, photo: "Image", indices: Tensor, name: str) -> None:
        """Write the overlay of a photo and, if asked for, its mask."""
        overlay = draw_overlay(photo, indices, self.labels, background=self.background)
        _save(overlay, self.folder / f"{name}{_OVERLAY}")
        if not self.masks:
            return
        _save(_as_mask(indices, len(self.labels)), self.folder / f"{name}{_MASK}")
        write_json(self.labels, self.folder / _LABELS)


def _save(image: "Image", path: Path) -> None:
    with replacing(path) as partial:
        image.save(partial, format="PNG")


def _as_mask(indices: Tensor, classes: int) -> "Image":
    """Return the number of the class of each pixel as an image, with a palette where it fits."""
    from PIL import Image

    if classes > _PALETTE:
        return Image.fromarray(indices.numpy().astype(np.uint16))
    mask = Image.fromarray(indices.numpy().astype(np.uint8))
    mask.putpalette([level for index in range(classes) for level in color_of(index)])
    return mask


def _print_shares(path: Path, labels: Sequence[str], indices: Tensor) -> None:
    """Print how much of a photo each class covers, the largest first."""
    style = Style.of(sys.stdout)
    shares = shares_of(indices, len(labels))
    order = sorted(range(len(labels)), key=lambda index: -shares[index])
    parts = [
        f"{visible(labels[index])} {share_text(shares[index])}" for index in order if shares[index]
    ]
    print(f"{style.bold(visible(str(path)))}: {', '.join(parts)}", flush=True)


SEGMENT = Command(
    name="segment",
    examples="clipkit segment photo.jpg --labels cat sofa --background wall floor -o painted/\n"
    "clipkit segment photos/ --labels-file labels.json --masks --refine -o painted/ "
    "--model ViT-B/16",
    add_arguments=_add_arguments,
    run=segment,
    prepare=take_model,
)
