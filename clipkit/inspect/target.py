"""Read what an image is explained by: a text, a feature, or a class of a classifier."""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from clipkit.classify.classifier import ImageClassifier
from clipkit.classify.labels import class_indices
from clipkit.clip import CLIP
from clipkit.errors import ConfigError
from clipkit.inspect.attention import text_tower_of
from clipkit.inspect.pooled import cosines


@dataclass(frozen=True)
class Target:
    """Hold what an image is explained by.

    Attributes:
        score: how much image features (n, D) are like it, (n,): the cosine with a text, or the
            logit of a class.
        features: (1, D), in the direction of which the score grows; None of a head that is not
            linear, which has no such direction.
        scale: by which the cosine with `features` becomes a logit.
        ids: of the tokens of a text from start to end, (1, L); None of anything else.
    """

    score: Callable[[Tensor], Tensor]
    features: Tensor | None
    scale: float
    ids: Tensor | None = None


def text_target(model: CLIP, text: object, width: int) -> Target:
    """Return a text, or a feature of the texts' space (D,), as a target.

    Args:
        model: whose image is explained.
        text: what the caller was given.
        width: D, of the model's image features.

    Raises:
        ConfigError: for anything else.
        TokenizerError: if the text is too long.
    """
    features, ids = _encode_text(model, text)
    if ids is None:
        _check_feature(features[0], width)

    def score(image_features: Tensor) -> Tensor:
        return cosines(image_features, features)[:, 0]

    return Target(score, features, float(model.logit_scale.float().exp()), ids)


def class_target(classifier: ImageClassifier, label: object) -> Target:
    """Return a class of a classifier as a target.

    Args:
        classifier: whose head is asked.
        label: a name or an index.

    Raises:
        ConfigError: for a label of another type.
        DataError: if there is no such class.
    """
    if isinstance(label, bool) or not isinstance(label, str | int):
        raise ConfigError(
            "a classifier is explained by one of its classes, a name or an index, not by "
            f"{type(label).__name__}: a text or a feature goes with classifier.model"
        )
    index = int(class_indices([label], classifier.labels)[0])

    def score(image_features: Tensor) -> Tensor:
        return classifier.head(F.normalize(image_features.float(), dim=-1))[:, index]

    try:
        linear = classifier.head.to_linear()
    except ConfigError:
        return Target(score, None, 1.0)
    row = linear.weight.detach()[index : index + 1].to(classifier.model.device)  # (1, D)
    return Target(score, row, float(row.square().sum().sqrt()))


def direction_of(target: Target, method: str) -> Tensor:
    """Return the direction (1, D) in which the score of a target grows.

    Raises:
        ConfigError: if there is none, since a head is not linear.
    """
    if target.features is None:
        raise ConfigError(
            f"{method} follows a gradient to one direction for each class, and the head of this "
            "classifier is not linear in the features: pass method='rise', which needs scores "
            "alone, or a classifier fitted by another method, such as 'anchored', and not adapted"
        )
    return target.features


def _encode_text(model: CLIP, text: object) -> tuple[Tensor, Tensor | None]:
    """Return the features of a text, (1, D), and its ids from start to end, (1, L)."""
    if isinstance(text, Tensor):
        if text.ndim != 1 or not text.is_floating_point():
            raise ConfigError(
                "a feature in the place of a text must be floating and of shape (D,), not "
                f"{text.dtype} of {tuple(text.shape)}: pass one row"
            )
        return text.detach().to(model.device).clone().unsqueeze(0), None
    if not isinstance(text, str):
        raise ConfigError(
            f"explain takes one text or one feature (D,), not {type(text).__name__}: call it for "
            "each of several texts"
        )
    ids = model.tokenizer([text]).to(model.device)
    end = int(text_tower_of(model, "explain").find_ends(ids)[0])
    ids = ids[:, : end + 1]
    return model.encode_text(ids), ids


def _check_feature(feature: Tensor, width: int) -> None:
    """Raise `ConfigError` unless a feature in the place of a text can be compared."""
    if len(feature) != width:
        raise ConfigError(
            f"a feature of width {len(feature)} cannot be compared with those of this model's "
            f"images: pass one of shape ({width},), such as a row of zero_shot_weights"
        )
    wrong = len(feature) - int(feature.isfinite().sum())
    if wrong:
        raise ConfigError(
            f"{wrong} of the {width} numbers of the feature are NaN or infinite: encode the text "
            "anew, or pass the text itself"
        )
