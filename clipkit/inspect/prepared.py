"""Take prepared images as they are, and prepare others with the model's preprocessing."""

from torch import Tensor

from clipkit.data.pictures import Images
from clipkit.encode import embed
from clipkit.models.two_towers import TwoTowers


def prepare_batch(model: TwoTowers, images: "Tensor | Images") -> Tensor:
    """Return images as a tower takes them, all at once, (N, 3, H, W).

    Args:
        model: with a preprocessing.
        images: a tensor, which is returned as it is; or what `embed_images` takes.

    Raises:
        ImageError: if one cannot be read. The message names it.
        ConfigError: if there are none.
    """
    if isinstance(images, Tensor):
        return images
    return embed.prepare_batch(model, images)
