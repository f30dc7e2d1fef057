"""Measure the products of a transformer alone, by each of torch's routes and in OpenVINO.

    PYTHONPATH=. python tests/benchmarks/products.py [--sizes 512x8 768x50 1024x257] [--rounds 9]
        [--json tests/benchmarks/results/products.json]

A size is the width of a transformer and the rows that pass it: 512x8 is a short text in ViT-B/32,
768x50 an image in it, 1024x257 one in ViT-L/14. The products are those of 12 blocks, with nothing
between them but what makes one the input of the next. So a row says what a route could reach at
most. Routes: torch's own layers; oneDNN with packed weights, as in `optimize()`; torch's compiler
with frozen weights and its own C++ kernels; OpenVINO; and in another row what it takes to read all
weights once. Outputs are compared first. They take turns.

Cost: about two minutes of compiling for each size. Needs openvino and a C++ compiler.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch._inductor.config as inductor
from side_by_side import hardware, quartiles, timed
from torch import Tensor, nn

from clipkit.models.kernels import PackedLinear, pack
from clipkit.models.openvino_package import import_openvino

BLOCKS = 12


class Products(nn.Module):
    """Multiply by the four weights of each block of a transformer.

    Args:
        width: W of each row.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        sizes = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
        self.layers = nn.ModuleList(nn.Linear(*size) for _ in range(BLOCKS) for size in sizes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (R, W) to (R, W)."""
        for first in range(0, len(self.layers), 4):
            qkv, out, up, down = self.layers[first : first + 4]
            x = x + out(qkv(x)[:, : self.width])
            x = x + down(up(x))
        return x


def packed(products: Products) -> Products:
    """Return the same products with weights in oneDNN's order."""
    found = Products(products.width)
    for number, layer in enumerate(products.layers):
        assert isinstance(layer, nn.Linear)
        found.layers[number] = PackedLinear(pack(layer.weight), layer.bias)
    return found


def in_openvino(products: Products, x: Tensor) -> Any:
    """Return a call that computes the products of `x` in OpenVINO."""
    openvino = import_openvino()
    graph = openvino.convert_model(products, example_input=x)
    graph.reshape(list(x.shape))
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = openvino.compile_model(graph, "CPU", settings).create_infer_request()
    rows = x.numpy()
    return lambda: torch.from_numpy(request.infer([rows], share_inputs=True)[0])


def read_all(products: Products) -> None:
    """Read each weight once."""
    for weight in products.parameters():
        weight.sum()


def routes_of(width: int, rows: int) -> dict[str, Any]:
    """Return a call for each route, once all have been found to give the same."""
    torch.manual_seed(0)
    products, x = Products(width).eval(), torch.randn(rows, width)
    calls: dict[str, Any] = {
        "torch": partial(products, x),
        "oneDNN, packed": partial(packed(products), x),
        "torch's compiler": partial(torch.compile(products), x),
        "openvino": in_openvino(products, x),
    }
    expected = products(x)
    for name, call in calls.items():
        torch.testing.assert_close(call(), expected, rtol=1e-4, atol=1e-4, msg=name)
    return calls | {"reading the weights": partial(read_all, products)}


def measured(width: int, rows: int, rounds: int) -> dict[str, list[float]]:
    """Return the quartiles of the seconds of each route."""
    calls = routes_of(width, rows)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds):
        for name in list(calls)[:: 1 if turn % 2 else -1]:
            seconds[name].append(timed(calls[name], torch.device("cpu")))
    return {name: quartiles(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", default=["512x8", "768x50", "1024x257"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    inductor.freezing = inductor.max_autotune = True
    inductor.max_autotune_gemm = True
    inductor.max_autotune_gemm_backends = "CPP"
    found: dict[str, Any] = {}
    with torch.no_grad():
        for size in args.sizes:
            width, rows = map(int, size.split("x"))
            found[size] = measured(width, rows, args.rounds)
            for name, (_, median, _) in found[size].items():
                print(f"{size:10}{name:24}{1000 * median:10.1f} ms", flush=True)
    if args.json:
        about = {"hardware": hardware(torch.device("cpu")), "seconds": found}
        args.json.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
