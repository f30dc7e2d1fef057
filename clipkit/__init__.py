"""clipkit: load any plain CLIP checkpoint and turn class names into classifiers.

import clipkit

model, preprocess = clipkit.load("tiny")
image = preprocess("photo.jpg").unsqueeze(0)
tokens = clipkit.tokenize(["a photo of a cat", "a photo of a dog"])
logits_per_image, logits_per_text = model(image, tokens)
"""

from clipkit import errors
from clipkit.classify.zero_shot import zero_shot_weights
from clipkit.config import CLIPConfig, PreprocessConfig, ResNetConfig, TextConfig, ViTConfig
from clipkit.errors import ClipkitError
from clipkit.loading import load, save_pretrained
from clipkit.models.clip import CLIP
from clipkit.preprocess import Preprocess
from clipkit.registry import available_models, list_models
from clipkit.tokenizer import Tokenizer, tokenize
from clipkit.training.losses import clip_loss

__version__ = "0.1.0"

__all__ = [
    "CLIP",
    "CLIPConfig",
    "ClipkitError",
    "Preprocess",
    "PreprocessConfig",
    "ResNetConfig",
    "TextConfig",
    "Tokenizer",
    "ViTConfig",
    "available_models",
    "clip_loss",
    "errors",
    "list_models",
    "load",
    "save_pretrained",
    "tokenize",
    "zero_shot_weights",
]
