"""One Gaussian for each class, around a mean that its text predicts and its images correct."""

import torch
from torch import Tensor

from clipkit.classify.fitting import class_means
from clipkit.classify.precision import as_float64, restored
from clipkit.classify.scatter import SMALLEST, shrunk_spectrum, span

ROUNDS = 3  # of means and scatter, each computed from the other; more change nothing
_FEWEST = 0.05  # of a direction's scatter is never thought to be hidden by the fitted means


class GaussianExpert:
    """Hold Gaussians of all classes, with means of their own and one covariance S.

    The text of class c predicts the mean t S w, counted from the mean of all classes: then the
    likeliest class is that of the highest t x w, less what the length of the mean takes away. Its n
    images correct the mean, in each direction of S by the share

        n r sqrt(e) / (1 + n r sqrt(e))

    where e is the variance in that direction over the mean of all variances. That is the posterior
    mean if a class lies off its text by a variance r sqrt(e) times that of its images.

    S is the scatter of the images around means that are corrected by these shares from the mean of
    all classes, as if texts predicted nothing. Such means need S, so each is computed from the
    other for some rounds. S is shrunk (see `shrinkage`), and what the means hide of it is made up
    for (see `_Spectrum`).

    Args:
        features: (N, D), of unit length.
        labels: (N,) int64.
        start: W, (C, D), the text of each class.
        scale: t, the temperature of the texts.

    Attributes:
        weight: (C, D); weight, bias of the linear layer that computes the logits. Until the first
            fit they are those of zero-shot.
        bias: (C,).
    """

    def __init__(self, features: Tensor, labels: Tensor, start: Tensor, scale: float) -> None:
        means, counts = class_means(features, labels, len(start))
        self.original = features
        self.scale = scale
        self.counts = as_float64(counts)  # (C,)
        self.present = self.counts > 0  # (C,)
        self.center = as_float64(means)[self.present].mean(dim=0)  # (D,)
        self.middle = as_float64(start).mean(dim=0)  # (D,)
        rows = as_float64(features) - self.center  # (N, D)
        texts = as_float64(start) - self.middle  # (C, D)
        self.basis = span(torch.cat([rows, texts]))  # (D, d)
        self.features = rows @ self.basis  # (N, d)
        self.texts = texts @ self.basis  # (C, d)
        own = (as_float64(means) - self.center) * self.present[:, None]  # (C, D)
        self.own = own @ self.basis  # (C, d)
        self.labels = labels.to(rows.device)
        self.means = torch.zeros_like(self.own)  # (C, d)
        self.shrunk = torch.zeros_like(self.own)  # (C, d), the means if texts predicted nothing
        self.gains = torch.zeros_like(self.own)  # (C, d), the shares above
        self.spectrum = _Spectrum(rows.shape[1])
        self.weight = scale * start
        self.bias = start.new_zeros(len(start))

    def fit(self, distance: float, rounds: int = 1) -> None:
        """Fit means and scatter, from where the last fit ended.

        Args:
            distance: r, how far classes lie from their texts.
            rounds: of means and scatter.
        """
        for _ in range(rounds):
            self._find_scatter(distance)
        values, vectors = self.spectrum.values, self.spectrum.vectors
        predicted = self.scale * ((self.texts @ vectors) * values) @ vectors.T  # (C, d)
        self.means = self._corrected(predicted)
        self._make_layer(predicted)

    def _find_scatter(self, distance: float) -> None:
        """Find S around the means as they are, and the means again.

        Around means that texts predict from S itself, S would grow from round to round.
        """
        self.spectrum.find(self.features - self.shrunk[self.labels])
        self.gains = self.spectrum.gains(self.counts, distance)  # (C, d)
        self.shrunk = self._corrected(torch.zeros_like(self.own))

    def _corrected(self, predicted: Tensor) -> Tensor:
        """Return means (C, d) moved towards those of the images, by direction of S."""
        vectors = self.spectrum.vectors
        return predicted + (self.gains * ((self.own - predicted) @ vectors)) @ vectors.T

    def _make_layer(self, predicted: Tensor) -> None:
        """Set the linear layer of the Gaussians' logits.

        The square of a mean that images corrected is longer, by chance the more the fewer they are,
        and chance is taken off. What remains is how far classes lie off their texts. Classes
        without images do too, so they lose what the others lose on average. Terms that are the same
        for all classes are left out, so the weights of a class of which nothing is known but its
        text are t w. Its bias is not zero: a long mean takes likelihood away.

        Args:
            predicted: the means (C, d) that the texts alone predict.
        """
        vectors = self.spectrum.vectors
        weight = ((self.means @ vectors) / self.spectrum.values) @ vectors.T  # (C, d)
        squares = (weight * self.means).sum(dim=1) / 2 - self.spectrum.noise / 2  # (C,)
        before = self.scale * (self.texts * predicted).sum(dim=1) / 2  # (C,), by the text alone
        longer = (squares - before)[self.present].mean()
        squares = torch.where(self.present, squares, before + longer)
        weight = weight @ self.basis.T  # (C, D)
        bias = -squares - weight @ self.center
        self.weight = restored(weight + self.scale * self.middle, self.original)
        self.bias = restored(bias - bias.mean(), self.original)


