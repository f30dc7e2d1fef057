"""Effective robustness agrees with SciPy's logits and scikit-learn's line."""

import json
from typing import Any

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.linear_model import LinearRegression

from clipkit.classify.metrics import effective_robustness
from clipkit.errors import ConfigError

PAIRS = [(0.55, 0.3), (0.63, 0.41), (0.7, 0.45), (0.76, 0.55), (0.8, 0.61)]
ACCURACIES = {"val": 0.68, "sketch": 0.6, "v2": 0.62}


def test_what_is_expected_agrees_with_scikit_learn() -> None:
    found = effective_robustness(ACCURACIES, "val", baseline={"sketch": PAIRS})
    first, second = np.array(PAIRS).T
    line = LinearRegression().fit(logit(first)[:, None], logit(second))
    expected = float(expit(line.predict([[logit(0.68)]]))[0])
    row = found.rows[0]
    assert row.expected == pytest.approx(expected, abs=1e-12)
    assert row.effective == pytest.approx(0.6 - expected, abs=1e-12)


def test_differences_are_to_the_reference() -> None:
    found = effective_robustness(ACCURACIES, "val", baseline={"sketch": PAIRS})
    assert (found.reference, found.accuracy) == ("val", 0.68)
    assert [row.name for row in found.rows] == ["sketch", "v2"]
    assert [row.difference for row in found.rows] == pytest.approx([-0.08, -0.06])
    assert found.rows[1].expected is None
    assert found.rows[1].effective is None


def test_a_classifier_on_the_line_has_no_effective_robustness() -> None:
    baseline = {"sketch": [(0.5, 0.2), (0.9, 0.7)]}
    for accuracy, shifted in baseline["sketch"]:
        found = effective_robustness({"val": accuracy, "sketch": shifted}, "val", baseline=baseline)
        assert found.rows[0].effective == pytest.approx(0, abs=1e-12)


def test_a_steep_line_ends_at_0_and_1() -> None:
    baseline = {"sketch": [(0.5, 1e-9), (0.5003, 1 - 1e-9)]}
    for accuracy, expected in ((0.1, 0.0), (0.9, 1.0)):
        found = effective_robustness({"val": accuracy, "sketch": 0.5}, "val", baseline=baseline)
        assert found.rows[0].expected == expected


def test_the_table_has_what_is_known() -> None:
    text = str(effective_robustness(ACCURACIES, "val"))
    assert text.splitlines()[0].split() == ["set", "accuracy", "difference"]
    assert text.splitlines()[2].split() == ["sketch", "60.0%", "-8.0"]
    found = effective_robustness(ACCURACIES, "val", baseline={"sketch": PAIRS})
    assert "effective robustness" in str(found)
    assert json.loads(json.dumps(found.to_dict()))["rows"][1]["effective"] is None
    assert repr(found) == "Shifts(2 sets beside val)"


@pytest.mark.parametrize(
    ("accuracies", "baseline", "message"),
    [
        ({"a": 0.5}, None, "'val' is none of the sets"),
        ({"val": 0.5, "a": 1.5}, None, "the accuracy on 'a' must be of 0 to 1, not 1.5"),
        ({"val": 0.5, "a": 0.5}, {"b": PAIRS}, "pairs for 'b', which is none of the other"),
        ({"val": 0.5, "a": 0.5}, {"val": PAIRS}, "pairs for 'val', which is none"),
        ({"val": 0.5, "a": 0.5}, {"a": PAIRS[:1]}, "two models of different accuracy"),
        ({"val": 0.5, "a": 0.5}, {"a": [(0.5, 0.5)] * 2}, "two models of different accuracy"),
        ({"val": 0.5, "a": 0.5}, {"a": [(1.0, 0.5)] * 2}, r"below 1, .*, not \(1.0, 0.5\)"),
        ({"val": 0.1, "a": 0.5}, {"a": [(0.5, 0.01), (0.5000001, 0.99)]}, "leave its pairs out"),
        ({"val": 0.5, "a": 0.5}, {"a": [0.6, 0.7]}, r"such as \(0.7, 0.4\), not 0.6"),
        ({"val": 0.5, "a": 0.5}, {"a": 0.6}, "needs pairs such as .*, not 0.6"),
        ({"val": 0.5, "a": 0.5}, {"a": "ab"}, "needs pairs such as .*, not 'ab'"),
        ({"val": 0.5, "a": 0.5}, {"a": []}, "two models of different accuracy"),
        ({"val": 1.0, "a": 0.5}, {"a": PAIRS}, "an accuracy of 1 on the reference set"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    accuracies: dict[str, float],
    baseline: Any,
    message: str,
) -> None:
    with pytest.raises(ConfigError, match=message):
        effective_robustness(accuracies, "val", baseline=baseline)
