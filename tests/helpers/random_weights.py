"""Make random weights and inputs for parity tests, so that no mistake can hide.

Nothing keeps a neutral start: norms, biases, batch statistics and the third batch norm of a
bottleneck are all random. Activations stay of order one, and attention is uneven. Each image has
its own color and gradient, since noise alone would average out over the patches and leave all
features alike.
"""

import re
from itertools import chain
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


@torch.no_grad()
def randomize(model: M, seed: int = 0) -> M:
    """Fill every weight and statistic of a model in place, and return it in eval mode.

    Names may be clipkit's, open_clip's or transformers'.
    """
    random = torch.Generator().manual_seed(seed)
    for name, value in chain(model.named_parameters(), model.named_buffers()):
        if value.is_floating_point() and not name.endswith("attn_mask"):
            _fill(name, value, random)
    return model.eval()


def _fill(name: str, value: Tensor, random: torch.Generator) -> None:
    """Draw a weight or statistic by its name and shape."""
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "logit_scale":
        value.fill_(4.6)  # exp gives 99.5, about that of the published models
    elif leaf in ("running_var", "weight") and value.ndim == 1:
        value.uniform_(0.5, 1.5, generator=random)
        if name.endswith("bn3.weight"):  # else a stack of residual blocks grows without bound
            value.mul_(0.4)
    elif "embedding" in name and "patch" not in name:
        value.normal_(0, 0.7, generator=random)
    elif value.ndim < 2:
        value.normal_(0, 0.2, generator=random)
    else:
        _fill_matrix(name, value, random)


def _fill_matrix(name: str, value: Tensor, random: torch.Generator) -> None:
    """Draw a matrix or a convolution that keeps what passes it of order one."""
    is_transposed = name.rsplit(".", 1)[-1] in ("proj", "text_projection")
    fan_in = len(value) if is_transposed else value[0].numel()
    value.normal_(0, _gain(name, value) * fan_in**-0.5, generator=random)
    # After a ReLU the part that all inputs share would drown the rest.
    if "attnpool" in name or value.ndim == 4:
        mean = value.flatten(1).mean(dim=1)  # (out,)
        value.sub_(0.9 * mean.view(-1, *[1] * (value.ndim - 1)))


def _gain(name: str, weight: Tensor) -> float:
    """Return by how much a weight should stretch its input."""
    if weight.ndim == 4:  # the stem sees little of a smooth image, and a ReLU halves what passes
        return 3.0 if name.startswith("visual.conv") else 1.7
    # Attention should be uneven, but no choice of one token, which amplifies noise.
    if re.search(r"in_proj|[qk]_proj", name):
        return 0.5 if "attnpool" in name else 1.5
    return 1.0


def some_images(count: int, size: int | tuple[int, int], seed: int = 0) -> Tensor:
    """Return images (count, 3, height, width) float32, each with a color, a gradient and noise."""
    random = torch.Generator().manual_seed(seed)
    height, width = (size, size) if isinstance(size, int) else size
    corners = 1.5 * torch.randn(count, 3, 2, 2, generator=random)
    smooth = F.interpolate(corners, (height, width), mode="bilinear", align_corners=True)
    return smooth + 0.3 * torch.randn(count, 3, height, width, generator=random)


def some_tokens(count: int, length: int, vocab_size: int, seed: int = 0, pad: int = 0) -> Tensor:
    """Return token ids (count, length) int64: start of text, words, and the end of text.

    The end of text has the highest id, and stands at another place in each row.
    """
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, vocab_size - 2, (count, length), generator=random)
    ends = torch.linspace(2, length - 1, count).long()  # from two words to a full row
    places = torch.arange(length)
    tokens[places > ends[:, None]] = pad
    tokens[:, 0] = vocab_size - 2
    tokens[torch.arange(count), ends] = vocab_size - 1
    return tokens


def assert_distinct(features: Tensor) -> None:
    """Fail if two rows point nearly the same way: a comparison of them would prove little."""
    features = F.normalize(features.double(), dim=-1)
    cosines = features @ features.T - 2 * torch.eye(len(features), dtype=torch.float64)
    assert cosines.max() < 0.95, f"features are too much alike: cosine {cosines.max():.4f}"
