"""Names of OpenAI's package that clipkit's own objects lack, and what to use in their place.

An alias would be worse than an error: OpenAI's transformers take (L, N, W) and clipkit's (N, L, W),
so that a program would run on and compute other numbers.
"""

import sys
import warnings
from collections.abc import Mapping

from clipkit.errors import MovedNameError

# Of the model.
MODEL = {
    "transformer": (
        "text.tokens(ids) runs the text transformer, and text.transformer is the module, which "
        "takes (N, L, W)"
    ),
    "token_embedding": (
        "it is text.token_embedding, and encode_text(ids, embeddings=...) takes embeddings that "
        "you have changed"
    ),
    "positional_embedding": "it is text.positional_embedding",
    "ln_final": "it is text.ln_final, and text.tokens(ids) returns normed tokens",
    "text_projection": "it is text.text_projection",
    "attn_mask": "attention in the text tower hides later tokens by itself",
    "build_attention_mask": "attention in the text tower hides later tokens by itself",
    "initialize_parameters": "a new CLIP(config) is initialized, and each tower has initialize()",
    "input_resolution": "it is visual.input_resolution",
}

_TRANSFORM = "clipkit.Preprocess((224, 224), clipkit.PreprocessConfig()) makes the transform"

# Of the package.
PACKAGE = {
    "model": "CLIP is clipkit.CLIP",
    "simple_tokenizer": "the tokenizer is clipkit.Tokenizer",
    "build_model": "clipkit.load(path, config=NAME) and load_state_dict take OpenAI's weights",
    "convert_weights": "clipkit.load(name, dtype=torch.float16) loads a model in half precision",
    "_MODELS": "clipkit.available_models() and clipkit.list_models() list names",
    "_download": "clipkit.load(name) downloads",
    "_transform": _TRANSFORM,
    "_convert_image_to_rgb": _TRANSFORM,
    "_tokenizer": "model.tokenizer is the tokenizer",
    "SimpleTokenizer": "the tokenizer is clipkit.Tokenizer",
}

# Of its module `clip`, which is where the package's functions are.
MODULE = PACKAGE | {
    "tokenize": "it is clipkit.tokenize",
    "available_models": "it is clipkit.available_models",
}

# Of a block of the transformers.
BLOCK = {
    "attn_mask": "it attends to all tokens, or with attn.causal to those before",
}

# Of the preprocessing.
PREPROCESS = {
    "transforms": "model.preprocess can be set to any Compose of your own",
}


def missing(module: str, name: str, table: Mapping[str, str]) -> AttributeError:
    """Return the error for a name that a module of clipkit lacks, OpenAI's or any other.

    Args:
        module: its dotted name.
        name: what it was asked for.
        table: one of this module's.
    """
    if name in table:
        return moved(f"the module {module}", name, table)
    return AttributeError(f"module {module!r} has no attribute {name!r}", name=name)


def moved(owner: str, name: str, table: Mapping[str, str]) -> MovedNameError:
    """Return the error for a name of OpenAI's that `owner` lacks.

    Args:
        owner: what was asked, in words.
        name: what it was asked for.
        table: one of this module's.
    """
    return MovedNameError(
        f"{owner} has no {name!r}, which OpenAI's package has: {table[name]}. Programs written for "
        "that package run with `import clipkit.openai as clip`",
        name=name,
    )


def warn_of_alias() -> None:
    """Warn the caller's caller where clipkit was put in the place of OpenAI's package.

    It has not that package's layout: hooks would see (N, L, W) where such a program means
    (L, N, W), and nothing could tell.
    """
    if "clip" in sys.modules and sys.modules["clip"] is sys.modules.get("clipkit"):
        warnings.warn(
            "the module 'clip' is clipkit itself, inside of which shapes differ from OpenAI's: "
            "programs written for that package need clipkit.openai.install()",
            stacklevel=3,
        )
