"""Stand in for OpenAI's `clip` package: its names, structure and numbers over clipkit's loader.

    import clipkit.openai as clip

    model, preprocess = clipkit.openai.load("tiny")

Programs that were written for that package run with this import, those that reach inside the model
included. `install()` lets them run unmodified. New programs are better off with `import clipkit`.
"""

from clipkit.openai import clip, model, simple_tokenizer
from clipkit.openai.clip import available_models, load, tokenize
from clipkit.openai.installation import install

__all__ = [
    "available_models",
    "clip",
    "install",
    "load",
    "model",
    "simple_tokenizer",
    "tokenize",
]
