"""Turn class names into prompts, by the sets of the CLIP paper or by templates of your own."""

import difflib
import gzip
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from itertools import product
from typing import Any, TypeGuard, cast

from clipkit.errors import ConfigError

_LOG = logging.getLogger("clipkit")

Template = str | Callable[[str], str]
Templates = str | Sequence[Template] | Mapping[str, Sequence[Template]]
CheckedTemplates = tuple[Template, ...] | dict[str, tuple[Template, ...]]
ClassNames = Sequence[str] | Mapping[str, str | Sequence[str]]

TEMPLATES = ("a photo of a {}.",)  # where none are given
WHOLE_PROMPTS = ("{}",)  # takes each name as it is

_WITHOUT_ORDER = (str, bytes, set, frozenset)  # what is iterated, and is no list of names

_SHOWN = 5  # names in a message
_WORDNET_ID = re.compile("n[0-9]{8}")


@dataclass(frozen=True)
class PromptSet:
    """Hold the templates and class names that were published for one data set.

    Args:
        name: as `prompt_sets` lists it.
        version: of the texts; it changes whenever one of them does.
        templates: texts, each with one `{}` where the name goes.
        class_names: label -> its names, in the data set's order, ready to be passed on as class
            names. The one name is nearly always the label; FER2013 has synonyms, and ImageNet's
            list has two names twice.
        source: where the texts were published.
        license: the license of the source.

    Example:
        >>> len(prompt_set("imagenet").templates)
        80
    """

    name: str
    version: str
    templates: tuple[str, ...] = field(repr=False)
    class_names: dict[str, tuple[str, ...]] = field(repr=False)
    source: str
    license: str


def prompt_sets() -> list[str]:
    """Return the names of all prompt sets, sorted. `prompt_set` knows aliases of some, too.

    Example:
        >>> "imagenet" in prompt_sets()
        True
    """
    return sorted(_read_asset()["sets"])


def prompt_set(name: str) -> PromptSet:
    """Return a prompt set by its name or alias, in any case and punctuation.

    Example:
        >>> prompt_set("STL-10").templates
        ('a photo of a {}.', 'a photo of the {}.')

    Raises:
        ConfigError: for another name; similar ones are suggested.
    """
    asset = _read_asset()
    key = _find_set(name, asset["sets"])
    entry = asset["sets"][key]
    owner = entry
    if isinstance(entry["labels"], str):  # the name of a set of the same classes
        owner = asset["sets"][entry["labels"]]
    names = owner.get("names", {})
    source, license = asset["sources"][entry["source"]]
    return PromptSet(
        name=key,
        version=asset["version"],
        templates=tuple(text for pattern in entry["templates"] for text in _expand(pattern)),
        class_names={label: tuple(names.get(label, (label,))) for label in owner["labels"]},
        source=source,
        license=license,
    )


@lru_cache(maxsize=1)
def _read_asset() -> dict[str, Any]:
    asset = resources.files("clipkit").joinpath("assets/prompts.json")
    return json.loads(asset.read_text("utf-8"))


def _find_set(name: str, sets: Mapping[str, Any]) -> str:
    """Return the key of the set that has this name or alias."""
    known: dict[str, str] = {}
    for key, entry in sets.items():
        for spelling in (key, *entry.get("aliases", ())):
            known[_plain(spelling)] = key
    wanted = _plain(name) if isinstance(name, str) else ""
    if wanted in known:
        return known[wanted]
    matches = difflib.get_close_matches(wanted, known, n=3, cutoff=0.5)
    close = dict.fromkeys(known[match] for match in matches)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise ConfigError(
        f"{name!r} is no prompt set: {hint}`clipkit.prompt_sets()` names them all. As a template "
        "it lacks {} where the class name goes"
    )


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())


def is_wordnet_id(text: str) -> bool:
    """Return whether a text has the form of a noun's id in WordNet: n and eight digits."""
    return _WORDNET_ID.fullmatch(text) is not None


