"""Share models, files and classes between the tests of checkpoints."""

import sys
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from clipkit import CLIP, Tokenizer
from clipkit.checkpoints.save import FolderLayout
from tests.helpers.model_files import read_files
from tests.helpers.openai_style import OpenAIStyle, two_rows_of_tokens
from tests.helpers.repositories import LAYOUTS, Contents


@pytest.fixture(scope="session")
def contents(
    tmp_path_factory: pytest.TempPathFactory, vit: CLIP, small_tokenizer: Tokenizer
) -> Contents:
    """Give the files of the small ViT in a layout, with its merges."""
    folder = tmp_path_factory.mktemp("layouts")
    model = CLIP(vit.config, small_tokenizer)
    model.load_state_dict(vit.state_dict())
    made: dict[FolderLayout, dict[str, bytes]] = {}
    for layout in LAYOUTS:
        model.save_pretrained(folder / layout, layout=layout)
        made[layout] = read_files(folder / layout)
    return lambda layout: dict(made[layout])


@pytest.fixture(scope="session")
def openai_model() -> OpenAIStyle:
    """Give a model with OpenAI's mixture of dtypes. Tests must not change it."""
    torch.manual_seed(0)
    model = OpenAIStyle()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ln_" in name or name.endswith("bias"):
                parameter += 0.2 * torch.randn_like(parameter)
    return model.halve()


@pytest.fixture(scope="session")
def openai_archive(openai_model: OpenAIStyle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the model as OpenAI published its own, a TorchScript archive."""
    path = tmp_path_factory.mktemp("archive") / "ViT-small.pt"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, which is why only tests use it
        inputs = (torch.randn(2, 3, 48, 48), two_rows_of_tokens())
        script: Any = torch.jit.trace(openai_model, inputs, check_trace=False)
        script.save(str(path))
    return path


@pytest.fixture
def script_class(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give a class that pickles as TorchScript's do, as `__torch__.Module`."""
    module: Any = types.ModuleType("__torch__")
    module.Module = type("Module", (), {"__module__": "__torch__"})
    monkeypatch.setitem(sys.modules, "__torch__", module)
    return module.Module
