"""clipkit.classify.anchored against SciPy and scikit-learn, and on features whose best answer is known."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.classify.anchored import STRENGTHS, _scatter, anchored
from clipkit.classify.few_shot import fit_head
from clipkit.classify.fitting import FOLDS, make_folds
from clipkit.classify.heads import CosineHead, Head
from clipkit.classify.metrics import accuracy as share_of
from clipkit.classify.metrics import expected_calibration_error
from clipkit.errors import ConfigError

covariance = pytest.importorskip("sklearn.covariance")
linear_model = pytest.importorskip("sklearn.linear_model")
optimize = pytest.importorskip("scipy.optimize")


class World:
    """Classes as Gaussian clouds around centres, in directions that differ in noise; texts near the centres.

    Args:
        classes, width: C, D.
        noise: of pictures around their class's centre.
        gap: of texts around it; infinite for texts that tell nothing.
    """

    def __init__(self, classes: int, width: int, noise: float, gap: float, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.centres = self.random.normal(size=(classes, width))
        self.noise = noise * np.linspace(0.3, 2, width)
        texts = self.random.normal(size=(classes, width))
        if math.isfinite(gap):
            texts = self.centres + gap * texts
        self.zero_shot = CosineHead(
            F.normalize(torch.tensor(texts), dim=1), torch.tensor(math.log(100))
        )

    def draw(self, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """So many pictures of each class: features (N, D) float32 of unit length, and labels (N,)."""
        labels = np.repeat(np.arange(len(counts)), counts)
        features = self.centres[labels] + self.noise * self.random.normal(
            size=(len(labels), self.centres.shape[1])
        )
        order = self.random.permutation(len(labels))
        return F.normalize(torch.tensor(features[order]).float(), dim=1), torch.tensor(
            labels[order]
        )


def accuracy(head: Head, features: Tensor, labels: Tensor) -> float:
    return share_of(head(features).argmax(dim=1), labels)


# The formula

COUNTS = [
    (9, 2, 5, 1, 7, 3),
    (4, 4, 4, 4, 4, 4),
    (30, 2, 2, 2, 2, 2),
    (3, 0, 1, 6, 0, 4),
    (2, 1, 1, 1, 1, 1),
    (1,) * 6,
]


def scatter_of(x: np.ndarray, y: np.ndarray) -> np.ndarray | None:
    """scikit-learn's estimate from the pictures of classes that have several."""
    rows = [x[y == c] - x[y == c].mean(axis=0) for c in np.unique(y) if (y == c).sum() > 1]
    return (
        covariance.LedoitWolf(assume_centered=True).fit(np.concatenate(rows)).covariance_
        if rows
        else None
    )


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.log(np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)) + (
        logits.max(axis=1) - logits[np.arange(len(labels)), labels]
    )


