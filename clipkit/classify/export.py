"""Write a classifier as one file that needs no clipkit: ONNX, or torch's exported program."""

import copy
import io
import json
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipkit.classify.calibration import Calibration
from clipkit.classify.export_calibration import Outputs, describe_calibration
from clipkit.classify.heads import Head
from clipkit.config import PreprocessConfig
from clipkit.data.preprocess import Preprocess
from clipkit.errors import ConfigError, ExportError
from clipkit.files import check_output, replacing, replacing_folder
from clipkit.plurals import number_of

TOLERANCE = 1e-4  # of probabilities; other kernels add up in another order
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

# Bytes of weights. A file of the format (protobuf) ends at 2 GiB, and the graph needs some of it.
LARGEST_ONNX = (2 << 30) - (64 << 20)

ABOUT = "clipkit.json"  # the extra file of a `.pt2`

Run = Callable[[Tensor], list[Tensor]]


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


class _OneInput(nn.Module):
    """Call a module with one argument, whatever its own signature is."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        return self.module(images)


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
    _check_ending(path)
    check_output(path)
    images = _random_images(5, resolution)
    prepare = _module_of(preprocess, images)
    # A program that is loaded again would make outputs with gradients, which `.numpy()` refuses.
    deployed = _Deployed(prepare, visual, head, calibration).eval().requires_grad_(False)
    about = _describe(labels, preprocess, resolution, calibration)
    if path.suffix == ".pt2":
        with replacing(path) as partial, torch.no_grad():
            _write_program(deployed, images[:2], partial, about)
            _compare(_open_program(partial), deployed, images)
        return
    with _onnx_files(path, deployed) as partial, torch.no_grad():
        _write_onnx(deployed, images[:2], partial, about)
        _compare(_open_onnx(partial), deployed, images)


def _check_ending(path: Path) -> None:
    """Raise `ConfigError` for an ending that is no format, or that needs a missing package."""
    if path.suffix == ".pt2":
        return
    if path.suffix != ".onnx":
        raise ConfigError(f"export writes .onnx and .pt2, not {path.name!r}")
    missing = [package for package in ONNX_PACKAGES if not find_spec(package)]
    if missing:
        raise ConfigError(
            f"export to ONNX needs {', '.join(missing)}: pip install 'clipkit-torch[export]'"
        )


def _describe(
    labels: Sequence[str],
    preprocess: Callable[[Any], Tensor],
    resolution: tuple[int, int],
    calibration: Calibration | None,
) -> dict[str, str]:
    """Return what a program needs to know of the file, each entry as JSON.

    The mean and standard deviation are in the graph already, and are for people.
    """
    about: dict[str, Any] = {"labels": list(labels), "input_size": list(resolution)}
    if isinstance(preprocess, Preprocess):
        about |= {"mean": list(preprocess.config.mean), "std": list(preprocess.config.std)}
    if calibration is not None:
        about["calibration"] = describe_calibration(calibration)
    return {name: json.dumps(value) for name, value in about.items()}


@contextmanager
def _onnx_files(path: Path, module: nn.Module) -> Generator[Path, None, None]:
    """Give a path to write an `.onnx` to, which takes its place at the end or not at all.

    A file of this format ends at 2 GiB. The weights of a larger one lie in `x.onnx.data` beside
    `x.onnx`, and both are replaced as one.
    """
    if not _needs_data_file(module):
        with replacing(path) as partial:
            yield partial
        return
    data = path.with_name(f"{path.name}.data")
    check_output(data)
    with replacing_folder(path.parent) as fresh:
        yield fresh / path.name
        # Runtimes know nothing of a swap, and must not meet one new file beside an old one.
        path.unlink(missing_ok=True)
        data.unlink(missing_ok=True)


def _needs_data_file(module: nn.Module) -> bool:
    """Return whether the weights are too large for one file."""
    weights = cast("Iterable[Tensor]", module.state_dict().values())
    return sum(weight.numel() * weight.element_size() for weight in weights) > LARGEST_ONNX


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
    prepare = _OneInput(copy.deepcopy(preprocess)).float().cpu().eval()
    try:
        with torch.no_grad():
            prepared = prepare(images)
            _program(prepare, images)
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
            run(images[:count]), _as_list(deployed(images[:count])), strict=True
        ):
            difference = (made - expected).abs().max().item()
            # Probabilities are at most 1; a confidence is of the size of logits.
            unit = max(1.0, expected.abs().max().item())
            if not difference <= TOLERANCE * unit:  # written so that NaN raises too
                raise ExportError(
                    f"the exported file differs by {difference:.1e} for "
                    f"{number_of(count, 'image')}; it is not kept"
                )


def _as_list(outputs: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def _program(module: nn.Module, images: Tensor) -> "torch.export.ExportedProgram":
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(module, (images,), dynamic_shapes=({0: batch},))


def _write_program(module: nn.Module, images: Tensor, path: Path, about: dict[str, str]) -> None:
    # In memory first: torch ends the process when its own writer meets a full disk.
    buffer = io.BytesIO()
    values = {name: json.loads(value) for name, value in about.items()}
    torch.export.save(_program(module, images), buffer, extra_files={ABOUT: json.dumps(values)})
    with path.open("wb") as file:
        file.write(buffer.getbuffer())


def _open_program(path: Path) -> Run:
    with path.open("rb") as file:
        module = torch.export.load(file).module()
    return lambda images: _as_list(module(images))


def _write_onnx(module: _Deployed, images: Tensor, path: Path, about: dict[str, str]) -> None:
    program = torch.onnx.export(
        _program(module, images),
        (images,),
        input_names=["images"],
        output_names=module.outputs.names,
        dynamic_shapes=({0: "batch"},),
        verbose=False,
    )
    assert program is not None  # torch returns one unless it is given a path
    program.model.metadata_props.update(about)
    program.save(path, external_data=_needs_data_file(module))


def _open_onnx(path: Path) -> Run:
    runtime: Any = import_module("onnxruntime")  # it has no types
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> list[Tensor]:
        outputs = session.run(None, {"images": images.numpy()})
        return [torch.from_numpy(output) for output in outputs]

    return run
