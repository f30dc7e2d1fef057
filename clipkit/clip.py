"""CLIP: an image tower, a text tower and a learned temperature (2103.00020); and `load`, which gives one.

This is the one place that decides device and dtype.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipkit import distributed
from clipkit.checkpoints.load import Checkpoint, load_checkpoint
from clipkit.checkpoints.save import FolderLayout, cast_weight, check_dtype, save_checkpoint
from clipkit.config import Activation, CLIPConfig
from clipkit.data.pictures import Images
from clipkit.data.preprocess import Preprocess
from clipkit.encode.embed import embed_images, embed_texts
from clipkit.errors import ConfigError, ImageError, TokenizerError
from clipkit.models.build import Uninitialized, build_text, build_visual
from clipkit.models.fast import make_fast
from clipkit.models.kernels import recording
from clipkit.tokenizer import Tokenizer


class CLIP(nn.Module):
    """Both towers and the temperature. Images and texts become vectors of one space of width D = `config.embed_dim`.

    Args:
        config: what to build. Weights are initialized as in the paper; `from_pretrained` loads published ones.
        tokenizer: the one that belongs to the weights; the standard one if not given.

    Attributes:
        preprocess: maps an image to (3, H, W) float32. It is the one that belongs to the weights until another is set,
            a `Preprocess`, an `nn.Module` or any function, which then whatever embeds images takes.
        optimizations: what `optimize` did to this copy, in words for people.
    """

    preprocess: Callable[[Any], Tensor]

    def __init__(self, config: CLIPConfig, tokenizer: Tokenizer | None = None) -> None:
        super().__init__()
        self.config = config
        self.visual = build_visual(config.vision, config.embed_dim)
        self.text = build_text(config.text, config.embed_dim)
        self.logit_scale = nn.Parameter(
            torch.tensor(math.log(1 / 0.07))
        )  # the paper's initial temperature
        self.preprocess = Preprocess(config.vision.resolution, config.preprocess)
        self.is_optimized = False
        self.optimizations: tuple[str, ...] = ()
        self._tokenizer = tokenizer

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
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
    ) -> "CLIP":
        """Load a checkpoint in eval mode, as one object. Arguments and errors are those of `clipkit.load`."""
        decided_device = decide_device(device)
        check_dtype(dtype)
        checkpoint = load_checkpoint(
            name_or_path,
            config=config,
            activation=activation,
            head_width=head_width,
            resolution=resolution,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
        )
        return _build(cls, checkpoint, decided_device, dtype)

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        layout: FolderLayout = "clipkit",
        dtype: torch.dtype | None = None,
    ) -> None:
        """Write weights, config and, where it is its own, the tokenizer into a folder that `load` reads back bit for bit.

        Args:
            folder: made if it does not exist. Files of the same names are replaced, each only when its successor is
                whole.
            layout: "clipkit"; or "open_clip" or "transformers" for those libraries.
            dtype: of the floating-point weights on disk; as they are if not given.

        Raises:
            ConfigError: if the layout cannot hold the model (see `clipkit.checkpoints.describe`), if it comes from
                `optimize`, or if the folder has weights that `load` would take instead.
        """
        self.check_original("save")
        save_checkpoint(
            self.config, self.state_dict(), self._tokenizer, folder, layout=layout, dtype=dtype
        )

    def optimize(self, *, compile: bool = False) -> "CLIP":
        """Return a copy for inference alone, which does less for the same features, to float noise.

        A ResNet's batch norms are folded into its convolutions, channels come last in memory, and on a CPU a large
        batch goes through in parts, which hooks see. On a CPU where oneDNN computes the linear layers (bfloat16
        weights, and float32 on AMD), their weights are put in its own order, and the activation of an MLP is computed
        with its first layer.

        Args:
            compile: let torch.compile loose on the image tower, on CUDA with CUDA graphs, and pack no weights, which
                gains more on a CPU. The first batch of each size takes a minute or so.

        Returns:
            The copy; `optimizations` says what was done to it. It cannot be saved, exported or optimized again, and
            with packed weights it has no gradients, takes no autocast, and stays as it is in device and dtype.
        """
        self.check_original("optimize")
        copy = deepcopy(self).eval().requires_grad_(False)
        copy.optimizations = make_fast(copy.visual, copy.text, compile=compile)
        copy.is_optimized = True
        return copy

    def check_original(self, verb: str) -> None:
        """Raise `ConfigError` for a copy from `optimize`, which cannot do all that its original can.

        Args:
            verb: what cannot be done to it, such as "save".
        """
        if self.is_optimized:
            done = ", ".join(self.optimizations)
            raise ConfigError(f"this is an inference-only copy ({done}): {verb} the model it is of")

    def embed_images(
        self, images: Images, *, batch_size: int = 64, workers: int = 0, progress: bool = False
    ) -> Tensor:
        """Return the normalized features of images, (N, D) float32 on the CPU. See `clipkit.encode.embed`."""
        return embed_images(self, images, batch_size=batch_size, workers=workers, progress=progress)

    def embed_texts(self, texts: Sequence[str], *, truncate: bool = False) -> Tensor:
        """Return the normalized features of texts, (N, D) float32 on the CPU. See `clipkit.encode.embed`."""
        return embed_texts(self, texts, truncate=truncate)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that belongs to the weights, built at first use."""
        if self._tokenizer is None:
            tokenizer = Tokenizer(context_length=self.context_length)
            if tokenizer.vocab_size != self.vocab_size:
                raise ConfigError(
                    f"the model has {self.vocab_size} tokens and the standard tokenizer {tokenizer.vocab_size}: "
                    "give CLIP the tokenizer that belongs to its weights"
                )
            self._tokenizer = tokenizer
        return self._tokenizer

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "preprocess":
            super().__setattr__(name, value)
            return
        if not callable(value):
            raise ConfigError(
                f"a model's preprocess is a Preprocess or a function of an image, not {value!r}"
            )
        # nn.Module would put a module among the towers, and its weights into the state dict.
        object.__setattr__(self, name, value)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Copy weights into the model, as of any module; a copy from `optimize` raises `ConfigError`."""
        self.check_original("load weights into")
        return super().load_state_dict(state_dict, strict, assign)

    def _apply(self, fn: Any, recurse: bool = True) -> "CLIP":
        """What moves and casts a module comes through here."""
        if not any(weight.is_mkldnn for weight in self.parameters()):
            return super()._apply(fn, recurse)
        moved = fn(torch.empty(0, dtype=self.dtype))
        if (moved.device, moved.dtype) != (self.device, self.dtype):
            raise ConfigError(
                f"packed weights stay {self.dtype} on the CPU: move or cast the model that this is a copy of, and "
                "optimize that"
            )
        return self

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return next(self.visual.parameters(), self.logit_scale).dtype

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.visual.parameters(), self.logit_scale).device

    @property
    def context_length(self) -> int:
        """The length of the longest row of token ids, start and end included."""
        return self.config.text.context_length

    @property
    def vocab_size(self) -> int:
        """The number of tokens."""
        return self.config.text.vocab_size

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """Return image features.

        Args:
            image: preprocessed, (N, 3, H, W), any float dtype, any device.
            normalize: scale each feature to unit length.

        Returns:
            (N, D), on the model's device and in its dtype.

        Raises:
            ImageError: for any other shape or an integer dtype.
        """
        height, width = self.visual.resolution
        if (
            image.ndim != 4
            or image.shape[1:] != (3, height, width)
            or not image.is_floating_point()
        ):
            raise ImageError(
                f"encode_image needs a float tensor of shape (N, 3, {height}, {width}), not {image.dtype} of "
                f"{tuple(image.shape)}: pass images through model.preprocess, and add the batch axis by unsqueeze(0)"
            )
        features = self.visual(image.to(self.device, self.dtype))
        if normalize:
            return F.normalize(features, dim=-1)
        return (
            features.clone() if self.is_optimized else features
        )  # a CUDA graph writes its next result over this one

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """Return text features, read at each row's end-of-text token; what follows it has no influence.

        Args:
            text: ids from the model's tokenizer, (N, L) int64 or int32, L at most `context_length`, any device.
            normalize: scale each feature to unit length.

        Returns:
            (N, D), on the model's device and in its dtype.

        Raises:
            TokenizerError: for any other shape or dtype, or ids outside the vocabulary (not looked at while a graph is
                recorded).
        """
        integers = text.dtype in (torch.int64, torch.int32)
        if text.ndim != 2 or not 1 <= text.shape[1] <= self.context_length or not integers:
            raise TokenizerError(
                f"encode_text needs int64 or int32 token ids of shape (N, 1 to {self.context_length}), not "
                f"{text.dtype} of {tuple(text.shape)}: make them with model.tokenizer(texts)"
            )
        if not recording() and text.shape[0]:  # on CUDA an id out of range would kill the process
            low, high = (int(bound) for bound in text.aminmax())
            if low < 0 or high >= self.vocab_size:
                raise TokenizerError(
                    f"token ids run from {low} to {high}, but this model knows 0 to {self.vocab_size - 1}: "
                    "use the tokenizer that belongs to it, model.tokenizer"
                )
        features = self.text(text)
        return F.normalize(features, dim=-1) if normalize else features

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scaled cosine similarities of every image with every text, in float32.

        Args:
            image: preprocessed, (N, 3, H, W).
            text: token ids, (M, L).

        Returns:
            logits_per_image (N, M) and logits_per_text (M, N). A softmax over the last axis gives probabilities.
        """
        image_features, text_features = self.encode_image(image), self.encode_text(text)
        with torch.autocast(self.device.type, enabled=False):
            image_features = F.normalize(image_features.float(), dim=-1)
            text_features = F.normalize(text_features.float(), dim=-1)
            logits_per_image = (
                self.logit_scale.float().exp() * image_features @ text_features.T
            )  # (N, M)
        return logits_per_image, logits_per_image.T


