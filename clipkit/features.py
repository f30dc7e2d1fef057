"""Features of many images or texts: batches, worker processes and a progress bar around the encoders."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from clipkit.errors import ConfigError
from clipkit.models.clip import CLIP

if TYPE_CHECKING:
    from PIL.Image import Image

TEXT_BATCH = 256


class _Images:
    """A data set that preprocesses when asked, in whichever process asks."""

    def __init__(self, images: Sequence[Any], preprocess: Any) -> None:
        self.images, self.preprocess = images, preprocess

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.preprocess(self.images[index])


def embed_images(
    model: CLIP,
    images: "Sequence[str | os.PathLike[str] | Image]",
    *,
    batch_size: int = 64,
    workers: int = 0,
    progress: bool = False,
) -> Tensor:
    """Normalised features of pictures.

    Args:
        model: whose image tower and preprocessing to use.
        images: N paths or PIL images.
        batch_size: pictures encoded at once.
        workers: processes that read and preprocess; 0 for none.
        progress: whether to show a bar.

    Returns:
        (N, D) float32 on the CPU, each of unit length.

    Raises:
        ConfigError: if there are none.
        ImageError: if one cannot be read.
    """
    from tqdm import tqdm

    if len(images) == 0:
        raise ConfigError("embed_images needs at least one image")
    loader = DataLoader(_Images(images, model.preprocess), batch_size, num_workers=workers)  # pyright: ignore[reportArgumentType]
    with torch.inference_mode():
        features = [
            F.normalize(model.encode_image(batch).float(), dim=-1).cpu()
            for batch in tqdm(loader, unit="batch", disable=not progress)
        ]
    return torch.cat(features)


def embed_texts(model: CLIP, texts: Sequence[str], *, truncate: bool = False) -> Tensor:
    """Normalised features of texts, encoded without gradient.

    Args:
        model: whose text tower and tokenizer to use.
        texts: N strings.
        truncate: cut texts that are too long instead of raising.

    Returns:
        (N, D) float32 on the model's device, each of unit length.

    Raises:
        ConfigError: if there are none.
        TokenizerError: if one is too long, unless `truncate`.
    """
    if len(texts) == 0:
        raise ConfigError("embed_texts needs at least one text")
    with torch.no_grad():
        features = [
            F.normalize(model.encode_text(model.tokenizer(part, truncate=truncate)).float(), dim=-1)
            for part in (texts[start : start + TEXT_BATCH] for start in range(0, len(texts), TEXT_BATCH))
        ]
    return torch.cat(features)
