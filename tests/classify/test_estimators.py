"""clipkit.classify.estimators on features: scikit-learn's own checks, tools and numbers."""

import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_iris, make_blobs
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks

from clipkit import CLIPClassifier, CLIPEncoder
from clipkit.errors import ClipkitError, ConfigError, DataError

# Checks of scikit-learn that fail on purpose, with the reason. There are none.
EXPECTED_TO_FAIL: dict[str, str] = {}

# Checks that scikit-learn itself skips here, with the reason.
SKIPPED = {"check_array_api_input": "SCIPY_ARRAY_API is not set"}


def expected_failures(estimator: Any) -> dict[str, str]:
    return EXPECTED_TO_FAIL


with warnings.catch_warnings():
    # That they do not inherit from scikit-learn's BaseEstimator, which would make it a dependency;
    # and that all checks but one are of rows and columns, which an encoder of images does not take.
    warnings.simplefilter("ignore")
    checks = parametrize_with_checks(
        [CLIPClassifier(), CLIPEncoder()], expected_failed_checks=expected_failures
    )


@checks
@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_own_check(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.filterwarnings("ignore")
def test_all_checks_of_a_classifier_are_run() -> None:
    """Tags could make scikit-learn leave most of them out."""
    results = check_estimator(CLIPClassifier(C=1.0), on_fail=None, on_skip=None)
    other = {one["check_name"]: one for one in results if one["status"] != "passed"}
    assert other.keys() == EXPECTED_TO_FAIL.keys() | SKIPPED.keys()
    assert all(reason in str(other[name]["exception"]) for name, reason in SKIPPED.items())
    assert len(results) >= 55


def iris() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    loaded: Any = load_iris()
    return loaded.data, loaded.target


# Numbers


@pytest.mark.parametrize("strength", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_it_is_scikit_learns_logistic_regression(
    strength: float, classes: int, scale: float
) -> None:
    rows, labels = iris()
    rows, labels = rows[labels < classes] * scale + 7 * scale, labels[labels < classes]
    own = CLIPClassifier(C=strength / scale**2).fit(rows, labels)
    peer = LogisticRegression(C=strength, tol=1e-10, max_iter=100_000).fit(rows / scale, labels)
    expected = peer.predict_proba(rows / scale)
    np.testing.assert_allclose(own.predict_proba(rows), expected, rtol=0, atol=5e-5)
    np.testing.assert_allclose(own.predict_log_proba(rows), np.log(own.predict_proba(rows)))


def test_the_strength_that_is_chosen_knows_no_scale() -> None:
    rows, labels = iris()
    small, large = CLIPClassifier().fit(rows, labels), CLIPClassifier().fit(rows * 1000, labels)
    assert large.chosen_["C"] * 1e6 == pytest.approx(small.chosen_["C"], rel=1e-6)
    np.testing.assert_allclose(small.predict_proba(rows), large.predict_proba(rows * 1000), 1e-4)
    assert small.score(rows, labels) > 0.95


def test_what_is_held_out_follows_the_random_state() -> None:
    rows, labels = (part[::3] for part in iris())
    noisy = rows + np.random.default_rng(0).normal(0, 1, rows.shape)
    chosen = [CLIPClassifier(random_state=seed).fit(noisy, labels).chosen_ for seed in range(4)]
    assert len({one["C"] for one in chosen}) > 1
    assert CLIPClassifier(random_state=3).fit(noisy, labels).chosen_ == chosen[3]


def test_the_decision_is_what_probabilities_are_made_of() -> None:
    rows, labels = iris()
    three = CLIPClassifier(C=1.0).fit(rows, labels)
    assert three.decision_function(rows).shape == (150, 3)
    two = CLIPClassifier(C=1.0).fit(rows[:100], labels[:100])
    decision = two.decision_function(rows)
    assert decision.shape == (150,)
    np.testing.assert_allclose(two.predict_proba(rows)[:, 1], 1 / (1 + np.exp(-decision)))
    assert two.coef_.shape == (2, 4)
    assert two.intercept_.shape == (2,)
    assert two.n_features_in_ == 4


# Labels


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda labels: labels, "i"),
        (lambda labels: labels.tolist(), "i"),
        (lambda labels: labels.astype(float), "f"),
        (lambda labels: torch.from_numpy(labels), "i"),
        (lambda labels: pd.Series(labels, index=range(500, 650)), "i"),
        (lambda labels: [f"class {label}" for label in labels], "U"),
        (lambda labels: np.array([f"class {label}" for label in labels], dtype=object), "U"),
        (lambda labels: pd.Series([f"class {label}" for label in labels]), "U"),
        (lambda labels: pd.Series([f"class {label}" for label in labels], dtype="category"), "U"),
    ],
)
def test_labels_of_every_kind_come_back(make: Any, kind: str) -> None:
    rows, labels = iris()
    given = make(labels)
    classifier = CLIPClassifier(C=1.0).fit(rows, given)
    predicted = classifier.predict(rows)
    assert predicted.dtype.kind == kind
    assert classifier.classes_.tolist() == sorted(set(np.asarray(given).tolist()))
    assert classifier.score(rows, given) == np.mean(predicted == np.asarray(given)) > 0.9


