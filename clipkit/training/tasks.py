"""Join a CLIP with the loss of a batch: the tasks that a trainer trains."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipkit import distributed
from clipkit.clip import CLIP
from clipkit.errors import DataError
from clipkit.training.losses import clip_logit_scale_, clip_loss
from clipkit.training.recompute import cached_features

ONE_PAIR = (
    "the contrastive loss compares the pairs of a batch, and a single pair has a loss of 0: train "
    "with a batch_size of at least 2, on at least 2 images"
)


class Task(nn.Module):
    """Hold a CLIP and map the inputs of a batch to a loss. A subclass writes `forward`.

    `forward` takes the tensors of `Batch.inputs`, on the trainer's device, and returns a float32
    scalar: the mean over this process's share of the batch or, as `clip_loss` does it, over the
    batch of all processes.

    Args:
        model: is trained in place, with all parameters of the task that are not locked.

    Attributes:
        model: the CLIP.
        micro_batch: how many images or texts to encode at once, as `cached_features` takes it; None
            for all. A trainer sets it from `TrainConfig.micro_batch`.

    Example:
        class Distillation(Task):
            def forward(self, images, targets):  # (N, 3, H, W), (N, D)
                features = cached_features(self.model.encode_image, images, self.micro_batch)
                return 1 - F.cosine_similarity(features.float(), targets).mean()

        Trainer(Distillation(model), batches, TrainConfig(steps=1000), "run").fit()
    """

    def __init__(self, model: CLIP) -> None:
        super().__init__()
        self.model = model
        self.micro_batch: int | None = None

    def after_step(self) -> None:
        """Do to the weights what is to be done after each step of the optimizers: nothing here."""


class ContrastiveTask(Task):
    """Train both towers on pairs of images and texts.

    Args:
        model: the CLIP.
        loss: any function of the signature of `clip_loss`; a module with weights, which are trained
            too, will do. The temperature is clipped at 100 for `clip_loss`, and left alone for any
            other.

    Example:
        task = ContrastiveTask(model, clipkit.sigmoid_loss)
        Trainer(task, batches, TrainConfig(steps=1000), "run").fit()
    """

    def __init__(self, model: CLIP, loss: Callable[..., Tensor] = clip_loss) -> None:
        super().__init__(model)
        self.loss = loss

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Return the loss over the pairs of all processes, a float32 scalar.

        Args:
            images: (N, 3, H, W) float32.
            tokens: (N, L) int64, row i belongs to image i.

        Raises:
            DataError: if `clip_loss` gets a single pair from all processes together.
        """
        if self.loss is clip_loss and len(images) * distributed.world_size() < 2:
            raise DataError(ONE_PAIR)
        image_features = cached_features(self.model.encode_image, images, self.micro_batch)
        text_features = cached_features(self.model.encode_text, tokens, self.micro_batch)
        return self.loss(image_features, text_features, self.model.logit_scale, distributed.group())

    def after_step(self) -> None:
        """Clip the temperature for `clip_loss`."""
        if self.loss is clip_loss:
            clip_logit_scale_(self.model.logit_scale)


class ClassificationTask(Task):
    """Train an image tower and a head on its normalized features, by cross-entropy.

    The text tower and the temperature take no part and are locked.

    Args:
        model: the CLIP.
        head: maps features of unit length, (N, D) float32, to logits (N, C).

    Example:
        task = ClassificationTask(model, clipkit.LinearHead(weights))  # (C, D)
        Trainer(task, batches, TrainConfig(steps=1000), "run").fit()
    """

    def __init__(self, model: CLIP, head: nn.Module) -> None:
        super().__init__(model)
        self.head = head
        model.logit_scale.requires_grad_(False)
        model.text.requires_grad_(False)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of this process's images, a float32 scalar.

        Args:
            images: (N, 3, H, W) float32.
            labels: (N,) int64.
        """
        features = cached_features(self.model.encode_image, images, self.micro_batch)  # (N, D)
        with torch.autocast(images.device.type, enabled=False):
            logits = self.head(F.normalize(features.float(), dim=-1))  # (N, C)
            return F.cross_entropy(logits, labels)


class PromptTask(Task):
    """Train both towers on labeled images: the texts of the classes are encoded at every step.

    The loss is the cross-entropy of zero-shot classification. Where a class has several prompts,
    each step draws one of them. The temperature is locked.

    Args:
        model: the CLIP, for example from `clipkit.lora`.
        prompts: for each of C classes, its prompts.

    Example:
        task = PromptTask(clipkit.lora(model), [["a photo of a cat."], ["a photo of a dog."]])
        Trainer(task, batches, TrainConfig(steps=1000), "run").fit()
    """

    tokens: Tensor
    counts: Tensor

    def __init__(self, model: CLIP, prompts: Sequence[Sequence[str]]) -> None:
        super().__init__(model)
        model.logit_scale.requires_grad_(False)
        texts = [text for own in prompts for text in own]
        counts = torch.tensor([len(own) for own in prompts], device="cpu")  # (C,)
        # They are no part of what is learned, and so of no checkpoint.
        self.register_buffer("tokens", model.tokenizer(texts).cpu(), persistent=False)  # (T, L)
        self.register_buffer("counts", counts, persistent=False)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of this process's images, a float32 scalar.

        Args:
            images: (N, 3, H, W) float32.
            labels: (N,) int64.
        """
        tokens = self.tokens[self._draw()]  # (C, L)
        features = cached_features(self.model.encode_image, images, self.micro_batch)  # (N, D)
        texts = cached_features(self.model.encode_text, tokens, self.micro_batch)  # (C, D)
        with torch.autocast(images.device.type, enabled=False):
            cosines = F.normalize(features.float(), dim=-1) @ F.normalize(texts.float(), dim=-1).T
            return F.cross_entropy(self.model.logit_scale.float().exp() * cosines, labels)

    def _draw(self) -> Tensor:
        """Return the place of one prompt of each class among all of them, (C,) int64."""
        ends = self.counts.cumsum(dim=0)
        shares = torch.rand(len(ends), device="cpu").to(ends.device)
        return ends - 1 - (shares * self.counts).long()
