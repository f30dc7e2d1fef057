"""scikit-learn's interface: `CLIPClassifier` makes labels of images, or of features of any origin.

It stands in Pipeline, GridSearchCV, CalibratedClassifierCV and cross_val_score. scikit-learn need
not be installed for it.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from clipkit.classify.classifier import ImageClassifier
from clipkit.classify.encoder import as_model
from clipkit.classify.estimator_base import Estimator
from clipkit.classify.estimator_inputs import (
    ClassNamesByLabel,
    Targets,
    check_width,
    find_names,
    read_inputs,
)
from clipkit.classify.few_shot import METHODS, Method, check_options
from clipkit.classify.inputs import Inputs, features_and_paths
from clipkit.classify.labels import show
from clipkit.classify.plain_features import Rows, check_count, fit_rows, read_classes, read_rows
from clipkit.classify.reading import Reading
from clipkit.clip import CLIP
from clipkit.errors import ConfigError, DataError
from clipkit.prompts import TEMPLATES, Templates

if TYPE_CHECKING:
    from typing_extensions import Self

_PLAIN = "linear_probe"  # the method that needs no class names
_ZERO_SHOT = "zero_shot"  # no method of `fit`, but a choice among them
_OPTIONS = ("strength", "C", "alpha", "beta", "epochs", "lr", "sgd_batch_size")  # of the methods
_SHOWN = {"method", "images", *_OPTIONS}


class CLIPClassifier(Estimator):
    """Classify images, or features of any origin, as a classifier of scikit-learn.

    With a model it is an `ImageClassifier`: class names make a zero-shot head, and images or their
    features fit it. X is images as `CLIPEncoder` takes them, or features (N, D) of unit length as
    it returns them, where D is the model's width.

    Without a model X is rows of numbers (N, D) of any width and scale. Of these nothing is known
    that a text could be compared with, so class names mean nothing, and the head is the linear
    probe: logistic regression, with C chosen on held-out rows if it is not given.

    Example:
        classifier = clipkit.CLIPClassifier("ViT-B/32").fit(["a.jpg", "b.jpg"], ["cat", "dog"])
        classifier.predict(["c.jpg"])  # array(['cat'], dtype='<U3')

    Args:
        model: a CLIP, or the name of one, which each `fit` loads; or None. Clones share the CLIP.
        class_names: names for the labels, if these are no names themselves: label -> a name or a
            list of names; or C names that differ, to which integers from 0 refer, or two names, of
            False and True. These are all classes then, also those that do not occur in y.
        templates: of the prompts; see `ImageClassifier.zero_shot`.
        method: one of `fit_head`'s; or "zero_shot", for which y may be None. By default "anchored"
            with a model, and without one "linear_probe", the only one.
        strength, C, alpha, beta, epochs, lr, sgd_batch_size: options of the methods, as in
            `fit_head`.
        random_state: an integer; of all that is drawn.
        batch_size, workers: as in `CLIPEncoder`.

    Attributes:
        classes_: (C,), the labels, sorted, of the type that they have in y.
        n_features_in_: D, the width of the features, also those that are made of images.
        classifier_: the fitted `ImageClassifier`, which can be saved and exported; None without a
            model, or where `method` is "linear_probe" and integers have no names.
        coef_, intercept_: (C, D) and (C,) float64, where there is no `classifier_`. There are C
            rows for two classes too.
        chosen_: the method and what it chose, by name, such as C or strength.
        model_: the CLIP, if there is one.
    """

    def __init__(
        self,
        model: CLIP | str | os.PathLike[str] | None = None,
        *,
        class_names: ClassNamesByLabel | None = None,
        templates: Templates | None = TEMPLATES,
        method: Method | str | None = None,
        strength: float | None = None,
        C: float | None = None,
        alpha: float | None = None,
        beta: float | None = None,
        epochs: int | None = None,
        lr: float | None = None,
        sgd_batch_size: int | None = None,
        random_state: int = 0,
        batch_size: int = 64,
        workers: int = 0,
    ) -> None:
        self.model = model
        self.class_names = class_names
        self.templates = templates
        self.method = method
        self.strength = strength
        self.C = C
        self.alpha = alpha
        self.beta = beta
        self.epochs = epochs
        self.lr = lr
        self.sgd_batch_size = sgd_batch_size
        self.random_state = random_state
        self.batch_size = batch_size
        self.workers = workers

    def fit(self, X: Inputs, y: Targets | None = None) -> "Self":
        """Fit the head on images or features, and return the classifier.

        Args:
            X: see the class. A list with images that cannot be read goes on without them, and a
                warning says so; but they are an error where there is no `classifier_`.
            y: N labels: texts, integers, booleans or whole floats, in a list, an array, a tensor
                or a column of a table.

        Raises:
            DataError: if labels do not fit X or the class names, or X cannot be used.
            ConfigError: if a parameter is impossible, class names do not differ, or a label has no
                name that a text can be made of.
        """
        method, options = self._checked_method()
        if self.model is None:
            return self._fit_rows(read_rows(X, type(self).__name__), y, None)
        if y is None and method != _ZERO_SHOT:
            raise DataError("fit requires y to be passed, but the target y is None")
        classes, places = (None, None) if y is None else read_classes(y)
        names = find_names(classes, self.class_names, needed=method != _PLAIN)
        model = as_model(self.model)
        if names is None:
            return self._fit_rows(self._embed(model, X), y, model)
        labels, own_names = names
        classifier = ImageClassifier.zero_shot(model, own_names, self.templates)
        if classes is not None and method != _ZERO_SHOT:
            indices = np.searchsorted(labels, classes)[places]  # (N,), among all labels
            self._fit_head(classifier, X, indices, method, options)
        self._keep(labels, model.config.embed_dim, classifier.provenance, model)
        self.classifier_: ImageClassifier | None = classifier
        return self

    def predict(self, X: Inputs) -> NDArray[Any]:
        """Return the most probable label of each image or row, (N,) of the labels' own type."""
        places = self._logits(X).argmax(axis=1)  # (N,)
        return self.classes_[places]

    def predict_proba(self, X: Inputs) -> Rows:
        """Return the probabilities (N, C) float64, in the order of `classes_`.

        They are the head's own: a calibration that was given to `classifier_` is not applied, since
        scikit-learn's tools calibrate by themselves. `classifier_.probabilities` applies it.
        """
        logits = self._logits(X)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def predict_log_proba(self, X: Inputs) -> Rows:
        """Return the logarithms of the probabilities (N, C) float64."""
        logits = self._logits(X)
        logits = logits - logits.max(axis=1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

    def decision_function(self, X: Inputs) -> Rows:
        """Return the logits (N, C); for two classes the second less the first, (N,)."""
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def score(self, X: Inputs, y: Targets, sample_weight: ArrayLike | None = None) -> float:
        """Return the share of images or rows that are predicted as in y.

        Args:
            X: as in `predict`.
            y: N labels.
            sample_weight: (N,), how much each counts; all the same if not given.

        Raises:
            DataError: if y holds texts where the classes are numbers, or the other way round.
        """
        predicted = self.predict(X)
        classes, places = read_classes(y)
        if (classes.dtype.kind == "U") != (self.classes_.dtype.kind == "U"):
            raise DataError(
                f"y holds {show(classes.tolist())}, and the classes are "
                f"{show(self.classes_.tolist())}: pass labels of the type that was fitted"
            )
        check_count(len(predicted), len(places))
        right: NDArray[np.bool_] = np.asarray(predicted == classes[places])  # (N,)
        weights = None if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        return float(np.average(right, weights=weights))

    def __sklearn_tags__(self) -> Any:
        """Return what scikit-learn is to know of the estimator. It is called by scikit-learn."""
        sklearn: Any = importlib.import_module("sklearn.utils")
        takes_images = self.model is not None
        return sklearn.Tags(
            estimator_type="classifier",
            target_tags=sklearn.TargetTags(required=self.method != _ZERO_SHOT),
            classifier_tags=sklearn.ClassifierTags(),
            input_tags=sklearn.InputTags(string=takes_images, three_d_array=takes_images),
        )

    def _checked_method(self) -> tuple[str, dict[str, Any]]:
        """Return the method and its options, or raise `ConfigError` before any work."""
        method = self.method or (_PLAIN if self.model is None else "anchored")
        options = {name: getattr(self, name) for name in _OPTIONS}
        known = (*METHODS, _ZERO_SHOT)
        if method not in known:
            raise ConfigError(f"method must be one of {', '.join(known)}, not {method!r:.60}")
        if self.model is None and method != _PLAIN:
            raise ConfigError(
                f"{method} starts from class names, which need a model: pass model=, or "
                f"method={_PLAIN!r}"
            )
        if self.model is None and self.class_names is not None:
            raise ConfigError("class_names mean nothing without a model: pass model=")
        if method != _ZERO_SHOT:
            check_options(method, options)
        elif given := [name for name in _OPTIONS if options[name] is not None]:
            raise ConfigError(f"zero_shot takes no {', '.join(given)}: it fits nothing")
        if not isinstance(self.random_state, int | np.integer):
            raise ConfigError(f"random_state must be an integer, not {self.random_state!r:.60}")
        return method, options

    def _fit_head(
        self,
        classifier: ImageClassifier,
        X: Inputs,
        indices: NDArray[np.int64],
        method: str,
        options: dict[str, Any],
    ) -> None:
        """Fit the head of a classifier on images or features, with indices of its classes."""
        inputs = read_inputs(X)
        check_width(inputs, classifier.model.config.embed_dim, type(self).__name__)
        classifier.fit(
            inputs,
            indices,
            method,
            seed=int(self.random_state),
            **options,
            batch_size=self.batch_size,
            workers=self.workers,
        )

    def _fit_rows(self, rows: Rows, y: Targets | None, model: CLIP | None) -> "Self":
        """Fit the linear probe on rows of numbers (N, D), without any text."""
        classes, places = read_classes(y)
        check_count(len(rows), len(places))
        fitted = fit_rows(rows, places, self.C, int(self.random_state))
        self._keep(classes, rows.shape[1], {"method": _PLAIN, "C": fitted.strength}, model)
        self.coef_: Rows = fitted.weight
        self.intercept_: Rows = fitted.bias
        self.classifier_ = None
        return self

    def _keep(
        self, classes: NDArray[Any], width: int, chosen: dict[str, Any], model: CLIP | None
    ) -> None:
        """Set what every fit sets, and forget what another kind of fit has set."""
        for name in ("coef_", "intercept_"):
            vars(self).pop(name, None)
        self.classes_ = classes
        self.n_features_in_ = width
        self.chosen_ = {name: value for name, value in chosen.items() if name in _SHOWN}
        self.model_ = model

    def _embed(self, model: CLIP, X: Inputs) -> Rows:
        """Return the features of images, or features as they are, (N, D) float64."""
        reading = Reading(self.batch_size, self.workers, progress=False)
        inputs = read_inputs(X)
        check_width(inputs, model.config.embed_dim, type(self).__name__)
        features, _ = features_and_paths(model, inputs, reading)
        return np.asarray(features.detach().cpu().double().numpy())

    def _logits(self, X: Inputs) -> Rows:
        """Return the logits (N, C) of images or rows."""
        self._check_fitted("classes_")
        if self.model_ is None:
            rows = read_rows(X, type(self).__name__, self.n_features_in_)
        else:
            rows = self._embed(self.model_, X)
        if self.classifier_ is None:
            transposed = cast("Rows", self.coef_.transpose())  # (D, C)
            return rows @ transposed + self.intercept_
        head = self.classifier_.head
        features = torch.from_numpy(rows).float().to(self.classifier_.model.device)
        with torch.no_grad():
            return np.asarray(head(features).cpu().double().numpy())