def test_booleans_are_labels() -> None:
    rows, labels = iris()
    classifier = CLIPClassifier(C=1.0).fit(rows, labels == 2)
    assert classifier.classes_.tolist() == [False, True]
    assert classifier.predict(rows[-1:]).tolist() == [True]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, "a"], r"y holds int, str\. Pass texts alone"),
        (["a", None], r"y holds NoneType, str"),
        (np.array([True, False], object), r"y holds bool\. .*of booleans: y\.astype\(bool\)"),
        ([0.5, 1.0], "y must be classes"),
        ([[0, 1], [1, 0]], r"not of shape \(2, 2\): one-hot labels become integers by argmax\(1\)"),
        ([1, 1], "y holds one class alone"),
        ([0, 1, 2], "2 rows need as many labels, not 3"),
    ],
)
def test_other_labels_are_refused(labels: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        CLIPClassifier(C=1.0).fit([[0.0], [1.0]], labels)


def test_weights_count_in_the_score() -> None:
    classifier = CLIPClassifier(C=100.0).fit([[0.0], [1.0]], ["a", "b"])
    assert classifier.score([[0.0], [1.0]], ["a", "a"]) == 0.5
    assert classifier.score([[0.0], [1.0]], ["a", "a"], sample_weight=[3, 1]) == 0.75


def test_scores_of_labels_of_another_type_are_refused() -> None:
    numbers = CLIPClassifier(C=1.0).fit([[0.0], [1.0]], [False, True])
    with pytest.raises(DataError, match="y holds 'False', 'True', and the classes are False, True"):
        numbers.score([[0.0], [1.0]], ["False", "True"])
    texts = CLIPClassifier(C=1.0).fit([[0.0], [1.0]], ["a", "b"])
    with pytest.raises(DataError, match="y holds 0, 1, and the classes are 'a', 'b': pass labels"):
        texts.score([[0.0], [1.0]], [0, 1])


# Parameters


def test_parameters_are_kept_as_they_are() -> None:
    classifier = CLIPClassifier(C=2.0, random_state=3)
    assert classifier.get_params()["C"] == 2.0
    assert classifier.set_params(C=4.0) is classifier
    assert repr(classifier) == "CLIPClassifier(C=4.0, random_state=3)"
    with pytest.raises(ConfigError, match=r"no parameter 'c': its parameters are model, class_nam"):
        classifier.set_params(C=5.0, c=1.0)
    assert classifier.C == 4.0


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"method": "anchored"},
            r"anchored starts from class names.*pass model=, or method='linea",
        ),
        ({"method": "zero_shot"}, "zero_shot starts from class names"),
        ({"method": "zeroshot"}, "method must be one of anchored, .*, zero_shot, not 'zeroshot'"),
        ({"class_names": ["a", "b"]}, "class_names mean nothing without a model"),
        ({"C": -1.0}, "C must be above 0"),
        ({"strength": 1.0}, "linear_probe takes no strength"),
        ({"random_state": None}, "random_state must be an integer, not None"),
        ({"model": "tiny", "method": "zero_shot", "C": 1.0}, "zero_shot takes no C"),
    ],
)
def test_impossible_parameters_leave_the_fit_as_it_was(params: Any, message: str) -> None:
    rows, labels = iris()
    classifier = CLIPClassifier(C=1.0).fit(rows, labels)
    before = classifier.predict_proba(rows)
    classifier.set_params(**params)
    with pytest.raises(ConfigError, match=message):
        classifier.fit(rows, labels)
    assert np.array_equal(classifier.predict_proba(rows), before)


