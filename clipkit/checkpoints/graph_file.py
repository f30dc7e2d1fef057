"""Write a module as one file that needs no clipkit: ONNX, or torch's exported program."""

import io
import json
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from clipkit.errors import ConfigError
from clipkit.files import check_output, replacing, replacing_folder
from clipkit.models.record import BATCH, FreeSizes, record

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

# Bytes of weights. A file of the format (protobuf) ends at 2 GiB, and the graph needs some of it.
LARGEST_ONNX = (2 << 30) - (64 << 20)

ABOUT = "clipkit.json"  # the extra file of a `.pt2`

Run = Callable[[Tensor], list[Tensor]]


@dataclass(frozen=True)
class Graph:
    """Hold what a file is made of.

    Attributes:
        module: on the CPU, in eval mode, without gradients. It takes one tensor.
        example: an input, in which free sizes are 2 or more.
        input_name, output_names: of the tensors, for runtimes.
        about: what programs need to know, by name. Values can be written as JSON.
        free: the sizes of the input that are free.
    """

    module: nn.Module
    example: Tensor
    input_name: str
    output_names: list[str]
    about: Mapping[str, Any]
    free: FreeSizes = BATCH


class OneInput(nn.Module):
    """Call a module with one argument, whatever its own signature is."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """Return what the module makes of x."""
        return self.module(x)


def check_place(path: Path) -> None:
    """Raise an error for a file that cannot be written, before any work.

    Raises:
        ConfigError: for an ending that is no format, or that needs a missing package.
        OutputError: for a place that cannot be written to.
    """
    _check_ending(path)
    check_output(path)


def write_graph(path: Path, graph: Graph, check: Callable[[Run], None]) -> None:
    """Write a graph into a file, which gets its name once it has been checked, or not at all.

    Args:
        path: ends in `.onnx`, or in `.pt2` for `torch.export.load`. What is known about the graph
            is in the metadata of an `.onnx`, each entry as JSON, and in the extra file
            `clipkit.json` of a `.pt2`.
        graph: what to write.
        check: is given a function that runs the file. It raises an error if the file is wrong.

    Raises:
        OutputError: if the file cannot be written.
        Others: what `check` raises.
    """
    if path.suffix == ".pt2":
        with replacing(path) as partial, _computing_plainly():
            _write_program(graph, partial)
            check(_open_program(partial))
        return
    with _onnx_files(path, graph.module) as partial, _computing_plainly():
        _write_onnx(graph, partial)
        check(_open_onnx(partial, graph.input_name))


@contextmanager
def _computing_plainly() -> Generator[None, None, None]:
    """Compute without gradients, and in float32 also under an autocast of the program."""
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        yield


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


def as_list(outputs: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    """Return the outputs of a module as a list, also if there is one."""
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def _write_program(graph: Graph, path: Path) -> None:
    # In memory first: torch ends the process when its own writer meets a full disk.
    buffer = io.BytesIO()
    program = record(graph.module, graph.example, graph.free)
    torch.export.save(program, buffer, extra_files={ABOUT: json.dumps(dict(graph.about))})
    with path.open("wb") as file:
        file.write(buffer.getbuffer())


def _open_program(path: Path) -> Run:
    with path.open("rb") as file:
        module = torch.export.load(file).module()
    return lambda inputs: as_list(module(inputs))


def _write_onnx(graph: Graph, path: Path) -> None:
    program = torch.onnx.export(
        record(graph.module, graph.example, graph.free),
        (graph.example,),
        input_names=[graph.input_name],
        output_names=graph.output_names,
        dynamic_shapes=({axis: name for axis, (name, _) in enumerate(graph.free)},),
        verbose=False,
    )
    assert program is not None  # torch returns one unless it is given a path
    about = {name: json.dumps(value) for name, value in graph.about.items()}
    program.model.metadata_props.update(about)
    program.save(path, external_data=_needs_data_file(graph.module))


def _open_onnx(path: Path, input_name: str) -> Run:
    runtime: Any = import_module("onnxruntime")  # it has no types
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(inputs: Tensor) -> list[Tensor]:
        outputs = session.run(None, {input_name: inputs.numpy()})
        return [torch.from_numpy(output) for output in outputs]

    return run
