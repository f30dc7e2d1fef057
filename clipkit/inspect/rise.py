"""Explain by random masks (RISE, Petsiuk et al., 1806.07421): slow, and blind to what is inside.

An image is shown again and again with random parts of it hidden. A place counts for how similar to
the text the image is when the place is seen.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

CELLS = 7  # of a mask, along each side, as in the paper
SEEN = 0.5  # the share of cells that are seen
MASKS = 2000
BATCH = 32  # masked images that are encoded at once


@torch.no_grad()
def rise(
    score: Callable[[Tensor], Tensor],
    image: Tensor,
    *,
    masks: int = MASKS,
    seed: int = 0,
    batch_size: int = BATCH,
    progress: bool = False,
) -> Tensor:
    """Return for each pixel how much higher the score is when the pixel is seen.

    That is the mean score of the masks that show the pixel, weighted by how far they show it, less
    the mean score of all. Without that last step, which the paper leaves out, the noise of the
    masks' own number at each pixel would drown the scores, since a cosine varies little.

    Hidden parts are 0, which is the mean color of a preprocessed image.

    Args:
        score: from images (n, 3, H, W) to numbers (n,).
        image: preprocessed, (1, 3, H, W).
        masks: how many to draw.
        seed: of the masks; the same seed gives the same masks.
        batch_size: how many masked images are scored at once. It bounds the memory.
        progress: whether to show a bar.

    Returns:
        (H, W) float32, on the image's device.
    """
    from tqdm import tqdm

    height, width = int(image.shape[2]), int(image.shape[3])
    total = torch.zeros(height, width, dtype=torch.float32, device=image.device)
    shown = torch.zeros_like(total)
    score_sum = 0.0
    with tqdm(total=masks, unit="mask", disable=not progress) as bar:
        for batch in _draw_masks(masks, (height, width), seed, batch_size):
            batch = batch.to(image.device)  # (n, H, W)
            masked = image * batch.unsqueeze(1).to(image.dtype)  # (n, 3, H, W)
            scores = score(masked).float().to(image.device)  # (n,)
            total += (scores.view(-1, 1, 1) * batch).sum(dim=0)
            shown += batch.sum(dim=0)
            score_sum += float(scores.sum())
            bar.update(len(batch))
    # A pixel that no mask shows has no score of its own: it gets 0.
    least = torch.finfo(torch.float32).tiny
    return (total - score_sum / masks * shown) / shown.clamp(min=least)


def _draw_masks(count: int, size: tuple[int, int], seed: int, batch_size: int) -> Iterator[Tensor]:
    """Yield random masks (n, H, W) from 0 to 1, the same ones for any batch size.

    A mask is a coarse grid of zeros and ones, enlarged smoothly and shifted at random by less than
    a cell.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    draws = torch.empty(count, CELLS * CELLS + 2, dtype=torch.float32, device="cpu")
    draws.uniform_(generator=generator)
    grids = (draws[:, 2:] < SEEN).float().view(-1, 1, CELLS, CELLS)
    cell = [-(-side // CELLS) for side in size]  # rounded up
    tops = [int(draw * cell[0]) for draw in draws[:, 0]]
    lefts = [int(draw * cell[1]) for draw in draws[:, 1]]
    enlarged_size = [(CELLS + 1) * side for side in cell]
    for start in range(0, count, batch_size):
        part = slice(start, start + batch_size)
        enlarged = F.interpolate(
            grids[part], enlarged_size, mode="bilinear", align_corners=False
        ).squeeze(1)  # (n, 1, CELLS, CELLS) -> (n, > H, > W)
        yield torch.stack(
            [
                mask[top : top + size[0], left : left + size[1]]
                for mask, top, left in zip(enlarged, tops[part], lefts[part], strict=True)
            ]
        )
