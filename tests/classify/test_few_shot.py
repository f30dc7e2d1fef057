"""clipkit.classify.few_shot: each method against scikit-learn, SciPy or its paper's formula, on any support set."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.classify.few_shot import METHODS, fit_head, sample_shots
from clipkit.classify.fitting import make_folds
from clipkit.classify.heads import CacheHead, CosineHead, LinearHead, WeightedPromptHead
from clipkit.errors import ConfigError, DataError

CLASSES, WIDTH, PROMPTS = 6, 16, 4


def unit(*shape: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


CENTRES = unit(CLASSES, WIDTH, seed=0)
CAPTIONS = F.normalize(CENTRES[:, None] + 0.8 * unit(CLASSES, PROMPTS, WIDTH, seed=1), dim=-1)
for row, own in zip(CAPTIONS, (4, 1, 3, 2, 4, 4), strict=True):
    row[own:] = 0  # ragged
SCALE = torch.tensor(math.log(20))
ZERO_SHOT = CosineHead(F.normalize(CAPTIONS.sum(dim=1), dim=-1), SCALE).eval()
OPTIONS: dict[str, dict[str, Any]] = {method: {} for method in METHODS} | {
    "prompt_weights": {"captions": CAPTIONS}
}


def draw(*counts: int, seed: int = 0, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    """So many pictures of each class, in random order: features (N, D) of unit length, labels (N,)."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    features = F.normalize(
        CENTRES[labels] + noise * unit(len(labels), WIDTH, seed=seed + 10), dim=1
    )
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return features[order], labels[order]


def accuracy(head: Any, features: Tensor, labels: Tensor) -> float:
    return (head(features).argmax(dim=1) == labels).double().mean().item()


def state(head: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in head.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


# Every method


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shots", [1, 2, 5])
def test_every_method_fits_any_support_set(method: str, shots: int) -> None:
    """Classes with fewer pictures than asked for, one with a single picture, one with none."""
    pool = draw(9, 1, 3, 0, 7, 2)
    chosen = sample_shots(pool[1], shots)
    features, labels = pool[0][chosen], pool[1][chosen]
    before, inputs = state(ZERO_SHOT), (features.clone(), labels.clone())
    random = torch.get_rng_state()
    head, told = fit_head(features, labels, ZERO_SHOT, method, **OPTIONS[method])
    assert (head.classes, head.width, head.training) == (CLASSES, WIDTH, False)
    assert (
        told["method"] == method
        and told["pictures"] == len(labels)
        and json.loads(json.dumps(told)) == told
    )
    others = draw(50, 50, 50, 50, 50, 50, seed=1)
    assert head(others[0]).isfinite().all() and head(others[0]).dtype == torch.float32
    assert (
        accuracy(head, features, labels) > 0.5 and accuracy(head, *others) > 0.35
    )  # chance is 0.17
    # nothing else was touched
    assert equal(before, state(ZERO_SHOT)) and features.equal(inputs[0]) and labels.equal(inputs[1])
    assert torch.get_rng_state().equal(random) and torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in ZERO_SHOT.parameters())
    # the same again, whatever the generator's state and the order of calls
    torch.rand(7)
    again, told_again = fit_head(features, labels, ZERO_SHOT, method, **OPTIONS[method])
    assert equal(state(head), state(again)) and told == told_again


