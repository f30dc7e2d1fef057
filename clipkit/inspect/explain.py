"""Explain why an image and a text are similar: a map of the image, and a value for each token.

Of a classifier, explain why an image is of a class.

| method | what it is | image towers | tokens of the text |
|---|---|---|---|
| `grad_eclip` | Grad-ECLIP, 2502.18816: the default of ViTs | both | Grad-ECLIP |
| `grad_cam` | Grad-CAM, 1610.02391: the default of ResNets | ResNet | Grad-ECLIP |
| `relevance` | Chefer et al., 2103.15679 | both | the same |
| `attention` | of the pooled token in the last layer, mean of the heads | both | none |
| `rollout` | 2005.00928, attention through all layers | ViT | none |
| `rise` | RISE, 1806.07421, by masking the image at random | both | none |

`attention` and `rollout` know nothing of the text: they show where the tower looks, whatever it is
asked. `rise` knows nothing of the tower, and takes thousands of forward passes.
"""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clipkit.classify.classifier import ImageClassifier
from clipkit.clip import CLIP
from clipkit.data.decode import Readable
from clipkit.data.preprocess import Preprocess
from clipkit.encode.eval_view import eval_view
from clipkit.errors import ConfigError, ImageError
from clipkit.inspect.attention import attention_maps, text_tower_of
from clipkit.inspect.explanation import Explanation, seen_size
from clipkit.inspect.gradient import grad_cam, grad_eclip_image, grad_eclip_text
from clipkit.inspect.pooled import encode_any_size
from clipkit.inspect.relevance import relevance_image, relevance_text
from clipkit.inspect.rise import BATCH, MASKS, rise
from clipkit.inspect.rollout import rollout
from clipkit.inspect.target import Target, class_target, direction_of, text_target
from clipkit.inspect.towers import grid_of, image_tower_of, is_vit
from clipkit.inspect.words import split_words, token_strings
from clipkit.models.text_transformer import TextTransformer

Method: TypeAlias = Literal["grad_eclip", "grad_cam", "relevance", "attention", "rollout", "rise"]
METHODS: tuple[Method, ...] = get_args(Method)

_ByGradient: TypeAlias = Callable[[nn.Module, Tensor, Tensor], Tensor]
_OfText: TypeAlias = Callable[[TextTransformer, Tensor, Tensor], Tensor]
_BY_GRADIENT: dict[str, _ByGradient] = {
    "grad_eclip": grad_eclip_image,
    "grad_cam": grad_cam,
}
_OF_TEXT: dict[str, _OfText] = {
    "grad_eclip": grad_eclip_text,
    "grad_cam": grad_eclip_text,  # a text tower has no convolution
}


def explain(
    model: CLIP | ImageClassifier,
    image: "Readable | Tensor",
    text: str | int | Tensor,
    method: Method | None = None,
    *,
    masks: int | None = None,
    seed: int | None = None,
    progress: bool = False,
) -> Explanation:
    """Explain why an image and a text are as similar as they are, or why it is of a class.

    The model stays as it is: no gradient is left at a parameter, and modes and what requires a
    gradient do not change. It makes no difference whether gradients are on or off around the call.

    Args:
        model: any CLIP, or a classifier. A copy from `optimize` can do without gradients alone:
            `attention`, `rollout` and `rise`.
        image: whatever `model.preprocess` takes; or a float tensor that is preprocessed already,
            (3, H, W) or (1, 3, H, W), of any size from a patch on. It is seen once.
        text: a text; or a feature (D,) of the texts' space, such as a row of `zero_shot_weights`,
            which has no tokens. Of a classifier one of its classes, a name or an index: what is
            explained is its logit, which grows in the direction of its row of the head's weights.
        method: see the table above. Grad-ECLIP for ViTs and Grad-CAM for ResNets if not given. If
            a classifier's head is not linear, `rise`, `attention` and `rollout` can do without.
        masks: of `rise`; 2,000 if not given.
        seed: of the masks of `rise`; 0 if not given.
        progress: whether to show a bar, of `rise`.

    Returns:
        The map and the values of the tokens, on the CPU.

    Raises:
        ConfigError: if there is no such method, the image tower or the head cannot have it, or an
            argument is impossible or would be ignored.
        DataError: if the classifier has no such class.
        ImageError: if the image cannot be read, is smaller than a patch, or has NaN in it.
        TokenizerError: if the text is too long.

    Example:
        explanation = explain(model, "cat.jpg", "a photo of a cat")
        explanation.heat_map  # (14, 14) of ViT-B/16
        explanation.upsample()  # (224, 224)
        explanation.words  # [("a", 0.01), ("photo", 0.04), ("of", 0.0), ("a", 0.01), ("cat", 0.2)]
        explain(classifier, "cat.jpg", "cat").heat_map
    """
    classifier = model if isinstance(model, ImageClassifier) else None
    view = eval_view(model.model if isinstance(model, ImageClassifier) else model)
    visual = image_tower_of(view, "explain")
    method = _check_method(visual, method)
    _check_masks(method, masks, seed, progress)
    # A program in inference mode gets gradients all the same, and autocast none of them.
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(view.device.type, enabled=False),
    ):
        prepared = _prepare(view, image)
        grid_of(visual, prepared)
        image_features = encode_any_size(visual, prepared)
        if classifier is None:
            target = text_target(view, text, image_features.shape[1])
        else:
            target = class_target(classifier, text)
        size = int(prepared.shape[2]), int(prepared.shape[3])
        if method == "rise":
            heat_map, seen = _rise(visual, prepared, target, masks, seed, progress), size
        else:
            heat_map = _heat_map(view, visual, method, prepared, target)
            seen = seen_size(visual, prepared)
        return Explanation(
            method=method,
            similarity=float(target.score(image_features)),
            heat_map=heat_map.float().cpu(),
            pixels=_pixels(view, prepared),
            seen=seen,
            **_explain_tokens(view, method, target, image_features),
        )


