"""CLAP: a linear probe of unit length held to the texts, class by class."""

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.classify.fitting import Fitted, shuffled_batches
from clipkit.classify.heads import CosineHead

_BATCH = 256
_MOMENTUM = 0.9


def clap(
    features: Tensor,
    labels: Tensor,
    zero_shot: CosineHead,
    generator: torch.Generator,
    *,
    epochs: int = 300,
    lr: float = 0.1,
) -> Fitted:
    """Fit CLAP (2312.12730): prototypes are trained from the texts on, and held to them.

    logits = exp(logit_scale) x V^T, where rows of V are scaled to unit length

    Minimized over V is the mean cross-entropy, plus the mean over the classes of l |v - w|^2, where
    w is the text of the class. l is the mean probability that zero-shot gives to the images of the
    class: the better a text, the more it holds. A class without images has the mean of the others.
    The paper sees each image cropped anew in each epoch; here its features are what they are.

    Args:
        features, labels, zero_shot: as in `fit_head`.
        generator: draws the batches, of 256 images.
        epochs: from 0, with a learning rate that falls as a cosine does.
        lr: the first learning rate of SGD with momentum 0.9.

    Returns:
        A `CosineHead`, epochs and lr.
    """
    start = zero_shot.weight.detach()  # W, (C, D)
    scale = zero_shot.logit_scale.detach().exp()
    hold = _multipliers(scale * features @ start.T, labels)  # l, (C,)
    weight = start.clone().requires_grad_()  # V, (C, D)
    optimizer = torch.optim.SGD([weight], lr=lr, momentum=_MOMENTUM)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, epochs))
    for _ in range(epochs):
        for batch in shuffled_batches(len(labels), _BATCH, generator, features.device):
            logits = scale * features[batch] @ F.normalize(weight, dim=1).T
            away = (hold * (weight - start).square().sum(dim=1)).mean()
            optimizer.zero_grad()
            (F.cross_entropy(logits, labels[batch]) + away).backward()
            optimizer.step()
        schedule.step()
    head = CosineHead(F.normalize(weight.detach(), dim=1), zero_shot.logit_scale)
    return head, {"epochs": epochs, "lr": lr}


def _multipliers(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean probability (C,) that logits (N, C) give to the images of each class."""
    classes = logits.shape[1]
    own = logits.softmax(dim=1).gather(1, labels[:, None])[:, 0]  # (N, C) -> (N, 1) -> (N,)
    counts = labels.bincount(minlength=classes)  # (C,)
    means = own.new_zeros(classes).index_add(0, labels, own) / counts.clamp(min=1)
    return torch.where(counts > 0, means, means[counts > 0].mean())
