"""Fitting heads on the features of a few labelled pictures, the support set.

Every method takes features (N, D) of unit length and labels (N,), and gives a head and what it chose on the way. What
has to be chosen is chosen on the support set alone: by cross-validation where a class has several pictures, by a rule
that the docstring states where each has one. `anchored` is the default; the others are what it is compared with.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.classify.anchored import Fitted, anchored
from clipkit.classify.fitting import calibrate, class_means, make_folds, minimise
from clipkit.classify.heads import CacheHead, CosineHead, LinearHead, WeightedPromptHead
from clipkit.errors import ConfigError, DataError


def sample_shots(
    labels: Tensor | Sequence[int] | Sequence[str], shots: int, seed: int = 0
) -> Tensor:
    """Draw a balanced support set: so many pictures of each class, or all of a class that has fewer.

    Args:
        labels: (N,) int64, or N numbers or names.
        shots: pictures per class, at least 1.
        seed: the same one draws the same pictures.

    Returns:
        Indices (M,) into `labels`, class after class.

    Raises:
        ConfigError: for no labels or no shots.
    """
    if len(labels) == 0 or shots < 1:
        raise ConfigError(
            f"sample_shots needs labels and at least one shot, not {len(labels)} and {shots}"
        )
    if not isinstance(labels, Tensor):
        place: dict[int | str, int] = {label: i for i, label in enumerate(sorted(set(labels)))}
        labels = torch.tensor([place[label] for label in labels])
    generator = torch.Generator().manual_seed(seed)
    members = [(labels.cpu() == label).nonzero().flatten() for label in labels.unique().tolist()]
    return torch.cat(
        [own[torch.randperm(len(own), generator=generator)[:shots]] for own in members]
    )


def fit_head(
    features: Tensor,
    labels: Tensor,
    zero_shot: CosineHead,
    method: str = "anchored",
    seed: int = 0,
    **options: Any,
) -> Fitted:
    """Fit a head by the name of its method.

    Args:
        features: (N, D), of unit length.
        labels: (N,) int64, below the C classes of `zero_shot`. Classes may differ in number, and some have none.
        zero_shot: where to start. It is not changed.
        method: one of `METHODS`.
        seed: of the folds and of all that is drawn.
        options: of the method's own function.

    Returns:
        The head, in eval mode, and what was chosen for it.

    Raises:
        ConfigError: for another method, features of another width, or a single class.
        DataError: for no pictures, labels that are out of range, or features that are not finite.
    """
    check_method(method)
    if features.ndim != 2 or features.shape[1] != zero_shot.width:
        raise ConfigError(
            f"features must have shape (N, {zero_shot.width}), not {tuple(features.shape)}"
        )
    if zero_shot.classes < 2:
        raise ConfigError("there is a single class, so there is nothing to tell apart")
    if labels.ndim != 1 or len(labels) != len(features) or len(labels) == 0:
        raise DataError(
            f"there must be a label for each picture, and one at least, not {tuple(labels.shape)} labels"
        )
    if labels.is_floating_point() or labels.min() < 0 or labels.max() >= zero_shot.classes:
        found = f"{labels.dtype} from {labels.min()} to {labels.max()}"
        raise DataError(f"labels must be integers from 0 to {zero_shot.classes - 1}, not {found}")
    if not features.isfinite().all():
        raise DataError("some features are not finite")
    device = zero_shot.weight.device
    with (
        torch.random.fork_rng(devices=[]),
        torch.inference_mode(False),
    ):  # which also allows gradients
        torch.default_generator.manual_seed(
            seed
        )  # of the CPU, where all is drawn; other devices' are left alone
        # Copies, because what was made in inference mode cannot be trained on.
        features = features.detach().to(device, torch.float32, copy=True)
        head, chosen = METHODS[method](
            features, labels.to(device, torch.int64, copy=True), zero_shot, **options
        )
    return head.eval(), {"method": method, "pictures": len(labels)} | chosen


def check_method(method: str) -> None:
    """Raise `ConfigError` unless it is one of `METHODS`."""
    if method not in METHODS:
        raise ConfigError(f"method must be one of {', '.join(METHODS)}, not {method!r}")


def linear_probe(
    features: Tensor, labels: Tensor, zero_shot: CosineHead, C: float | None = None
) -> Fitted:
    """The CLIP paper's protocol (2103.00020, A.3): logistic regression by L-BFGS, with a sweep of the L2 strength.

    Minimised is C times the summed cross-entropy plus half the squared weights, biases free, as scikit-learn does.

    Args:
        features, labels: as in `fit_head`.
        zero_shot: for the number of classes only. One without pictures is never predicted.
        C: by default the best of 1e-6 to 1e6, in eighths of a decade, by the accuracy on a quarter of the pictures
            (half where classes have two) that is held out: coarse first, finer around the peak. 1 where each class has
            one picture.
    """
    if C is not None and not C > 0:
        raise ConfigError(f"C must be above 0, not {C!r}")
    present, inner = labels.unique(return_inverse=True)

    def fit(
        x: Tensor, y: Tensor, C: float, iterations: int, tolerance: float, *start: Tensor
    ) -> list[Tensor]:
        C = (
            C / 2 if len(present) == 2 else C
        )  # scikit-learn then has one row of weights, for the difference
        shapes = (len(present), x.shape[1]), (len(present),)
        weight, bias = (
            (s.to(x) for s in start) if start else (x.new_zeros(shape) for shape in shapes)
        )
        weight, bias = weight.requires_grad_(), bias.requires_grad_()
        unit = 1 / max(1.0, C * len(y))

        def loss() -> Tensor:
            penalty = weight.square().sum() / 2
            return unit * (C * F.cross_entropy(x @ weight.T + bias, y, reduction="sum") + penalty)

        minimise(loss, [weight, bias], iterations, tolerance)
        return [weight.detach(), bias.detach()]

    folds = make_folds(inner)[:1]
    if C is None and folds:
        rest, out = folds[0]
        scores: dict[float, float] = {}

        def score(exponent: float) -> float:
            if exponent not in scores:
                weight, bias = fit(features[rest], inner[rest], 10**exponent, 100, 1e-4)
                predicted = (features[out] @ weight.T + bias).argmax(dim=1)
                scores[exponent] = (predicted == inner[out]).double().mean().item()
            return scores[exponent]

        best, step = max(range(-6, 7, 2), key=score), 1.0
        while step >= 0.125:
            best = max((best, max(-6, best - step), min(6, best + step)), key=score)
            step /= 2
        C = 10.0**best
    C = 1.0 if C is None else C
    near = fit(features, inner, C, 1000, 1e-6)  # most of the way in float32, at half the price
    weight, bias = fit(features.double(), inner, C, 1000, 1e-9, *near)
    head = LinearHead(
        features.new_zeros(zero_shot.classes, zero_shot.width),
        features.new_full((zero_shot.classes,), -1e4),
    )
    head.weight.data[present], head.bias.data[present] = weight.float(), bias.float()
    return head, {"C": C}


def zero_shot_linear(
    features: Tensor, labels: Tensor, zero_shot: CosineHead, **options: Any
) -> Fitted:
    """A linear layer trained by SGD from the zero-shot weights, held to nothing. Options: those of `_sgd`."""
    return _sgd(features, labels, zero_shot, zero_shot.weight.detach(), **options)


def random_linear(
    features: Tensor, labels: Tensor, zero_shot: CosineHead, **options: Any
) -> Fitted:
    """The same from random weights of the same length. Options: those of `_sgd`."""
    start = F.normalize(torch.randn(zero_shot.weight.shape), dim=1).to(features.device)
    return _sgd(features, labels, zero_shot, start, **options)


def _sgd(
    features: Tensor,
    labels: Tensor,
    zero_shot: CosineHead,
    start: Tensor,
    epochs: int = 100,
    batch_size: int = 32,
    lr: float = 1e-3,
) -> Fitted:
    """SGD with momentum 0.9 on weight and bias, which the zero-shot temperature multiplies."""
    scale = zero_shot.logit_scale.detach().exp()
    weight, bias = start.clone().requires_grad_(), start.new_zeros(len(start), requires_grad=True)
    optimizer = torch.optim.SGD([weight, bias], lr=lr, momentum=0.9)
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).to(labels.device).split(batch_size):
            loss = F.cross_entropy(scale * (features[batch] @ weight.T + bias), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return LinearHead(scale * weight, scale * bias), {
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
    }


def prompt_weights(
    features: Tensor, labels: Tensor, zero_shot: CosineHead, captions: Tensor
) -> Fitted:
    """Learn how much each prompt of each class counts, and the temperature, by L-BFGS on the cross-entropy.

    Args:
        features, labels, zero_shot: as in `fit_head`.
        captions: (C, K, D), as for `WeightedPromptHead`; the weights are held to 1 / K by a penalty of half the squared
            relative change, which is one picture's worth.
    """
    if captions.ndim != 3 or captions.shape[::2] != zero_shot.weight.shape:
        needed = f"({zero_shot.classes}, K, {zero_shot.width})"
        raise ConfigError(f"captions must have shape {needed}, not {tuple(captions.shape)}")
    head = WeightedPromptHead(captions.to(features.device), zero_shot.logit_scale)
    even = head.prompt_weights.detach().clone()

    def loss() -> Tensor:
        change = (head.prompt_weights / even - 1).square().sum() / 2
        return F.cross_entropy(head(features), labels) + change / len(labels)

    minimise(loss, list(head.parameters()), 100)
    return head, {"scale": head.logit_scale.exp().item()}


def gaussian(
    features: Tensor, labels: Tensor, zero_shot: CosineHead, alpha: float | None = None
) -> Fitted:
    """Gaussian discriminant analysis added to zero-shot (2402.04087): one mean per class, one covariance for all.

    Args:
        features, labels, zero_shot: as in `fit_head`. A class without pictures keeps its zero-shot logits alone.
        alpha: what multiplies the Gaussian's logits; by default the best power of ten from 0.001 to 1,000 under
            cross-validation, and 1 where each class has one picture.
    """

    def discriminant(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        means, counts = class_means(x, y, zero_shot.classes)
        rest = (
            x - means[y] if counts.max() > 1 else x - x.mean(dim=0)
        )  # of one picture each there is no other scatter
        scatter = (rest.T @ rest).double()  # (n - 1) times the covariance
        identity = torch.eye(zero_shot.width, dtype=scatter.dtype, device=x.device)
        ridge = (scatter.trace() / max(1, len(x) - 1)).clamp(
            min=1e-6
        )  # the paper's empirical Bayes estimate, not 0
        weight = (
            zero_shot.width
            * torch.linalg.solve(scatter + ridge * identity, means.T.double()).T.float()
        )
        return weight, -(weight * means).sum(dim=1) / 2

    if alpha is None and (folds := make_folds(labels)):
        zero = torch.cat([zero_shot(features[out]) for _, out in folds]).detach()
        fitted = [(discriminant(features[rest], labels[rest]), out) for rest, out in folds]
        logits = torch.cat([features[out] @ weight.T + bias for (weight, bias), out in fitted])
        answers = torch.cat([labels[out] for _, out in folds])
        alpha = min(
            (10.0**i for i in range(-3, 4)),
            key=lambda a: calibrate(zero + a * logits, answers)[0].mean().item(),
        )
    alpha = 1.0 if alpha is None else alpha
    weight, bias = discriminant(features, labels)
    linear = zero_shot.to_linear()
    head = LinearHead(linear.weight + alpha * weight, linear.bias + alpha * bias)
    return head, {"alpha": alpha, "scale": zero_shot.logit_scale.exp().item()}


def cache(
    features: Tensor,
    labels: Tensor,
    zero_shot: CosineHead,
    alpha: float | None = None,
    beta: float | None = None,
) -> Fitted:
    """Tip-Adapter (2111.03930), without training.

    Args:
        features, labels, zero_shot: as in `fit_head`.
        alpha, beta: as in `CacheHead`; by default, the best of a grid under cross-validation, and the paper's 1 and 5.5
            where each class has one picture.
    """

    values = F.one_hot(labels, zero_shot.classes).float()
    if (alpha is None or beta is None) and (folds := make_folds(labels)):
        alphas = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0) if alpha is None else (alpha,)
        betas = (1.0, 3.0, 5.5, 10.0, 30.0) if beta is None else (beta,)
        zero = torch.cat([zero_shot(features[out]) for _, out in folds]).detach()
        answers = torch.cat([labels[out] for _, out in folds])
        near = [(features[out] @ features[rest].T - 1, values[rest]) for rest, out in folds]
        losses: dict[tuple[float, float], float] = {}
        for b in betas:
            logits = torch.cat([(b * similarity).exp() @ answer for similarity, answer in near])
            losses |= {
                (a, b): calibrate(zero + a * logits, answers)[0].mean().item() for a in alphas
            }
        alpha, beta = min(losses, key=lambda key: losses[key])
    alpha, beta = 1.0 if alpha is None else alpha, 5.5 if beta is None else beta
    numbers = (torch.tensor(value, device=features.device) for value in (alpha, beta))
    head = CacheHead(zero_shot.weight, zero_shot.logit_scale, features, values, *numbers)
    return head, {"alpha": alpha, "beta": beta}


def cache_finetuned(
    features: Tensor, labels: Tensor, zero_shot: CosineHead, epochs: int = 20, lr: float = 1e-3
) -> Fitted:
    """Tip-Adapter-F: the same, with its keys trained by AdamW. The last epoch is taken, not the best on other data."""
    head, chosen = cache(features, labels, zero_shot)
    optimizer = torch.optim.AdamW(head.parameters(), lr=lr, eps=1e-4)
    batches = math.ceil(len(labels) / 256)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).to(labels.device).split(256):
            optimizer.zero_grad()
            F.cross_entropy(head(features[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    return head, chosen | {"epochs": epochs, "lr": lr}


_FITS = (
    anchored,
    linear_probe,
    zero_shot_linear,
    random_linear,
    prompt_weights,
    gaussian,
    cache,
    cache_finetuned,
)
METHODS: dict[str, Callable[..., Fitted]] = {fit.__name__: fit for fit in _FITS}