@pytest.mark.parametrize("method", METHODS)
def test_inputs_of_other_kinds_and_modes(method: str) -> None:
    """int32 labels, float64 features, tensors made in inference mode; called where gradients are off."""
    features, labels = draw(3, 3, 3, 3, 3, 3)
    expected = state(fit_head(features, labels, ZERO_SHOT, method, **OPTIONS[method])[0])
    with torch.inference_mode():
        frozen = features.clone(), labels.clone()
        found = [fit_head(*frozen, ZERO_SHOT, method, **OPTIONS[method])[0]]
    with torch.no_grad():
        found.append(
            fit_head(features.double(), labels.int(), ZERO_SHOT, method, **OPTIONS[method])[0]
        )
    found.append(fit_head(*frozen, ZERO_SHOT, method, **OPTIONS[method])[0])
    found.append(
        fit_head(
            features.requires_grad_(), labels.to(torch.uint8), ZERO_SHOT, method, **OPTIONS[method]
        )[0]
    )
    assert all(equal(expected, state(head)) for head in found)
    assert features.grad is None
    assert not any(parameter.is_inference() for head in found for parameter in head.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_one_picture_and_equal_pictures(method: str) -> None:
    features, labels = draw(1, 1, 1, 1, 1, 1)
    for some in (slice(0, 1), [0, 0, 0], [0, 0, 1, 1, 1, 2, 2]):
        head, _ = fit_head(features[some], labels[some], ZERO_SHOT, method, **OPTIONS[method])
        assert head(features).isfinite().all()
        assert head(features[some]).argmax(dim=1).equal(labels[some])


@pytest.mark.parametrize(
    "features, labels, options, error, match",
    [
        (
            draw(2, 2)[0],
            draw(2, 2)[1],
            {"method": "svm"},
            ConfigError,
            "one of anchored, linear_probe, .*not 'svm'",
        ),
        (
            torch.ones(2, WIDTH + 1),
            torch.tensor([0, 1]),
            {},
            ConfigError,
            r"shape \(N, 16\), not \(2, 17\)",
        ),
        (torch.ones(WIDTH), torch.tensor([0]), {}, ConfigError, r"shape \(N, 16\), not \(16,\)"),
        (
            torch.ones(2, WIDTH),
            torch.tensor([0, 1, 2]),
            {},
            DataError,
            r"a label for each picture.*\(3,\)",
        ),
        (
            torch.ones(2, WIDTH),
            torch.tensor([[0], [1]]),
            {},
            DataError,
            r"a label for each picture.*\(2, 1\)",
        ),
        (torch.ones(0, WIDTH), torch.tensor([]), {}, DataError, r"one at least, not \(0,\) labels"),
        (
            torch.ones(2, WIDTH),
            torch.tensor([0, 6]),
            {},
            DataError,
            "from 0 to 5, not torch.int64 from 0 to 6",
        ),
        (
            torch.ones(2, WIDTH),
            torch.tensor([-1, 5]),
            {},
            DataError,
            "integers from 0 to 5, not torch.int64 from -1",
        ),
        (
            torch.ones(2, WIDTH),
            torch.tensor([0.0, 1]),
            {},
            DataError,
            "integers from 0 to 5, not torch.float32",
        ),
        (
            torch.full((2, WIDTH), math.nan),
            torch.tensor([0, 1]),
            {},
            DataError,
            "features are not finite",
        ),
        (
            torch.full((2, WIDTH), math.inf),
            torch.tensor([0, 1]),
            {},
            DataError,
            "features are not finite",
        ),
        (*draw(2, 2), {"method": "linear_probe", "C": 0}, ConfigError, "C must be above 0, not 0"),
        (
            *draw(2, 2),
            {"method": "linear_probe", "C": math.nan},
            ConfigError,
            "C must be above 0, not nan",
        ),
        (
            *draw(2, 2),
            {"method": "prompt_weights", "captions": CAPTIONS[1:]},
            ConfigError,
            r"\(6, K, 16\), not \(5,",
        ),
        (
            *draw(2, 2),
            {"method": "prompt_weights", "captions": CENTRES},
            ConfigError,
            r"\(6, K, 16\), not \(6, 16\)",
        ),
        (
            *draw(2, 2),
            {"method": "prompt_weights", "captions": CAPTIONS[..., None]},
            ConfigError,
            r"not \(6, 4, 16, 1",
        ),
    ],
)
def test_errors(
    features, labels: Any, options: dict[str, Any], error: type[Exception], match: str
) -> None:
    before = torch.get_rng_state()
    with pytest.raises(error, match=match):
        fit_head(features, labels, ZERO_SHOT, **options)
    assert torch.get_rng_state().equal(before)


def test_a_single_class() -> None:
    with pytest.raises(
        ConfigError, match="there is a single class, so there is nothing to tell apart"
    ):
        fit_head(torch.ones(2, WIDTH), torch.tensor([0, 0]), CosineHead(CENTRES[:1], SCALE))


# Linear probe


def centred(bias: np.ndarray) -> np.ndarray:
    return bias - bias.mean()


@pytest.mark.parametrize("C", [0.01, 1.0, 100.0, 1e4])
@pytest.mark.parametrize(
    "counts", [(8,) * 6, (12, 2, 5, 1, 7, 3), (9, 0, 4, 0, 0, 3), (9, 0, 0, 4, 0, 0)]
)
def test_probe_against_sklearn(C, counts: Any) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    (x, y), (others, _) = draw(*counts), draw(*(40,) * 6, seed=1)
    head, told = fit_head(x, y, ZERO_SHOT, "linear_probe", C=C)
    assert isinstance(head, LinearHead) and told["C"] == C
    weight, bias = (tensor.detach().double().numpy() for tensor in (head.weight, head.bias))
    model = linear_model.LogisticRegression(C=C, tol=1e-9, max_iter=10000).fit(
        x.double().numpy(), y.numpy()
    )
    present, coefficients, intercepts = model.classes_, model.coef_, model.intercept_
    if len(present) == 2:  # one row, the difference of ours
        coefficients = np.concatenate([-model.coef_, model.coef_]) / 2
        intercepts = np.concatenate([-model.intercept_, model.intercept_]) / 2
    largest = np.abs(coefficients).max()
    assert np.abs(weight[present] - coefficients).max() < 1e-3 * largest
    assert np.abs(centred(bias[present]) - centred(intercepts)).max() < 1e-3 * max(
        largest, np.abs(intercepts).max()
    )
    predicted = head(others).argmax(dim=1).numpy()
    assert (predicted == model.predict(others.double().numpy())).all() and set(predicted) <= set(
        present
    )


def test_probe_sweep_on_the_support_set_alone() -> None:
    x, y = draw(8, 6, 8, 4, 8, 3, noise=2.0)
    head, told = fit_head(x, y, ZERO_SHOT, "linear_probe")
    eighths = 8 * math.log10(told["C"])
    assert 1e-6 <= told["C"] <= 1e6 and eighths == pytest.approx(round(eighths), abs=1e-6)
    same, _ = fit_head(x, y, ZERO_SHOT, "linear_probe", C=told["C"])
    assert equal(state(head), state(same))  # fitted on all of them at last
    other = CosineHead(unit(CLASSES, WIDTH, seed=7), torch.tensor(0.0))
    assert equal(state(head), state(fit_head(x, y, other, "linear_probe")[0]))


def test_probe_sweep_stays_in_its_range() -> None:
    alike = torch.ones(12, WIDTH) / 4
    assert (
        fit_head(alike, torch.arange(12) % 6, ZERO_SHOT, "linear_probe")[1]["C"] == 1e-6
    )  # all equally good
    told = fit_head(*draw(1, 1, 1, 0, 1, 1), ZERO_SHOT, "linear_probe")[1]
    assert told["C"] == 1.0  # there is nothing to hold out


# SGD


def test_zero_shot_linear_starts_at_zero_shot() -> None:
    (x, y), (others, _) = draw(*(4,) * 6), draw(*(40,) * 6, seed=1)
    start, told = fit_head(x, y, ZERO_SHOT, "zero_shot_linear", epochs=0)
    torch.testing.assert_close(start(others), ZERO_SHOT(others), rtol=0, atol=1e-5)
    assert (
        start(others).argmax(dim=1).equal(ZERO_SHOT(others).argmax(dim=1)) and told["epochs"] == 0
    )
    losses = [
        F.cross_entropy(
            fit_head(x, y, ZERO_SHOT, "zero_shot_linear", epochs=epochs)[0](x), y
        ).item()
        for epochs in (0, 10, 100)
    ]
    assert losses[0] > losses[1] > losses[2]


def test_random_linear_starts_at_random() -> None:
    x, y = draw(*(4,) * 6)
    starts = [
        fit_head(x, y, ZERO_SHOT, "random_linear", seed=seed, epochs=0)[0].to_linear()
        for seed in (2, 2, 3)
    ]
    assert (
        starts[0].weight.equal(starts[1].weight)
        and not starts[0].weight.isclose(starts[2].weight).any()
    )
    lengths = starts[0].weight.norm(dim=1)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 20.0))
    assert (
        accuracy(starts[0], x, y)
        < 0.5
        < accuracy(fit_head(x, y, ZERO_SHOT, "random_linear", seed=2)[0], x, y)
    )
    fitted = [
        fit_head(x, y, ZERO_SHOT, "random_linear", seed=seed)[0].to_linear().weight
        for seed in (2, 3)
    ]
    assert not fitted[0].equal(fitted[1])


