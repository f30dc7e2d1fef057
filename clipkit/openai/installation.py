"""Let `import clip` mean `clipkit.openai`, for programs that cannot be changed."""

import sys
from importlib import import_module

from clipkit.errors import ClipkitError

# What a program imports, and the module that it gets.
MODULES = {
    "clip": "clipkit.openai",
    "clip.clip": "clipkit.openai.clip",
    "clip.model": "clipkit.openai.model",
    "clip.simple_tokenizer": "clipkit.openai.simple_tokenizer",
}


class OtherClipError(ClipkitError, RuntimeError):
    """Report that another package of the name `clip` was imported before."""


def install() -> None:
    """Make `import clip` and its three submodules give `clipkit.openai`, in this process.

    Call it before the first import of a program that uses `clip`. A second call changes nothing.

    Raises:
        OtherClipError: if another module of one of these names was imported before, since parts of
            the program may hold on to it. Nothing is changed then.

    Example:
        import clipkit.openai

        clipkit.openai.install()
        import clip  # clipkit.openai
    """
    ours = {name: import_module(target) for name, target in MODULES.items()}
    for name, module in ours.items():
        present = sys.modules.get(name, module)
        if present is not module:
            place = getattr(present, "__file__", None) or "no file"
            raise OtherClipError(
                f"another module {name!r} was imported before, from {place}: call "
                "clipkit.openai.install() before anything that imports clip"
            )
    sys.modules.update(ours)
