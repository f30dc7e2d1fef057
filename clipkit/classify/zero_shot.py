"""Zero-shot classification: class names become the weights of a linear classifier (2103.00020, section 3.1)."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from clipkit.errors import ConfigError
from clipkit.features import embed_texts
from clipkit.models.clip import CLIP

TEMPLATES = ("a photo of a {}.",)  # where none are given


def zero_shot_weights(model: CLIP, class_names: Sequence[str], templates: Sequence[str] = TEMPLATES) -> Tensor:
    """One unit vector per class: the mean over the templates of its normalised text features, normalised again.

    Args:
        model: whose text tower and tokenizer to use.
        class_names: C names.
        templates: texts with one `{}` where the name goes.

    Returns:
        (C, D) float32 on the model's device, without gradient. Image features, normalised, times its transpose are
        cosine similarities.

    Raises:
        ConfigError: for no class, no template, a single string in place of a list, or a template without one `{}`.
        TokenizerError: for a prompt that is too long.
    """
    for name, values in (("class_names", class_names), ("templates", templates)):
        if isinstance(values, str) or not values or not all(isinstance(value, str) for value in values):
            raise ConfigError(f"{name} must be a non-empty list of strings, not {values!r}")
    for template in templates:
        if template.count("{}") != 1:
            raise ConfigError(f"a template needs one {{}} where the class name goes: {template!r}")
    prompts = [template.replace("{}", name) for name in class_names for template in templates]
    features = embed_texts(model, prompts).unflatten(0, (len(class_names), -1))  # (C, templates, D)
    return F.normalize(features.mean(dim=1), dim=-1)
