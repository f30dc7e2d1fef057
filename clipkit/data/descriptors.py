"""Read texts that describe classes, as CuPL (2209.03320) and DCLIP (2210.07183) publish them."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from clipkit.errors import DataError
from clipkit.files import read_json, spell_path
from clipkit.prompts import WHOLE_PROMPTS, ClassNames, as_words, render, wordnet_name

_ENDS = (".", "!", "?")  # of a sentence
_THINGS = ("a ", "an ", "the ", "used ")  # a class is such a descriptor, and has any other
_VERBS = ("has ", "have ", "is ", "are ", "can ", "may ", "often ", "usually ", "typically ")
_SHOWN = 20  # names in a message


def read_descriptors(
    path: str | os.PathLike[str],
    class_names: ClassNames | Iterable[str] | None = None,
    *,
    sentences: bool | None = None,
) -> dict[str, list[str]]:
    """Read a JSON file of texts for each class, and return the prompts of the classes asked for.

    The result goes where class names go, with `templates=None`, for its texts are whole prompts:
    `ImageClassifier.zero_shot(model, read_descriptors("texts.json"), templates=None)`.

    Args:
        path: of a JSON object from names of classes to lists of texts. They are sentences, as CuPL
            has them ("A tench is a freshwater fish."), and taken as they are; or features, as DCLIP
            has them ("a long body"), of which "tench, which has a long body" is made.
        class_names: the classes, in the order of the result, as `zero_shot` takes them; names in
            the file may differ from them in case and underscores. None for all of the file.
        sentences: whether the texts are sentences. None for what most of them look like: a sentence
            ends with a full stop.

    Returns:
        Label -> its prompts, each text once. Other classes of the file are left out.

    Raises:
        DataError: if the file is none of these, or lacks a class; the message names all of those.
        ConfigError: for class names that `clipkit.prompts.render` refuses.

    Example:
        prompts = clipkit.read_descriptors("cupl.json", ["cat", "dog"])
        classifier = clipkit.ImageClassifier.zero_shot("tiny", prompts, templates=None)
    """
    shown = spell_path(path, "a file of descriptors")
    texts = _check(read_json(shown), shown)
    names = _names_of(list(texts) if class_names is None else class_names)
    if sentences is None:
        every = [text for own in texts.values() for text in own]
        sentences = 2 * sum(text.endswith(_ENDS) for text in every) > len(every)
    found: dict[str, list[str]] = {}
    for name, own in texts.items():
        if own:  # "Cat" and "cat" are one class, with the texts of both
            found[_key(name)] = found.get(_key(name), []) + own
    missing = [label for label, own in names.items() if _find(found, own) is None]
    if missing:
        raise DataError(
            f"{shown} has no texts for {', '.join(map(repr, missing[:_SHOWN]))}"
            f"{f' and {len(missing) - _SHOWN} more' if len(missing) > _SHOWN else ''}: add a list "
            "of texts for each to the file, or name the other classes by class_names="
        )
    prompts: dict[str, list[str]] = {}
    for label, own in names.items():
        described = _find(found, own) or []
        whole = described if sentences else [_join(own[0], text) for text in described]
        prompts[label] = list(dict.fromkeys(whole))
    return prompts


def _names_of(class_names: ClassNames | Iterable[str]) -> dict[str, list[str]]:
    """Return label -> the names by which it may go: those given, then the label itself."""
    labels, names = render(class_names, WHOLE_PROMPTS)
    if isinstance(class_names, Mapping):
        return {label: [*own, label] for label, own in zip(labels, names, strict=True)}
    return {label: [wordnet_name(label) or as_words(label), label] for label in labels}


def _key(name: str) -> str:
    """Return a name without what files write in different ways."""
    return as_words(name).casefold().strip()


def _find(texts: Mapping[str, list[str]], names: Sequence[str]) -> list[str] | None:
    """Return the texts of the first name that has any."""
    return next((texts[_key(name)] for name in names if _key(name) in texts), None)


def _join(name: str, feature: str) -> str:
    """Return a prompt of the name of a class and one of its features."""
    start = feature.lower()
    if start.startswith(_VERBS):
        return f"{name}, which {feature}"
    return f"{name}, which {'is' if start.startswith(_THINGS) else 'has'} {feature}"


def _check(values: Any, shown: str) -> dict[str, list[str]]:
    """Return the texts of a file without spaces around them, or raise `DataError`."""
    if isinstance(values, dict) and values:
        entries = cast("dict[str, object]", values)
        wrong = next((name for name, own in entries.items() if not _are_texts(own)), None)
        if wrong is None:
            lists = cast("dict[str, list[str]]", entries)
            return {name: [text.strip() for text in own] for name, own in lists.items()}
        found = f"not {entries[wrong]!r:.60} for {wrong!r:.60}"
    else:
        found = f"not {values!r:.60}"
    raise DataError(
        f"{shown} must hold a JSON object from names of classes to lists of texts, as "
        f'{{"cat": ["whiskers", "a long tail"]}}, {found}'
    )


def _are_texts(value: object) -> bool:
    if not isinstance(value, list):
        return False
    texts = cast("list[object]", value)
    return all(isinstance(text, str) and text.strip() for text in texts)
