"""What a trainer trains: a CLIP together with the loss of a batch."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipkit import distributed
from clipkit.clip import CLIP
from clipkit.training.losses import clip_logit_scale_, clip_loss
from clipkit.training.recompute import cached_features


class Task(nn.Module):
    """A CLIP, as `model`, and a forward that maps the inputs of a batch to a loss.

    The loss is the mean over this process's batch or, as `clip_loss` does it, over that of all processes.
    """

    def __init__(self, model: CLIP) -> None:
        super().__init__()
        self.model = model
        self.micro_batch: int | None = None  # pictures or texts to encode at once; all, if None

    def after_step(self) -> None:
        """What is to be done to the weights after each step of the optimisers."""


class ContrastiveTask(Task):
    """Pairs of images and texts. Any loss of the signature of `clip_loss` will do, a module with weights too.

    The temperature is clipped at 100 for `clip_loss`, and left alone for any other.
    """

    def __init__(self, model: CLIP, loss: Callable[..., Tensor] = clip_loss) -> None:
        super().__init__(model)
        self.loss = loss

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        """(N, 3, H, W), (N, L) -> the loss over the pairs of all processes."""
        image_features = cached_features(self.model.encode_image, images, self.micro_batch)
        text_features = cached_features(self.model.encode_text, tokens, self.micro_batch)
        return self.loss(image_features, text_features, self.model.logit_scale, distributed.group())

    def after_step(self) -> None:
        if self.loss is clip_loss:
            clip_logit_scale_(self.model.logit_scale)


class ClassificationTask(Task):
    """An image tower and a head on its normalised features, trained by cross-entropy. The text tower takes no part."""

    def __init__(self, model: CLIP, head: nn.Module) -> None:
        super().__init__(model)
        self.head = head
        model.logit_scale.requires_grad_(False)
        model.text.requires_grad_(False)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """(N, 3, H, W), (N,) int64 -> the mean loss of this process's pictures."""
        features = cached_features(self.model.encode_image, images, self.micro_batch)
        with torch.autocast(images.device.type, enabled=False):
            return F.cross_entropy(self.head(F.normalize(features.float(), dim=-1)), labels)
