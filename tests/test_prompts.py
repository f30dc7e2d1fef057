"""Prompt sets against the published lists, and rendering by answers written out."""

import hashlib
import importlib.util
import pickle
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from clipkit import errors, prompt_set, prompt_sets, prompts
from clipkit.prompts import TEMPLATES, WHOLE_PROMPTS, Templates, check_templates, render

# Each row has the name, the numbers of classes and of templates, and the first 16 digits of two
# SHA-256: of the class names, in order, and of the sorted templates, each joined by newlines;
# several names of one class are joined by "|". Computed from data/prompts.md of openai/CLIP
# (SHA-256 f98d2d25e78cc1fe...), and for ImageNet from open_clip 3.3.0.
PUBLISHED = [
    ("Birdsnap", 500, 1, "b03d9d481162fd11", "f3126b8375a9e07a"),
    ("Caltech101", 102, 34, "e0ecbf33d0f07158", "0a6b75d0787fb2d0"),
    ("CIFAR10", 10, 18, "bb3914949cecedee", "d6ee29646b422971"),
    ("CIFAR100", 100, 18, "60ae3a3ac1355fcf", "d6ee29646b422971"),
    ("CLEVRCounts", 8, 1, "3c9410fd14f4550f", "da3770f103c74310"),
    ("Country211", 211, 5, "027b30d283f3a153", "1e5fc4f21ec21cb7"),
    ("DescribableTextures", 47, 8, "681d23b9cd3c2ede", "3e9362b02a3f41b9"),
    ("EuroSAT", 10, 3, "989b723c02a72997", "0953ea3fd8c1f0d5"),
    ("FacialEmotionRecognition2013", 7, 6, "04bed03132537e90", "2c89a8a2b3ee64d8"),
    ("FGVCAircraft", 100, 2, "e1c9e72060e63d52", "91522de75ad44711"),
    ("Flowers102", 102, 1, "5429e1ef6e0e5aa3", "bfcd4bbb214d5015"),
    ("Food101", 101, 1, "9c0eeb5a368baacb", "77a79bac7d9cf25b"),
    ("GTSRB", 43, 3, "953036bc5aedbe6b", "1e720b38db04fcde"),
    ("HatefulMemes", 2, 1, "62a880e9ac288c0e", "16a7fa63385bbf56"),
    ("Kinetics700", 700, 28, "a34c9fed41f5f9ed", "7ff4cc3590e06f15"),
    ("KITTI", 4, 1, "ecc16a4f92ee9fb1", "44136fa355b3678a"),
    ("MNIST", 10, 1, "29dd21f55e4611d4", "c0341e0a1fdfd8fb"),
    ("OxfordPets", 37, 1, "c6f4365ced9dc96f", "16a0790f0e45e97e"),
    ("PascalVOC2007", 20, 1, "b8c3f06eeba384ca", "e8e367e769f86c27"),
    ("PatchCamelyon", 2, 1, "27352df7ede1fd87", "7c7758b084ef77fa"),
    ("RESISC45", 45, 18, "3c2177013901f0ef", "ddfe50c416a8b672"),
    ("SST2", 2, 1, "2e61aa7558046c2c", "9034019e8a14384c"),
    ("StanfordCars", 196, 8, "93d089469409bbd0", "816eaf5186e3ac84"),
    ("STL10", 10, 2, "08b234ce7b11dbd3", "c97a3d1ad5819800"),
    ("SUN397", 397, 2, "dd1277b1cfcf09ba", "c97a3d1ad5819800"),
    ("UCF101", 101, 48, "4c5f54cb419a8393", "db238e0b2b8727fc"),
    ("ImageNet", 1000, 80, "571ae1c583b4be7d", "a8a4822f2921936e"),
    ("ImageNet-7", 1000, 7, "571ae1c583b4be7d", "bc451a8621e7d0e6"),
]


