"""CLIP as one object: an image tower, a text tower and a learned temperature (2103.00020).

`load` and `CLIP.from_pretrained` build one from a checkpoint, and decide its device and dtype.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from clipkit.checkpoints.export_tower import Tower, export_tower
from clipkit.checkpoints.incoming import names_of_weights, rename_incoming
from clipkit.checkpoints.load import load_checkpoint
from clipkit.checkpoints.registry import with_tag
from clipkit.checkpoints.save import FolderLayout, check_dtype, place_weights, save_checkpoint
from clipkit.checkpoints.source import hub_id_of
from clipkit.checkpoints.upload import push_model
from clipkit.checkpoints.vocabulary import check_tokenizer, default_tokenizer
from clipkit.config import Activation, CLIPConfig
from clipkit.data.pictures import Images
from clipkit.data.preprocess import Preprocess
from clipkit.data.saved import absorb_preprocess, describe_preprocess, restore_preprocess
from clipkit.encode.embed import embed_images, embed_texts, prepare_batch
from clipkit.errors import ConfigError
from clipkit.models.build import assemble
from clipkit.models.changes import has_changes
from clipkit.models.fast import Runtime, make_fast
from clipkit.models.low_rank import merge_lora
from clipkit.models.openvino_int8 import MOST_IMAGES
from clipkit.models.placement import decide_device, decide_dtype
from clipkit.models.two_towers import TwoTowers
from clipkit.moved import MODULE, missing, warn_of_alias
from clipkit.tokenizer import Tokenizer


class CLIP(TwoTowers):
    """Turn images and texts into vectors of one space, of width D = `config.embed_dim`.

    Args:
        config: what to build. Its weights are drawn as in the paper.
        tokenizer: the one that belongs to the weights; CLIP's own if not given.

    Attributes:
        preprocess: a function from an image to (3, H, W) float32. It is the one that belongs to the
            weights until you set another: a `Preprocess`, an `nn.Module` or any other function.
            A module is no part of the model: its weights are in no state dict, and do not move.
        hub_id: the repository on the hub that `from_pretrained` took the weights from, if it did.
        config, visual, text, logit_scale, is_optimized, optimizations: see
            `clipkit.models.two_towers.TwoTowers`, which has the methods of the numbers:
            `encode_image`, `encode_text` and the call itself.

    Example:
        model = CLIP.from_pretrained("ViT-B/32")
        similarity = model.embed_images(["cat.jpg"]) @ model.embed_texts(["a cat", "a dog"]).T
    """

    preprocess: Callable[[Any], Tensor]

    def __init__(self, config: CLIPConfig, tokenizer: Tokenizer | None = None) -> None:
        super().__init__(config)
        self.preprocess = Preprocess(config.vision.resolution, config.preprocess)
        if tokenizer is not None:
            check_tokenizer(tokenizer, config.text)
        self._tokenizer = tokenizer
        self.hub_id: str | None = None
        self.register_load_state_dict_pre_hook(_prepare_to_load)

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
        preprocess: Callable[[Any], Tensor] | None = None,
        tokenizer: Tokenizer | None = None,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
    ) -> "CLIP":
        """Load a checkpoint in eval mode. Arguments and errors are those of `clipkit.load`."""
        decided_device = decide_device(device)
        check_dtype(dtype)
        checkpoint = load_checkpoint(
            name_or_path,
            config=config,
            activation=activation,
            head_width=head_width,
            resolution=resolution,
            tokenizer=tokenizer,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
        )
        if preprocess is None:
            preprocess = restore_preprocess(checkpoint.preprocess, checkpoint.config)
        decided_dtype = decide_dtype(dtype, decided_device, checkpoint.weights.values())
        weights = place_weights(checkpoint.weights, decided_dtype, decided_device)
        model = assemble(lambda: cls(checkpoint.config, checkpoint.tokenizer), weights)
        model.preprocess = preprocess
        model.hub_id = hub_id_of(name_or_path)
        return model

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        layout: FolderLayout = "clipkit",
        dtype: torch.dtype | None = None,
    ) -> None:
        """Write the model into a folder that `load` reads back bit for bit.

        Low-rank changes from `clipkit.lora` are merged into the weights.

        The folder gets weights, config, preprocessing and, where it is not CLIP's own, the
        tokenizer. A preprocessing that is no `Preprocess` is code, which cannot be written: `load`
        will then ask for it.

        Args:
            folder: made if it does not exist. Files of the same names are replaced.
            layout: "clipkit"; or "open_clip" or "transformers" for those libraries.
            dtype: of the floating-point weights on disk; as they are if not given.

        Raises:
            ConfigError: if the layout cannot hold the model or its preprocessing, if the model
                comes from `optimize`, or if the folder has weights that `load` would take instead.
        """
        self.check_original("save")
        weights = merge_lora(self).state_dict() if has_changes(self) else self.state_dict()
        config = self.config
        if layout != "clipkit":  # the other layouts have one place for a preprocessing
            config = absorb_preprocess(config, self.preprocess)
        save_checkpoint(
            config,
            weights,
            self._tokenizer,
            folder,
            layout=layout,
            dtype=dtype,
            preprocess=describe_preprocess(self.preprocess, config),
        )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str | None = None,
        update: bool = False,
        layout: FolderLayout = "clipkit",
        dtype: torch.dtype | None = None,
        license: str | None = None,
        base_model: str | None = None,
    ) -> str:
        """Upload what `save_pretrained` writes to the Hugging Face hub, and return its address.

        Args:
            layout, dtype: as in `save_pretrained`.
            base_model: `hub_id` if not given. All others: see `clipkit.checkpoints.upload.push`.

        Raises:
            ConfigError: as `save_pretrained`, or if an argument is impossible.
            UploadError: if the hub takes nothing; the message says what it wants.
        """
        self.check_original("upload")
        return push_model(
            lambda folder: self.save_pretrained(folder, layout=layout, dtype=dtype),
            self.config,
            layout,
            repo_id,
            private=private,
            token=token,
            commit_message=commit_message,
            update=update,
            license=license,
            base_model=base_model or self.hub_id,
        )

    def export_tower(self, path: str | os.PathLike[str], *, tower: Tower = "image") -> None:
        """Write one tower as an `.onnx` or `.pt2` that runs without clipkit, checked against it.

        The file holds what a program without torch needs to know. Low-rank changes are merged.

        Args:
            path, tower: as in `clipkit.checkpoints.export_tower.export_tower`, as are the errors.
        """
        self.check_original("export a tower of")
        export_tower(merge_lora(self) if has_changes(self) else self, path, tower)

    def optimize(
        self,
        *,
        compile: bool = False,
        runtime: Runtime = "torch",
        int8: bool = False,
        calibration: "Images | None" = None,
    ) -> "CLIP":
        """Return a copy for inference alone, which does less for the same features, to float noise.

        A ResNet's batch norms are folded into its convolutions, and channels come last in memory.
        On a CPU oneDNN computes each convolution with what follows it, and a large batch goes
        through in parts, which hooks see. Linear layers that oneDNN computes (on a CPU: bfloat16,
        and float32 on AMD) get their weights in its own order, without AVX-512 beside the usual
        one. On CUDA and MPS a ViT and the text tower are only copied, unless they are compiled.

        Args:
            compile: let torch.compile loose on the image tower, on CUDA with CUDA graphs. The first
                batch of each size takes a minute or so.
            runtime: "openvino" computes the image tower there, on the CPU, in float32 or bfloat16;
                it needs `clipkit-torch[openvino]`. The first batches of some sizes compile it.
            int8: round weights and inputs of a vision transformer's linear layers to int8, on the
                CPU. Features then differ by more than float noise, also from batch to batch.
            calibration: for int8 in "openvino", a hundred or so images such as the copy will see;
                `optimizations` says how far features are off. It needs `clipkit-torch[int8]`.

        Returns:
            The copy. It cannot be saved, exported or optimized again. With packed weights, or
            another runtime, it has no gradients, takes no autocast, and keeps its device and dtype.

        Raises:
            ConfigError, ExportError: as `make_fast`, and for `calibration` as `embed_images`.
        """
        self.check_original("optimize")
        few = None if calibration is None else lambda: prepare_batch(self, calibration, MOST_IMAGES)
        copy = merge_lora(self).eval().requires_grad_(False)
        done = make_fast(copy, compile=compile, runtime=runtime, int8=int8, calibration=few)
        copy.optimizations, copy.is_optimized = done, True
        return copy

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Copy weights into the model, as into any module, in the names of every layout.

        These are clipkit's own, OpenAI's, open_clip's and transformers', each also behind `module.`
        or `_orig_mod.`, and also where the model is a part of another module.

        Args:
            state_dict: weights by name. It is not changed.
            strict: raise an error for names that are missing or unknown. One tower alone needs
                False.
            assign: take the tensors themselves.

        Returns:
            The names that are missing, and those that are unknown.

        Raises:
            RuntimeError: if names, with `strict`, or shapes do not fit.
            StateDictMismatchError: if two names mean the same weight.
            ConfigError: if the model comes from `optimize`.
        """
        return super().load_state_dict(state_dict, strict, assign)

    def embed_images(
        self,
        images: Images,
        *,
        views: int = 1,
        batch_size: int = 64,
        workers: int = 0,
        progress: bool = False,
    ) -> Tensor:
        """Return the normalized features of images, (N, D), as `clipkit.embed_images` does."""
        return embed_images(
            self, images, batch_size=batch_size, workers=workers, progress=progress, views=views
        )

    def embed_texts(self, texts: Iterable[str], *, truncate: bool = False) -> Tensor:
        """Return normalized features (N, D) of texts, as `clipkit.encode.embed.embed_texts`."""
        return embed_texts(self, texts, truncate=truncate)

    @property
    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer that belongs to the weights, until you set another that fits."""
        if self._tokenizer is None:
            self._tokenizer = default_tokenizer(self.config.text)
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raise `ConfigError` for a tokenizer that does not fit the model."""
        check_tokenizer(tokenizer, self.config.text)
        self._tokenizer = tokenizer

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

    def __repr__(self) -> str:
        height, width = self.config.vision.resolution
        return (
            f"{type(self).__name__}({type(self.visual).__name__} of {height} x {width} pixels, "
            f"embed_dim={self.config.embed_dim}, {self.dtype} on {self.device})"
        )


