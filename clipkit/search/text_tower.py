"""Load of a checkpoint the text tower alone: all that a new text query needs."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn

from clipkit.checkpoints.load import Checkpoint
from clipkit.checkpoints.save import place_weights
from clipkit.checkpoints.vocabulary import default_tokenizer
from clipkit.config import CLIPConfig
from clipkit.models.build import assemble, build_text
from clipkit.models.inputs import check_tokens
from clipkit.models.placement import decide_device, decide_dtype
from clipkit.tokenizer import Tokenizer

Device: TypeAlias = "str | torch.device | None"
_PREFIX = "text."


class TextTower(nn.Module):
    """Encode texts as a `CLIP` does, without its image tower.

    Args:
        config: of the whole model.
        tokenizer: that belongs to the weights.
    """

    def __init__(self, config: CLIPConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.text = build_text(config.text, config.embed_dim)

    def encode_text(self, text: Tensor) -> Tensor:
        """Return the features of token ids, (N, L) -> (N, D), as `CLIP.encode_text` does."""
        check_tokens(text, self.config.text)
        return self.text(text)


def text_tower_of(
    checkpoint: Checkpoint, tokenizer: Tokenizer | None = None, device: Device = None
) -> TextTower:
    """Return the text tower of a checkpoint, in eval mode.

    Weights of the image tower that are mapped from a file are never read.

    Args:
        checkpoint: from `load_checkpoint`.
        tokenizer: in the place of the one that belongs to the weights.
        device: CUDA if there is one and none is given, else the CPU.

    Example:
        tower = text_tower_of(load_checkpoint("tiny"))
        features = embed_texts(tower, ["a cat in jeans"])
    """
    place = decide_device(device)
    dtype = decide_dtype(None, place, checkpoint.weights.values())
    texts = {key: x for key, x in checkpoint.weights.items() if key.startswith(_PREFIX)}
    weights = place_weights(texts, dtype, place)
    found = tokenizer or checkpoint.tokenizer or default_tokenizer(checkpoint.config.text)
    make: Callable[[], TextTower] = lambda: TextTower(checkpoint.config, found)  # noqa: E731
    return assemble(make, weights)
