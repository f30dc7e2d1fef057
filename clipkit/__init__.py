"""clipkit: load any plain CLIP checkpoint and turn class names into classifiers.

import clipkit

model, preprocess = clipkit.load("tiny")
image = preprocess("photo.jpg").unsqueeze(0)
tokens = clipkit.tokenize(["a photo of a cat", "a photo of a dog"])
logits_per_image, logits_per_text = model(image, tokens)
"""

import typing

import clipkit.late as _late
import clipkit.moved as _moved

# A type checker reads these. At run time each comes when it is first asked for.
if typing.TYPE_CHECKING:
    from clipkit import errors, inspect, search
    from clipkit.checkpoints.registry import available_models, list_models
    from clipkit.classify.calibration import Calibration
    from clipkit.classify.classifier import ImageClassifier
    from clipkit.classify.encoder import CLIPEncoder
    from clipkit.classify.estimators import CLIPClassifier
    from clipkit.classify.few_shot import fit_head, sample_shots
    from clipkit.classify.heads import CacheHead, CosineHead, Head, LinearHead, WeightedPromptHead
    from clipkit.classify.prediction import Prediction
    from clipkit.classify.presence import Presence
    from clipkit.classify.report import Report
    from clipkit.classify.suspects import Suspect
    from clipkit.classify.template_weights import weigh_templates
    from clipkit.classify.zero_shot import zero_shot_weights
    from clipkit.clip import CLIP, load
    from clipkit.config import CLIPConfig, PreprocessConfig, ResNetConfig, TextConfig, ViTConfig
    from clipkit.data.descriptors import read_descriptors
    from clipkit.data.labelled import Pairs, read_folder, read_pairs, read_table
    from clipkit.data.preprocess import Preprocess
    from clipkit.encode.embed import embed_images, embed_texts
    from clipkit.encode.features import Features
    from clipkit.encode.store import extract_features, load_features
    from clipkit.errors import ClipkitError
    from clipkit.models.low_rank import lora, merge_lora
    from clipkit.prompts import PromptSet, prompt_set, prompt_sets
    from clipkit.tokenizer import Tokenizer, tokenize
    from clipkit.training.batches import Augment, Batch, PairBatches
    from clipkit.training.config import TrainConfig
    from clipkit.training.finetune import finetune, finetune_captions
    from clipkit.training.interpolation import interpolate_weights
    from clipkit.training.loop import Trainer
    from clipkit.training.losses import clip_loss, sigmoid_loss
    from clipkit.training.recompute import cached_features
    from clipkit.training.run import RunConfig, train
    from clipkit.training.shards import ShardBatches
    from clipkit.training.tasks import ClassificationTask, ContrastiveTask, PromptTask, Task

__version__ = "0.2.0"

__all__ = [
    "Augment",
    "Batch",
    "CLIP",
    "CLIPClassifier",
    "CLIPConfig",
    "CLIPEncoder",
    "CacheHead",
    "Calibration",
    "ClassificationTask",
    "ClipkitError",
    "ContrastiveTask",
    "CosineHead",
    "Features",
    "Head",
    "ImageClassifier",
    "LinearHead",
    "PairBatches",
    "Pairs",
    "Prediction",
    "Preprocess",
    "PreprocessConfig",
    "Presence",
    "PromptSet",
    "PromptTask",
    "Report",
    "ResNetConfig",
    "RunConfig",
    "ShardBatches",
    "Suspect",
    "Task",
    "TextConfig",
    "Tokenizer",
    "TrainConfig",
    "Trainer",
    "ViTConfig",
    "WeightedPromptHead",
    "available_models",
    "cached_features",
    "clip_loss",
    "embed_images",
    "embed_texts",
    "errors",
    "extract_features",
    "finetune",
    "finetune_captions",
    "fit_head",
    "inspect",
    "interpolate_weights",
    "list_models",
    "load",
    "load_features",
    "lora",
    "merge_lora",
    "prompt_set",
    "prompt_sets",
    "read_descriptors",
    "read_folder",
    "read_pairs",
    "read_table",
    "sample_shots",
    "search",
    "sigmoid_loss",
    "tokenize",
    "train",
    "weigh_templates",
    "zero_shot_weights",
]

# Where the names are.
_HOMES = {
    "clipkit": ("errors", "inspect", "search"),
    "clipkit.checkpoints.registry": ("available_models", "list_models"),
    "clipkit.classify.calibration": ("Calibration",),
    "clipkit.classify.classifier": ("ImageClassifier",),
    "clipkit.classify.encoder": ("CLIPEncoder",),
    "clipkit.classify.estimators": ("CLIPClassifier",),
    "clipkit.classify.few_shot": ("fit_head", "sample_shots"),
    "clipkit.classify.heads": (
        "CacheHead",
        "CosineHead",
        "Head",
        "LinearHead",
        "WeightedPromptHead",
    ),
    "clipkit.classify.prediction": ("Prediction",),
    "clipkit.classify.presence": ("Presence",),
    "clipkit.classify.report": ("Report",),
    "clipkit.classify.suspects": ("Suspect",),
    "clipkit.classify.template_weights": ("weigh_templates",),
    "clipkit.classify.zero_shot": ("zero_shot_weights",),
    "clipkit.clip": ("CLIP", "load"),
    "clipkit.config": ("CLIPConfig", "PreprocessConfig", "ResNetConfig", "TextConfig", "ViTConfig"),
    "clipkit.data.descriptors": ("read_descriptors",),
    "clipkit.data.labelled": ("Pairs", "read_folder", "read_pairs", "read_table"),
    "clipkit.data.preprocess": ("Preprocess",),
    "clipkit.encode.embed": ("embed_images", "embed_texts"),
    "clipkit.encode.features": ("Features",),
    "clipkit.encode.store": ("extract_features", "load_features"),
    "clipkit.errors": ("ClipkitError",),
    "clipkit.models.low_rank": ("lora", "merge_lora"),
    "clipkit.prompts": ("PromptSet", "prompt_set", "prompt_sets"),
    "clipkit.tokenizer": ("Tokenizer", "tokenize"),
    "clipkit.training.batches": ("Augment", "Batch", "PairBatches"),
    "clipkit.training.config": ("TrainConfig",),
    "clipkit.training.finetune": ("finetune", "finetune_captions"),
    "clipkit.training.interpolation": ("interpolate_weights",),
    "clipkit.training.loop": ("Trainer",),
    "clipkit.training.losses": ("clip_loss", "sigmoid_loss"),
    "clipkit.training.recompute": ("cached_features",),
    "clipkit.training.run": ("RunConfig", "train"),
    "clipkit.training.shards": ("ShardBatches",),
    "clipkit.training.tasks": ("ClassificationTask", "ContrastiveTask", "PromptTask", "Task"),
}

# A type checker would take every misspelt name for one of the package's.
if not typing.TYPE_CHECKING:
    __getattr__, __dir__ = _late.late_names(
        "clipkit", _HOMES, lambda name: _moved.missing("clipkit", name, _moved.PACKAGE)
    )
