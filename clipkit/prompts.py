"""From class names to prompts: the sets of templates and names that the CLIP paper used, and any of your own."""

import difflib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from itertools import product
from typing import Any

from clipkit.errors import ConfigError

Template = str | Callable[[str], str]
Templates = str | Sequence[Template] | Mapping[str, Sequence[Template]]
ClassNames = Sequence[str] | Mapping[str, str | Sequence[str]]

TEMPLATES = ("a photo of a {}.",)  # where none are given


@dataclass(frozen=True)
class PromptSet:
    """Templates and class names that were published for one data set.

    Args:
        name: as `prompt_sets` lists it.
        version: of the texts; it changes whenever one of them does.
        templates: each with one `{}` where the name goes.
        class_names: label -> its names, in the data set's order, ready to be passed on as class names. Nearly always
            the one name is the label; FER2013 has synonyms, and ImageNet's list has two names twice.
        source: where the texts were published.
        licence: of the source.
    """

    name: str
    version: str
    templates: tuple[str, ...] = field(repr=False)
    class_names: dict[str, tuple[str, ...]] = field(repr=False)
    source: str
    licence: str


def prompt_sets() -> list[str]:
    """The names that `prompt_set` knows, without the other names of some."""
    return sorted(_asset()["sets"])


def prompt_set(name: str) -> PromptSet:
    """A set by its name, in any case and punctuation: "ImageNet", "cifar-10". Raises `ConfigError` for another."""
    asset = _asset()
    known = {
        _spelling(k): key
        for key, entry in asset["sets"].items()
        for k in (key, *entry.get("aliases", ()))
    }
    spelling = _spelling(name) if isinstance(name, str) else ""
    if spelling not in known:
        close = dict.fromkeys(
            known[match] for match in difflib.get_close_matches(spelling, known, n=3, cutoff=0.5)
        )
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise ConfigError(
            f"{name!r} is no prompt set: {hint}`clipkit.prompt_sets()` names them all"
        )
    entry = asset["sets"][known[spelling]]
    labels = entry["labels"]
    owner = (
        entry if isinstance(labels, list) else asset["sets"][labels]
    )  # or the name of a set of the same classes
    names = owner.get("names", {})
    return PromptSet(
        known[spelling],
        asset["version"],
        tuple(text for pattern in entry["templates"] for text in _expand(pattern)),
        {label: tuple(names.get(label, (label,))) for label in owner["labels"]},
        *asset["sources"][entry["source"]],
    )


@lru_cache(maxsize=1)
def _asset() -> dict[str, Any]:
    return json.loads(resources.files("clipkit").joinpath("assets/prompts.json").read_text("utf-8"))


def _spelling(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def _expand(pattern: str) -> list[str]:
    """All texts of a pattern: "[a|the] {}[| here]" has four. An earlier choice varies more slowly."""
    parts = re.split(r"\[(.*?)\]", pattern)  # every second one was in brackets
    choices = [part.split("|") if i % 2 else [part] for i, part in enumerate(parts)]
    return ["".join(texts) for texts in product(*choices)]


def check_templates(templates: Templates) -> tuple[Template, ...] | dict[str, tuple[Template, ...]]:
    """Templates that can be used: those of a set if it is the name of one, and lists, one or one per label, as tuples.

    Raises:
        ConfigError: for no template, a single text in place of a list, one without exactly one `{}`, or an unknown set.
    """
    if isinstance(templates, str) and "{}" not in templates:
        return prompt_set(templates).templates
    if isinstance(templates, Mapping) and templates:
        return {label: _check_list(own) for label, own in templates.items()}
    return _check_list(templates)


def _check_list(templates: Any) -> tuple[Template, ...]:
    bad = templates
    if _is_list(templates):
        bad = [
            t for t in templates if not (t.count("{}") == 1 if isinstance(t, str) else callable(t))
        ]
        if not bad:
            return tuple(templates)
    raise ConfigError(
        "templates must be a list of texts with one {} each where the class name goes (a single one too is put in a "
        f"list), or of functions of the name; or the name of a prompt set; not {bad!r}"
    )


def render(
    class_names: ClassNames, templates: Templates = TEMPLATES
) -> tuple[list[str], list[list[str]]]:
    """The labels, and for each of them its prompts: each of its names in each template.

    Args:
        class_names: C names, which are the labels too; or label -> its name, or a list of its names. Whole captions
            can stand for names, with ["{}"] as templates.
        templates: texts with one `{}` each or functions of the name; or label -> a list of them; or a set's name.

    Returns:
        C labels, and C lists of prompts, which may differ in length.

    Raises:
        ConfigError: for no class, an empty name, a label that comes twice or has no templates, a function that does not
            return a text, or what `check_templates` refuses.
    """
    names, checked = _check_names(class_names), check_templates(templates)
    if isinstance(checked, dict) and (
        lacking := [label for label in names if label not in checked]
    ):
        raise ConfigError(f"templates is a mapping, but has no list for {lacking}")
    per_label = [checked[label] if isinstance(checked, dict) else checked for label in names]
    pairs = zip(names.values(), per_label, strict=True)
    return list(names), [
        [_fill(template, name) for name in own for template in texts] for own, texts in pairs
    ]


def _fill(template: Template, name: str) -> str:
    if isinstance(template, str):
        return template.replace("{}", name)
    text = template(name)
    if not _is_text(text):
        raise ConfigError(
            f"the template {template!r} must return a text that is not empty, not {text!r} for {name!r}"
        )
    return text


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0


def _check_names(class_names: Any) -> dict[str, list[str]]:
    """Label -> its names, from all that `render` takes."""
    if isinstance(class_names, Mapping) and class_names:
        pairs = [
            (label, [names] if isinstance(names, str) else names)
            for label, names in class_names.items()
        ]
    elif _is_list(class_names):
        pairs = [(name, [name]) for name in class_names]
    else:
        raise ConfigError(
            f"class_names must be a non-empty list, or a mapping of labels to names, not {class_names!r}"
        )
    for label, names in pairs:
        if not _is_list(names) or not all(map(_is_text, (label, *names))):
            raise ConfigError(
                f"class_names must be texts that are not empty, not {names!r} for the class {label!r}"
            )
    if twice := [
        label for label, count in Counter(label for label, _ in pairs).items() if count > 1
    ]:
        raise ConfigError(
            f"class_names has {twice} more than once, and nothing could tell them apart: "
            "give a mapping of labels that differ to their names, which need not differ"
        )
    return dict(pairs)