def _check_method(visual: nn.Module, method: str | None) -> Method:
    """Return the method to use, or raise `ConfigError`."""
    if method is None:
        return "grad_eclip" if is_vit(visual) else "grad_cam"
    if method not in METHODS:
        raise ConfigError(f"there is no method {method!r}: pass one of {', '.join(METHODS)}")
    if method == "rollout" and not is_vit(visual):
        raise ConfigError(
            "rollout follows attention from layer to layer, and a ResNet has one layer of it: pass "
            "method='attention' for that one, or 'grad_cam'"
        )
    if method == "grad_cam" and is_vit(visual):
        raise ConfigError(
            "grad_cam needs the maps of a ResNet, and this image tower is a vision transformer: "
            "pass method='grad_eclip'"
        )
    return method


def _check_masks(method: Method, masks: int | None, seed: int | None, progress: bool) -> None:
    """Raise `ConfigError` if an option of RISE is impossible or would be ignored."""
    if progress and method != "rise":
        raise ConfigError(
            f"progress={progress!r:.60} is of method 'rise', and {method!r} is one step"
        )
    for name, value, least in (("masks", masks, 1), ("seed", seed, 0)):
        if value is None:
            continue
        if method != "rise":
            raise ConfigError(
                f"{name}={value!r} is of method 'rise', and {method!r} draws no masks"
            )
        if type(value) is not int or value < least:
            raise ConfigError(f"{name} must be an integer of at least {least}, not {value!r}")


def _prepare(model: CLIP, image: "Readable | Tensor") -> Tensor:
    """Return an image as the tower takes it, (1, 3, H, W), in the tower's dtype."""
    if not (isinstance(image, Tensor) and image.is_floating_point()):
        image = model.preprocess(image)
    if image.ndim == 3:
        image = image.unsqueeze(0)  # (3, H, W) -> (1, 3, H, W)
    if image.ndim == 4 and len(image) != 1:
        raise ImageError(
            f"explain takes one image at a time, not {len(image)}: call it for each of them"
        )
    if not bool(image.isfinite().all()):
        raise ImageError(
            "explain takes finite numbers, and there are NaN or infinite ones in the image: pass "
            "its file, or prepare it by model.preprocess"
        )
    # A tensor that was made in inference mode could not be in a graph; a clone can.
    return image.detach().to(model.device, model.dtype).clone()


def _pixels(model: CLIP, image: Tensor) -> NDArray[np.uint8]:
    """Return a prepared image (1, 3, H, W) as it looks, (H, W, 3) uint8."""
    preprocess = model.preprocess
    config = preprocess.config if isinstance(preprocess, Preprocess) else model.config.preprocess
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device="cpu").view(3, 1, 1)
        for values in (config.mean, config.std)
    )
    pixels = (image[0].float().cpu() * std + mean).clamp(0, 1) * 255  # (3, H, W)
    return pixels.round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def _heat_map(
    model: CLIP, visual: nn.Module, method: Method, image: Tensor, target: Target
) -> Tensor:
    """Return the map of an image by any method but RISE: (rows, columns)."""
    if method == "relevance":
        return relevance_image(visual, image, direction_of(target, method), target.scale)
    if method in _BY_GRADIENT:
        return _BY_GRADIENT[method](visual, image, direction_of(target, method))
    if method == "rollout":
        to_places = rollout(model, image)[0, 0, 1:]  # (1, L, L) -> (L - 1,)
    else:
        to_places = attention_maps(model, image, layers=-1)[0, 0, :, 0, 1:].mean(dim=0)
    return to_places.reshape(grid_of(visual, image))


def _rise(
    visual: nn.Module,
    image: Tensor,
    target: Target,
    masks: int | None,
    seed: int | None,
    progress: bool,
) -> Tensor:
    """Return the map of an image by RISE: (H, W)."""

    def score(images: Tensor) -> Tensor:
        return target.score(encode_any_size(visual, images))

    count = MASKS if masks is None else masks
    return rise(
        score, image, masks=count, seed=seed or 0, batch_size=BATCH, progress=bool(progress)
    )


def _explain_tokens(
    model: CLIP, method: Method, target: Target, image_features: Tensor
) -> dict[str, Any]:
    """Return the tokens of a text and their values, if there are a text and a way."""
    ids = target.ids
    if ids is None or method not in (*_OF_TEXT, "relevance"):
        return {}
    text = text_tower_of(model, "explain")
    if ids.shape[1] <= 2:  # an empty text
        values = torch.zeros(0, dtype=torch.float32, device="cpu")
    elif method == "relevance":
        values = relevance_text(text, ids, image_features, target.scale).cpu()
    else:
        values = _OF_TEXT[method](text, ids, image_features).cpu()
    inner = [int(token) for token in ids[0, 1:-1]]  # without start and end
    return {
        "tokens": token_strings(model.tokenizer, inner),
        "token_values": values,
        "token_words": split_words(model.tokenizer, inner),
    }
