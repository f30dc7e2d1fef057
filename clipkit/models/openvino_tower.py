"""Compute the image tower of an inference-only copy in OpenVINO, Intel's runtime for CPUs.

The tower is recorded by torch.export and converted in memory: no file, no ONNX, no network.
"""

import threading
from collections.abc import Callable
from copy import deepcopy
from hashlib import sha256
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from clipkit.errors import ConfigError, ExportError
from clipkit.models.inputs import check_images
from clipkit.models.kernels import (
    is_watched,
    refuse_gradients_and_autocast,
    values_are_known,
)
from clipkit.models.layers import ImageTower
from clipkit.models.openvino_int8 import quantize
from clipkit.models.openvino_package import import_nncf, import_openvino
from clipkit.models.record import record
from clipkit.models.resnet import ModifiedResNet
from clipkit.models.vision_transformer import VisionTransformer

# Batch sizes that get a graph of their own, in which every shape is known; the check takes 1. Each
# holds the weights once more, in the runtime's order; all other sizes share one with a free size.
FIXED_SIZES = 3

# The least cosine of a feature with torch's in float32. The runtime adds up in another order.
COSINE = {torch.float32: 0.9999, torch.bfloat16: 0.99}

# The same for the mean over the images that an int8 tower is calibrated on.
MEAN_COSINE_OF_INT8 = 0.9

_AT_ONCE = 16  # images whose features are compared at once
_HINTS = {torch.float32: "f32", torch.bfloat16: "bf16"}
_Floats = NDArray[np.float32]
Calibration: TypeAlias = Callable[[], Tensor]