def _prepare_to_load(model: CLIP, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Let `load_state_dict` take every layout, and refuse it for a copy from `optimize`."""
    model.check_original("load weights into")
    rename_incoming(state_dict, prefix, names_of_weights(model))


def load(
    name: str | os.PathLike[str],
    device: str | torch.device | None = None,
    jit: bool = False,
    download_root: str | os.PathLike[str] | None = None,
    *,
    pretrained: str | None = None,
    dtype: torch.dtype | None = None,
    config: str | CLIPConfig | None = None,
    activation: Activation | None = None,
    head_width: int | None = None,
    resolution: int | tuple[int, int] | None = None,
    preprocess: Callable[[Any], Tensor] | None = None,
    tokenizer: Tokenizer | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> tuple[CLIP, Callable[[Any], Tensor]]:
    """Load a checkpoint. The model is in eval mode.

    Args:
        name: "tiny" (the embedded checkpoint), a published name in either spelling ("ViT-B/32",
            "ViT-B-32"), a hub id in open_clip's or transformers' layout
            ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K"), a folder, or a weight file: safetensors, a
            torch state dict, or one of OpenAI's archives. No code from any of them is run. A folder
            with weights comes before a published name; "./RN50" or a `Path` is always the folder.
        device: where to put it; CUDA if there is one, else the CPU.
        jit, download_root: OpenAI's arguments: only False, and another name for `cache_dir`.
        pretrained: open_clip's argument, which may also stand in the name: "ViT-B-32/openai".
        dtype: of the weights. By default float32 on the CPU; on CUDA the checkpoint's own half
            precision, and float16 for one stored in float32.
        config: what the weights are, for files without a config: a CLIPConfig or the published name
            of the same architecture. It overrules what the checkpoint says of itself.
        activation, head_width: the same for a bare state dict, which tells all other sizes.
            `head_width` is the image tower's; text heads are 64 wide.
        resolution: (height, width) or one side in pixels; positions are resampled if it differs.
        preprocess: use this in place of the checkpoint's own, or where a saved one was code.
        tokenizer: use this in place of the one that comes with the checkpoint.
        revision: branch, tag or commit of a hub repository.
        cache_dir: for downloads; by default the hub's own, and ~/.cache/clip for OpenAI's archives.
        token: for private and gated repositories.
        local_files_only: use what is cached, ask no network.

    Returns:
        The model, and its preprocessing: a function from an image to (3, H, W) float32.

    Raises:
        UnknownModelError, CheckpointNotFoundError, DownloadError: if there is nothing to load.
        CheckpointError, ConfigError: if what is there cannot be loaded. See `clipkit.errors`.

    Example:
        model, preprocess = clipkit.load("ViT-B/32")
        features = model.encode_image(preprocess("cat.jpg").unsqueeze(0))
    """
    warn_of_alias()
    if jit:
        raise ConfigError("jit=True asks for TorchScript, now deprecated: use torch.compile(model)")
    model = CLIP.from_pretrained(
        with_tag(name, pretrained),
        device=device,
        dtype=dtype,
        config=config,
        activation=activation,
        head_width=head_width,
        resolution=resolution,
        preprocess=preprocess,
        tokenizer=tokenizer,
        revision=revision,
        cache_dir=download_root if cache_dir is None else cache_dir,
        token=token,
        local_files_only=local_files_only,
    )
    return model, model.preprocess


# As in `clipkit`.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> NoReturn:
        """Say where a name of OpenAI's module `clip` is, if there is no such name here."""
        raise missing("clipkit.clip", name, MODULE)
