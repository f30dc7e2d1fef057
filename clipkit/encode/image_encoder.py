"""Turn batches of prepared images into features, by any model that encodes images."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipkit.data.pictures import Transform
from clipkit.encode.eval_view import eval_view
from clipkit.errors import ConfigError
from clipkit.models.kernels import calls_are_seen, is_watched
from clipkit.models.openvino_tower import OpenVINOTower

Precision: TypeAlias = Literal["bfloat16", "float16", "float32"]
_HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class EncodesImages(Protocol):
    """Describe a model that encodes images and knows how to prepare them."""

    @property
    def preprocess(self) -> Transform: ...

    def encode_image(self, image: Tensor, /) -> Tensor:
        """Turn (N, 3, H, W) into (N, D)."""
        ...


# A module that has no `encode_image` maps (N, 3, H, W) to (N, D) itself.
ImageModel: TypeAlias = EncodesImages | nn.Module


class ImageEncoder:
    """Turn batches of prepared images into features, by a model in eval mode.

    Args:
        model, precision, normalize: as in `extract_features`.

    Attributes:
        device: where the model computes.

    Raises:
        ConfigError: if the weights cannot be used in this precision.
    """

    def __init__(
        self, model: ImageModel, *, precision: Precision | None = None, normalize: bool = True
    ) -> None:
        tower = image_tower(model)
        none = torch.empty(0, dtype=torch.float32, device="cpu")
        weight = none if tower is None else next(tower.parameters(), none)
        _check_precision(precision, weight.dtype)
        view: Any = eval_view(model)
        self.device = weight.device
        self._model, self._tower = model, tower
        self._dtype = weight.dtype
        self._encode: Callable[[Tensor], object] = getattr(view, "encode_image", view)
        self._precision = precision
        self._normalize = normalize

    @property
    def takes_threads(self) -> bool:
        """Return whether several threads may encode at once, each with its own processors.

        A program that looks at torch's calls, or changes them, does so in the thread that it is in.
        It may begin and end at any time.
        """
        is_plain = not calls_are_seen() and not autocast_around(self.device)
        return self.device.type == "cpu" and is_plain and _holds_no_state(self._model, self._tower)

    def __call__(self, images: Tensor) -> Tensor:
        """Turn (n, 3, H, W), or (n, V, 3, H, W) with V views of each, into (n, D) float32.

        They come on the CPU.

        Raises:
            ConfigError: if the model makes anything else of them.
        """
        if images.ndim == 5:
            return self._average(images)
        is_cuda = self.device.type == "cuda"  # its copies run beside the arithmetic
        images = images.to(self.device, non_blocking=is_cuda).to(self._dtype)
        with torch.no_grad(), self._autocast():
            features = self._encode(images)
        features = _check_features(features, len(images)).float()
        return (F.normalize(features, dim=-1) if self._normalize else features).cpu()

    def _average(self, images: Tensor) -> Tensor:
        """Return the mean feature of the views of each image, (n, V, 3, H, W) -> (n, D)."""
        # One view after the other, so that the memory is that of a batch of images.
        mean = torch.stack([self(view) for view in images.unbind(dim=1)]).mean(dim=0)
        return F.normalize(mean, dim=-1) if self._normalize else mean

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._precision is None:
            return nullcontext()  # an autocast around the call stays as it is
        half = _HALVES.get(self._precision)
        return torch.autocast(self.device.type, half, enabled=half is not None)


def image_tower(model: ImageModel) -> nn.Module | None:
    """Return the module that computes the features of images, if the model has one or is one."""
    tower = getattr(model, "visual", model)
    return tower if isinstance(tower, nn.Module) else None


def autocast_around(device: torch.device) -> dict[str, str]:
    """Return the dtype of an autocast that is on around the call, by name; nothing without one.

    Example:
        with torch.autocast("cpu", torch.bfloat16):
            autocast_around(torch.device("cpu"))  # {"autocast": "torch.bfloat16"}
    """
    kind = device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return {}
    return {"autocast": str(torch.get_autocast_dtype(kind))}


def _holds_no_state(model: object, tower: nn.Module | None) -> bool:
    """Return whether a tower is made of what clipkit and torch have, which keep nothing of a call.

    Hooks see the batches in their order, and what is compiled has its own number of threads.
    """
    if tower is None or isinstance(tower, OpenVINOTower) or not _is_own(model):
        return False
    if is_watched(tower, torch.empty(0)):
        return False
    return all(
        _is_own(module) and module._compiled_call_impl is None  # pyright: ignore
        for module in tower.modules()
    )


def _is_own(module: object) -> bool:
    """Return whether a class is of clipkit or torch, and nothing is in the place of its methods."""
    if {"forward", "encode_image"} & getattr(module, "__dict__", {}).keys():
        return False
    return f"{type(module).__module__}.".startswith(("clipkit.", "torch.nn."))


def _check_precision(precision: Precision | None, dtype: torch.dtype) -> None:
    if precision is None or precision in _HALVES:
        return
    if precision != "float32" or dtype != torch.float32:
        raise ConfigError(
            "precision must be None, bfloat16, float16 or, of float32 weights, float32; "
            f"not {precision}"
        )


def _check_features(features: object, count: int) -> Tensor:
    """Return a model's features of `count` images, or raise `ConfigError` if not (count, D)."""
    if isinstance(features, Tensor) and features.ndim == 2 and len(features) == count:
        return features
    shape = tuple(features.shape) if isinstance(features, Tensor) else ()
    raise ConfigError(
        f"of {count} images a model must make ({count}, D), not {type(features).__name__} {shape}"
    )
