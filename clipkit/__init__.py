"""clipkit: load any plain CLIP checkpoint and turn class names into classifiers.

import clipkit

model, preprocess = clipkit.load("tiny")
image = preprocess("photo.jpg").unsqueeze(0)
tokens = clipkit.tokenize(["a photo of a cat", "a photo of a dog"])
logits_per_image, logits_per_text = model(image, tokens)
"""

from clipkit import errors
from clipkit.checkpoints.registry import available_models, list_models
from clipkit.classify.classifier import ImageClassifier
from clipkit.classify.few_shot import sample_shots
from clipkit.classify.zero_shot import zero_shot_weights
from clipkit.clip import CLIP, load
from clipkit.config import CLIPConfig, PreprocessConfig, ResNetConfig, TextConfig, ViTConfig
from clipkit.data.preprocess import Preprocess
from clipkit.encode.store import extract_features
from clipkit.errors import ClipkitError
from clipkit.prompts import prompt_set, prompt_sets
from clipkit.tokenizer import Tokenizer, tokenize
from clipkit.training.finetune import finetune, finetune_captions, interpolate
from clipkit.training.loop import Trainer
from clipkit.training.losses import clip_loss, sigmoid_loss
from clipkit.training.optimizer import TrainConfig
from clipkit.training.recompute import cached_features

__version__ = "0.1.0"

__all__ = [
    "CLIP",
    "CLIPConfig",
    "ClipkitError",
    "ImageClassifier",
    "Preprocess",
    "PreprocessConfig",
    "ResNetConfig",
    "TextConfig",
    "Tokenizer",
    "TrainConfig",
    "Trainer",
    "ViTConfig",
    "available_models",
    "cached_features",
    "clip_loss",
    "errors",
    "extract_features",
    "finetune",
    "finetune_captions",
    "interpolate",
    "list_models",
    "load",
    "prompt_set",
    "prompt_sets",
    "sample_shots",
    "sigmoid_loss",
    "tokenize",
    "zero_shot_weights",
]
