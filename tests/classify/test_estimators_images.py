"""clipkit.classify.estimators with a model: equal to `ImageClassifier`, from paths to tables."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.base import clone, is_classifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from torch import Tensor

from clipkit import CLIP, CLIPClassifier, CLIPEncoder, ImageClassifier
from clipkit.errors import ClipkitError, ConfigError, DataError, ImageError
from tests.helpers.toy_classifier import NAMES, assert_close


@pytest.fixture(scope="module")
def files(color_folder: Path) -> list[str]:
    return [str(file) for file in sorted(color_folder.rglob("*.png"))]


@pytest.fixture(scope="module")
def labels(files: list[str]) -> list[str]:
    return [Path(file).parent.name for file in files]


def by_hand(toy: CLIP, files: list[str], labels: list[str], **options: Any) -> Tensor:
    """Return the probabilities of an `ImageClassifier` with sorted names, as they are."""
    classifier = ImageClassifier.zero_shot(toy, sorted(set(labels)))
    return classifier.fit(files, labels, **options).probabilities(files)


# Images


def test_images_are_classified_as_by_an_image_classifier(
    toy: CLIP, files: list[str], labels: list[str]
) -> None:
    classifier = CLIPClassifier(toy).fit(files, labels)
    assert_close(torch.from_numpy(classifier.predict_proba(files)), by_hand(toy, files, labels))
    assert classifier.classes_.tolist() == sorted(set(labels))
    assert classifier.n_features_in_ == 32
    assert classifier.chosen_["method"] == "anchored"
    assert classifier.classifier_ is not None
    saved = classifier.classifier_.probabilities(files)
    assert_close(torch.from_numpy(classifier.predict_proba(files)), saved)
    assert classifier.score(files, labels) == 1.0


def test_images_of_every_form(toy: CLIP, files: list[str], labels: list[str]) -> None:
    opened = [Image.open(file) for file in files]
    arrays = [np.asarray(image) for image in opened]
    forms: list[Any] = [
        np.array(files),
        np.array(files, dtype=object).reshape(-1, 1),
        pd.Series(files, index=range(100, 108)),
        pd.DataFrame({"path": files}),
        [Path(file).read_bytes() for file in files],
        opened,
        arrays,
        np.stack(arrays),
    ]
    encoder, classifier = CLIPEncoder(toy).fit(), CLIPClassifier(toy, C=1.0, method="linear_probe")
    expected = encoder.transform(files)
    probabilities = classifier.fit(files, labels).predict_proba(files)
    for form in forms:
        assert np.array_equal(encoder.transform(form), expected)
        again = classifier.fit(form, labels).predict_proba(form)
        assert np.array_equal(again, probabilities)


def test_features_do_as_well_as_images(toy: CLIP, files: list[str], labels: list[str]) -> None:
    features = CLIPEncoder(toy).fit_transform(files)
    classifier = CLIPClassifier(toy).fit(files, labels)
    expected = classifier.predict_proba(files)
    for form in (features, features.astype(float), pd.DataFrame(features), features.tolist()):
        on_features: Any = clone(classifier)
        on_features.fit(form, labels)
        np.testing.assert_allclose(on_features.predict_proba(form), expected, atol=1e-6)
    with pytest.raises(DataError, match=r"must be of unit length.* scikit-learn's Normalizer\(\)"):
        classifier.predict(3 * features)
    for verb in (classifier.predict, lambda X: CLIPClassifier(toy).fit(X, labels)):
        for narrow in (features[:, :31], torch.from_numpy(features)[:, :31]):
            with pytest.raises(ConfigError, match="X has 31 features, but CLIPClassifier is expec"):
                verb(narrow)


def test_labels_beyond_a_list_of_names_are_told(toy: CLIP, files: list[str]) -> None:
    classifier = CLIPClassifier(toy, class_names=["cat", "dog"])
    message = "labels without a name: 2, 3; class_names 'cat', 'dog' are names of .* 0 to 1: add"
    with pytest.raises(DataError, match=message):
        classifier.fit(files[:4], [0, 1, 2, 3])


def test_an_image_that_cannot_be_read_is_named(
    toy: CLIP, files: list[str], labels: list[str]
) -> None:
    with pytest.warns(UserWarning, match="1 of 9 images cannot be read and are left out"):
        classifier = CLIPClassifier(toy).fit([*files, "gone.png"], [*labels, "blue"])
    for verb in (classifier.predict, CLIPEncoder(toy).fit().transform):
        with pytest.raises(ImageError, match=r"gone\.png"):
            verb(["gone.png"])
    with pytest.raises(ImageError, match="the path of the image is empty"):
        CLIPEncoder(toy).fit().transform("")


# Names


@pytest.mark.parametrize(
    "class_names",
    [dict(enumerate(NAMES)), NAMES, {i: [name, f"a {name}"] for i, name in enumerate(NAMES)}],
)
def test_numbers_get_names(
    toy: CLIP, files: list[str], labels: list[str], class_names: Any
) -> None:
    numbers = [NAMES.index(label.replace("_", " ")) for label in labels]
    classifier = CLIPClassifier(toy, class_names=class_names, method="zero_shot")
    predicted = classifier.fit(files, numbers).predict_proba(files)
    named = dict(enumerate(NAMES)) if class_names is NAMES else class_names
    expected = ImageClassifier.zero_shot(toy, {str(i): own for i, own in named.items()})
    assert_close(torch.from_numpy(predicted), expected.probabilities(files))
    assert classifier.classes_.tolist() == [0, 1, 2, 3]
    fitted: Any = clone(classifier)
    fitted.set_params(method=None).fit(files, numbers)
    assert fitted.predict(files).tolist() == numbers


LISTED: list[Any] = [range(8), [True, False] * 4, ["a", "b"] * 4, None]


@pytest.mark.parametrize("given", LISTED)
def test_a_name_that_comes_twice_is_refused(toy: CLIP, files: list[str], given: Any) -> None:
    names = ["a", "b", "b", "c", "c"]
    classifier = CLIPClassifier(toy, class_names=names, method="zero_shot")
    with pytest.raises(ConfigError, match="class_names has 'b', 'c' more than once.*pass a dict"):
        classifier.fit(files, given)
    assert not hasattr(classifier, "classes_")


def test_names_that_differ_in_underscores_alone_are_refused(toy: CLIP, files: list[str]) -> None:
    classifier = CLIPClassifier(toy, class_names=["dark_red", "dark red"])
    with pytest.raises(ConfigError, match="'dark_red' and 'dark red' differ in underscores"):
        classifier.fit(files, [0, 1] * 4)


def test_two_labels_may_share_a_name_in_a_dict(toy: CLIP, files: list[str]) -> None:
    named = {1: "blue", 2: "blue", 3: "red"}
    classifier = CLIPClassifier(toy, class_names=named, method="zero_shot").fit(files)
    probabilities = classifier.predict_proba(files)
    assert classifier.classes_.tolist() == [1, 2, 3]
    np.testing.assert_array_equal(probabilities[:, 0], probabilities[:, 1])


@pytest.mark.parametrize("own", ["dark_red", "dark red"])
@pytest.mark.parametrize("is_listed", [False, True])
def test_texts_of_names_have_spaces(toy: CLIP, files: list[str], own: str, is_listed: bool) -> None:
    names = ["red", own] if is_listed else None
    classifier = CLIPClassifier(toy, class_names=names).fit(files, [own, "red"] * 4)
    assert classifier.classifier_ is not None
    assert classifier.classifier_.labels == [own, "red"]
    assert classifier.classifier_.prompts[0] == ["a photo of a dark red."]


BOOLEANS: list[Any] = [
    ["blue", "red"],
    {True: "red", False: "blue"},
    {0: "blue", 1: "red"},
    {np.False_: "blue", np.True_: ["red"]},
]


@pytest.mark.parametrize("class_names", BOOLEANS)
def test_booleans_are_classes_as_in_scikit_learn(
    toy: CLIP, files: list[str], labels: list[str], class_names: Any
) -> None:
    features = CLIPEncoder(toy).fit_transform(files)
    truth = np.array(labels) == "dark_red"
    peer: Any = LogisticRegression(C=1000.0).fit(features, truth)
    for given in (truth, truth.tolist(), pd.Series(truth), torch.from_numpy(truth)):
        classifier = CLIPClassifier(toy, class_names=class_names).fit(features, given)
        predicted = classifier.predict(features)
        assert classifier.classes_.tolist() == peer.classes_.tolist() == [False, True]
        assert classifier.classes_.dtype == peer.classes_.dtype
        assert predicted.dtype == peer.predict(features).dtype
        assert predicted.tolist() == peer.predict(features).tolist() == truth.tolist()
        assert classifier.predict_proba(features)[truth, 1].min() > 0.5
        assert classifier.score(features, given) == 1.0
        assert classifier.score(features, truth.astype(int)) == peer.score(
            features, truth.astype(int)
        )
    unfitted = CLIPClassifier(toy, class_names=class_names, method="zero_shot")
    by_names = ImageClassifier.zero_shot(toy, ["blue", "red"]).probabilities(features)
    found = unfitted.fit(features, truth).predict_proba(features)
    assert_close(torch.from_numpy(found), by_names)


@pytest.mark.parametrize("kind", [np.int32, np.uint8, np.float64, np.bool_])
def test_classes_have_the_type_of_the_labels(toy: CLIP, files: list[str], kind: Any) -> None:
    numbers = np.array([0, 1] * 4, dtype=kind)
    classifier = CLIPClassifier(toy, class_names=["blue", "red"]).fit(files, numbers)
    peer: Any = LogisticRegression().fit(np.eye(8), numbers)
    assert classifier.classes_.dtype == peer.classes_.dtype
    assert classifier.predict(files).dtype == peer.predict(np.eye(8)).dtype


def test_classes_keep_what_the_labels_cannot_hold(toy: CLIP, files: list[str]) -> None:
    named = {0: "blue", 1: "red", 300: "green"}
    numbers = np.array([0, 1] * 4, dtype=np.uint8)
    classifier = CLIPClassifier(toy, class_names=named).fit(files, numbers)
    assert classifier.classes_.tolist() == [0, 1, 300]


@pytest.mark.parametrize(
    ("class_names", "message"),
    [
        (["a"], "must have two names, those of False and True, not 1: 'a'"),
        (["a", "b", "c"], "must have two names, those of False and True, not 3: 'a', 'b', 'c'"),
        ({0: "a", 1: "b", 2: "c"}, r"has names of 0, 1, 2: pass .*as labels: y\.astype\(int\)"),
        ({0: "a", "1": "b"}, "the labels in class_names must be of one type, .*, not 0, '1'"),
        (None, r"pass class_names=\{label: "),
    ],
)
def test_names_that_are_not_of_booleans_are_refused(
    toy: CLIP, files: list[str], class_names: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        CLIPClassifier(toy, class_names=class_names).fit(files, [True, False] * 4)


def test_texts_are_no_names_of_booleans(toy: CLIP, files: list[str]) -> None:
    classifier = CLIPClassifier(toy, class_names={"False": "a", "True": "b"})
    with pytest.raises(DataError, match="name: False, True; .* 'False', 'True': add these, of the"):
        classifier.fit(files, [True, False] * 4)


def test_zero_shot_needs_no_labels(toy: CLIP, files: list[str]) -> None:
    classifier = CLIPClassifier(toy, class_names=NAMES, method="zero_shot").fit(files)
    assert classifier.classes_.tolist() == sorted(NAMES)
    expected = ImageClassifier.zero_shot(toy, sorted(NAMES)).probabilities(files)
    assert_close(torch.from_numpy(classifier.predict_proba(files)), expected)


def test_classes_without_images_are_there(toy: CLIP, files: list[str]) -> None:
    names = {3: "blue", 5: "purple", 9: "green"}
    classifier = CLIPClassifier(toy, class_names=names).fit(files[:6], [3, 3, 9, 9, 9, 9])
    assert classifier.classes_.tolist() == [3, 5, 9]
    assert classifier.predict_proba(files).shape == (8, 3)
    assert classifier.classifier_ is not None
    assert classifier.classifier_.provenance["counts"] == [2, 0, 4]


def test_a_linear_probe_needs_no_names(toy: CLIP, files: list[str], labels: list[str]) -> None:
    numbers = np.unique(labels, return_inverse=True)[1]
    classifier = CLIPClassifier(toy, method="linear_probe", C=10.0).fit(files, numbers)
    assert classifier.classifier_ is None
    named = by_hand(toy, files, labels, method="linear_probe", C=10.0)
    assert_close(torch.from_numpy(classifier.predict_proba(files)), named)
    classifier.set_params(method=None, C=None).fit(files, labels)
    assert classifier.classifier_ is not None
    assert not hasattr(classifier, "coef_")


def test_labels_without_names_are_refused(toy: CLIP, files: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"pass class_names=\{label: .*, or method='linear_probe"):
        CLIPClassifier(toy).fit(files, range(8))
    with pytest.raises(DataError, match="y has labels without a name: 7; class_names 'blue', "):
        CLIPClassifier(toy, class_names=NAMES).fit(files, [0, 1, 2, 3, 0, 1, 2, 7])
    with pytest.raises(DataError, match="requires y to be passed"):
        CLIPClassifier(toy, class_names=NAMES).fit(files)
    with pytest.raises(ConfigError, match="class_names must be a list of names, or label -> name"):
        CLIPClassifier(toy, class_names="blue").fit(files, range(8))


def test_all_that_is_drawn_follows_the_random_state(
    toy: CLIP, files: list[str], labels: list[str]
) -> None:
    features = CLIPEncoder(toy).fit_transform(files)
    rows = [
        CLIPClassifier(toy, method="random_linear", epochs=2, random_state=seed)
        .fit(features, labels)
        .predict_proba(features)
        for seed in (1, 1, 2)
    ]
    assert np.array_equal(rows[0], rows[1])
    assert not np.allclose(rows[0], rows[2])


# Tools


def test_tools_of_scikit_learn_take_images(toy: CLIP, files: list[str], labels: list[str]) -> None:
    search = GridSearchCV(CLIPClassifier(toy), {"method": ["zero_shot", "anchored"]}, cv=2)
    search.fit(files, labels)
    assert search.best_params_ == {"method": "anchored"}
    assert search.best_estimator_.classifier_.model is toy  # no search copies the model
    pipeline = make_pipeline(CLIPEncoder(toy), CLIPClassifier(toy))
    scores = cross_val_score(pipeline, files, labels, cv=2)
    assert np.array_equal(scores, cross_val_score(CLIPClassifier(toy), files, labels, cv=2))
    assert scores.mean() > 0.8
    probe = make_pipeline(CLIPEncoder(toy), LogisticRegression(C=100.0)).fit(files, labels)
    assert probe.score(files, labels) == 1.0
    calibrated = CalibratedClassifierCV(CLIPClassifier(toy), cv=2).fit(files, labels)
    np.testing.assert_allclose(calibrated.predict_proba(files).sum(axis=1), 1)
    assert is_classifier(CLIPClassifier(toy))
    named = CLIPClassifier(toy, class_names=sorted(set(labels)))  # voting turns labels to integers
    voting = VotingClassifier([("a", named), ("b", clone(named))], voting="soft")
    assert voting.fit(files, labels).score(files, labels) == 1.0
    assert "CLIPEncoder" in pipeline._repr_html_()


def test_fitted_estimators_are_pickled(toy: CLIP, files: list[str], labels: list[str]) -> None:
    pipeline = make_pipeline(CLIPEncoder(toy), CLIPClassifier(toy)).fit(files, labels)
    loaded = pickle.loads(pickle.dumps(pipeline))
    assert np.array_equal(loaded.predict_proba(files), pipeline.predict_proba(files))


def test_the_encoder_names_its_features(toy: CLIP, files: list[str]) -> None:
    encoder = CLIPEncoder(toy).fit()
    assert encoder.get_feature_names_out()[[0, -1]].tolist() == ["clip0", "clip31"]
    column = pd.Series(files, index=range(100, 108))
    pipeline: Any = clone(make_pipeline(encoder).set_output(transform="pandas"))
    table = pipeline.fit(column).transform(column)
    assert list(table.index) == list(column.index)
    assert np.array_equal(table.to_numpy(), encoder.transform(files))
    assert list(table.columns) == encoder.get_feature_names_out().tolist()
    assert isinstance(encoder.set_output(transform="default").transform(files), np.ndarray)
    with pytest.raises(ConfigError, match="must be 'default' or 'pandas', not 'polars'"):
        encoder.set_output(transform="polars")
    with pytest.raises(ClipkitError, match="this CLIPEncoder is not fitted yet"):
        CLIPEncoder(toy).transform(files)


def test_a_model_is_loaded_by_its_name(files: list[str], labels: list[str]) -> None:
    classifier = CLIPClassifier("tiny", method="linear_probe", C=1.0).fit(files, labels)
    assert classifier.n_features_in_ == CLIP.from_pretrained("tiny").config.embed_dim
    assert CLIPEncoder().fit_transform(files).shape == (8, classifier.n_features_in_)
