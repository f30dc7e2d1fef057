"""Linear layers trained by gradient descent, from the zero-shot weights or from random ones."""

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.classify.fitting import Fitted, shuffled_batches
from clipkit.classify.heads import CosineHead, LinearHead


def zero_shot_linear(
    features: Tensor,
    labels: Tensor,
    zero_shot: CosineHead,
    generator: torch.Generator,
    *,
    epochs: int = 100,
    lr: float = 1e-3,
    sgd_batch_size: int = 32,
) -> Fitted:
    """Train a linear layer from the zero-shot weights; nothing holds it to them.

    WiSE-FT (2109.01903) starts its linear classifiers so.

    Args:
        features, labels, zero_shot: as in `fit_head`.
        generator: draws the order of the images.
        epochs: passes over the support set, from 0.
        lr: learning rate, from 0. It is constant.
        sgd_batch_size: images in a step.

    Returns:
        A `LinearHead`, and the settings. None is chosen on the support set.
    """
    start = zero_shot.weight.detach()
    return _train(features, labels, zero_shot, generator, start, epochs, lr, sgd_batch_size)


def random_linear(
    features: Tensor,
    labels: Tensor,
    zero_shot: CosineHead,
    generator: torch.Generator,
    *,
    epochs: int = 100,
    lr: float = 1e-3,
    sgd_batch_size: int = 32,
) -> Fitted:
    """Train the same as `zero_shot_linear`, from random weights of the same length.

    It is a control: it shows what the texts are worth as a start. `zero_shot` gives the number of
    classes and the temperature, and the arguments are the same.
    """
    drawn = torch.randn(
        zero_shot.weight.shape, generator=generator, dtype=torch.float32, device="cpu"
    )
    start = F.normalize(drawn, dim=1).to(features.device)
    return _train(features, labels, zero_shot, generator, start, epochs, lr, sgd_batch_size)


def _train(
    features: Tensor,
    labels: Tensor,
    zero_shot: CosineHead,
    generator: torch.Generator,
    start: Tensor,
    epochs: int,
    lr: float,
    batch_size: int,
) -> Fitted:
    """Train weight and bias by SGD with momentum 0.9; the zero-shot temperature multiplies both."""
    scale = zero_shot.logit_scale.detach().exp()
    weight = start.clone().requires_grad_()
    bias = start.new_zeros(len(start), requires_grad=True)
    optimizer = torch.optim.SGD([weight, bias], lr=lr, momentum=0.9)
    for _ in range(epochs):
        for batch in shuffled_batches(len(labels), batch_size, generator, labels.device):
            loss = F.cross_entropy(scale * (features[batch] @ weight.T + bias), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    head = LinearHead(scale * weight, scale * bias)
    return head, {"epochs": epochs, "batch_size": batch_size, "lr": lr}
