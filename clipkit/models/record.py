"""Record what a module computes as torch's exported program, with sizes that stay free."""

from typing import TypeAlias

import torch
from torch import Tensor, nn

# The free sizes of an input's first axes: the name of each, and its largest value or None.
FreeSizes: TypeAlias = tuple[tuple[str, int | None], ...]

BATCH: FreeSizes = (("batch", None),)


def record(
    module: nn.Module, example: Tensor, free: FreeSizes = BATCH
) -> "torch.export.ExportedProgram":
    """Return the program of a module that takes one tensor, without any autocast around.

    Args:
        module: in eval mode, and without gradients if the program is to have none.
        example: an input, in which free sizes are 2 or more: a 1 would be taken for a constant.
        free: the sizes that the program leaves free, from 1 on.

    Example:
        program = record(model.visual, torch.zeros(2, 3, 224, 224))
    """
    sizes = [torch.export.Dim(name, min=1, max=most) for name, most in free]
    with torch.autocast(example.device.type, enabled=False):
        return torch.export.export(module, (example,), dynamic_shapes=(dict(enumerate(sizes)),))