def wordnet_name(text: str) -> str | None:
    """Return the name of a WordNet id, such as the folders of ImageNet have, or None for any other.

    The ids of ImageNet's 1,000 classes have the names of the prompt set "imagenet". The others,
    which two ids may share, are the first word of their set of synonyms in WordNet 3.0.

    Example:
        >>> wordnet_name("n02084071")
        'dog'
    """
    return _read_wordnet().get(text) if is_wordnet_id(text) else None


def name_ids(labels: Sequence[str]) -> list[str] | dict[str, str]:
    """Return the labels, or label -> name if there are WordNet ids among them.

    The name of an id becomes the label, with the id behind it where two have the same name.

    Example:
        >>> name_ids(["n02084071", "n02123045"])
        {'dog': 'dog', 'tabby cat': 'tabby cat'}
    """
    ids = [label for label in labels if is_wordnet_id(label)]
    if not ids or len(set(labels)) < len(labels):
        return list(labels)
    names = {label: wordnet_name(label) or as_words(label) for label in labels}
    counts = Counter(names.values())
    readable: dict[str, str] = {}
    for label, name in names.items():
        if label not in ids:
            readable[label] = name
        else:
            readable[name if counts[name] == 1 else f"{name} ({label})"] = name
    return readable


@lru_cache(maxsize=1)
def _read_wordnet() -> dict[str, str]:
    asset = resources.files("clipkit").joinpath("assets/wordnet.txt.gz")
    lines = gzip.decompress(asset.read_bytes()).decode("utf-8").splitlines()
    return dict(line.split(maxsplit=1) for line in lines)


def _expand(pattern: str) -> list[str]:
    """Return all texts of a pattern; an earlier choice varies more slowly.

    "[a|the] {}[| here]" stands for "a {}", "a {} here", "the {}" and "the {} here".
    """
    parts = re.split(r"\[(.*?)\]", pattern)  # every second part was in brackets
    choices = [part.split("|") if i % 2 else [part] for i, part in enumerate(parts)]
    return ["".join(texts) for texts in product(*choices)]


def check_templates(templates: Templates) -> CheckedTemplates:
    """Return templates that can be used, with each list as a tuple.

    The name of a prompt set becomes the templates of that set.

    Raises:
        ConfigError: for no template, a single text in place of a list, a text without exactly one
            `{}`, or the name of no set.
    """
    if isinstance(templates, str) and "{}" not in templates:
        return prompt_set(templates).templates
    if isinstance(templates, Mapping) and templates:
        return {label: _check_list(own) for label, own in templates.items()}
    return _check_list(templates)


def _check_list(templates: object) -> tuple[Template, ...]:
    wrong = templates
    if _is_list(templates):
        wrong = [template for template in templates if not _is_template(template)]
        if not wrong:
            return tuple(templates)
    raise ConfigError(
        "templates must be a list of texts with one {} each where the class name goes (a single "
        "one too is put in a list), or of functions of the name; or the name of a prompt set; "
        f"not {wrong!r}"
    )


def _is_template(value: object) -> bool:
    return value.count("{}") == 1 if isinstance(value, str) else callable(value)


def render(
    class_names: ClassNames | Iterable[str], templates: Templates | None = TEMPLATES
) -> tuple[list[str], list[list[str]]]:
    """Return the labels, and for each label its prompts: each of its names in each template.

    Example:
        >>> render({"pet": ["cat", "dog"]}, ["a {}", "the {}"])
        (['pet'], [['a cat', 'the cat', 'a dog', 'the dog']])
        >>> render(["red_car"], ["a {}"])
        (['red_car'], [['a red car']])

    Args:
        class_names: C names, a list or any other row, which are the labels too; or label -> its
            name, or a list of its names. A label that is its own name has spaces for underscores in
            its prompts, and the name of a WordNet id in its place, because folders are named
            "golden_retriever" or "n02099601".
        templates: texts with one `{}` each, or functions of the name; or label -> a list of them;
            or the name of a prompt set. None takes the names as whole prompts, as they are.

    Returns:
        C labels, and C lists of prompts, which may differ in length.

    Raises:
        ConfigError: for no class, an empty name, a label that comes twice or has no templates,
            names in a list that differ in underscores alone, a function that does not return a
            text, or what `check_templates` refuses.
    """
    names = _check_names(class_names)
    checked = WHOLE_PROMPTS if templates is None else check_templates(templates)
    if checked != WHOLE_PROMPTS and not isinstance(class_names, Mapping):
        refuse_names_alike(list(names))
        names = {label: [wordnet_name(label) or as_words(label)] for label in names}
        _warn_of_one_name(names)
    if isinstance(checked, dict):
        if missing := [label for label in names if label not in checked]:
            raise ConfigError(f"templates is a mapping, but has no list for {missing}")
        per_label = [checked[label] for label in names]
    else:
        per_label = [checked] * len(names)
    prompts = [
        [_fill(template, name) for name in own_names for template in own_templates]
        for own_names, own_templates in zip(names.values(), per_label, strict=True)
    ]
    return list(names), prompts


