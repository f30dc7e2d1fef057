"""The functions of OpenAI's package: load a model with its transform, and turn texts into tokens.

`load` takes whatever clipkit's own loader takes, and what OpenAI's package took.
"""

import os
import re
import warnings
from collections.abc import Iterable, Mapping
from operator import index
from typing import cast

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import (  # pyright: ignore[reportMissingTypeStubs]
    CenterCrop,
    Compose,
    InterpolationMode,
    Normalize,
    Resize,
    ToTensor,
)

from clipkit.checkpoints import hub, layouts, registry
from clipkit.checkpoints.load import load_checkpoint
from clipkit.checkpoints.source import resolve
from clipkit.checkpoints.weights import read_run_config, read_weights
from clipkit.config import OPENAI_MEAN, OPENAI_STD
from clipkit.data.preprocess import Preprocess
from clipkit.errors import (
    CheckpointError,
    ConfigError,
    DownloadError,
    TokenizerError,
    UnsupportedCheckpointError,
)
from clipkit.models.build import assemble
from clipkit.models.placement import decide_device
from clipkit.openai.build import SettingError, arguments_of, check_tokenizer, preprocess_of
from clipkit.openai.model import CLIP, build_model, convert_weights
from clipkit.openai.simple_tokenizer import SimpleTokenizer
from clipkit.words import END, START, check_texts

__all__ = ["available_models", "load", "tokenize"]

BICUBIC = InterpolationMode.BICUBIC

# Programs import these names, underscores and all.

_tokenizer = SimpleTokenizer()

_MODELS = {
    row.name: registry.OPENAI_ARCHIVES.format(file=row.openai[0], sha256=row.openai[1])
    for row in registry.MODELS.values()
    if row.openai
}


def _download(url: str, root: str | os.PathLike[str] | None = None) -> str:
    """Return the path of a verified archive in a folder; it is downloaded unless it is there.

    Args:
        url: its last part but one is the SHA-256 of the file.
        root: the folder; OpenAI's own if not given.
    """
    *_, digest, _ = ["", *url.split("/")]
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise SettingError(f"an address must hold the file's SHA-256 before its name, not {url!r}")
    return str(hub.fetch_url(url, digest, None if root is None else os.fspath(root)))


def _convert_image_to_rgb(image: Image.Image) -> Image.Image:
    return image.convert("RGB")


def _transform(n_px: int) -> Compose:
    """Return the preprocessing of OpenAI's models for images of `n_px` x `n_px` pixels."""
    return _compose(Resize(n_px, interpolation=BICUBIC), n_px, OPENAI_MEAN, OPENAI_STD)


