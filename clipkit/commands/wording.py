"""Say errors in the words of the command line: `--config`, where Python has `config=`."""

import re
from collections.abc import Collection

NO_OPTIONS = ("images", "data", "file")  # arguments of commands that stand by themselves

# Remedies of Python that have another form here.
_PHRASES = {
    "`clipkit.list_models()` names them all": "`clipkit models` lists them all",
    "`clipkit.list_models()` has the published names": "`clipkit models` has the published names",
    "`clipkit.prompt_sets()` names them all": "`clipkit prompts` lists them all",
    "; shorten it, or pass truncate=True to cut it": "; shorten it",
    "pass token=... of an account that may read it": "set HF_TOKEN to a token of an account that "
    "may read it",
    "for a private one pass token=...": "for a private one set HF_TOKEN",
    "or give a CLIPConfig": "or give --config a JSON file of a CLIPConfig",
    "config= with a CLIPConfig": "config= with a JSON file of a CLIPConfig",
    "A single file goes in a list": "",
    "A model is loaded first, and model.embed_images([...]) takes images then": "Give it as an "
    "image, and a model to --model",
    "call classifier.calibrate(images, labels) with images that it was not fitted on, or "
    "fit(..., calibrate=True)": "make one by clipkit fit FOLDERS --out DIR --calibrate",
    "pass 'cpu' or None": "give --device cpu, or leave --device out",
    " (a single one too is put in a list), or of functions of the name;": ",",
}

# The same for remedies with names in them. What builds a tokenizer is a file here.
_PATTERNS = (
    (
        r"load it by clipkit\.load\((.*)\), and make a classifier of it by .*, class_names\)",
        r"give --labels, and --model \1",
    ),
    (
        r"tokenizer=clipkit\.Tokenizer\(added_tokens=[^)]*\)",
        "tokenizer= a JSON file of them and their ids",
    ),
    (r"tokenizer=clipkit\.Tokenizer\([^)]*\)", "tokenizer= its merges.txt"),
)

# Arguments that messages name as words. `head_width` is also a field of configs.
_WORDS = {"batch_size", "cache_dir", "head_only", "held_out"}


def in_options(message: str, names: Collection[str]) -> str:
    """Return an error's message with the options of a command in place of Python's arguments.

    Args:
        message: of an error of the library.
        names: the arguments that the command has as options, spelled as in Python.

    Example:
        >>> in_options("pass config= or activation='gelu'; held_out is 2", ["config", "held_out"])
        "pass --config or activation='gelu'; --held-out is 2"
    """
    for phrase, replacement in _PHRASES.items():
        message = message.replace(phrase, replacement)
    if "model" in names:
        for pattern, replacement in _PATTERNS:
            message = re.sub(pattern, replacement, message)
    for name in names:
        message = _replace(message, name, f"--{name.replace('_', '-')}")
    return message.strip()


def _replace(message: str, name: str, option: str) -> str:
    """Put an option in the place of an argument, where a message surely means the argument."""
    # As an assignment, perhaps with a value: config=, activation='gelu', head_only=True.
    assigned = rf"(?<![\w./-])(?:TrainConfig\.)?{name}=(?:'([^']*)'|\"([^\"]*)\"|(\w[\w.-]*\w|\w))?"
    message = re.sub(assigned, lambda match: _with_value(option, match), message)
    # As a word by itself that means the argument, or that begins a sentence about it.
    if name in _WORDS:
        alone = rf"(?<![\w./'\"=\\-])(?:TrainConfig\.)?{name}(?![\w./'\"=\\])"
    else:
        alone = rf"(?:^|TrainConfig\.){name}(?= (?:must|is|has)\b)"
    message = re.sub(alone, lambda _: option, message)
    # As one of those that "would be ignored".
    ignored = rf"(?<![\w-]){name}(?=(?: and [\w-]+)* would be ignored)"
    return re.sub(ignored, lambda _: option, message)


def _with_value(option: str, match: re.Match[str]) -> str:
    value = next((group for group in match.groups() if group is not None), "")
    return f"{option} {value}" if value and value != "True" else option
