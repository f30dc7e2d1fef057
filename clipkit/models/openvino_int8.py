"""Quantize an OpenVINO graph of an image tower to int8.

NNCF runs the graph on images of the user's. For each input of a product it notes the smallest and
the largest number that it sees, and spreads 256 levels between them. Weights are rounded too. The
inputs of a transformer have outliers, which it first shifts into the weights (SmoothQuant,
2211.10438).
"""

from typing import Any

from torch import Tensor

from clipkit.models.openvino_package import import_nncf, quiet

# NNCF's own default: more images take longer and change little.
MOST_IMAGES = 300


def quantize(graph: object, pixels: Tensor, *, is_transformer: bool) -> Any:
    """Return a graph whose products are of int8.

    Args:
        graph: of OpenVINO, from (N, 3, H, W) float32 to features.
        pixels: preprocessed images (N, 3, H, W) float32, such as the graph will see.
        is_transformer: whether it is of a vision transformer.

    Raises:
        ConfigError: if nncf is not installed.
    """
    nncf = import_nncf()
    samples = list(pixels.unsqueeze(1).numpy())  # (N, 3, H, W) -> N of (1, 3, H, W)
    kind = nncf.ModelType.TRANSFORMER if is_transformer else None
    with quiet():
        return nncf.quantize(
            graph, nncf.Dataset(samples), subset_size=len(samples), model_type=kind
        )