def _compose(resize: Resize, side: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Compose:
    steps = [resize, CenterCrop(side), _convert_image_to_rgb, ToTensor(), Normalize(mean, std)]
    return Compose(steps)


def _express(preprocess: Preprocess) -> Compose:
    """Return clipkit's preprocessing in torchvision's transforms."""
    side, config = preprocess.resolution[0], preprocess.config
    size = [side, side] if config.resize_mode == "squash" else side
    resize = Resize(size, interpolation=InterpolationMode(config.interpolation))
    return _compose(resize, side, config.mean, config.std)


def available_models() -> list[str]:
    """Return the names of OpenAI's nine models. `clipkit.list_models` has all that are known.

    Example:
        >>> available_models()[0]
        'RN50'
    """
    return list(_MODELS)


def load(
    name: str | os.PathLike[str],
    device: str | torch.device | None = None,
    jit: bool = False,
    download_root: str | os.PathLike[str] | None = None,
) -> tuple[CLIP, Compose]:
    """Load a model in eval mode and its preprocessing.

    On a CPU the weights are float32, elsewhere half as `convert_weights` makes them.

    Args:
        name: one of `available_models()`; an archive or a state dict of OpenAI's layout; or
            anything that `clipkit.load` takes: "tiny", other published names, hub ids, folders,
            files. No code from any of them is run.
        device: where to put the model; CUDA if there is one, else the CPU.
        jit: accepted, with a warning: the result is the ordinary module either way. Like those of
            OpenAI's archives it then has `input_resolution`, `context_length` and `vocab_size` as
            tensors.
        download_root: where downloads are kept; `~/.cache/clip` for OpenAI's archives.

    Returns:
        The model, and torchvision transforms from a PIL image to (3, H, W) float32.

    Raises:
        UnknownModelError, DownloadError, CheckpointError, SettingError: if there is nothing to
            load, or if OpenAI's structure cannot express it. Each of them is a RuntimeError.

    Example:
        >>> model, preprocess = load("tiny", "cpu")
        >>> model.encode_text(tokenize("a dog")).shape
        torch.Size([1, 256])
    """
    if jit:
        warnings.warn("jit=True gives the ordinary module here, no TorchScript", stacklevel=2)
    try:
        place = decide_device(device)
        model, transform = _read(name, download_root)
    except ConfigError as error:
        raise SettingError(str(error)) from error
    if place.type == "cpu":
        model.float()
    else:
        convert_weights(model)
    if jit:
        _add_scalars(model)
    return model.to(place), transform


def _add_scalars(model: CLIP) -> None:
    """Let a model have sizes as tensors, as OpenAI's archives have: programs call `item()`."""
    sizes = {
        "input_resolution": model.visual.input_resolution,
        "context_length": model.context_length,
        "vocab_size": model.vocab_size,
    }
    for name, size in sizes.items():
        setattr(model, name, torch.tensor(size))


def _read(
    name: str | os.PathLike[str], download_root: str | os.PathLike[str] | None
) -> tuple[CLIP, Compose]:
    """Return what a name means, on the CPU."""
    if isinstance(name, str) and name in _MODELS:
        try:
            path = _download(_MODELS[name], download_root or os.path.expanduser(hub.OPENAI_CACHE))
        except DownloadError:
            if registry.find(name) is None:  # a program's own
                raise
            # The hub has the same weights, and its error tells of both.
        else:
            return _read_bare(path, read_weights(path, mapped=True))
    elif os.path.isfile(name):
        source = resolve(name, needs_config=False)
        if source.config is None:
            weights = read_weights(source.weights, mapped=True)
            if not read_run_config(source.weights):
                return _read_bare(os.fspath(source.weights), weights)
    return _read_checkpoint(name, download_root)


def _read_bare(path: str, weights: Mapping[str, Tensor]) -> tuple[CLIP, Compose]:
    """Build the model of a file without a config, which says by its layout that it is OpenAI's.

    Args:
        path: of the file.
        weights: what it holds. They are copied into the model.
    """
    try:
        if layouts.detect(weights) != "openai":
            raise UnsupportedCheckpointError(
                "a file without a config must have OpenAI's names of weights: clipkit.load takes "
                "config=, activation= and head_width= for others"
            )
        model = build_model(weights)
    except CheckpointError as error:
        raise type(error)(f"{path}: {error}") from error
    return model, _transform(model.visual.input_resolution)


def _read_checkpoint(
    name: str | os.PathLike[str], cache_dir: str | os.PathLike[str] | None
) -> tuple[CLIP, Compose]:
    """Build the model of anything that clipkit's loader takes."""
    checkpoint = load_checkpoint(name, cache_dir=cache_dir)
    arguments = arguments_of(checkpoint.config)
    check_tokenizer(checkpoint)
    transform = _express(preprocess_of(checkpoint))
    weights = layouts.from_canonical(checkpoint.weights, "openai")
    floats = {key: _as_float(value) for key, value in weights.items()}
    return assemble(lambda: CLIP(**arguments), floats), transform


def _as_float(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def tokenize(
    texts: str | Iterable[str], context_length: int = 77, truncate: bool = False
) -> Tensor:
    """Return rows of token ids: start, the ids of a text, end, then zeros.

    Args:
        texts: N strings, or one string, which makes one row.
        context_length: L in tokens.
        truncate: cut a text that is too long, with the end of text as the last token.

    Returns:
        (N, L) int32.

    Raises:
        TokenizerError: if a text is no string, or is too long and `truncate` is not set. It is a
            RuntimeError.

    Example:
        >>> tokenize(["a dog", "a diagram"], context_length=5).tolist()
        [[49406, 320, 1929, 49407, 0], [49406, 320, 22697, 49407, 0]]
    """
    rows = [texts] if isinstance(texts, str) else check_texts(texts)
    length = _check_length(context_length)
    start, end = _tokenizer.encoder[START], _tokenizer.encoder[END]
    result = torch.zeros(len(rows), length, dtype=torch.int)
    for row, text in zip(result, rows, strict=True):
        ids = [start, *_tokenizer.encode(text), end]
        if len(ids) > length:
            if not truncate:
                raise TokenizerError(
                    f"Input {text!r:.60} is too long for context length {length}: it has "
                    f"{len(ids)} tokens. Shorten it, or pass truncate=True to cut it"
                )
            ids = [*ids[: length - 1], end]
        row[: len(ids)] = torch.tensor(ids, dtype=torch.int)
    return result


def _check_length(length: object) -> int:
    """Return a context length as an integer of at least 2, for start and end of text."""
    try:
        number = index(cast("int", length))
    except TypeError:
        number = 0
    if number < 2:
        raise TokenizerError(f"context_length must be an integer of at least 2, not {length!r:.60}")
    return number
