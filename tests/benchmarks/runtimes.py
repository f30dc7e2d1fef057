"""Run a model's towers in OpenVINO and ONNX Runtime, in each way that may be their fastest.

Both get the ONNX file that `export_tower` writes of the same weights. Each runs on as many threads
as torch has. ONNX Runtime computes in float32 alone: it has no bfloat16 on a CPU.
"""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

import clipkit

Tower = Literal["image", "text"]
Floats = NDArray[np.float32]

RUNTIMES = [
    name for name in ("onnxruntime", "openvino") if importlib.util.find_spec(name) is not None
]
HINTS = {torch.float32: "f32", torch.bfloat16: "bf16"}


def runtime_calls(
    model: clipkit.CLIP, tower: Tower, dtype: torch.dtype, folder: Path
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return what maps a batch of images or token ids to features, by each runtime and setting."""
    file = folder / f"{tower}.onnx"
    if RUNTIMES and not file.exists():
        model.export_tower(file, tower=tower)
    found: dict[str, Callable[[Tensor], Tensor]] = {}
    if "onnxruntime" in RUNTIMES and dtype is torch.float32:
        found["onnxruntime"] = OnnxRuntime(file)
    if "openvino" in RUNTIMES and dtype in HINTS:
        for setting in ("latency", "latency, fixed sizes", "throughput"):
            found[f"openvino {setting}"] = OpenVino(file, setting, HINTS[dtype])
    return found


class OnnxRuntime:
    """Run a file in ONNX Runtime."""

    def __init__(self, file: Path) -> None:
        runtime: Any = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self._name: str = self._session.get_inputs()[0].name

    def __call__(self, batch: Tensor) -> Tensor:
        """Return the features of a batch."""
        (features,) = self._session.run(None, {self._name: batch.numpy()})
        return torch.from_numpy(features)


class OpenVino:
    """Run a file in OpenVINO.

    Args:
        file: ONNX.
        setting: "latency" for one graph of all sizes, "latency, fixed sizes" for one for each size
            that comes, "throughput" for as many streams as there are threads, among which a batch
            is shared out.
        precision: "f32" or "bf16".
    """

    def __init__(self, file: Path, setting: str, precision: str) -> None:
        openvino: Any = importlib.import_module("openvino")
        self._core: Any = openvino.Core()
        self._file = file
        self._is_fixed = "fixed" in setting
        self._streams = torch.get_num_threads() if setting == "throughput" else 1
        self._options = {
            "PERFORMANCE_HINT": setting.partition(",")[0].upper(),
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        self._compiled: dict[tuple[int, ...], Any] = {}
        self._requests: list[Any] = []  # one for each stream

    def __call__(self, batch: Tensor) -> Tensor:
        """Return the features of a batch."""
        values = batch.numpy()
        if self._streams > 1 and len(values) > 1:
            return torch.from_numpy(self._in_streams(values))
        compiled = self._graph(values.shape if self._is_fixed else ())
        return torch.from_numpy(compiled([values])[0])

    def _in_streams(self, values: NDArray[Any]) -> Floats:
        """Share a batch out among the streams."""
        graph = self._graph(())
        while len(self._requests) < self._streams:
            self._requests.append(graph.create_infer_request())
        parts = np.array_split(values, min(len(values), self._streams))
        pairs = list(zip(self._requests, parts, strict=False))
        for request, part in pairs:
            request.start_async([np.ascontiguousarray(part)])
        for request, _ in pairs:
            request.wait()
        found = [request.get_output_tensor(0).data.copy() for request, _ in pairs]
        return np.concatenate(found)

    def _graph(self, shape: tuple[int, ...]) -> Any:
        """Return the compiled graph for a shape, or for all if it is empty."""
        if shape not in self._compiled:
            graph = self._core.read_model(self._file)
            if shape:
                graph.reshape(shape)
            self._compiled[shape] = self._core.compile_model(graph, "CPU", self._options)
        return self._compiled[shape]


def unit(call: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """Return the features of a batch, each of unit length."""
    return F.normalize(call(batch), dim=-1)
