"""Load and save: from a name, a hub id, a folder or a file to a model, and back.

This is the one place that decides device and dtype. A source is resolved to a weight file and the JSON beside it; the
weights are read safely, renamed, checked against the config and assigned into a model built on the meta device, so
that there is neither a second copy nor a random initialisation.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from clipkit import registry
from clipkit.checkpoints import describe, files, infer, layouts
from clipkit.checkpoints.resize import resize_positions
from clipkit.checkpoints.source import CONFIG, MERGES, OPEN_CLIP_CONFIG, WEIGHT_FILES, Source, resolve
from clipkit.config import Activation, CLIPConfig, ResNetConfig
from clipkit.errors import CheckpointError, ConfigError, StateDictMismatchError
from clipkit.models.clip import CLIP
from clipkit.models.optimize import check_original
from clipkit.tokenizer import Tokenizer
from clipkit.training import distributed

if TYPE_CHECKING:
    from clipkit.preprocess import Preprocess


def load(
    name: str | os.PathLike[str],
    device: str | torch.device | None = None,
    jit: bool = False,
    download_root: str | None = None,
    *,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> tuple[CLIP, "Preprocess"]:
    """Load a checkpoint. The result is in eval mode.

    Args:
        name: "tiny" (the embedded checkpoint), a published name in either spelling ("ViT-B/32", "ViT-B-32"), a hub id
            in open_clip's or transformers' layout ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K"), a folder, or a weight
            file: safetensors, a torch state dict, or one of OpenAI's archives. No code from any of them is run.
        device: where to put it; CUDA if there is one, else the CPU.
        jit: accepted for code written for OpenAI's package; only False.
        download_root: OpenAI's name for `cache_dir`.
        dtype: of the weights. By default float32 on the CPU; on CUDA the checkpoint's own half precision, and float16
            for one stored in float32.
        options: as in `load_model`.

    Returns:
        The model, and the preprocessing that belongs to it: a function from a picture to a (3, H, W) float32 tensor.

    Raises:
        UnknownModelError, CheckpointNotFoundError, DownloadError: if there is nothing to load.
        CorruptCheckpointError, UnsafeCheckpointError, UnsupportedCheckpointError, StateDictMismatchError, ConfigError:
            if what is there cannot be loaded. See `clipkit.errors`.
    """
    if jit:
        raise ConfigError("jit=True asks for TorchScript, which torch has deprecated: use torch.compile(model) instead")
    if download_root is not None:
        options.setdefault("cache_dir", download_root)
    model = load_model(name, device=device, dtype=dtype, **options)
    return model, model.preprocess


def load_model(
    name: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    config: str | CLIPConfig | None = None,
    activation: Activation | None = None,
    head_width: int | None = None,
    resolution: int | tuple[int, int] | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> CLIP:
    """Load a checkpoint as one object that carries its tokenizer, preprocessing and config. Raises as `load`.

    Args:
        name, device, dtype: as in `load`.
        config: what the weights are, for files that come without a config: a CLIPConfig or the published name of the
            same architecture. It overrules what the checkpoint says of itself.
        activation, head_width: the same for a bare state dict, whose other sizes are read off the weights. `head_width`
            is the image tower's; text heads are 64 wide.
        resolution: (height, width) or one side in pixels; position embeddings are resampled if it differs.
        revision: branch, tag or commit of a hub repository.
        cache_dir: where downloads are kept; by default the hub's own cache, and ~/.cache/clip for OpenAI's archives.
        token: for private and gated repositories.
        local_files_only: use what is cached, ask no network.
    """
    device = decide_device(device)
    _check_dtype(dtype)
    source = resolve(
        os.fspath(name),
        revision=revision,
        cache_dir=cache_dir,
        token=token,
        local_files_only=local_files_only,
        ignore_config=config is not None,
    )
    found = files.read_weights(source.weights)
    try:
        weights = layouts.to_canonical(found)
        stated = _stated_config(source, found, weights, config)
        decided = _decide_config(stated, source, weights, activation, head_width)
        return _assemble(decided, weights, source.merges, device, dtype, resolution)
    except CheckpointError as error:
        raise type(error)(f"{source.weights}: {error}") from error


def _stated_config(
    source: Source, found: Mapping[str, Tensor], weights: Mapping[str, Tensor], config: str | CLIPConfig | None
) -> CLIPConfig | None:
    """The caller's config, else that of the JSON beside the weights, else the registry's; None if nobody knows."""
    if isinstance(config, CLIPConfig):
        return config
    if config is not None:
        return published_config(config)
    row = source.row
    if row and source.config and (conflict := infer.differences(source.config, row.config)):
        raise ConfigError(
            f"{source.weights.name} says of itself otherwise than the registry says of {row.name!r} (file / registry): "
            f"{'; '.join(conflict)}. Pass config= to settle it"
        )
    if row or source.config:
        return source.config or (row and row.config)
    if files.OPENAI_SCALARS <= found.keys():  # all nine of OpenAI's models are alike in this
        return infer.from_shapes(weights, "quick_gelu", 64)
    return None


def published_config(name: str) -> CLIPConfig:
    """The architecture of a published name or of "tiny". Raises `UnknownModelError` for any other."""
    row = registry.find(name)
    known = resolve(name).config if name == "tiny" else row and row.config
    if known is None:
        raise registry.unknown(name)
    return known


def _decide_config(
    stated: CLIPConfig | None,
    source: Source,
    weights: Mapping[str, Tensor],
    activation: Activation | None,
    head_width: int | None,
) -> CLIPConfig:
    """What is stated, which the caller's activation and head width must not contradict; else the shapes and those two.

    Never a guess: weights alone reveal neither.
    """
    if stated is not None:
        asked = [("vision.activation", activation), ("vision.head_width", head_width), ("text.activation", activation)]
        conflict = []
        for name, value in asked:
            tower, field = name.split(".")
            has = getattr(getattr(stated, tower), field, value)  # a ResNet has no activation to choose
            if value is not None and has != value:
                conflict.append(f"{name}: {has!r} / {value!r}")
        if conflict:
            raise ConfigError(f"the checkpoint contradicts what was asked (checkpoint / asked): {'; '.join(conflict)}")
        return stated
    if activation is not None and head_width is not None:
        return infer.from_shapes(weights, activation, head_width)
    shapes = infer.from_shapes(weights, "gelu", 1, 1)
    unknown = ("activation", "head_width", "preprocess")
    alike = [row.name for row in registry.MODELS.values() if not infer.differences(row.config, shapes, ignore=unknown)]
    hint = f" (of this shape are {', '.join(alike)})" if alike else ""
    raise ConfigError(
        f"{source.weights.name} comes without a config, and weights reveal neither activation nor head width: pass "
        f"config= with the published name that it derives from{hint}, or activation= and head_width="
    )


class _Uninitialised(TorchFunctionMode):
    """Modules keep what memory they get. Drawing random numbers, even on the meta device, imports torch's compiler."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def decide_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, or CUDA if there is one, under torchrun this process's. `ConfigError` if it is no use."""
    try:
        decided = torch.device(device or distributed.local_device() or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=decided)
    except Exception as error:  # torch has no type of its own for this
        raise ConfigError(f"there is no device {str(device)!r} here ({error}): pass 'cpu' or None") from error
    return decided


def _skeleton(config: CLIPConfig) -> CLIP:
    with torch.device("meta"), _Uninitialised():
        return CLIP(config)


def _assemble(
    config: CLIPConfig,
    weights: dict[str, Tensor],
    merges: Path | None,
    device: torch.device,
    dtype: torch.dtype | None,
    resolution: int | tuple[int, int] | None,
) -> CLIP:
    if dtype is None:
        halves = (w.dtype for w in weights.values() if w.dtype in (torch.float16, torch.bfloat16))
        dtype = next(halves, torch.float16) if device.type == "cuda" else torch.float32

    model = _skeleton(config)
    expected = model.state_dict()
    for key in expected.keys() - weights.keys():
        if key.endswith("num_batches_tracked"):  # a counter that inference never reads, and old files lack
            weights[key] = torch.tensor(0)
    if problem := layouts.describe_mismatch(expected, weights):
        raise StateDictMismatchError(problem)
    if resolution is not None:
        old, config = config.vision, replace(config, vision=replace(config.vision, resolution=resolution))
        key = "visual.attnpool.positional_embedding" if isinstance(old, ResNetConfig) else "visual.positional_embedding"
        weights[key] = resize_positions(weights[key], old.grid, config.vision.grid)
        model = _skeleton(config)
    if merges is not None:
        tokenizer = Tokenizer(merges.read_text("utf-8").splitlines(), config.text.context_length)
        if not tokenizer.is_default:
            if tokenizer.vocab_size != (size := config.text.vocab_size):
                raise ConfigError(f"{merges} makes {tokenizer.vocab_size} tokens, the model has {size}")
            model._tokenizer = tokenizer
    ready = {key: _cast(key, value, dtype).to(device).contiguous() for key, value in weights.items()}
    model.load_state_dict(ready, assign=True)
    return model.eval()


def _cast(key: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """Counters stay integers and the temperature float32: in bfloat16 a scale of 100 would become 98.9."""
    if not value.is_floating_point():
        return value
    return value.to(torch.float32 if key == "logit_scale" else dtype)


def _check_dtype(dtype: torch.dtype | None) -> None:
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ConfigError(f"dtype must be a float dtype such as torch.float32 or torch.bfloat16, not {dtype!r}")


def save_pretrained(
    model: CLIP,
    folder: str | os.PathLike[str],
    *,
    layout: Literal["clipkit", "open_clip", "transformers"] = "clipkit",
    dtype: torch.dtype | None = None,
) -> None:
    """Write a model into a folder that `load` reads back bit for bit.

    Args:
        model: whose weights, config and, where they are its own, merges to write. It is not changed.
        folder: made if it does not exist; files of the same names are replaced, each only when its successor is whole.
        layout: "clipkit"; or "open_clip" or "transformers" for those libraries.
        dtype: of the floating-point weights on disk; as they are if not given.

    Raises:
        ConfigError: if the layout cannot hold the model (see `clipkit.checkpoints.describe`), if it comes from
            `CLIP.optimize`, or if the folder has weights that `load` would take instead.
    """
    check_original(model, "save")
    folder = Path(folder)
    documents: dict[str, Any]  # by file name, the config first
    own = model._tokenizer is not None and not model._tokenizer.is_default  # one never asked for is the standard one
    if layout == "clipkit":
        weight_file, keys = "model.safetensors", "canonical"
        documents = {CONFIG: {"format": "clipkit", "model": model.config.to_dict()}}
    elif layout == "open_clip":
        weight_file, keys = "open_clip_model.safetensors", "openai"
        documents = {OPEN_CLIP_CONFIG: describe.to_open_clip(model.config)}
    elif layout == "transformers":
        weight_file, keys = "model.safetensors", "transformers"
        documents = describe.to_transformers(model.config, model.tokenizer)
    else:
        raise ConfigError(f"layout must be 'clipkit', 'open_clip' or 'transformers', not {layout!r}")
    if own:
        documents[next(iter(documents))]["tokenizer"] = MERGES
    _check_dtype(dtype)
    for name in WEIGHT_FILES[: WEIGHT_FILES.index(weight_file)]:
        if (folder / name).exists():
            raise ConfigError(f"{folder} holds {name}, which load would take instead: save to another folder")
    weights = {key: value if dtype is None else _cast(key, value, dtype) for key, value in model.state_dict().items()}
    files.write_weights(layouts.from_canonical(weights, keys), folder / weight_file)
    texts = {name: json.dumps(values, indent=2) for name, values in documents.items()}
    if own or layout == "transformers":  # whose tokenizer cannot do without
        texts[MERGES] = "\n".join(["#version: 0.2", *model.tokenizer.merges])
    for name, text in texts.items():
        with files.replacing(folder / name) as partial:
            partial.write_text(text + "\n", "utf-8")