def test_sgd_against_numpy() -> None:
    """Two steps of full batches, whose order does not matter: momentum on weight and bias, scaled by 20."""
    x, y = draw(3, 2, 3, 1, 3, 3)
    head, _ = fit_head(x, y, ZERO_SHOT, "zero_shot_linear", epochs=2, batch_size=100, lr=0.02)
    features, onehot = x.double().numpy(), np.eye(CLASSES)[y]
    weight, bias = ZERO_SHOT.weight.detach().double().numpy(), np.zeros(CLASSES)
    speed_w, speed_b = 0 * weight, 0 * bias
    for _ in range(2):
        p = np.exp(20 * (features @ weight.T + bias))
        slope = 20 * (p / p.sum(axis=1, keepdims=True) - onehot) / len(y)
        speed_w, speed_b = 0.9 * speed_w + slope.T @ features, 0.9 * speed_b + slope.sum(axis=0)
        weight, bias = weight - 0.02 * speed_w, bias - 0.02 * speed_b
    np.testing.assert_allclose(
        head.to_linear().weight.detach().numpy(), 20 * weight, rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(
        head.to_linear().bias.detach().numpy(), 20 * bias, rtol=1e-4, atol=1e-4
    )


# Prompt weights


def test_prompt_weights_against_scipy() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    x, y = draw(5, 4, 1, 3, 6, 4, noise=1.6)
    head, told = fit_head(x, y, ZERO_SHOT, "prompt_weights", captions=CAPTIONS)
    assert isinstance(head, WeightedPromptHead) and head.captions.equal(CAPTIONS)
    captions, features = CAPTIONS.double().numpy(), x.double().numpy()

    def objective(flat: np.ndarray) -> tuple[float, float]:
        """The summed cross-entropy, and half the squared relative change of the weights."""
        weights = flat[:-1].reshape(CLASSES, PROMPTS)
        mixed = np.einsum("ck,ckd->cd", weights, captions)
        logits = (
            np.exp(flat[-1]) * features @ (mixed / np.linalg.norm(mixed, axis=1, keepdims=True)).T
        )
        chance = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        return -np.log(chance[np.arange(len(y)), y]).sum(), ((PROMPTS * weights - 1) ** 2).sum() / 2

    start = np.append(np.full(CLASSES * PROMPTS, 1 / PROMPTS), math.log(20))
    found = np.append(
        head.prompt_weights.detach().double().numpy().ravel(), head.logit_scale.item()
    )
    best = optimize.minimize(lambda flat: sum(objective(flat)), start, options={"maxiter": 60})
    assert sum(objective(found)) == pytest.approx(best.fun, rel=1e-3)
    assert objective(found)[0] < 0.98 * objective(start)[0]
    assert told["scale"] == pytest.approx(math.exp(found[-1]), rel=1e-6)


# Gaussian


def discriminant(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Equations of 2402.04087, section 3: means, the precision of Kubokawa and Srivastava, w and b for even priors."""
    means = np.stack(
        [x[y == c].mean(axis=0) if (y == c).any() else np.zeros(x.shape[1]) for c in range(CLASSES)]
    )
    covariance = np.cov((x - means[y]).T) if len(set(y)) < len(y) else np.cov(x.T)
    width = x.shape[1]
    precision = width * np.linalg.inv(
        (len(x) - 1) * covariance + np.trace(covariance) * np.eye(width)
    )
    return means @ precision, -0.5 * np.einsum("cd,de,ce->c", means, precision, means)


@pytest.mark.parametrize("counts", [(8,) * 6, (12, 2, 5, 1, 7, 3), (9, 0, 4, 0, 0, 3), (1,) * 6])
def test_gaussian_against_numpy(counts: Any) -> None:
    (x, y), (others, _) = draw(*counts), draw(*(20,) * 6, seed=1)
    weight, bias = discriminant(x.double().numpy(), y.numpy())
    features = others.double().numpy()
    zero_shot = 20 * features @ ZERO_SHOT.weight.detach().double().numpy().T
    for alpha in (None, 0.0, 0.3, 10.0):
        head, told = fit_head(x, y, ZERO_SHOT, "gaussian", alpha=alpha)
        expected = zero_shot + told["alpha"] * (features @ weight.T + bias)
        np.testing.assert_allclose(head(others).detach().numpy(), expected, rtol=1e-3, atol=1e-3)
        if alpha is None:
            assert told["alpha"] in (
                (1.0,) if max(counts) == 1 else [10.0**i for i in range(-3, 4)]
            )
        else:
            assert told["alpha"] == alpha


# Cache


@pytest.mark.parametrize("counts", [(4,) * 6, (9, 0, 3, 1, 2, 1), (1, 1, 0, 1, 1, 1)])
def test_cache_against_numpy(counts: Any) -> None:
    """Equations 3 to 5 of 2111.03930."""
    (x, y), (others, _) = draw(*counts), draw(*(20,) * 6, seed=1)
    features, keys = others.double().numpy(), x.double().numpy()
    zero_shot = 20 * features @ ZERO_SHOT.weight.detach().double().numpy().T
    for given in ({}, {"alpha": 2.5}, {"beta": 7.0}, {"alpha": 0.5, "beta": 3.0}):
        head, told = fit_head(x, y, ZERO_SHOT, "cache", **given)
        near = np.exp(-told["beta"] * (1 - features @ keys.T)) @ np.eye(CLASSES)[y]
        expected = zero_shot + told["alpha"] * near
        np.testing.assert_allclose(head(others).detach().numpy(), expected, rtol=1e-4, atol=1e-4)
        assert given.items() <= told.items()
        if max(counts) == 1:
            assert told["alpha"] == given.get("alpha", 1.0) and told["beta"] == given.get(
                "beta", 5.5
            )


@pytest.mark.parametrize("method", ["cache", "gaussian"])
def test_choice_by_cross_validation(method: str) -> None:
    """All over again by the heads alone, each fold's fitted on the rest: none is better on what was held out."""
    x, y = draw(6, 4, 3, 1, 5, 4, noise=2.0)
    _, told = fit_head(x, y, ZERO_SHOT, method, seed=5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        folds = make_folds(y)

    def loss(**options: float) -> float:
        heads = [fit_head(x[rest], y[rest], ZERO_SHOT, method, **options)[0] for rest, _ in folds]
        logits = torch.cat(
            [head(x[out]) for head, (_, out) in zip(heads, folds, strict=True)]
        ).detach()
        answers = torch.cat([y[out] for _, out in folds])
        scales = 10 ** torch.arange(-4, 2, 0.05)
        return min(F.cross_entropy(scale * logits, answers).item() for scale in scales)

    if method == "cache":
        every = [
            {"alpha": a, "beta": b}
            for a in (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
            for b in (1.0, 3.0, 5.5, 10.0, 30.0)
        ]
    else:
        every = [{"alpha": 10.0**i} for i in range(-3, 4)]
    losses = [loss(**options) for options in every]
    chosen = loss(**{name: told[name] for name in every[0]})
    assert chosen <= min(losses) + 5e-3 and max(losses) > min(losses) + 0.05


def test_finetuned_cache_trains_its_keys_only() -> None:
    x, y = draw(*(5,) * 6, noise=1.6)
    plain, chosen = fit_head(x, y, ZERO_SHOT, "cache")
    tuned, told = fit_head(x, y, ZERO_SHOT, "cache_finetuned")
    assert isinstance(plain, CacheHead) and isinstance(tuned, CacheHead)
    assert (told["alpha"], told["beta"]) == (chosen["alpha"], chosen["beta"])
    differ = {
        name
        for name, tensor in tuned.state_dict().items()
        if not tensor.equal(plain.state_dict()[name])
    }
    assert differ == {"keys"}
    assert F.cross_entropy(tuned(x), y) < F.cross_entropy(plain(x), y)
    still, _ = fit_head(x, y, ZERO_SHOT, "cache_finetuned", epochs=0)
    assert equal(state(still), state(plain))


# Samples


def test_samples_are_balanced() -> None:
    labels = torch.randint(0, 7, (400,), generator=torch.Generator().manual_seed(0))
    for shots in (1, 2, 16):
        chosen = sample_shots(labels, shots, seed=3)
        assert labels[chosen].bincount(minlength=7).tolist() == [shots] * 7
        assert len(chosen.unique()) == len(chosen) and chosen.dtype == torch.int64
        assert labels[chosen].equal(labels[chosen].sort().values)  # class after class


def test_ragged_samples() -> None:
    labels = torch.tensor([5, 0, 5, 2, 5, 2, 5, 5])
    chosen = sample_shots(labels, 3)
    assert labels[chosen].tolist() == [0, 2, 2, 5, 5, 5] and len(chosen.unique()) == 6
    assert sample_shots(labels, 100).sort().values.equal(torch.arange(8))


def test_samples_follow_the_seed() -> None:
    labels = torch.arange(10).repeat(30)
    before = torch.get_rng_state()
    draws = [sample_shots(labels, 5, seed=seed) for seed in (0, 0, *range(1, 200))]
    assert torch.get_rng_state().equal(before)
    assert draws[0].equal(draws[1]) and len({tuple(one.tolist()) for one in draws}) == 200
    assert torch.cat(draws).bincount(minlength=300).min() > 10  # each is drawn about 33 times


@pytest.mark.parametrize(
    "labels, shots", [(torch.tensor([]), 1), (torch.tensor([0, 1]), 0), (torch.tensor([0]), -1)]
)
def test_impossible_samples(labels: Any, shots: int) -> None:
    with pytest.raises(ConfigError, match=f"at least one shot, not {len(labels)} and {shots}"):
        sample_shots(labels, shots)


def test_shots_of_names_are_those_of_numbers() -> None:
    names = ["dog", "cat", "dog", "cat", "cat", "eel"]
    numbers = [1, 0, 1, 0, 0, 2]
    found = [
        sample_shots(labels, 2, seed=3).tolist()
        for labels in (names, numbers, torch.tensor(numbers))
    ]
    assert found[0] == found[1] == found[2] and len(found[0]) == 5
