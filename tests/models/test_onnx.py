"""Towers exported by torch's older ONNX exporter take any batch, though one image was traced."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.towers import NAMES, TowerName, make_inputs, make_tower

onnxruntime: Any = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the exporter warns of its own age
@pytest.mark.filterwarnings("ignore:Exporting aten")  # indices below 0 would go wrong; ours are not
@pytest.mark.parametrize("name", NAMES)
def test_the_older_exporter_keeps_the_batch_free(name: TowerName, tmp_path: Path) -> None:
    """It was wrong without an error where the batch size was read from split heads."""
    module, example = make_tower(name), make_inputs(name)
    file = tmp_path / "tower.onnx"
    torch.onnx.export(
        module,
        (example[:1],),
        file,
        input_names=["inputs"],
        output_names=["features"],
        dynamic_axes={"inputs": {0: "batch"}, "features": {0: "batch"}},
        dynamo=False,
    )
    session = onnxruntime.InferenceSession(file)
    for count in (1, 2, 3, 7):
        (found,) = session.run(None, {"inputs": example[:count].numpy()})
        expected = module(example[:count]).detach()
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-5)
