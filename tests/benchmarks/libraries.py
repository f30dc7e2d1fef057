"""Put clipkit and its peers on the same random weights, behind one interface."""

import importlib
import importlib.util
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from runtimes import RUNTIMES, runtime_calls, unit
from side_by_side import IN_OPENVINO, PEERS
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import clipkit
from clipkit.checkpoints import registry
from clipkit.config import ResNetConfig
from tests.helpers.random_weights import randomize

Library = Literal["clipkit", "open_clip", "transformers"]
Section = Literal["image", "text", "classifier"]
INSTALLED: list[Library] = [
    peer for peer in ("open_clip", "transformers") if importlib.util.find_spec(peer)
]
MISSING = [peer for peer in PEERS if importlib.util.find_spec(peer) is None]
open_clip: Any = importlib.import_module("open_clip") if "open_clip" in INSTALLED else None
transformers: Any = importlib.import_module("transformers") if "transformers" in INSTALLED else None

# The smallest model: all models share their tokenizer.
SMALLEST = "TinyCLIP-ViT-8M-16-Text-3M-YFCC15M"
PRECISIONS = {
    torch.float32: "fp32",
    torch.bfloat16: "pure_bf16",
    torch.float16: "pure_fp16",
}
# The towers of open_clip and of transformers.
TOWERS = ("visual", "transformer", "vision_model", "text_model")
Tokenize = Callable[[list[str]], Tensor]


@dataclass(frozen=True)
class Side:
    """Hold what a library does: images (N, 3, H, W), prompts or names to unit features."""

    image: Callable[[Any], Tensor]
    text: Callable[[Any], Tensor]
    classifier: Callable[[Any], Tensor]

    def of(self, section: Section) -> Callable[[Any], Tensor]:
        """Return what it does in a section of the benchmark."""
        return getattr(self, section)


@dataclass(frozen=True)
class Setting:
    """Hold where and how the libraries run.

    Attributes:
        root: a folder for weights.
        device: of models and inputs.
        compile: whether to add torch.compile to each library.
    """

    root: Path
    device: torch.device
    compile: bool = False


def weights(root: Path, name: str, layout: Library = "open_clip") -> str:
    """Return a folder with the one set of random weights of this architecture."""
    path = root / name.replace("/", "-") / layout
    if not path.exists():
        if layout == "open_clip":
            model = randomize(clipkit.CLIP(registry.MODELS[name].config))
        else:
            model = clipkit.CLIP.from_pretrained(weights(root, name), device="cpu")
        model.save_pretrained(path, layout=layout)
    return str(path)


def load(
    library: Library, folder: str, device: torch.device, dtype: torch.dtype = torch.float32
) -> Any:
    """Return a library's model from a folder."""
    if library == "clipkit":
        return clipkit.load(folder, device, dtype=dtype)[0]
    if library == "open_clip":
        name = f"local-dir:{folder}"
        return open_clip.create_model(name, precision=PRECISIONS[dtype], device=device).eval()
    return transformers.CLIPModel.from_pretrained(folder, dtype=dtype).to(device).eval()


def tokenizer_of(peer: Library, root: Path) -> Tokenize:
    """Return a peer's fastest way from texts to token ids."""
    if peer == "open_clip":
        return open_clip.tokenize
    fast = transformers.CLIPTokenizer.from_pretrained(weights(root, SMALLEST, peer))
    return lambda texts: fast(texts, padding=True, return_tensors="pt")["input_ids"]


def clipkit_side(model: clipkit.CLIP) -> Side:
    """Return what clipkit does with a model."""

    def classifier(names: list[str]) -> Tensor:
        labels = {str(i): name for i, name in enumerate(names)}  # names may repeat
        return clipkit.zero_shot_weights(model, labels, "imagenet")

    return Side(partial(model.encode_image, normalize=True), model.embed_texts, classifier)


def peer_side(model: Any, tokenize: Tokenize, dtype: torch.dtype, device: torch.device) -> Side:
    """Return what a peer does with a model, as its users write it."""
    batch = 1024 if device.type == "cuda" else 64  # prompts that are encoded at once
    templates = clipkit.prompt_set("imagenet").templates
    encode_image, encode_text = encoders_of(model)

    def image(images: Tensor) -> Tensor:
        return F.normalize(encode_image(images.to(dtype)), dim=-1)

    def text(texts: list[str]) -> Tensor:
        batches = (tokenize(texts[i : i + batch]) for i in range(0, len(texts), batch))
        parts = [encode_text(tokens.to(device)) for tokens in batches]
        return F.normalize(torch.cat(parts), dim=-1)

    def classifier(names: list[str]) -> Tensor:
        prompts = [[template.format(name) for template in templates] for name in names]
        return F.normalize(torch.stack([text(own).mean(dim=0) for own in prompts]), dim=-1)

    return Side(image, text, classifier)