def digest(texts: list[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("name", "classes", "templates", "names_digest", "templates_digest"), PUBLISHED
)
def test_sets_are_the_published_ones(
    name: str, classes: int, templates: int, names_digest: str, templates_digest: str
) -> None:
    found = prompt_set(name)
    assert len(found.class_names) == classes
    assert len(found.templates) == templates
    assert len(set(found.templates)) == templates
    assert digest(["|".join(names) for names in found.class_names.values()]) == names_digest
    assert digest(sorted(found.templates)) == templates_digest
    assert found.version == "1"
    assert found.source.startswith("https://")
    assert found.license.startswith("MIT")


def test_all_sets_are_checked_above() -> None:
    assert prompt_sets() == sorted(prompt_set(row[0]).name for row in PUBLISHED)
    assert len(prompt_sets()) == 26 + 2


def test_imagenet_is_open_clips() -> None:
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        pytest.skip("open_clip is not installed")
    theirs = runpy.run_path(str(Path(package.origin).with_name("zero_shot_metadata.py")))
    ours = prompt_set("imagenet")
    their_templates = {template("{}") for template in theirs["OPENAI_IMAGENET_TEMPLATES"]}
    assert set(ours.templates) == their_templates
    labels, rendered = render(ours.class_names, None)
    names = [name for (name,) in rendered]
    assert tuple(names) == theirs["IMAGENET_CLASSNAMES"]
    pairs = zip(labels, names, strict=True)
    assert [(label, name) for label, name in pairs if label != name] == [
        ("projectile", "missile"),
        ("sunglass", "sunglasses"),
    ]
    seven = prompt_set("imagenet7")
    their_seven = [template("{}") for template in theirs["SIMPLE_IMAGENET_TEMPLATES"]]
    assert list(seven.templates) == their_seven
    assert seven.class_names == ours.class_names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ImageNet", "imagenet"),
        ("ImageNet-1k", "imagenet"),
        ("cifar-10", "cifar10"),
        ("Aircraft", "fgvcaircraft"),
        ("Stanford_Cars", "cars"),
    ],
)
def test_names_in_any_case_and_punctuation(name: str, expected: str) -> None:
    assert prompt_set(name).name == expected
    assert expected in prompt_sets()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("imagnet", r"'imagnet' is no prompt set: did you mean imagenet.*prompt_sets\(\)"),
        ("stanfordcar", r"did you mean cars"),  # by its other name
        ("qqq", r"'qqq' is no prompt set: `clipkit"),
        ("", "'' is no prompt set"),
        (7, "7 is no prompt set"),
    ],
)
def test_unknown_sets(name: Any, message: str) -> None:
    with pytest.raises(errors.ConfigError, match=message):
        prompt_set(name)


def test_sets_are_values() -> None:
    one = prompt_set("fer2013")
    one.class_names["happy"] = ("spoilt",)
    # It is a copy, so nobody else is hurt.
    assert prompt_set("fer2013").class_names["happy"] == ("happy", "smiling")
    with pytest.raises(AttributeError, match="cannot assign"):
        one.version = "2"  # pyright: ignore[reportAttributeAccessIssue]
    assert pickle.loads(pickle.dumps(one)) == one
    assert len(repr(prompt_set("imagenet"))) < 300


def test_the_asset_is_read_once() -> None:
    prompts._read_asset.cache_clear()
    prompt_set("dtd")
    prompt_set("kitti")
    prompt_sets()
    assert prompts._read_asset.cache_info().misses == 1


def test_patterns_multiply() -> None:
    assert prompts._expand("[a|the] {}[| here].") == [
        "a {}.",
        "a {} here.",
        "the {}.",
        "the {} here.",
    ]
    assert prompts._expand("{} | x") == ["{} | x"]


def test_lists() -> None:
    labels, rendered = render(
        ("cat", "a {curly} {}"), ["a {}.", str.upper, lambda name: f"my {name}"]
    )
    assert labels == ["cat", "a {curly} {}"]
    assert rendered == [
        ["a cat.", "CAT", "my cat"],
        ["a a {curly} {}.", "A {CURLY} {}", "my a {curly} {}"],
    ]


def test_other_braces_are_text() -> None:
    assert render(["cat"], ["{other} {0} {}"]) == (["cat"], [["{other} {0} cat"]])


def test_templates_by_default() -> None:
    assert render(["cat"]) == (["cat"], [["a photo of a cat."]])
    assert TEMPLATES == ("a photo of a {}.",)


def test_several_names_of_a_class() -> None:
    assert render({"pet": ["cat", "dog"], "car": "old car"}, ["a {}", "the {}"]) == (
        ["pet", "car"],
        [["a cat", "the cat", "a dog", "the dog"], ["a old car", "the old car"]],
    )


@pytest.mark.parametrize("templates", [None, ["{}"], WHOLE_PROMPTS])
def test_whole_prompts(templates: Any) -> None:
    names = {"x": ["A cat sits.", "Two {} cats."], "y": "A {dog}."}
    labels, rendered = render(names, templates)
    assert labels == ["x", "y"]
    assert rendered == [["A cat sits.", "Two {} cats."], ["A {dog}."]]


def test_templates_of_each_class() -> None:
    own: Templates = {"dog": ["my {}"], "cat": ("a {}", str.title), "unused": ["{}"]}
    assert render(["cat", "dog"], own) == (["cat", "dog"], [["a cat", "Cat"], ["my dog"]])


