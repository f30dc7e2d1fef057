"""Several labels at once: the sigmoids beside scikit-learn's, and thresholds by trying them all."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import f1_score
from torch import Tensor

from clipkit.classify.contrast import contrast
from clipkit.classify.presence import Presence, fit_presence

CLASSES = 5


class Decision(ClassifierMixin, BaseEstimator):
    """Take its single input for what it has decided."""

    def fit(self, X: Any, y: Any) -> "Decision":
        """Learn nothing but the names of the classes."""
        self.classes_ = np.array([0, 1])
        return self

    def predict(self, X: Any) -> Any:
        """Return the class that the input stands for."""
        return (X[:, 0] > 0).astype(int)

    def decision_function(self, X: Any) -> Any:
        """Return the input."""
        return X[:, 0]


def draw(count: int = 300, seed: int = 0, shift: float = 3.0) -> tuple[Tensor, Tensor]:
    """Return logits (N, 5) and truth (N, 5), in which a label with a higher logit is likelier."""
    random = torch.Generator().manual_seed(seed)
    rates = torch.tensor([0.5, 0.3, 0.2, 0.1, 0.05])
    truth = torch.rand(count, CLASSES, generator=random) < rates
    logits = 20 + 2 * torch.randn(count, CLASSES, generator=random) + shift * truth
    return logits, truth


def by_sklearn(column: Tensor, truth: Tensor) -> Any:
    """Return the probabilities of Platt's sigmoid as scikit-learn fits it."""
    rows = column.double().numpy()[:, None]
    labels = truth.numpy().astype(int)
    frozen = FrozenEstimator(Decision().fit(rows, labels))
    fitted = CalibratedClassifierCV(frozen, method="sigmoid").fit(rows, labels)
    return fitted.predict_proba(rows)[:, 1]


def test_sigmoids_are_those_of_scikit_learn() -> None:
    logits, truth = draw()
    presence = fit_presence(logits, truth)
    shares = presence.probabilities(logits)
    columns = contrast(logits)
    for label in range(CLASSES):
        expected = by_sklearn(columns[:, label], truth[:, label])
        np.testing.assert_allclose(shares[:, label].numpy(), expected, atol=2e-4)
    assert presence.images == 300
    assert shares.max() - shares.min() > 0.5  # else it would prove little


def test_thresholds_have_the_best_f1_of_all() -> None:
    logits, truth = draw(seed=1)
    presence = fit_presence(logits, truth)
    shares = presence.probabilities(logits)
    for label in range(CLASSES):
        own, right = shares[:, label], truth[:, label].numpy()
        tried = [f1_score(right, (own >= one).numpy()) for one in own.tolist()]
        found = f1_score(right, (own > presence.thresholds[label]).numpy())
        assert found == pytest.approx(max(tried))


def test_equal_probabilities_are_not_parted() -> None:
    logits = torch.tensor([[8.0, 0.0]] * 4 + [[4.0, 0.0]] * 4)
    truth = torch.tensor([[True, False]] * 3 + [[False, False]] * 5)
    presence = fit_presence(logits, truth)
    shares = presence.probabilities(logits)[:, 0]
    assert shares[4] < presence.thresholds[0] < shares[0]
    torch.testing.assert_close(presence.thresholds[0], (shares[0] + shares[4]) / 2)


def test_a_class_in_no_image_is_never_present() -> None:
    logits, truth = draw()
    truth[:, 2] = False
    presence = fit_presence(logits, truth)
    assert presence.thresholds[2] == 1
    far = torch.zeros(1, CLASSES)
    far[0, 2] = 1e6
    assert not (presence.probabilities(far) > presence.thresholds)[0, 2]
    assert presence.probabilities(logits)[:, 2].max() < 0.01


def test_a_class_in_every_image_is_always_present() -> None:
    logits, truth = draw()
    truth[:, 2] = True
    presence = fit_presence(logits, truth)
    assert (presence.probabilities(logits)[:, 2] > presence.thresholds[2]).all()
    assert presence.probabilities(logits)[:, 2].min() > 0.99


