"""Write a classifier as one file that needs no clipkit: ONNX, or torch's exported program."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipkit.checkpoints.graph_file import (
    Graph,
    OneInput,
    Run,
    as_list,
    check_place,
    write_graph,
)
from clipkit.classify.calibration import Calibration
from clipkit.classify.export_calibration import Outputs, describe_calibration
from clipkit.classify.heads import Head
from clipkit.config import PreprocessConfig
from clipkit.data.preprocess import Preprocess
from clipkit.errors import ConfigError, ExportError
from clipkit.models.record import record
from clipkit.plurals import number_of

TOLERANCE = 1e-4  # of probabilities; other kernels add up in another order


class _Normalize(nn.Module):
    """Scale uint8 images to 0-1, then normalize each channel, as `Preprocess` does."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: PreprocessConfig) -> None:
        super().__init__()
        self.register_buffer("mean", _per_channel(config.mean))
        self.register_buffer("std", _per_channel(config.std))

    def forward(self, images: Tensor) -> Tensor:
        return (images.float() / 255 - self.mean) / self.std


def _per_channel(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device="cpu").view(3, 1, 1)


class _Deployed(nn.Module):
    """Map uint8 images (N, 3, H, W) to probabilities (N, C) and what a calibration adds."""

    def __init__(
        self, prepare: nn.Module, visual: nn.Module, head: Head, calibration: Calibration | None
    ) -> None:
        super().__init__()
        # Copies on the CPU, in float32: whoever runs the file decides where, and not every
        # runtime computes in half precision.
        self.prepare = copy.deepcopy(prepare).float().cpu()
        self.visual = copy.deepcopy(visual).float().cpu()
        self.head = copy.deepcopy(head).float().cpu()
        self.outputs = Outputs(calibration)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        features = F.normalize(self.visual(self.prepare(images)), dim=-1)
        # Not the whole forward: its guard against autocast would become part of the graph.
        return self.outputs(self.head.logits(features))


def export(
    path: Path,
    *,
    visual: nn.Module,
    head: Head,
    labels: Sequence[str],
    preprocess: Callable[[Any], Tensor],
    resolution: tuple[int, int],
    calibration: Calibration | None = None,
) -> None:
    """Write an image tower and a head as one file, from uint8 images to probabilities.

    The file takes (N, 3, H, W) uint8, RGB, N free, and returns (N, C) float32, or with a
    calibration what `Outputs` makes. Before it gets its name, it is run on random images and must
    agree with the modules.

    Args:
        path: ends in `.onnx`, or in `.pt2` for `torch.export.load`.
        visual: the image tower, from (N, 3, H, W) float32 to features (N, D).
        head: from features of unit length to logits (N, C).
        labels: C names, for the metadata.
        preprocess: a `Preprocess`, of which the mean and the standard deviation go into the file
            (its resizing and cropping stay outside); or an `nn.Module`, which goes into the file as
            it is and gets the uint8 images.
        resolution: (H, W) in pixels.
        calibration: of the classifier, if it is calibrated.

    Raises:
        ConfigError: for another ending, a missing package, or a preprocessing that cannot be
            written into a file.
        ExportError: if an output differs by more than `TOLERANCE`, of logits per unit.
        OutputError: if the file cannot be written.
    """
    check_place(path)
    images = _random_images(5, resolution)
    prepare = _module_of(preprocess, images)
    # A program that is loaded again would make outputs with gradients, which `.numpy()` refuses.
    deployed = _Deployed(prepare, visual, head, calibration).eval().requires_grad_(False)
    graph = Graph(
        module=deployed,
        example=images[:2],
        input_name="images",
        output_names=deployed.outputs.names,
        about=_describe(labels, preprocess, resolution, calibration),
    )
    write_graph(path, graph, lambda run: _compare(run, deployed, images))


def _describe(
    labels: Sequence[str],
    preprocess: Callable[[Any], Tensor],
    resolution: tuple[int, int],
    calibration: Calibration | None,
) -> dict[str, Any]:
    """Return what a program needs to know of the file.

    The mean and standard deviation are in the graph already, and are for people.
    """
    about: dict[str, Any] = {"labels": list(labels), "input_size": list(resolution)}
    if isinstance(preprocess, Preprocess):
        about |= {"mean": list(preprocess.config.mean), "std": list(preprocess.config.std)}
    if calibration is not None:
        about["calibration"] = describe_calibration(calibration)
    return about


def _random_images(count: int, resolution: tuple[int, int]) -> Tensor:
    """Return the same uint8 images (count, 3, H, W) each time."""
    generator = torch.Generator("cpu").manual_seed(0)
    shape = (count, 3, *resolution)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator, device="cpu")


def _module_of(preprocess: Callable[[Any], Tensor], images: Tensor) -> nn.Module:
    """Return the part of a preprocessing that a file can hold.

    Raises:
        ConfigError: for a function, whose Python code no graph can hold, or a module that does not
            take uint8 images (N, 3, H, W) or cannot be written as a graph.
    """
    if isinstance(preprocess, Preprocess) and type(preprocess) is Preprocess:
        return _Normalize(preprocess.config)
    if not isinstance(preprocess, nn.Module):
        raise ConfigError(
            f"the model's preprocess is {preprocess!r}, which cannot be written into a file: set "
            "model.preprocess to a clipkit.Preprocess, or to an nn.Module that takes uint8 images "
            "(N, 3, H, W), for example torchvision.transforms.v2.Compose"
        )
    prepare = OneInput(copy.deepcopy(preprocess)).float().cpu().eval()
    try:
        with torch.no_grad():
            prepared = prepare(images)
            record(prepare, images)
    except Exception as error:  # it is not our code, so it may raise anything
        problem = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise ConfigError(
            f"the model's preprocess cannot be exported ({problem}): it must take uint8 images "
            f"(N, 3, H, W), here {tuple(images.shape)}, and compute with torch alone; steps that "
            "turn PIL images into tensors have no place in it"
        ) from error
    _check_prepared(prepared, images)
    return prepare


def _check_prepared(prepared: object, images: Tensor) -> None:
    """Raise `ConfigError` unless a preprocessing makes a float tensor of the images' shape."""
    found = type(prepared).__name__
    if isinstance(prepared, Tensor):
        if prepared.is_floating_point() and prepared.shape == images.shape:
            return
        found = f"{prepared.dtype} of {tuple(prepared.shape)}"
    raise ConfigError(
        f"the model's preprocess makes {found} of uint8 images {tuple(images.shape)}: export needs "
        "one that returns a float tensor of the same shape"
    )


def _compare(run: Run, deployed: nn.Module, images: Tensor) -> None:
    """Raise `ExportError` unless a file agrees with the modules, for several numbers of images."""
    for count in (1, 2, 5):  # it was written with two images, and their number must be free
        for made, expected in zip(
            run(images[:count]), as_list(deployed(images[:count])), strict=True
        ):
            difference = (made - expected).abs().max().item()
            # Probabilities are at most 1; a confidence is of the size of logits.
            unit = max(1.0, expected.abs().max().item())
            if not difference <= TOLERANCE * unit:  # written so that NaN raises too
                raise ExportError(
                    f"the exported file differs by {difference:.1e} for "
                    f"{number_of(count, 'image')}; it is not kept"
                )
