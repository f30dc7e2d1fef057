"""A classifier as one file that needs no clipkit: ONNX, or torch's exported program."""

import copy
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipkit.errors import ConfigError, ExportError
from clipkit.files import replacing

if TYPE_CHECKING:
    from clipkit.classify.classifier import ImageClassifier

TOLERANCE = 1e-4  # of probabilities: other kernels add up in another order


class _Deployed(nn.Module):
    """uint8 (N, 3, H, W) to probabilities (N, C)."""

    mean: Tensor
    std: Tensor

    def __init__(self, classifier: "ImageClassifier") -> None:
        super().__init__()
        # Copies alone, without the text tower: what runs the file decides where, and not all of it computes in halves.
        self.visual, self.head = (
            copy.deepcopy(m).float().cpu() for m in (classifier.model.visual, classifier.head)
        )
        for name in ("mean", "std"):
            value = torch.tensor(getattr(classifier.model.config.preprocess, name))
            self.register_buffer(name, value.view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        features = self.visual((images.float() / 255 - self.mean) / self.std)
        return self.head(F.normalize(features, dim=-1)).softmax(dim=-1)


def export(classifier: "ImageClassifier", path: Path) -> None:
    """See `ImageClassifier.export`."""
    kinds = {".onnx": (_write_onnx, _open_onnx), ".pt2": (_write_program, _open_program)}
    if path.suffix not in kinds:
        raise ConfigError(f"export writes .onnx and .pt2, not {path.name!r}")
    if path.suffix == ".onnx" and (
        missing := [p for p in ("onnx", "onnxscript", "onnxruntime") if not find_spec(p)]
    ):
        raise ConfigError(
            f"export to ONNX needs {', '.join(missing)}: pip install 'clipkit-torch[export]'"
        )
    classifier.model.check_original("export the classifier of")
    write, read = kinds[path.suffix]
    deployed, shape = _Deployed(classifier).eval(), (5, 3, *classifier.model.visual.resolution)
    images = torch.randint(
        0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    with replacing(path) as partial, torch.no_grad():
        write(deployed, images[:2], partial)
        run = read(partial)
        for size in (1, 2, 5):  # the number of images must have stayed free
            difference = (run(images[:size]) - deployed(images[:size])).abs().max().item()
            if not difference <= TOLERANCE:
                raise ExportError(
                    f"the exported file differs by {difference:.1e} for {size} images; it is not kept"
                )


def _program(module: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(
        module, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
    )


def _write_program(module: nn.Module, images: Tensor, path: Path) -> None:
    with path.open("wb") as file:
        torch.export.save(_program(module, images), file)


def _open_program(path: Path) -> Callable[[Tensor], Tensor]:
    with path.open("rb") as file:
        return torch.export.load(file).module()


def _write_onnx(module: nn.Module, images: Tensor, path: Path) -> None:
    program: Any = torch.onnx.export(
        _program(module, images),
        (images,),
        input_names=["images"],
        output_names=["probabilities"],
        verbose=False,
    )
    program.save(path, external_data=False)


def _open_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
