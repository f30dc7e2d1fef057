"""Features of many images or texts: in batches, with worker processes and a progress bar."""

from collections.abc import Generator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from clipkit.data.pictures import Images, ImageSet, Transform
from clipkit.errors import ConfigError, ImageError
from clipkit.tokenizer import Tokenizer

TEXT_BATCH = 4096  # texts: the more, the more prefixes they share; the text tower bounds the memory by itself
HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class EncodesTexts(Protocol):
    """What `embed_texts` needs of a model."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Features:
    """Features of M pictures, in the order in which the pictures were given.

    Attributes:
        features: (M, D) float32, on the CPU.
        labels: (M,) int64, or None where no integers came with the pictures.
        paths: of the M pictures; of one that has none, its index.
        skipped: path or index of each picture that could not be read, and why.
    """

    features: Tensor
    labels: Tensor | None
    paths: list[str]
    skipped: list[tuple[str, str]]


def embed_images(
    model: nn.Module,
    images: Images,
    *,
    batch_size: int = 64,
    workers: int = 0,
    progress: bool = False,
) -> Tensor:
    """Normalised features of pictures, arguments as in `extract_features`. Each process encodes all by itself.

    Returns:
        (N, D) float32 on the CPU, each of unit length.

    Raises:
        ConfigError: if there are none.
        ImageError: if one cannot be read.
    """
    pictures, parts = image_set(model, images, None, batch_size, workers), []
    with closing(_stream(model, pictures, progress=progress)) as stream:
        for part in stream:
            if part.skipped:
                raise ImageError(part.skipped[0][1])
            parts.append(part)
    return join(parts).features


def image_set(
    model: nn.Module,
    images: Images,
    transform: Transform | None,
    batch_size: int,
    workers: int,
) -> ImageSet:
    """Return the images with the transform, or with the preprocessing of the model if there is none."""
    if transform is None and not isinstance(images, DataLoader):
        transform = getattr(model, "preprocess", None)
        if transform is None:
            raise ConfigError(
                f"{type(model).__name__} has no preprocessing of its own: give its transform"
            )
    return ImageSet(images, transform, batch_size, workers)


def stream_features(
    model: nn.Module,
    images: Images,
    *,
    transform: Transform | None = None,
    batch_size: int = 64,
    workers: int = 0,
    precision: str | None = None,
    normalize: bool = True,
    progress: bool = False,
) -> Generator[Features, None, None]:
    """Yield the features of each batch as soon as it is encoded; arguments as in `extract_features`."""
    pictures = image_set(model, images, transform, batch_size, workers)
    return _stream(model, pictures, precision=precision, normalize=normalize, progress=progress)


def _stream(
    model: nn.Module,
    pictures: ImageSet,
    chunks: list[tuple[int, int]] | None = None,
    *,
    precision: str | None = None,
    normalize: bool = True,
    progress: bool = False,
) -> Generator[Features, None, None]:
    """Of each batch as soon as it is encoded, in all chunks if none are named; arguments as in `extract_features`."""
    from tqdm import tqdm

    tower, encode = getattr(model, "visual", model), getattr(model, "encode_image", model)
    weight = next(tower.parameters(), torch.empty(0))
    if precision not in (None, "float32", *HALVES) or (
        precision == "float32" and weight.dtype != torch.float32
    ):
        raise ConfigError(
            f"precision must be None, bfloat16, float16 or, of float32 weights, float32; not {precision}"
        )
    chunks = list(pictures.chunks) if chunks is None else chunks
    batches: Any = [batch for chunk in chunks for batch in pictures.chunks[chunk]]
    cuda = (
        weight.device.type == "cuda"
    )  # whose copies run beside the arithmetic, from pinned memory
    settings: Any = {
        "num_workers": pictures.workers,
        "collate_fn": pictures.collate,
        "pin_memory": cuda,
    }
    loader = DataLoader(pictures, batch_sampler=batches, **settings)
    half, modes = (
        HALVES.get(precision or ""),
        [(module, module.training) for module in model.modules()],
    )
    try:
        model.eval()
        with tqdm(total=sum(map(len, batches)), unit="image", disable=not progress) as bar:
            for images, labels, names, skipped in loader:
                features = torch.empty(0, 0)
                if names:
                    cast = torch.autocast(weight.device.type, half, enabled=half is not None)
                    with torch.no_grad(), cast if precision else nullcontext():
                        features = encode(
                            images.to(weight.device, non_blocking=cuda).to(weight.dtype)
                        )
                    if (
                        not isinstance(features, Tensor)
                        or features.ndim != 2
                        or len(features) != len(names)
                    ):
                        what = f"{type(features).__name__} {tuple(getattr(features, 'shape', ()))}"
                        raise ConfigError(
                            f"of {len(names)} images a model must make ({len(names)}, D), not {what}"
                        )
                    features = (
                        F.normalize(features.float(), dim=-1) if normalize else features.float()
                    )
                bar.update(len(names) + len(skipped))
                yield Features(features.cpu(), labels, names, skipped)
    finally:
        for module, mode in modes:
            module.training = mode


def embed_texts(model: EncodesTexts, texts: Sequence[str], *, truncate: bool = False) -> Tensor:
    """Normalised features of texts, encoded without gradient.

    Args:
        model: whose text tower and tokenizer to use.
        texts: N strings.
        truncate: cut texts that are too long instead of raising.

    Returns:
        (N, D) float32 on the CPU, each of unit length.

    Raises:
        ConfigError: if there are none.
        TokenizerError: if one is too long, unless `truncate`.
    """
    if len(texts) == 0:
        raise ConfigError("embed_texts needs at least one text")
    with torch.no_grad():
        features = [
            F.normalize(model.encode_text(model.tokenizer(part, truncate=truncate)).float(), dim=-1)
            for part in (
                texts[start : start + TEXT_BATCH] for start in range(0, len(texts), TEXT_BATCH)
            )
        ]
    return torch.cat(features).cpu()


def join(parts: list[Features]) -> Features:
    """One after the other. Parts of which all is skipped have neither a width nor labels."""
    sound = [part for part in parts if part.paths]
    labels = [part.labels for part in sound if part.labels is not None]
    return Features(
        torch.cat([part.features for part in sound]) if sound else torch.empty(0, 0),
        torch.cat(labels) if sound and len(labels) == len(sound) else None,
        [path for part in parts for path in part.paths],
        [problem for part in parts for problem in part.skipped],
    )