class OpenVINOTower(ImageTower):
    """Turn images into features as the tower that it is made of does, in OpenVINO.

    Args:
        tower: on the CPU, in float32 or bfloat16, in eval mode and without gradients. Its weights
            must not change any more.
        calibration: returns preprocessed images (N, 3, H, W), and is called once all else has been
            checked. With it the tower computes in int8.

    Attributes:
        tower: as it was given. Its float32 weights are the very memory that the runtime reads, and
            fingerprints are taken of them.
        calibration: a digest of the images, for fingerprints; None if the tower is not of int8.

    Raises:
        ConfigError: if openvino, or for int8 nncf, is not installed, or the tower is elsewhere or
            in another dtype.
        ImageError: if the images of `calibration` are not such as the tower takes.
        ExportError: if the runtime does not compute what the tower does.
    """

    def __init__(
        self, tower: VisionTransformer | ModifiedResNet, calibration: Calibration | None = None
    ) -> None:
        _check_tower(tower)
        super().__init__(tower.resolution, tower.output_dim)
        pixels = None if calibration is None else _pixels_of(calibration, tower.resolution)
        self.tower = tower
        self.calibration = None if pixels is None else sha256(pixels.numpy().data).hexdigest()
        self._runtime = _Runtime(tower, pixels)

    @property
    def conv1(self) -> nn.Module:
        """Return the first layer of the tower, which tells its device and its dtype."""
        return self.tower.conv1

    @property
    def about(self) -> str:
        """Return what computes the tower, in words for people."""
        return f"image tower in OpenVINO {self._runtime.version}{self._runtime.precision}"

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, 3, H, W) of any float dtype to features (N, output_dim) on the CPU.

        Raises:
            ConfigError: under autocast, for gradients, and while a graph is recorded.
        """
        _refuse_what_is_ignored(images)
        if len(images) == 0:
            return self.tower(images)
        pixels: _Floats = images.detach().to("cpu", torch.float32).contiguous().numpy()
        return torch.from_numpy(self._runtime.run(pixels)).to(self.tower.conv1.weight.dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> "OpenVINOTower":
        """Stay as it is: `to`, `half`, `cuda` and the like all come through here."""
        weight = self.tower.conv1.weight
        moved = fn(torch.empty(0, dtype=weight.dtype, device=weight.device))
        if (moved.device, moved.dtype) != (weight.device, weight.dtype):
            raise ConfigError(
                f"a tower in OpenVINO stays {weight.dtype} on the CPU: move or cast the model it "
                "is of"
            )
        return self


def _pixels_of(calibration: Calibration, resolution: tuple[int, int]) -> Tensor:
    """Return the images to calibrate on, once it is known that there is what quantizes."""
    import_openvino()
    import_nncf()
    # A preprocessing may be a module with weights, and a program may have set a default device.
    with torch.no_grad(), torch.device("cpu"):
        pixels = calibration()
    check_images(pixels, resolution, "optimize(calibration=)")
    return pixels.detach().float().contiguous()


def _check_tower(tower: object) -> None:
    """Raise `ConfigError` for what the runtime cannot compute, or not as it is."""
    if not isinstance(tower, VisionTransformer | ModifiedResNet):
        raise ConfigError(
            f"visual is of the class {type(tower).__name__}, and OpenVINO takes the towers of "
            "clipkit: put the model's own back, or use optimize() without runtime="
        )
    weight = tower.conv1.weight
    if weight.device.type != "cpu" or weight.dtype not in _HINTS:
        raise ConfigError(
            "OpenVINO computes in float32 or bfloat16 on the CPU, and the image tower is "
            f"{weight.dtype} on {weight.device}: cast or move the model before optimize()"
        )
    if is_watched(tower, weight):
        raise ConfigError(
            "the image tower has hooks, which OpenVINO would not call: remove them before "
            "optimize(), or use it without runtime="
        )


def _refuse_what_is_ignored(images: Tensor) -> None:
    """Raise `ConfigError` where the runtime would not do what is asked."""
    refuse_gradients_and_autocast(images)
    if not values_are_known(images):
        raise ConfigError(
            "a tower in OpenVINO can be neither compiled, traced nor exported: take the model it "
            "is of"
        )


class _Runtime:
    """Compile a tower for the sizes of batches that come, and run it, from any thread.

    Copies of a model share it, and a model that is pickled converts its tower again.

    Args:
        tower: as in `OpenVINOTower`.
        calibration: preprocessed images, for int8. They stay here, for a copy that is pickled.

    Attributes:
        precision: what it computes in, in words for people; nothing if it is the tower's own dtype.
    """

    def __init__(
        self, tower: VisionTransformer | ModifiedResNet, calibration: Tensor | None
    ) -> None:
        self._tower = tower
        self._calibration = calibration
        self.precision = ""
        self._openvino = import_openvino()
        self._dtype: torch.dtype = tower.conv1.weight.dtype
        self._resolution = tower.resolution
        # bfloat16 is what the runtime is asked to compute in; the graph itself is in float32.
        exact = tower if self._dtype is torch.float32 else deepcopy(tower).float()
        self._core = self._openvino.Core()
        self._lock = threading.Lock()
        self._compiled: dict[tuple[int | None, int], _Compiled] = {}
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            example = torch.zeros(2, 3, *self._resolution, device="cpu")
            self._graph = self._openvino.convert_model(record(exact, example))
            if calibration is None:
                self._check(exact)
            else:
                self._quantize(exact, calibration)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Runtime":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _Runtime, (self._tower, self._calibration)

    @property
    def version(self) -> str:
        """Return the runtime's version, without what it was built of."""
        return str(self._openvino.__version__).partition("-")[0]

    def run(self, pixels: _Floats) -> _Floats:
        """Return the features of preprocessed images: (N, 3, H, W) -> (N, D)."""
        return self._for_size(len(pixels)).run(pixels)

    def _for_size(self, count: int) -> "_Compiled":
        """Return the tower compiled for a size of batches, or for any size."""
        threads = torch.get_num_threads()
        with self._lock:
            known = [size for size, _ in self._compiled if size is not None]
            is_fixed = (count, threads) in self._compiled or len(known) < FIXED_SIZES
            key = (count if is_fixed else None, threads)
            if key not in self._compiled:
                self._compiled[key] = self._compile(*key)
            return self._compiled[key]

    def _compile(self, size: int | None, threads: int) -> "_Compiled":
        graph = self._graph.clone()  # which shares the weights
        graph.reshape([-1 if size is None else size, 3, *self._resolution])
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            # A processor without bfloat16 computes in float32.
            "INFERENCE_PRECISION_HINT": _HINTS[self._dtype],
        }
        return _Compiled(self._core.compile_model(graph, "CPU", settings))

    def _quantize(self, exact: nn.Module, pixels: Tensor) -> None:
        """Go on in int8, or raise `ExportError` if that would lose what the tower has learned."""
        is_transformer = isinstance(self._tower, VisionTransformer)
        self._graph = quantize(self._graph, pixels, is_transformer=is_transformer)
        # By the graph of any size, which holds the weights once, whatever sizes come.
        compiled = self._compile(None, torch.get_num_threads())
        cosines: list[Tensor] = []
        for start in range(0, len(pixels), _AT_ONCE):
            part = pixels[start : start + _AT_ONCE]
            found = torch.from_numpy(compiled.run(part.numpy())).flatten(1)
            cosines.append(F.cosine_similarity(found, exact(part).flatten(1)))
        mean = torch.cat(cosines).mean().item()
        if not mean >= MEAN_COSINE_OF_INT8:  # written so that NaN raises too
            raise ExportError(
                f"in int8 the features are too far from those in float32: over the "
                f"{len(pixels)} images of calibration the mean cosine is {mean:.4f}. Calibrate on "
                "images such as the model will see, or use optimize() without calibration="
            )
        self.precision = f", int8 by {len(pixels)} images, mean cosine {mean:.4f}"

    def _check(self, exact: nn.Module) -> None:
        """Raise `ExportError` unless an image's features are those of torch in float32."""
        random = torch.Generator("cpu").manual_seed(0)
        image = torch.randn(1, 3, *self._resolution, generator=random, device="cpu")
        expected = exact(image).flatten(1)
        found = torch.from_numpy(self.run(image.numpy())).flatten(1)
        cosine = F.cosine_similarity(found, expected).min().item()
        if not cosine >= COSINE[self._dtype]:  # written so that NaN raises too
            raise ExportError(
                f"OpenVINO {self.version} does not compute what the image tower does: the cosine "
                f"of a feature is {cosine:.6f}. Use optimize() without runtime="
            )


class _Compiled:
    """Run a compiled graph from several threads, each with a request of its own."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._idle: list[Any] = []

    def run(self, pixels: _Floats) -> _Floats:
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        # The input is read where it is, and the output is copied: the next run writes over it.
        outputs = request.infer([pixels], share_inputs=True, share_outputs=False)
        self._idle.append(request)
        return outputs[0]
