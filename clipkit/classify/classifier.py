"""`ImageClassifier`: a CLIP, a head and its labels, made from class names, fitted and adapted."""

import logging
import os
from collections.abc import Iterable
from typing import Any, cast

import torch

from clipkit.classify.adapt import adapted_head
from clipkit.classify.adapted_head import AdaptedHead
from clipkit.classify.calibrating import calibrated_by_folds
from clipkit.classify.few_shot import Method, check_options
from clipkit.classify.fit_support import fit_support
from clipkit.classify.heads import CosineHead
from clipkit.classify.inputs import (
    Inputs,
    LabeledInputs,
    SupportSet,
    features_and_paths,
    support_set,
)
from clipkit.classify.labels import Labels
from clipkit.classify.prediction import Prediction, make_predictions
from clipkit.classify.reading import Reading
from clipkit.classify.trusted import TrustedClassifier
from clipkit.classify.words import made_by
from clipkit.classify.zero_shot import embed_prompts, weights_of_prompts
from clipkit.clip import CLIP
from clipkit.errors import ConfigError
from clipkit.prompts import (
    TEMPLATES,
    WHOLE_PROMPTS,
    ClassNames,
    Templates,
    as_words,
    check_templates,
    render,
)

_LOG = logging.getLogger("clipkit")