def encoders_of(model: Any) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Return a peer's functions from images and from token ids to features."""
    if hasattr(model, "encode_image"):  # open_clip's
        return model.encode_image, model.encode_text
    # No mask of the padding: a causal tower can do without.
    return (
        lambda images: model.get_image_features(images).pooler_output,
        lambda tokens: model.get_text_features(tokens).pooler_output,
    )


def compiled(model: nn.Module, **options: Any) -> nn.Module:
    """Return a copy with its towers compiled."""
    copy = deepcopy(model)
    for tower in TOWERS:
        if hasattr(copy, tower):
            getattr(copy, tower).compile(**options)
    return copy


def sides(name: str, section: Section, dtype: torch.dtype, setting: Setting) -> dict[str, Side]:
    """Return every library in every way that may be its fastest, clipkit first."""
    model = load("clipkit", weights(setting.root, name), setting.device, dtype)
    found = {"clipkit": clipkit_side(model.optimize())}
    if setting.compile and section == "image":
        found["clipkit compiled"] = clipkit_side(model.optimize(compile=True))
    if section == "image" and setting.device.type == "cpu" and "openvino" in RUNTIMES:
        found[IN_OPENVINO] = clipkit_side(model.optimize(runtime="openvino"))
    for peer in INSTALLED:
        if is_resnet(name) and peer == "transformers":  # it has none
            continue
        tokenize = tokenizer_of(peer, setting.root)
        for title, theirs in peer_models(peer, name, section, dtype, setting).items():
            found[title] = peer_side(theirs, tokenize, dtype, setting.device)
    if setting.device.type == "cpu":
        found |= runtime_sides(name, section, dtype, setting)
    return found


def runtime_sides(
    name: str, section: Section, dtype: torch.dtype, setting: Setting
) -> dict[str, Side]:
    """Return the runtimes in each of their settings. Texts get transformers' tokens, unpadded."""
    folder = weights(setting.root, name)
    model = load("clipkit", folder, setting.device)
    tower = "image" if section == "image" else "text"
    tokenize = tokenizer_of("transformers" if transformers else "open_clip", setting.root)
    return {
        title: runtime_side(call, tokenize)
        for title, call in runtime_calls(model, tower, dtype, Path(folder)).items()
    }


def runtime_side(call: Callable[[Tensor], Tensor], tokenize: Tokenize) -> Side:
    """Return what a runtime does, as its users write it."""
    templates = clipkit.prompt_set("imagenet").templates

    def text(texts: list[str]) -> Tensor:
        batches = (tokenize(texts[i : i + 64]) for i in range(0, len(texts), 64))
        return torch.cat([unit(call, tokens) for tokens in batches])

    def classifier(names: list[str]) -> Tensor:
        prompts = [[template.format(name) for template in templates] for name in names]
        return F.normalize(torch.stack([text(own).mean(dim=0) for own in prompts]), dim=-1)

    return Side(partial(unit, call), text, classifier)


def is_resnet(name: str) -> bool:
    """Return whether a published model has a ResNet as its image tower."""
    return isinstance(registry.MODELS[name].config.vision, ResNetConfig)


def peer_models(
    peer: Library, name: str, section: Section, dtype: torch.dtype, setting: Setting
) -> dict[str, nn.Module]:
    """Return a peer's model as it is, and in the other ways that may be faster."""
    folder = weights(setting.root, name, peer)
    plain = load(peer, folder, setting.device, dtype)
    models: dict[str, nn.Module] = {peer: plain}
    if is_resnet(name):
        other = deepcopy(plain).to(memory_format=torch.channels_last)
        models[f"{peer} channels_last"] = other
    if not setting.compile:
        return models
    # Prompts of each length have a shape of their own, so only images are fixed in shape.
    fixed = {"dynamic": False} if section == "image" else {}
    for title, model in list(models.items()):
        for way, options in ways_to_compile(setting.device).items():
            models[f"{title} {way}"] = compiled(model, **fixed, **options)
    return models


def ways_to_compile(device: torch.device) -> dict[str, dict[str, Any]]:
    """Return options of torch.compile: on a CPU, freezing packs weights too."""
    if device.type == "cuda":
        return {"compiled": {"mode": "reduce-overhead"}}  # as clipkit's own
    return {"compiled": {}, "frozen": {"options": {"freezing": True}}}


def reference(name: str, section: Section, inputs: Any, setting: Setting) -> tuple[Tensor, int]:
    """Return features by torch's plainest kernels, and the operations that they take."""
    model = load("clipkit", weights(setting.root, name), setting.device)
    side = clipkit_side(model)
    # The counter knows no kernel of oneDNN's.
    with torch.no_grad(), torch.backends.mkldnn.flags(enabled=False):
        with FlopCounterMode(display=False) as counter:
            features = side.of(section)(inputs)
    return features, counter.get_total_flops()