def test_what_is_not_fitted_says_so() -> None:
    with pytest.raises(ClipkitError, match="this CLIPClassifier is not fitted yet: call fit first"):
        CLIPClassifier().predict([[0.0]])


def test_images_need_a_model() -> None:
    message = r"Images need a model: CLIPClassifier\('tiny'\)"
    images: Any = [["a.jpg"], ["b.jpg"]], ["a.jpg", "b.jpg"], [Path("a.jpg"), Path("b.jpg")]
    for own in (*images, np.zeros((2, 8, 8, 3), np.uint8)):
        with pytest.raises(DataError, match=message):
            CLIPClassifier().fit(own, [0, 1])


def test_the_first_row_that_is_not_finite_is_named() -> None:
    with pytest.raises(DataError, match="NaN or inf, first in row 1: fill them"):
        CLIPClassifier().fit([[0.0], [float("nan")], [1.0], [float("inf")]], [0, 1, 0, 1])


# Tools


def test_tools_of_scikit_learn() -> None:
    blobs: Any = make_blobs(90, centers=4, n_features=6, cluster_std=3.0, random_state=0)
    rows, labels = blobs
    pipeline = make_pipeline(StandardScaler(), CLIPClassifier())
    search = GridSearchCV(pipeline, {"clipclassifier__C": [1e-4, 1.0]}, cv=3).fit(rows, labels)
    assert search.best_params_ == {"clipclassifier__C": 1.0}
    scores = cross_val_score(pipeline.set_params(clipclassifier__C=1.0), rows, labels, cv=3)
    assert scores.mean() == pytest.approx(search.best_score_)
    calibrated = CalibratedClassifierCV(CLIPClassifier(C=1.0), cv=3).fit(rows, labels)
    np.testing.assert_allclose(calibrated.predict_proba(rows).sum(axis=1), 1)
    table = cross_val_predict(CLIPClassifier(C=1.0), pd.DataFrame(rows), labels, cv=3)
    assert np.mean(table == labels) > 0.9
    assert "CLIPClassifier" in search._repr_html_()


def test_clones_and_pickles() -> None:
    rows, labels = iris()
    classifier = CLIPClassifier(C=1.0).fit(rows, labels)
    copy: Any = clone(classifier)
    assert not hasattr(copy, "classes_")
    assert copy.get_params() == classifier.get_params()
    loaded = pickle.loads(pickle.dumps(classifier))
    assert np.array_equal(loaded.predict_proba(rows), classifier.predict_proba(rows))


WITHOUT = """
import sys
for name in ("sklearn", "pandas", "scipy"):
    sys.modules[name] = None  # as if they were not installed
import clipkit
classifier = clipkit.CLIPClassifier()
try:
    classifier.predict([[0.0]])
except clipkit.ClipkitError as error:
    print(type(error).__name__, error)
classifier.fit([[0.0], [1.0]], ["a", "b"])
print(classifier.predict([[0.1], [0.9]]).tolist(), clipkit.CLIPEncoder("tiny").fit().model_)
"""


def test_scikit_learn_need_not_be_installed() -> None:
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, timeout=300, check=True
    )
    first, second = run.stdout.splitlines()
    assert first == "ConfigError this CLIPClassifier is not fitted yet: call fit first"
    assert second.startswith("['a', 'b'] CLIP(")