def load(
    name: str | os.PathLike[str],
    device: str | torch.device | None = None,
    jit: bool = False,
    download_root: str | os.PathLike[str] | None = None,
    *,
    dtype: torch.dtype | None = None,
    config: str | CLIPConfig | None = None,
    activation: Activation | None = None,
    head_width: int | None = None,
    resolution: int | tuple[int, int] | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> tuple[CLIP, Preprocess]:
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
        config: what the weights are, for files that come without a config: a CLIPConfig or the published name of the
            same architecture. It overrules what the checkpoint says of itself.
        activation, head_width: the same for a bare state dict, whose other sizes are read off the weights. `head_width`
            is the image tower's; text heads are 64 wide.
        resolution: (height, width) or one side in pixels; position embeddings are resampled if it differs.
        revision: branch, tag or commit of a hub repository.
        cache_dir: where downloads are kept; by default the hub's own cache, and ~/.cache/clip for OpenAI's archives.
        token: for private and gated repositories.
        local_files_only: use what is cached, ask no network.

    Returns:
        The model, and the preprocessing that belongs to it: a function from an image to a (3, H, W) float32 tensor.

    Raises:
        UnknownModelError, CheckpointNotFoundError, DownloadError: if there is nothing to load.
        CorruptCheckpointError, UnsafeCheckpointError, UnsupportedCheckpointError, StateDictMismatchError, ConfigError:
            if what is there cannot be loaded. See `clipkit.errors`.
    """
    if jit:
        raise ConfigError(
            "jit=True asks for TorchScript, which torch has deprecated: use torch.compile(model) instead"
        )
    model = CLIP.from_pretrained(
        name,
        device=device,
        dtype=dtype,
        config=config,
        activation=activation,
        head_width=head_width,
        resolution=resolution,
        revision=revision,
        cache_dir=download_root if cache_dir is None else cache_dir,
        token=token,
        local_files_only=local_files_only,
    )
    return model, Preprocess(model.config.vision.resolution, model.config.preprocess)


def decide_device(device: str | torch.device | None) -> torch.device:
    """Return the device asked for, or CUDA if there is one: under torchrun the process's own card.

    Raises `ConfigError` for a device that is of no use here.
    """
    decided = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        decided = distributed.local_card(torch.device(decided))
        torch.empty(0, device=decided)
    except Exception as error:  # torch has no type of its own for this
        raise ConfigError(
            f"there is no device {str(decided)!r} here ({error}): pass 'cpu' or None"
        ) from error
    return decided


def _build(
    cls: type[CLIP], checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype | None
) -> CLIP:
    """Assign a checkpoint's weights to a model on the meta device: neither a second copy nor a random initialization."""
    weights = checkpoint.weights
    if dtype is None:
        halves = (w.dtype for w in weights.values() if w.dtype in (torch.float16, torch.bfloat16))
        dtype = next(halves, torch.float16) if device.type == "cuda" else torch.float32
    with torch.device("meta"), Uninitialized():
        model = cls(checkpoint.config, checkpoint.tokenizer)
    ready = {
        key: cast_weight(key, value, dtype).to(device).contiguous()
        for key, value in weights.items()
    }
    model.load_state_dict(ready, assign=True)
    return model.eval()
