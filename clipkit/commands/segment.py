"""`clipkit segment`: paint the classes of each pixel over photos."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from clipkit.clip import CLIP
from clipkit.commands.command import DONE, FAILED, SOME_LEFT_OUT, Command, add_out, path_of
from clipkit.commands.display import Style, tell_skipped, typed
from clipkit.commands.inputs import (
    STANDARD_INPUT,
    add_images,
    check_standard_input,
    find_inputs,
    images_among,
    read_labels,
    read_templates,
)
from clipkit.commands.model_choice import choose_classifier, load_model
from clipkit.commands.model_options import ModelChoice, add_model, take_model
from clipkit.data.decode import read_image
from clipkit.errors import ConfigError, ImageError
from clipkit.files import check_output, replacing, write_json
from clipkit.inspect.areas import color_of, share_text, shares_of
from clipkit.inspect.class_maps import BACKGROUND, ClassMapper, MapMethod
from clipkit.inspect.overlay import draw_overlay
from clipkit.prompts import TEMPLATES, ClassNames, Template, Templates
from clipkit.visible import visible

if TYPE_CHECKING:
    from PIL.Image import Image

_OVERLAY, _MASK = ".overlay.png", ".mask.png"  # behind the name of a photo
_LABELS = "labels.json"  # the labels in the order of the numbers in masks
_NAMELESS = "stdin"  # the name of the image from standard input
_PALETTE = 256  # classes that an image with a palette can have


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "clipkit segment IMAGE ... (--labels LABEL ... | --classifier DIR) -o DIR [OPTION ...]"
    )
    add_images(parser)
    _add_texts(parser)
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


def _add_texts(parser: argparse.ArgumentParser) -> None:
    """Add what says which classes to look for."""
    parser.add_argument("--labels", nargs="+", metavar="LABEL", help="class names to look for")
    parser.add_argument(
        "--labels-file",
        metavar="FILE",
        help="the same from a file, one in each line, or a JSON object from labels to lists of "
        "names, of which the best counts at each pixel; - is standard input",
    )
    parser.add_argument(
        "--classifier",
        type=path_of,
        metavar="DIR",
        help="a folder that `clipkit fit` or `clipkit finetune` wrote, of which the model, the "
        "labels and their texts are taken; what was fitted is of whole images",
    )
    parser.add_argument(
        "--templates",
        nargs="+",
        metavar="TEXT",
        help="texts with {} where the label goes, averaged; or the name of a prompt set "
        "(default: imagenet)",
    )


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
    images_from: str | None,
    classifier: Path | None,
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
    _check_swallowed(images, labels, background)
    _check(images, images_from, background, threshold)
    _check_labels(labels, labels_file, classifier)
    check_standard_input(images, images_from, labels_file)
    check_output(out, "folder")
    names: ClassNames = [] if classifier is not None else read_labels(labels, labels_file)
    found = find_inputs(images, images_from)
    photos = [image for image in found.images if not _is_own(image, out)]
    if found.images and not photos:
        found.problems.append(f"no photo, only what this command wrote to {out} before")
    if not photos:
        tell_skipped(found.problems)
        return FAILED
    texts = _choose_texts(classifier, names, choice, templates, background)
    mapper = ClassMapper(
        texts.model,
        texts.names,
        texts.templates,
        background=background if background is not None else threshold,
        method=method,
        window=window,
        stride=stride,
        short_side=short_side,
        refine=refine,
    )
    has_background = background is not None or threshold is not None
    writer = _Writer(out, mapper.labels, len(mapper.labels) - 1 if has_background else None, masks)
    written = _paint_all(mapper, photos, writer, found.problems)
    tell_skipped(found.problems)
    if not written:
        return FAILED
    return SOME_LEFT_OUT if found.problems else DONE


def _paint_all(
    mapper: ClassMapper, photos: Sequence[Path | bytes], writer: "_Writer", problems: list[str]
) -> int:
    """Write all photos that can be read, note the others, and return how many were written."""
    written = 0
    for image, name in zip(photos, _names_of(photos), strict=True):
        try:
            photo = read_image(image)
            indices = mapper.indices(photo)
        except ImageError as error:
            problems.append(str(error))
            continue
        writer.write(photo, indices, name)
        shown = STANDARD_INPUT if isinstance(image, bytes) else str(image)
        _print_shares(shown, mapper.labels, indices)
        written += 1
    return written


@dataclass(frozen=True)
class _Texts:
    """Hold a model, and the names and templates of its classes, as `ClassMapper` takes them."""

    model: CLIP
    names: ClassNames
    templates: Templates


def _choose_texts(
    classifier: Path | None,
    names: ClassNames,
    choice: ModelChoice,
    templates: list[str] | None,
    background: list[str] | None,
) -> _Texts:
    """Return the texts of a saved classifier, or those of labels and templates.

    Raises:
        ConfigError: if a classifier would ignore templates or options of the model.
    """
    if classifier is None:
        chosen = "imagenet" if templates is None else read_templates(templates)
        return _Texts(load_model(choice), names, chosen)
    saved = choose_classifier(classifier, [], choice, templates, None)
    own: dict[str, list[Template]] = {
        label: [partial(_same, prompt) for prompt in prompts]
        for label, prompts in zip(saved.labels, saved.prompts, strict=True)
    }
    if background is not None:  # in the classifier's templates, unless each label has its own
        known = saved.templates
        own[BACKGROUND] = list(TEMPLATES if known is None or isinstance(known, dict) else known)
    return _Texts(saved.model, {label: label for label in saved.labels}, own)


def _same(prompt: str, _name: str) -> str:
    """Return a prompt that is there already, as a template does."""
    return prompt


def _check(
    images: list[str],
    images_from: str | None,
    background: list[str] | None,
    threshold: float | None,
) -> None:
    """Raise `ConfigError` unless there are images, and one kind of background."""
    if not images and images_from is None:
        raise ConfigError("there is no image: clipkit segment IMAGE ... --labels LABEL ... -o DIR")
    if background is not None and threshold is not None:
        raise ConfigError("--background and --threshold both say what stays unpainted: leave one")
    if threshold is not None and not 0 <= threshold <= 1:
        raise ConfigError(f"--threshold must be a probability from 0 to 1, not {threshold}")


def _check_swallowed(
    images: list[str], labels: list[str] | None, background: list[str] | None
) -> None:
    """Raise `ConfigError` if images stand behind options that take all words."""
    for option, words in (("--labels", labels), ("--background", background)):
        if swallowed := images_among(words or []):
            raise ConfigError(
                f"{option} takes all words behind it, {' and '.join(swallowed)} as well: write "
                f"images first, as in  clipkit segment {typed(*images, *swallowed)} --labels ..."
            )


def _check_labels(
    labels: list[str] | None, labels_file: str | None, classifier: Path | None
) -> None:
    """Raise `ConfigError` unless there are labels from one source."""
    if classifier is not None and (labels is not None or labels_file is not None):
        option = "--labels" if labels is not None else "--labels-file"
        raise ConfigError(f"--classifier knows its own labels: leave {option} out")
    if classifier is None and labels is None and labels_file is None:
        raise ConfigError(
            "give --labels (or --labels-file) to look for, or a --classifier that knows its own"
        )


def _is_own(image: Path | bytes, out: Path) -> bool:
    """Return whether a file in the output folder is named as those that were written there."""
    if isinstance(image, bytes):
        return False
    return image.name.endswith((_OVERLAY, _MASK)) and image.parent.resolve() == out.resolve()


def _names_of(images: Sequence[Path | bytes]) -> list[str]:
    """Return a name for the files of each image: its own, with a number if others have it too."""
    names: list[str] = []
    taken: set[str] = set()
    for image in images:
        stem = _NAMELESS if isinstance(image, bytes) else image.stem
        name, number = stem, 2
        while name.lower() in taken:  # some file systems take a and A for the same
            name, number = f"{stem}-{number}", number + 1
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


def _print_shares(name: str, labels: Sequence[str], indices: Tensor) -> None:
    """Print how much of a photo each class covers, the largest first."""
    style = Style.of(sys.stdout)
    shares = shares_of(indices, len(labels))
    order = sorted(range(len(labels)), key=lambda index: -shares[index])
    parts = [
        f"{visible(labels[index])} {share_text(shares[index])}" for index in order if shares[index]
    ]
    print(f"{style.bold(visible(name))}: {', '.join(parts)}", flush=True)


SEGMENT = Command(
    name="segment",
    examples="clipkit segment photo.jpg --labels cat sofa --background wall floor -o painted/\n"
    "clipkit segment photos/ --labels-file labels.json --masks --refine -o painted/ "
    "--model ViT-B/16\n"
    "find . -name '*.jpg' -print0 | clipkit segment --images-from - --classifier pets/ -o painted/",
    add_arguments=_add_arguments,
    run=segment,
    prepare=take_model,
)