def test_a_logit_that_says_the_contrary_says_nothing() -> None:
    logits, truth = draw(shift=-3.0)
    presence = fit_presence(logits, truth)
    assert presence.slopes.tolist() == [0.0] * CLASSES
    shares = presence.probabilities(logits)
    smoothed = (truth.sum(dim=0) + 1) / (truth.sum(dim=0) + 2)
    targets = torch.where(truth, smoothed, 1 / ((~truth).sum(dim=0) + 2))
    torch.testing.assert_close(shares[0], targets.mean(dim=0), rtol=1e-4, atol=1e-5)


def test_a_rare_class_of_which_logits_say_nothing_is_in_no_image() -> None:
    """The highest F1 said that it is in every one."""
    logits, truth = draw(shift=-3.0)
    truth[:, 0] = True
    truth[:60, 0] = False
    logits[:, 0] = 20
    presence = fit_presence(logits, truth)
    said = presence.probabilities(logits) > presence.thresholds
    assert presence.slopes[1:].tolist() == [0.0] * (CLASSES - 1)
    assert said[:, 0].all()  # four in five images have it
    assert not said[:, 1:].any()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_every_scale_of_logits_gives_the_same(scale: float) -> None:
    logits, truth = draw()
    expected = fit_presence(logits, truth).probabilities(logits)
    found = fit_presence(scale * logits, truth).probabilities(scale * logits)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_classes_that_are_told_apart_have_finite_sigmoids() -> None:
    truth = torch.eye(CLASSES, dtype=torch.bool).repeat(3, 1)
    presence = fit_presence(50.0 * truth, truth)
    shares = presence.probabilities(50.0 * truth)
    assert presence.slopes.isfinite().all()
    assert presence.offsets.isfinite().all()
    torch.testing.assert_close(shares[truth], torch.full((15,), 0.8), rtol=0, atol=1e-3)
    torch.testing.assert_close(shares[~truth], torch.full((60,), 1 / 14), rtol=0, atol=1e-3)


def test_one_image_and_equal_logits() -> None:
    presence = fit_presence(torch.ones(1, 3), torch.tensor([[True, False, False]]))
    assert presence.slopes.tolist() == [0.0, 0.0, 0.0]
    shares = presence.probabilities(torch.ones(2, 3))
    torch.testing.assert_close(shares[0], torch.tensor([2 / 3, 1 / 3, 1 / 3]))


def test_probabilities_are_sigmoids_of_the_contrast() -> None:
    given = [torch.tensor(row) for row in ([1.0, 2.0], [0.5, -1.0], [0.5, 0.5])]
    presence = Presence(*given, images=1)
    shares = presence.probabilities(torch.tensor([[2.0, 6.0]]))  # contrast -1 and 3
    expected = 1 / (1 + np.exp([0.5, -5.0]))
    np.testing.assert_allclose(shares[0].numpy(), expected, rtol=1e-5)


def heavy_tails(count: int = 50) -> tuple[Tensor, Tensor]:
    """Return logits (N, 6) with a few that are far from all others, and rare labels (N, 6).

    Newton's whole steps lead away from the best sigmoids here.
    """
    random = torch.Generator().manual_seed(36)
    logits = 10 * torch.randn(count, 6, generator=random).double().clamp(-1.55, 1.55).tan()
    truth = torch.zeros(count, 6, dtype=torch.bool)
    for label in range(6):
        rare = int(torch.randint(1, 4, (1,), generator=random))
        truth[logits[:, label].topk(rare).indices, label] = True
    return logits.float(), truth


def test_sigmoids_are_the_best_where_logits_are_far_from_each_other() -> None:
    logits, truth = heavy_tails()
    presence = fit_presence(logits, truth)
    columns = contrast(logits.double()).numpy()
    for label in range(6):
        right = truth[:, label].numpy()
        rare, others = right.sum(), (~right).sum()
        targets = np.where(right, (rare + 1) / (rare + 2), 1 / (others + 2))
        own = columns[:, label]

        def loss(parameters: Any, own: Any = own, targets: Any = targets) -> float:
            scores = parameters[0] * own + parameters[1]
            return float((np.logaddexp(0, scores) - targets * scores).sum())

        found = loss((presence.slopes[label].item(), presence.offsets[label].item()))
        prior = (0.0, float(np.log(targets.mean() / (1 - targets.mean()))))
        best: Any = minimize(loss, prior, method="Nelder-Mead", options={"xatol": 1e-9})
        assert found < best.fun + 1e-4
        assert found < loss(prior) - 0.01  # else a constant would do as well