class _Spectrum:
    """Hold the variances and directions of the scatter S, of which d of D directions have data.

    In the other directions no image differs from another and no text from another. There S is what
    it was shrunk to, one number.

    Args:
        width: D.

    Attributes:
        values: (d,), the variances.
        vectors: (d, d), the directions, in columns.
        noise: how much longer chance makes the square of each class's mean, (C,), in units of S.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        # (d,), the share of a variance that the means hide, the smallest variance first
        self.fitted: Tensor | None = None
        self.fitted_beyond = 0.0  # the same in the other directions
        self.mean_fitted = 0.0

    def find(self, rest: Tensor) -> None:
        """Find S from what is left of the features around the means of their classes, (N, d).

        The fitted means hide a part of the scatter, which is made up for: of the smallest variance
        what they hid of the smallest before, and so on. Where all variances are shrunk to one, none
        is the smallest, and all are made up for alike.
        """
        count = len(rest)
        freedom = max(1.0, count * (1 - self.mean_fitted) - 1)
        covariance = rest.T @ rest / count
        values, vectors, share, further = shrunk_spectrum(covariance, self.width, freedom)
        fitted, beyond = self.fitted, self.fitted_beyond
        if fitted is None or share == 1:
            fitted, beyond = torch.full_like(values, self.mean_fitted), self.mean_fitted
        self.values = values / (1 - fitted).clamp(min=_FEWEST)
        self.vectors = vectors
        self.beyond = max(further.item(), SMALLEST) / max(1 - beyond, _FEWEST)
        self.count = count

    def gains(self, counts: Tensor, distance: float) -> Tensor:
        """Return by which share images correct the mean of their class, (C, d), by direction.

        Args:
            counts: of images, (C,).
            distance: r, how far classes lie from their texts.
        """
        others = self.width - len(self.values)
        mean = (self.values.sum().item() + others * self.beyond) / self.width

        def share(variances: Tensor) -> Tensor:
            ratio = counts[:, None] * distance * (variances / mean).sqrt()
            return ratio / (1 + ratio)

        gains = share(self.values)  # (C, d)
        beyond = share(self.values.new_tensor([self.beyond]))  # (C, 1)
        chance = gains.square().sum(dim=1) + others * beyond.square()[:, 0]  # (C,)
        self.noise = chance / counts.clamp(min=1)
        self.fitted = gains.sum(dim=0) / self.count
        self.fitted_beyond = beyond.sum().item() / self.count
        total = self.fitted.sum().item() + others * self.fitted_beyond
        self.mean_fitted = total / self.width
        return gains
