"""Write one tower of a model as a file that needs no clipkit: ONNX, or torch's exported program."""

import math
import os
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipkit.checkpoints.graph_file import Graph, OneInput, Run, check_place, write_graph
from clipkit.checkpoints.tokenizer_json import to_tokenizer_json
from clipkit.config import CLIPConfig
from clipkit.data.preprocess import Preprocess
from clipkit.errors import ConfigError, ExportError
from clipkit.files import spell_path
from clipkit.models.record import BATCH, FreeSizes
from clipkit.plurals import number_of
from clipkit.tokenizer import Tokenizer

Tower: TypeAlias = Literal["image", "text"]

# Other kernels add up in another order. The difference is a share of the largest number.
COSINE = 0.99999
TOLERANCE = 1e-3

COUNTS = (1, 2, 5)  # of samples that a file is checked with; it was written with two


class HasTowers(Protocol):
    """Describe what is exported of a model. A `clipkit.CLIP` has it."""

    @property
    def config(self) -> CLIPConfig: ...

    @property
    def visual(self) -> nn.Module: ...

    @property
    def text(self) -> nn.Module: ...

    @property
    def logit_scale(self) -> Tensor: ...

    @property
    def preprocess(self) -> object: ...

    @property
    def tokenizer(self) -> Tokenizer: ...


def export_tower(model: HasTowers, path: str | os.PathLike[str], tower: Tower = "image") -> None:
    """Write one tower of a model as a file, which computes in float32 whatever the model does.

    - The image tower takes `images`, (N, 3, H, W) float32, preprocessed, and the text tower
      `tokens`, (N, L) int64, L up to the context length. What follows the end of text has no
      influence, so rows may be filled with anything.
    - Both return `features`, (N, D) float32, as `encode_image` and `encode_text` do, not of unit
      length. N and L are free.

    Before the file gets its name, it is run on random inputs in batches of several sizes, and must
    agree with the tower in torch. What a program without torch needs to know is in it; see
    `describe_tower`. Weights above 2 GiB lie in `x.onnx.data` beside `x.onnx`.

    Args:
        model: a CLIP, with no low-rank changes that are not merged.
        path: ends in `.onnx` (which needs `clipkit-torch[export]`), or in `.pt2` for
            `torch.export.load`. A file of that name is replaced.
        tower: "image" or "text".

    Raises:
        ConfigError: for another tower or ending, a missing package, or a text tower without the
            tokenizer that belongs to it.
        ExportError: if a feature in the file has a cosine below 0.99999 with that of the tower, or
            differs by more than a thousandth of the largest number. The file is not kept.
        OutputError: if the file cannot be written.

    Example:
        export_tower(model, "image.onnx")
    """
    if tower not in ("image", "text"):
        raise ConfigError(f'the tower to export is "image" or "text", not {tower!r:.99}')
    place = Path(spell_path(path, "the file of a tower", error=ConfigError))
    check_place(place)
    about = describe_tower(model, tower)  # before the weights are copied, as it can fail
    module = _copy_of(model.visual if tower == "image" else model.text)
    free: FreeSizes = BATCH
    if tower == "image":
        samples = _random_images(model.config.vision.resolution)
        input_name = "images"
    else:
        length = model.config.text.context_length
        samples = _random_tokens(model.config, model.tokenizer)
        input_name, free = "tokens", (*BATCH, ("length", length))
    graph = Graph(module, samples[1], input_name, ["features"], about, free)
    write_graph(place, graph, lambda run: _compare(run, module, samples))