class ImageClassifier(TrustedClassifier):
    """Classify images by a CLIP, a head and its labels. Make one by `zero_shot` or `load`.

    Example:
        classifier = clipkit.ImageClassifier.zero_shot("tiny", ["cat", "dog"])
        classifier.predict("photo.jpg").label
        classifier.fit(["a.jpg", "b.jpg"], ["cat", "dog"]).save("pets/")

    Args:
        model: the CLIP.
        head: from its features to logits.
        labels: C names, one per class.
        zero_shot_head: the head before any fitting; every fit starts from it.
        prompts: for each class, the prompts that made the zero-shot head.
        provenance: how the head was made, as JSON. It informs people; nothing that is computed
            depends on it.
        templates: what made the prompts out of class names; None if that is not known.

    Raises:
        ConfigError: if labels, prompts and heads are not of one number of classes, or a head is of
            another width than the model.
    """

    @classmethod
    def zero_shot(
        cls,
        model: CLIP | str | os.PathLike[str],
        class_names: ClassNames | Iterable[str],
        templates: Templates | None = TEMPLATES,
        *,
        progress: bool = False,
    ) -> "ImageClassifier":
        """Return a classifier made from class names alone.

        Example:
            classifier = clipkit.ImageClassifier.zero_shot("tiny", ["cat", "dog"], "imagenet")

        Args:
            model: a CLIP, or the name of one to load.
            class_names: C names; or label -> its name, or a list of its names. Prompts have spaces
                where names have underscores.
            templates: texts with one `{}` where the name goes, or functions of the name; or label
                -> a list of them; or the name of a prompt set. None takes the names as whole
                prompts.
            progress: whether to show a bar.

        Raises:
            ConfigError: for names or templates that `clipkit.prompts.render` refuses.
            TokenizerError: for a prompt that is too long.
        """
        if not isinstance(model, CLIP):
            model = CLIP.from_pretrained(model)
        checked = WHOLE_PROMPTS if templates is None else check_templates(templates)
        labels, prompts = render(class_names, checked)
        weights = weights_of_prompts(model, prompts, progress=progress)
        return cls(
            model,
            CosineHead(weights, model.logit_scale).eval(),
            labels,
            CosineHead(weights, model.logit_scale).eval(),
            prompts,
            templates=checked,
        )

    def fit(
        self,
        images_or_features: LabeledInputs,
        labels: Labels | None = None,
        method: Method | str = "anchored",
        *,
        seed: int = 0,
        strength: float | None = None,
        C: float | None = None,
        alpha: float | None = None,
        beta: float | None = None,
        epochs: int | None = None,
        lr: float | None = None,
        sgd_batch_size: int | None = None,
        calibrate: bool = False,
        batch_size: int = 64,
        workers: int = 0,
        progress: bool = False,
    ) -> "ImageClassifier":
        """Fit the head on labeled images, in place. It starts at zero-shot: fits do not add up.

        Images that cannot be read are left out with their labels, and a warning says so.

        Example:
            classifier.fit(["a.jpg", "b.jpg"], ["cat", "dog"])
            classifier.fit(clipkit.read_folder("photos"))

        Args:
            images_or_features: features (N, D) of unit length: a tensor, a NumPy array or what
                `extract_features` returns; or images as `embed` takes them, or tuples (image,
                label); or what `read_folder` returns. Processes share nothing: each fits on what
                it is given.
            labels: N indices or names of the classifier's classes, in which a space is as good as
                an underscore. None for images that come with labels. Integers of a data set that
                names its classes (`classes`, as torchvision's have them) are found by those names,
                also in what `extract_features` returns; other integers are indices of the
                classifier's classes.
            method: one of `clipkit.classify.few_shot.METHODS`. "anchored" is never far worse than
                zero-shot.
            seed: of all that is drawn.
            strength, C, alpha, beta, epochs, lr, sgd_batch_size: options of the methods; see
                `clipkit.classify.few_shot.fit_head`.
            calibrate: whether to calibrate the classifier too, by cross-validation: four more fits,
                each without a part of the images. See `calibrate`, which is better where there
                are images to spare. Without it a calibration that is there is dropped.
            batch_size, workers, progress: as in `embed`, for images.

        Returns:
            The classifier itself. `provenance` has what was chosen, the number of images of each
            class, which images were skipped and why, and marks by which `count_seen` knows the
            images again. If an error is raised, the classifier is as it was.

        Raises:
            DataError: if the labels do not fit the images or the classes, if features are not of
                unit length, or if no image can be read.
            ConfigError: for another method, or an option that the method does not take.
        """
        options: dict[str, Any] = {
            "strength": strength,
            "C": C,
            "alpha": alpha,
            "beta": beta,
            "epochs": epochs,
            "lr": lr,
            "sgd_batch_size": sgd_batch_size,
        }
        check_options(method, options)  # before hours of encoding
        reading = Reading(batch_size, workers, progress)
        support = support_set(self.model, images_or_features, labels, self.labels, reading)
        self._fit(support, method, seed, options, calibrate)
        return self

    def add_classes(
        self, class_names: ClassNames | Iterable[str], templates: Templates | None = None
    ) -> "ImageClassifier":
        """Add classes by their names, in place and without fitting: the new ones are zero-shot.

        A calibration is dropped, since it says nothing of the new classes.

        Example:
            classifier.add_classes(["hamster"])

        Args:
            class_names: names of the new classes, as in `zero_shot`.
            templates: as in `zero_shot`; by default those that the classifier was made with.

        Raises:
            ConfigError: if one is there already, if the classifier does not know its templates, or
                if the head's logits are not on the scale of zero-shot ones.
        """
        labels, prompts = render(class_names, self._own_templates(templates))
        own = {as_words(label) for label in self.labels}
        if known := sorted(label for label in labels if as_words(label) in own):
            raise ConfigError(
                f"the classifier has classes of that name already: {', '.join(known)}"
            )
        if self.head.scale is None:
            raise ConfigError(
                f"a head that is {made_by(self.provenance)} has logits of a scale of its own, "
                "which those of new classes cannot be compared with: make a classifier of all "
                "names and fit or adapt that"
            )
        weights = weights_of_prompts(self.model, prompts)
        self._drop_calibration("classes were added")
        self.head = self.head.add_zero_shot(weights).eval()
        self.zero_shot_head = self.zero_shot_head.add_zero_shot(weights).eval()
        self.labels = self.labels + labels
        self.prompts = self.prompts + prompts
        counts = self.provenance.get("counts")
        if isinstance(counts, list):
            self.provenance["counts"] = cast("list[Any]", counts) + [0] * len(labels)
        return self

    def adapt(
        self,
        unlabelled: Inputs,
        *,
        anchor: float = 1.0,
        guard: bool = True,
        batch_size: int = 64,
        workers: int = 0,
        progress: bool = False,
    ) -> "tuple[ImageClassifier, list[Prediction]]":
        """Adapt to a batch of images without labels (StatA, 2501.03729); this one stays as it is.

        What comes out depends on the whole batch, since its images are assigned to classes
        together: the same image can be predicted otherwise in another batch.

        Example:
            adapted, predictions = classifier.adapt("new_photos/")

        Args:
            unlabelled: images, or features (N, D), as `probabilities` takes them.
            anchor: how many images of a class its text is worth, above 0. With more the batch
                changes less.
            guard: whether to leave things as they are, with a line in the log "clipkit", where the
                batch shows no groups by class that the classifier does not see already. Adapting
                to such a batch has cost up to 8 points.
            batch_size, workers, progress: as in `embed`, for images.

        Returns:
            A new classifier of the same model, whose `fit` starts from zero-shot as before; and a
            prediction for each image, which the images around it have influenced. The classifier
            alone sees no other images, so its predictions may differ from them. Where something
            was adapted, `provenance["adapted"]` is there and a calibration is not: calibrate again.

        Raises:
            ConfigError: if `anchor` is impossible, or the head is not linear in the features.
            ImageError, DataError, ConfigError: as in `probabilities`; one image is needed at least.
        """
        reading = self._reading(None, batch_size, workers, progress)
        features, paths = features_and_paths(self.model, unlabelled, reading)
        head, rows = adapted_head(self.head, self.zero_shot_head, features, anchor, guard=guard)
        adapted = ImageClassifier(
            self.model,
            head.to(self.model.device),
            self.labels,
            self.zero_shot_head,
            self.prompts,
            dict(self.provenance),
            self.templates,
        )
        adapted.calibration = self.calibration
        if isinstance(head, AdaptedHead):
            adapted.provenance["adapted"] = {"images": len(rows), "anchor": anchor}
            adapted._drop_calibration("the new classifier's head was adapted")
        else:
            _LOG.warning("nothing is adapted: the batch shows no groups that are not seen already")
            rows = adapted.probabilities(features)  # at the temperature of a calibration
        return adapted, make_predictions(self.labels, rows, paths)

    def _fit(
        self,
        support: SupportSet,
        method: Method | str,
        seed: int,
        options: dict[str, Any],
        calibrate: bool,
    ) -> None:
        """Replace the head by one that is fitted on a support set, and tell how in provenance."""
        if method == "prompt_weights":
            options = options | {"captions": embed_prompts(self.model, self.prompts)}
        with torch.autocast(self.model.device.type, enabled=False):
            head, provenance = fit_support(
                support, self.labels, self.zero_shot_head, method, seed, options
            )
            calibration = None
            if calibrate:
                start = self.zero_shot_head
                calibration = calibrated_by_folds(support, head, start, method, seed, options)
        if calibration is None:
            self._drop_calibration("the head was fitted anew")
        self.calibration = calibration
        self.head = head.to(self.model.device)
        self.provenance = provenance

    def _own_templates(self, templates: Templates | None) -> Templates:
        """Return the templates given, or those that the classifier was made with."""
        if templates is not None:
            return templates
        if self.templates is None:
            raise ConfigError(
                "this classifier does not know the templates that it was made with (clipkit 0.1.0 "
                "did not save them, and functions cannot be saved): pass templates"
            )
        return self.templates