def refuse_names_alike(names: Sequence[str]) -> None:
    """Raise `ConfigError` if prompts would have the same text for two names.

    Example:
        refuse_names_alike(["red_car", "red car"])  # ConfigError
    """
    counts = Counter(map(as_words, names))
    alike = [name for name in names if counts[as_words(name)] > 1]
    if alike:
        raise ConfigError(
            f"the names {' and '.join(map(repr, alike[:_SHOWN]))} differ in underscores and spaces "
            "alone, so their prompts would be the same: rename one, or make them one class"
        )


def _warn_of_one_name(names: Mapping[str, Sequence[str]]) -> None:
    """Tell the log of classes that WordNet, or the caller beside it, gives the same name."""
    counts = Counter(own[0] for own in names.values())
    alike = [label for label, own in names.items() if counts[own[0]] > 1]
    if alike:
        _LOG.warning(
            "the classes %s have names that others have too, so zero-shot cannot tell them apart: "
            "a mapping gives them names that differ, as {%r: %r}",
            ", ".join(f"{label!r} ({names[label][0]})" for label in alike[:_SHOWN]),
            alike[0],
            f"{names[alike[0]][0]}, ...",
        )


def as_words(label: str) -> str:
    """Return a label as a prompt has it, with spaces for underscores.

    Example:
        >>> as_words("golden_retriever")
        'golden retriever'
    """
    words = label.replace("_", " ")
    return words if words.strip() else label


def _fill(template: Template, name: str) -> str:
    if isinstance(template, str):
        return template.replace("{}", name)
    text = template(name)
    if not _is_text(text):
        raise ConfigError(
            f"the template {template!r} must return a text that is not empty, not {text!r} "
            f"for {name!r}"
        )
    return text


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_list(value: object) -> TypeGuard[Sequence[Any]]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return False
    return len(cast(Sequence[Any], value)) > 0


def _check_names(class_names: ClassNames | Iterable[str]) -> dict[str, list[str]]:
    """Return label -> its names, from all that `render` takes."""
    pairs = _pair_names(class_names)
    for label, names in pairs:
        if not _is_list(names) or not all(_is_text(name) for name in (label, *names)):
            raise ConfigError(
                f"class_names must be texts that are not empty, not {names!r} for the class "
                f"{label!r}"
            )
    counts = Counter(label for label, _ in pairs)
    if repeated := [label for label, count in counts.items() if count > 1]:
        raise ConfigError(
            f"class_names has {repeated} more than once, and nothing could tell them apart: give a "
            "mapping of labels that differ to their names, which need not differ"
        )
    return {label: list(names) for label, names in pairs}


def _pair_names(class_names: ClassNames | Iterable[str]) -> list[tuple[str, Sequence[str]]]:
    """Return (label, names) for each class; nothing is known of either yet."""
    pairs: list[tuple[str, Sequence[str]]] = []
    if isinstance(class_names, Mapping):
        named = cast("Mapping[str, str | Sequence[str]]", class_names)
        pairs = [(label, [own] if isinstance(own, str) else own) for label, own in named.items()]
    elif isinstance(class_names, Iterable) and not isinstance(class_names, _WITHOUT_ORDER):
        pairs = [(name, [name]) for name in cast("Iterable[str]", class_names)]
    if pairs:
        return pairs
    raise ConfigError(
        "class_names must be a non-empty list, or a mapping of labels to names, "
        f"not {class_names!r:.99}"
    )
