"""Write the same weights as files of every kind.

torch.jit is deprecated. Only tests use it, to make archives.
"""

import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clipkit.files import write_weights


class ToyBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2)
        self.ln_1 = nn.LayerNorm(8)
        self.mlp = nn.Sequential(
            OrderedDict(c_fc=nn.Linear(8, 32), gelu=nn.GELU(), c_proj=nn.Linear(32, 8))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.ln_1(x)


class ToyTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(ToyBlock(), ToyBlock())

    def forward(self, x: Tensor) -> Tensor:
        return self.resblocks(x)


class ToyVision(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(8))
        self.positional_embedding = nn.Parameter(torch.randn(5, 8))
        self.proj = nn.Parameter(torch.randn(4, 8).t())  # not contiguous
        self.conv1 = nn.Conv2d(3, 8, 2, 2, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.transformer = ToyTransformer()

    def forward(self, x: Tensor) -> Tensor:
        return self.transformer(x)


class ToyCLIP(nn.Module):
    """Hold weights under CLIP's names in OpenAI's mixture of dtypes.

    All are float16, but LayerNorms and embeddings are float32.
    """

    def __init__(self) -> None:
        super().__init__()
        self.visual = ToyVision()
        self.transformer = ToyTransformer()
        self.token_embedding = nn.Embedding(16, 8)
        self.logit_scale = nn.Parameter(torch.tensor(2.5))
        self.half()
        for module in self.modules():
            if isinstance(module, nn.LayerNorm | nn.Embedding):
                module.float()
        first, second = self.transformer.resblocks
        second.mlp = first.mlp  # modules and tensors may be shared
        for name, value in (("input_resolution", 224), ("context_length", 77), ("vocab_size", 16)):
            self.register_buffer(name, torch.tensor(value))

    def forward(self, x: Tensor) -> Tensor:
        return self.visual(x) + self.transformer(x)


class ToyScript(nn.Module):
    """Hold attributes of every sort that an archive may hold beside tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))
        self.layer = nn.Linear(3, 3)
        self.sizes = [1, 2]
        self.names = ["a"]
        self.table = {"a": 1}
        self.eps = 1e-5
        self.vocab_size = 16

    def forward(self, x: Tensor) -> Tensor:
        return (
            self.layer(x) * self.weight
            + self.sizes[0]
            + self.eps
            + self.vocab_size
            + self.table[self.names[0]]
        )


def save_torchscript(
    module: nn.Module, path: Path, trace_with: Tensor | None = None
) -> dict[str, Tensor]:
    """Script or trace a module, save it as an archive, and return its state dict."""
    script: Any
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        if trace_with is None:
            script = torch.jit.script(module.eval())
        else:
            script = torch.jit.trace(module.eval(), trace_with, check_trace=False)
        script.save(str(path))
        return script.state_dict()


def mapped_file(tensor: Tensor) -> str:
    """Return the name of the file behind the tensor's memory, or "" for ordinary memory."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(end, 16) for end in line.split()[0].split("-"))
        if first <= tensor.data_ptr() < last:
            return line.split(maxsplit=5)[5] if "/" in line else ""
    raise LookupError("memory without a mapping")


STATE = {
    "visual.conv1.weight": torch.randn(8, 3, 2, 2).half(),
    "visual.proj": torch.randn(4, 8).t(),
    "token_embedding.weight": torch.tensor([[float("nan"), -0.0, float("inf")]]),
    "logit_scale": torch.tensor(4.6052, dtype=torch.float64),
    "visual.empty": torch.zeros(0, 3),
    "visual.ids": torch.arange(5),
    "visual.bf": torch.randn(3).bfloat16(),
    "visual.mask": torch.tensor([True, False]),
}


def save_safetensors(path: Path) -> None:
    write_weights(STATE, path)


def save_zip(path: Path) -> None:
    torch.save(STATE, path)


def save_legacy(path: Path) -> None:
    torch.save(STATE, path, _use_new_zipfile_serialization=False)


def save_archive(path: Path) -> None:
    save_torchscript(ToyScript(), path)


Save = Callable[[Path], None]
KINDS: list[Save] = [save_safetensors, save_zip, save_legacy, save_archive]
every_kind = pytest.mark.parametrize("save", KINDS)