def temperature(logits: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """The factor with the lowest loss, all pictures and half a mistaken one counted; and the loss of each picture."""
    mean = np.sort(logits, axis=1)[:, ::-1].mean(axis=0)[None]

    def loss(log_scale: float) -> float:
        s = np.exp(log_scale)
        return (
            cross_entropy(s * logits, labels).sum() + cross_entropy(s * mean, np.array([1]))[0] / 2
        )

    s = np.exp(
        optimize.minimize_scalar(loss, bounds=(-6, 6), method="bounded", options={"xatol": 1e-8}).x
    )
    return s, cross_entropy(s * logits, labels)


class Oracle:
    """The objective that the docstring states, in float64, minimised by SciPy."""

    def __init__(self, features: Tensor, labels: Tensor, zero_shot: CosineHead) -> None:
        self.x, self.y = features.double().numpy(), labels.numpy()
        self.w = zero_shot.weight.detach().double().numpy()
        self.onehot = np.eye(len(self.w))[self.y]
        counts = np.bincount(self.y, minlength=len(self.w))
        self.share = (
            len(self.y) / (counts > 0).sum() / counts[self.y]
        )  # each class counts alike, their sum is N
        self.t, _ = temperature(self.x @ self.w.T, self.y)
        self.metric = np.eye(self.x.shape[1])
        scatter = scatter_of(self.x, self.y)
        if scatter is not None:
            values, vectors = np.linalg.eigh(scatter)
            self.metric = vectors @ np.diag(np.maximum(values, 1e-12) ** -0.5) @ vectors.T
            self.metric *= np.linalg.norm(self.x) / np.linalg.norm(self.x @ self.metric)
        self.z = self.x @ self.metric

    def fit(self, strength: float) -> np.ndarray:
        def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
            moved = flat.reshape(self.w.shape)
            logits = self.t * self.x @ self.w.T + self.z @ moved.T
            chances = np.exp(logits - logits.max(axis=1, keepdims=True))
            slope = self.share[:, None] * (
                chances / chances.sum(axis=1, keepdims=True) - self.onehot
            )
            loss = (self.share * cross_entropy(logits, self.y)).sum() + strength / 2 * (
                moved**2
            ).sum()
            return loss, (slope.T @ self.z + strength * moved).ravel()

        found = optimize.minimize(
            objective, np.zeros(self.w.size), jac=True, method="L-BFGS-B",
            options={"ftol": 1e-15, "gtol": 1e-8, "maxiter": 10000, "maxfun": 10000},
        )  # fmt: skip
        return self.t * self.w + found.x.reshape(self.w.shape) @ self.metric


@pytest.mark.parametrize("counts", COUNTS[:5])
@pytest.mark.parametrize("width", [3, 12, 40])
def test_scatter_against_sklearn(counts: Any, width: int) -> None:
    features, labels = World(6, width, 0.9, 1).draw(counts)
    found = _scatter(features, labels, 6)
    assert found is not None
    np.testing.assert_allclose(
        found, scatter_of(features.double().numpy(), labels.numpy()), rtol=1e-4, atol=1e-7
    )


def test_no_scatter_in_single_pictures() -> None:
    assert _scatter(*World(6, 12, 0.9, 1).draw((1, 0, 1, 1, 1, 1)), 6) is None


@pytest.mark.parametrize("counts", COUNTS)
def test_minimum_against_scipy(counts: Any) -> None:
    world = World(6, 12, 0.9, 1)
    features, labels = world.draw(counts)
    oracle = Oracle(features, labels, world.zero_shot)
    for strength in (10, 1, 0.1, 0.01):
        head, chosen = fit_head(features, labels, world.zero_shot, strength=strength)
        assert (
            chosen["scale"] == pytest.approx(oracle.t, rel=1e-5) and chosen["strength"] == strength
        )
        expected = oracle.fit(strength)
        off = (
            np.abs(head.to_linear().weight.detach().numpy() - expected).max()
            / np.abs(expected).max()
        )
        assert off < 5e-3, (strength, off)
        assert not head.to_linear().bias.any()


@pytest.mark.parametrize(
    "noise, gap, seed, counts, clear",
    [
        (0.9, 0.7, 0, (9, 2, 5, 1, 7, 3), True),
        (1.5, 0.5, 1, (4, 4, 3, 5, 4, 4), True),
        (1.5, 0.5, 9, (4, 4, 3, 5, 4, 4), False),
        (2.0, 0.3, 9, (4, 4, 3, 5, 4, 4), False),
    ],
)
def test_choice_against_scipy(noise, gap, seed: int, counts: Any, clear) -> None:
    """Cross-validation all over again: the lowest held-out loss, if clearly below zero-shot's, and the best factor."""
    world = World(6, 12, noise, gap, seed)
    features, labels = world.draw(counts)
    _, chosen = fit_head(features, labels, world.zero_shot, seed=3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        folds = make_folds(labels)
    y = np.concatenate([labels[out].numpy() for _, out in folds])
    oracles = [
        (Oracle(features[r], labels[r], world.zero_shot), features[out].double().numpy())
        for r, out in folds
    ]
    results = {}
    for strength in (math.inf, *STRENGTHS):
        weights = [
            one.t * one.w if math.isinf(strength) else one.fit(strength) for one, _ in oracles
        ]
        logits = np.concatenate([x @ w.T for (_, x), w in zip(oracles, weights, strict=True)])
        results[strength] = temperature(logits, y)
    best = min(results, key=lambda strength: results[strength][1].mean())
    gain = results[math.inf][1] - results[best][1]
    assert best < 10 and (gain.mean() > gain.std(ddof=1) / math.sqrt(len(gain))) == clear
    if clear:  # its neighbours may be as good
        assert results[chosen["strength"]][1].mean() == pytest.approx(
            results[best][1].mean(), rel=1e-3
        )
    else:
        assert chosen["strength"] == math.inf
    whole = Oracle(features, labels, world.zero_shot)
    assert chosen["scale"] == pytest.approx(whole.t * results[chosen["strength"]][0], rel=1e-2)


def test_single_pictures_follow_the_rule() -> None:
    world = World(6, 12, 0.9, 1)
    for counts in ((1,) * 6, (1, 0, 1, 1, 0, 1)):
        features, labels = world.draw(counts)
        head, chosen = fit_head(features, labels, world.zero_shot)
        t = Oracle(features, labels, world.zero_shot).t
        scores = t * (features.double() @ world.zero_shot.weight.double().T).detach().numpy()
        loss = (
            np.log(np.exp(scores).sum(axis=1)).mean()
            - scores[np.arange(len(scores)), labels.numpy()].mean()
        )
        assert chosen["strength"] == pytest.approx(0.03 / (loss / math.log(6)) ** 3, rel=1e-4)
        assert chosen["scale"] == pytest.approx(t, rel=1e-5)
        same, _ = fit_head(features, labels, world.zero_shot, strength=chosen["strength"])
        assert same.to_linear().weight.equal(head.to_linear().weight)


# Strength


def test_the_rule_has_a_limit() -> None:
    """Texts that leave no doubt at all do not make the strength infinite."""
    zero_shot = CosineHead(torch.eye(40), torch.tensor(1.0))
    _, chosen = fit_head(torch.eye(40), torch.arange(40), zero_shot)
    assert chosen["strength"] == pytest.approx(0.03 / 0.03**3)


def test_from_zero_shot_to_a_free_fit() -> None:
    world = World(8, 16, 1.5, 1)
    features, labels = world.draw((5,) * 8)
    others, _ = world.draw((50,) * 8)
    zero_shot = world.zero_shot(others).argmax(dim=1)
    for strength in (math.inf, 1e9):
        head, chosen = fit_head(features, labels, world.zero_shot, strength=strength)
        assert chosen["strength"] == strength
        assert head(others).argmax(dim=1).equal(zero_shot)
        torch.testing.assert_close(
            head(others) / chosen["scale"], world.zero_shot(others) / 100, rtol=0, atol=1e-5
        )
    moved = [
        (
            fit_head(features, labels, world.zero_shot, strength=strength)[0](others).argmax(dim=1)
            != zero_shot
        ).sum()
        for strength in (100.0, 1.0, 0.01)
    ]
    assert 0 <= moved[0] < moved[1] < moved[2]
    assert accuracy(world.zero_shot, features, labels) < 1
    assert (
        accuracy(fit_head(features, labels, world.zero_shot, strength=1e-5)[0], features, labels)
        == 1
    )


@pytest.mark.parametrize("strength", [0, -1, -math.inf, math.nan])
def test_impossible_strength(strength) -> None:
    world = World(3, 4, 1, 1)
    with pytest.raises(ConfigError, match=f"strength must be above 0, not {strength}"):
        fit_head(*world.draw((2, 2, 2)), world.zero_shot, strength=strength)


# What it is for


@pytest.mark.parametrize("shots", [1, 4, 8])
def test_not_misled_by_noisy_pictures(shots: int) -> None:
    """Texts are right, and pictures nearly all noise: it stays near zero-shot, where a free fit is lost."""
    for seed in range(3):
        world = World(10, 64, 4.0, 0, seed)
        support, others = world.draw((shots,) * 10), world.draw((100,) * 10)
        zero_shot = accuracy(world.zero_shot, *others)
        assert zero_shot > 0.45
        assert accuracy(fit_head(*support, world.zero_shot)[0], *others) >= zero_shot - 0.01
        assert (
            accuracy(fit_head(*support, world.zero_shot, strength=1e-4)[0], *others)
            < zero_shot - 0.03
        )


def test_zero_shot_itself_is_a_candidate() -> None:
    world = World(10, 64, 8.0, 0, seed=2)
    support, (others, _) = world.draw((4,) * 10), world.draw((100,) * 10)
    head, chosen = fit_head(*support, world.zero_shot)
    assert chosen["strength"] == math.inf
    assert head(others).argmax(dim=1).equal(world.zero_shot(others).argmax(dim=1))


def test_not_misled_by_texts() -> None:
    """Texts tell nothing: it becomes a probe."""
    world = World(8, 24, 1.0, math.inf)
    support, others = world.draw((16,) * 8), world.draw((100,) * 8)
    head, _ = fit_head(*support, world.zero_shot)
    probe = linear_model.LogisticRegression(C=10, max_iter=1000).fit(*(x.numpy() for x in support))
    assert accuracy(world.zero_shot, *others) < 0.3
    assert accuracy(head, *others) >= probe.score(*(x.numpy() for x in others)) - 0.02 > 0.7


def test_better_than_both() -> None:
    """Texts tell something: with each number of pictures, better than zero-shot and than a probe."""
    world = World(10, 48, 1.5, 1)
    others = world.draw((100,) * 10)
    for shots in (1, 2, 4, 8):
        support = world.draw((shots,) * 10)
        head, _ = fit_head(*support, world.zero_shot)
        probe = linear_model.LogisticRegression(C=10, max_iter=1000).fit(
            *(x.numpy() for x in support)
        )
        best = max(accuracy(world.zero_shot, *others), probe.score(*(x.numpy() for x in others)))
        assert accuracy(head, *others) > best - 0.005, shots


@pytest.mark.parametrize("shots", [2, 4, 8])
def test_calibration(shots: int) -> None:
    """The factor of cross-validation makes held-out probabilities no worse than the fit's own."""
    results = []
    for seed in range(4):
        world = World(10, 48, 2.5, 1, seed)
        features, labels = world.draw((shots,) * 10)
        others, answers = world.draw((200,) * 10)
        head, chosen = fit_head(features, labels, world.zero_shot)
        raw, own = fit_head(features, labels, world.zero_shot, strength=chosen["strength"])
        assert head(others).argmax(dim=1).equal(raw(others).argmax(dim=1))
        torch.testing.assert_close(
            head(others) / chosen["scale"], raw(others) / own["scale"], rtol=1e-4, atol=1e-5
        )
        losses = [F.cross_entropy(one(others), answers).item() for one in (head, raw)]
        results.append(
            losses
            + [expected_calibration_error(one(others).softmax(1), answers) for one in (head, raw)]
        )
    loss, raw_loss, error, raw_error = np.mean(results, axis=0)
    if shots == 2:  # 20 pictures tell little of it
        assert loss < raw_loss + 0.02 and error < raw_error + 0.02
    else:
        assert loss < raw_loss + 1e-3 and error < raw_error + 5e-3 and error < 0.08
    assert shots != 4 or (
        loss < raw_loss - 5e-3 and error < raw_error - 5e-3
    )  # where the fit is too sure of itself


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("shots", [1, 2, 5])
def test_a_few_easy_pictures_give_no_certainty(classes: int, shots: int) -> None:
    """All are told apart, so that no factor would be too high; and what is wrong later should not cost the earth."""
    world = World(classes, 16, 0.5, 0.4)
    support, (others, answers) = world.draw((shots,) * classes), world.draw((200,) * classes)
    head, chosen = fit_head(*support, world.zero_shot)
    assert accuracy(head, *support) == 1 and accuracy(head, others, answers) > 0.97
    assert 1 < chosen["scale"] < 20
    sure = head(support[0]).softmax(dim=1).amax(dim=1).mean()
    assert 1 - 1 / len(support[0]) < sure < 1 - 0.02 / len(support[0])
    assert F.cross_entropy(head(others), answers) < 0.25


# Support sets of all kinds


@pytest.mark.parametrize(
    "counts", [(5, 0, 3, 0, 4, 2), (40, 1, 1, 1, 1, 1), (2, 1, 1, 1, 1, 0), (1, 0, 0, 0, 0, 0)]
)
def test_uneven_support_sets(counts: Any) -> None:
    world = World(6, 12, 0.6, 0.3)
    others = world.draw((100,) * 6)
    head, chosen = fit_head(*world.draw(counts), world.zero_shot)
    assert head(others[0]).isfinite().all() and chosen["scale"] > 0
    assert chosen["strength"] in STRENGTHS or math.isinf(chosen["strength"]) or max(counts) == 1
    assert accuracy(head, *others) >= accuracy(world.zero_shot, *others) - (
        0.02 if sum(counts) > 1 else 0.05
    )


def test_the_same_picture_again_and_again() -> None:
    """There is no scatter, then."""
    world = World(4, 6, 0.5, 1)
    features, labels = world.draw((1,) * 4)
    for times in (2, 3, 8):
        head, _ = fit_head(features.repeat(times, 1), labels.repeat(times), world.zero_shot)
        assert head(features).isfinite().all()
        assert accuracy(head, features, labels) == 1


def test_one_dimension() -> None:
    zero_shot = CosineHead(torch.tensor([[1.0], [-1.0]]), torch.tensor(1.0))
    features = torch.tensor([[1.0], [0.8], [-1.0], [-0.9]])
    head, _ = fit_head(features, torch.tensor([0, 0, 1, 1]), zero_shot)
    assert accuracy(head, features, torch.tensor([0, 0, 1, 1])) == 1


def test_seed() -> None:
    world = World(6, 12, 0.9, 0.7)
    features, labels = world.draw((9, 2, 5, 1, 7, 3))
    before = torch.get_rng_state()
    one, again, other = (
        fit_head(features, labels, world.zero_shot, seed=seed) for seed in (0, 0, 1)
    )
    assert torch.get_rng_state().equal(before)
    assert one[0].to_linear().weight.equal(again[0].to_linear().weight) and one[1] == again[1]
    assert one[1]["scale"] != other[1]["scale"]  # other folds


def test_alone() -> None:
    """Without `fit_head`, which only adds checks and the seed."""
    world = World(4, 8, 0.9, 1)
    features, labels = world.draw((3,) * 4)
    head, _ = anchored(features, labels, world.zero_shot, strength=0.1)
    assert head.to_linear().weight.equal(
        fit_head(features, labels, world.zero_shot, strength=0.1)[0].to_linear().weight
    )


# Folds


@pytest.mark.parametrize(
    "counts", [(4, 4, 4), (2, 2, 2), (9, 2, 5, 1, 7, 3), (3, 0, 1, 6), (2, 1, 1)]
)
def test_folds(counts: Any) -> None:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    folds = make_folds(labels)
    assert len(folds) == min(FOLDS, max(counts))
    assert all(rest.equal(~out) and out.any() for rest, out in folds)
    times = torch.stack([out for _, out in folds]).sum(dim=0)
    assert times.equal(
        (torch.tensor(counts)[labels] > 1).long()
    )  # each once, but for a class of one
    for label, count in enumerate(counts):
        held = [int((labels[out] == label).sum()) for _, out in folds]
        assert max(held) - min(held) <= 1 and (count == 0 or max(held) < count)


def test_no_folds_of_single_pictures() -> None:
    assert make_folds(torch.tensor([2, 0, 1])) == []