def test_templates_of_a_set() -> None:
    assert render(["forest"], "EuroSAT")[1] == [
        [f"a centered satellite photo of {article}forest." for article in ("", "a ", "the ")]
    ]
    assert render(prompt_set("fer2013").class_names, ["{}"])[1][5] == [
        "surprised",
        "shocked",
        "spooked",
    ]


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        ([], r"templates must be a list .*; not \[\]"),
        ({}, r"templates must be a list .*; not {}"),
        (7, "templates must be a list .*; not 7"),
        ("a photo of a {}.", r"\(a single one too is put in a list\).*; not 'a photo of a {}.'"),
        ("a photo", "'a photo' is no prompt set"),
        (["a {}", "a photo", "{} and {}", 5], r"one {} each .*; not \['a photo', '{} and {}', 5\]"),
        ({"a", "{}"}, "templates must be a list .*; not {'"),
        (b"{}", r"templates must be a list .*; not \[123, 125\]"),
        ({"cat": ["{}"], "dog": []}, r"templates must be a list .*; not \[\]"),
        ({"cat": ["{}"], "dog": "{}"}, "templates must be a list .*; not '{}'"),
        ({"cat": ["{}"], "dog": ["none"]}, r"templates must be a list .*; not \['none'\]"),
    ],
)
def test_bad_templates(templates: Any, message: str) -> None:
    with pytest.raises(errors.ConfigError, match=message):
        check_templates(templates)
    with pytest.raises(errors.ConfigError, match=message):
        render(["cat", "dog"], templates)


def test_only_rendering_does_without_templates() -> None:
    nothing: Any = None
    with pytest.raises(errors.ConfigError, match="templates must be a list .*; not None"):
        check_templates(nothing)


@pytest.mark.parametrize("templates", [["{}", str.upper], "imagenet", {"cat": ["a {}"]}])
def test_checked_templates_can_be_checked_again(templates: Any) -> None:
    once = check_templates(templates)
    assert check_templates(once) == once


def test_the_name_of_a_set_stands_for_its_templates() -> None:
    assert check_templates("imagenet") == prompt_set("imagenet").templates


def test_a_class_without_templates() -> None:
    with pytest.raises(errors.ConfigError, match=re.escape("has no list for ['dog', 'cow']")):
        render(["cat", "dog", "cow"], {"cat": ["{}"]})


@pytest.mark.parametrize(
    ("answer", "shown"), [(None, "None"), ("", "''"), (" ", "' '"), (["a cat"], r"\['a cat'\]")]
)
def test_a_function_must_return_a_text(answer: Any, shown: str) -> None:
    message = f"must return a text that is not empty, not {shown} for 'cat'"
    with pytest.raises(errors.ConfigError, match=message):
        render(["cat"], [lambda name: answer])


@pytest.mark.parametrize(
    ("class_names", "message"),
    [
        ([], r"class_names must be a non-empty list, .*not \[\]"),
        ({}, "class_names must be a non-empty list, .*not {}"),
        ("cat", "class_names must be a non-empty list, .*not 'cat'"),
        (None, "class_names must be a non-empty list, .*not None"),
        ({"cat", "dog"}, "class_names must be a non-empty list, .*not {'"),
        (["cat", 3], r"class_names must be texts .*not \[3\] for the class 3"),
        (["cat", ["a", "b"]], r"class_names must be texts .*for the class \['a', 'b'\]"),
        (["cat", ""], r"class_names must be texts .*not \[''\] for the class ''"),
        (["cat", " "], "class_names must be texts .*for the class ' '"),
        ({"cat": []}, r"class_names must be texts .*not \[\] for the class 'cat'"),
        (
            {"cat": ["cat", ""]},
            r"class_names must be texts .*not \['cat', ''\] for the class 'cat'",
        ),
        ({"cat": ""}, r"class_names must be texts .*not \[''\] for the class 'cat'"),
        ({"cat": 5}, "class_names must be texts .*not 5 for the class 'cat'"),
        ({"cat": {"a", "b"}}, "class_names must be texts .*for the class 'cat'"),
        ({0: "cat"}, "class_names must be texts .*for the class 0"),
        (
            ["cat", "dog", "cat", "cow", "dog"],
            r"class_names has \['cat', 'dog'\] more than once.*give a mapping",
        ),
    ],
)
def test_bad_class_names(class_names: Any, message: str) -> None:
    with pytest.raises(errors.ConfigError, match=message):
        render(class_names)


def test_names_may_repeat_where_labels_differ() -> None:
    assert render({"missile": "missile", "projectile": "missile"}, ["{}"]) == (
        ["missile", "projectile"],
        [["missile"], ["missile"]],
    )
