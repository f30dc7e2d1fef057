"""Take prepared images as they are, and prepare others with the model's preprocessing."""

from torch import Tensor

from clipkit.data.pictures import Images
from clipkit.encode.embed import prepare_images
from clipkit.errors import ImageError
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
    image_set = prepare_images(model, images, None, 64, 0)
    indices = [index for chunk in image_set.chunks.values() for batch in chunk for index in batch]
    batch = image_set.collate([image_set[index] for index in indices])
    if batch.images is None or batch.skipped:
        name, problem = batch.skipped[0]
        raise ImageError(problem if name in problem else f"image {name}: {problem}")
    return batch.images