def describe_tower(model: HasTowers, tower: Tower) -> dict[str, Any]:
    """Return what a program needs to know of an exported tower. All of it is plain data.

    Returns:
        "tower"; "embed_dim", the width of the features; "normalized", which is false; "logit_scale"
        as in the model, a logarithm, and "logit_scale_exp", by which cosines are multiplied to get
        logits. Of the image tower also "input_size", (H, W), and "preprocess", with the fields of
        a `Preprocess`, "crop" and "rescale"; or with the type "other" for any other function. Of
        the text tower "context_length", "vocab_size", the ids "start_of_text", "end_of_text" and
        "padding", and "tokenizer", the content of a `tokenizer.json`.

    Raises:
        ConfigError: for a text tower without the tokenizer that belongs to it.
    """
    logarithm = float(model.logit_scale.detach())
    about: dict[str, Any] = {
        "tower": tower,
        "embed_dim": model.config.embed_dim,
        "normalized": False,
        "logit_scale": logarithm,
        "logit_scale_exp": math.exp(logarithm),
    }
    if tower == "image":
        about["input_size"] = list(model.config.vision.resolution)
        about["preprocess"] = _describe_preprocess(model.preprocess)
        return about
    tokenizer = model.tokenizer
    return about | {
        "context_length": model.config.text.context_length,
        "vocab_size": model.config.text.vocab_size,
        "start_of_text": tokenizer.sot_token,
        "end_of_text": tokenizer.eot_token,
        "padding": 0,
        "tokenizer": to_tokenizer_json(tokenizer),
    }


def _describe_preprocess(preprocess: object) -> dict[str, Any]:
    """Return how images are prepared, as data; or that it is code, which the program must have."""
    if not isinstance(preprocess, Preprocess) or type(preprocess) is not Preprocess:
        return {"type": "other", "repr": repr(preprocess)[:300]}
    height, width = preprocess.resolution
    return {
        "type": "Preprocess",
        "size": [height, width],
        "crop": "center",  # what is missing there in mode "longest" is black
        "rescale": 1 / 255,
        **asdict(preprocess.config),
    }


def _copy_of(tower: nn.Module) -> nn.Module:
    """Return a copy on the CPU in float32: whoever runs the file decides where and in what dtype.

    A program that is loaded again would make outputs with gradients, which `.numpy()` refuses.
    """
    return OneInput(deepcopy(tower).float().cpu()).eval().requires_grad_(False)


def _random_images(resolution: tuple[int, int]) -> list[Tensor]:
    """Return batches of the same preprocessed images each time."""
    random = torch.Generator("cpu").manual_seed(0)
    shapes = [(count, 3, *resolution) for count in COUNTS]
    return [torch.randn(shape, generator=random, device="cpu") for shape in shapes]


def _random_tokens(config: CLIPConfig, tokenizer: Tokenizer) -> list[Tensor]:
    """Return batches of the same rows of ids each time. Texts and rows are of several lengths."""
    random = torch.Generator("cpu").manual_seed(0)
    batches: list[Tensor] = []
    for number, count in enumerate(COUNTS):
        length = max(2, config.text.context_length - 3 * number)
        shape = (count, length)
        ids = torch.randint(0, tokenizer.sot_token, shape, generator=random, device="cpu")
        ends = torch.randint(1, length, (count,), generator=random, device="cpu")
        ids[torch.arange(length, device="cpu") > ends[:, None]] = 0
        ids[:, 0] = tokenizer.sot_token
        ids[torch.arange(count, device="cpu"), ends] = tokenizer.eot_token
        batches.append(ids)
    return batches


def _compare(run: Run, tower: nn.Module, samples: list[Tensor]) -> None:
    """Raise `ExportError` unless a file agrees with the tower on every batch."""
    for inputs in samples:
        made, expected = run(inputs)[0].flatten(1), tower(inputs).flatten(1)
        cosine = F.cosine_similarity(made.double(), expected.double()).min().item()
        largest = expected.abs().max().item()
        difference = (made - expected).abs().max().item()
        # Written so that NaN raises too.
        if not (cosine >= COSINE and difference <= TOLERANCE * largest):
            raise ExportError(
                f"the exported tower differs from the model for "
                f"{number_of(len(inputs), 'sample')}: the least cosine is {cosine:.6f}, and the "
                f"largest difference {difference:.1e} in features up to {largest:.1e}; it is not "
                "kept"
            )
