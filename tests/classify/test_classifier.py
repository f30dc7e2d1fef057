"""clipkit.classify.classifier: what it says equals the model and the head by hand, and nothing fails half-way."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

import clipkit
from clipkit import CLIP, ImageClassifier, zero_shot_weights
from clipkit.classify.classifier import Prediction
from clipkit.classify.few_shot import METHODS, fit_head
from clipkit.classify.heads import CosineHead, LinearHead, WeightedPromptHead
from clipkit.errors import ConfigError, DataError, ImageError
from clipkit.prompts import prompt_set, render
from clipkit.tokenizer import Tokenizer
from tests.helpers.toy_classifier import (
    NAMES,
    QUICK,
    RAGGED,
    assert_close,
    known,
    logits,
    toy_features,
    toy_model,
)
from tests.helpers.toy_data import COLOURS, colour_folders, picture

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"


@pytest.fixture(scope="module")
def model(small_tokenizer: Tokenizer) -> CLIP:
    """Not to be changed."""
    return toy_model(small_tokenizer)


@pytest.fixture
def classifier(model: CLIP) -> ImageClassifier:
    return ImageClassifier.zero_shot(model, NAMES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_folders(tmp_path_factory.mktemp("pictures"), each=2)


@pytest.fixture(scope="module")
def few() -> tuple[Tensor, Tensor]:
    return toy_features()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def by_hand(model: CLIP, images: Tensor, weights: Tensor) -> Tensor:
    """The logits of zero-shot classification, in float64."""
    with torch.no_grad():
        features = model.encode_image(images).double()
        features = features / features.square().sum(dim=1, keepdim=True).sqrt()
        return model.logit_scale.double().exp() * features @ weights.double().T


# Zero-shot


@pytest.mark.parametrize(
    ("names", "templates"),
    [
        (NAMES, None),
        (RAGGED, ["a {}.", "{}"]),
        (["ship", "cat"], "STL-10"),
        (NAMES, {n: ["{}"] for n in NAMES}),
    ],
)
def test_zero_shot_is_the_model_and_its_weights(
    model: CLIP, images: Any, names: list[str], templates: Any
) -> None:
    more = () if templates is None else (templates,)
    classifier = ImageClassifier.zero_shot(model, names, *more)
    assert_close(classifier(images), by_hand(model, images, zero_shot_weights(model, names, *more)))
    assert (classifier.labels, classifier.prompts) == render(names, *more)
    assert (
        classifier.model is model
        and classifier.provenance == {"method": "zero_shot"}
        and not classifier.training
    )
    assert classifier(images).dtype == torch.float32


def test_a_set_brings_its_templates(model: CLIP) -> None:
    prompts = ImageClassifier.zero_shot(model, ["ship"], "stl10").prompts
    assert (
        prompts == [[t.replace("{}", "ship") for t in prompt_set("stl10").templates]]
        and len(prompts[0]) == 2
    )


def test_the_path_of_a_model_is_enough(model: CLIP, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "mine")
    classifier = ImageClassifier.zero_shot(tmp_path / "mine", ["red", "blue"])
    assert classifier.labels == ["red", "blue"]


def test_the_name_of_a_model_is_enough() -> None:
    names = ["cat", "rocket", "cup of coffee"]
    classifier = ImageClassifier.zero_shot("tiny", names)
    prediction = classifier.predict(PHOTOS / "coffee.jpg")
    assert prediction.label == "cup of coffee"
    model, preprocess = clipkit.load("tiny", classifier.model.device)
    with torch.no_grad():
        tokens = clipkit.tokenize([f"a photo of a {name}." for name in names])
        expected = (
            model(preprocess(PHOTOS / "coffee.jpg").unsqueeze(0), tokens)[0]
            .softmax(dim=-1)[0]
            .cpu()
        )
    assert_close(prediction.probabilities, expected)


def test_forward_can_be_differentiated(classifier: ImageClassifier, images: Any) -> None:
    classifier = copy.deepcopy(classifier)
    F.cross_entropy(classifier(images), torch.tensor([0, 1, 2])).backward()
    given = {
        name for name, p in classifier.named_parameters() if p.grad is not None and p.grad.any()
    }
    assert {
        "head.weight",
        "head.logit_scale",
        "model.visual.conv1.weight",
        "model.visual.proj",
    } <= given
    assert not {name for name in given if name.startswith(("model.text", "zero_shot_head"))}


@pytest.mark.parametrize("lacking", ["labels", "prompts", "head", "zero_shot_head"])
def test_parts_that_do_not_fit_are_refused(classifier: ImageClassifier, lacking) -> None:
    parts = {
        name: getattr(classifier, name) for name in ("labels", "prompts", "head", "zero_shot_head")
    }
    head = CosineHead(torch.eye(3, 32), torch.tensor(1.0))
    with pytest.raises(
        ConfigError, match=r"as many labels \([34]\) and prompts \([34]\) as its heads"
    ):
        ImageClassifier(
            classifier.model, **parts | {lacking: head if "head" in lacking else parts[lacking][:3]}
        )
    with pytest.raises(ConfigError, match="width 32 need heads of that width, not 31"):
        ImageClassifier(classifier.model, **parts | {"head": LinearHead(torch.ones(4, 31))})


# Predictions


class Coloured(Dataset[Any]):
    """Pictures of noise and their labels."""

    def __init__(self, labels: list[int], labelled: bool = True) -> None:
        self.labels, self.labelled = labels, labelled

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Any:
        colour = COLOURS[NAMES[self.labels[index]]]
        image = picture(colour, colour, seed=index)
        return (image, self.labels[index]) if self.labelled else image


def test_predicts_one_or_many(classifier: ImageClassifier, folder: Path) -> None:
    files = sorted(folder.rglob("*.png"))
    preprocess = classifier.model.preprocess
    weights = classifier.zero_shot_head.weight
    expected = by_hand(
        classifier.model, torch.stack([preprocess(f) for f in files]), weights
    ).softmax(dim=-1)
    from PIL import Image

    with Image.open(files[0]) as image:
        for single in (files[0], str(files[0]), image):
            prediction = classifier.predict(single)
            assert isinstance(prediction, Prediction) and prediction.labels == NAMES
            assert_close(prediction.probabilities, expected[0])
        many = (folder, str(folder), files, [image, *map(str, files[1:])])
        for rows in [classifier.predict(given, batch_size=3) for given in many]:
            assert isinstance(rows, list) and [type(row) for row in rows] == [Prediction] * 8
            assert_close(torch.stack([row.probabilities for row in rows]), expected)
            assert [NAMES.index(row.label) for row in rows] == expected.argmax(dim=1).tolist()
    data = Coloured([2, 0, 1])
    assert_close(
        torch.stack([row.probabilities for row in classifier.predict(data)]),
        by_hand(
            classifier.model, torch.stack([preprocess(data[i][0]) for i in range(3)]), weights
        ).softmax(dim=-1),
    )


@pytest.mark.parametrize("content", [None, b"broken"])
def test_a_picture_that_cannot_be_read_is_an_error(
    classifier: ImageClassifier, folder: Path, tmp_path: Path, content: Any
) -> None:
    path = tmp_path / "x.png"
    if content:
        path.write_bytes(content)
    for given in (path, str(path), [*folder.rglob("*.png"), path]):
        with pytest.raises(ImageError, match=r"x\.png"):
            classifier.predict(given)


def test_features_and_pictures_give_the_same_probabilities(
    classifier: ImageClassifier, folder: Path
) -> None:
    features = classifier.embed(folder, batch_size=3)
    assert features.shape == (8, 32)
    assert_close(features.norm(dim=1), torch.ones(8))
    for given in (features, features.double()):
        probabilities = classifier.probabilities(given)
        assert_close(probabilities, classifier.probabilities(folder))
        assert probabilities.dtype == torch.float32 and not probabilities.requires_grad
    assert_close(probabilities.sum(dim=1), torch.ones(8))
    assert torch.equal(features, classifier.model.embed_images(folder, batch_size=3))
    rows = classifier.predict(features)
    assert_close(torch.stack([row.probabilities for row in rows]), probabilities)


def test_the_likeliest_labels_come_first() -> None:
    prediction = Prediction(["a", "b", "c", "d"], torch.tensor([0.125, 0.5, 0.0625, 0.3125]))
    every = [("b", 0.5), ("d", 0.3125), ("a", 0.125), ("c", 0.0625)]
    assert (
        prediction.label == "b"
        and prediction.top(9) == prediction.top() == every
        and prediction.top(2) == every[:2]
    )
    for k in (0, -1):
        with pytest.raises(ConfigError, match=f"k of at least 1, not {k}"):
            prediction.top(k)


# Fitting


def test_what_cannot_work_is_said_before_anything_is_encoded(
    model: CLIP, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = ImageClassifier.zero_shot(model, NAMES)
    two = [picture((200, 30, 30), (30, 30, 200), seed) for seed in range(2)]
    monkeypatch.setattr(CLIP, "encode_image", lambda *_: pytest.fail("encoded in vain"))
    with pytest.raises(ConfigError, match="method must be one of"):
        classifier.fit(two, [0, 1], "best")
    with pytest.raises(DataError, match="4 pictures need as many labels, not 3"):
        classifier.fit([*two, *two], [0, 1, 1])


def test_labels_are_indices_or_names(model: CLIP, few: Path) -> None:
    features, labels = few
    names, heads = [NAMES[i] for i in labels], []
    for given in (
        labels,
        labels.tolist(),
        labels.numpy(),
        list(labels),
        names,
        labels.int(),
        labels.to(torch.uint8),
    ):
        classifier = ImageClassifier.zero_shot(model, NAMES)
        assert classifier.fit(features, given, strength=1) is classifier and not classifier.training
        heads.append(logits(classifier, features))
        assert classifier.provenance["method"] == "anchored" and classifier.provenance[
            "counts"
        ] == [7, 5, 5, 5]
        assert classifier.provenance["pictures"] == 22
    assert all(torch.equal(head, heads[0]) for head in heads)
    assert (heads[0].argmax(dim=1) == labels).double().mean() > 0.9
    assert not torch.equal(heads[0], logits(ImageClassifier.zero_shot(model, NAMES), features))


def test_pictures_are_fitted_as_their_features_are(model: CLIP, folder: Path) -> None:
    files = sorted(folder.rglob("*.png"))
    labels = [i // 2 for i in range(8)]
    data = Coloured(labels * 2)
    features = {size: model.embed_images(data, batch_size=size) for size in (5, 64)}

    def fit(*given: Any, **options: Any) -> list[Any]:
        return known(ImageClassifier.zero_shot(model, NAMES).fit(*given, strength=1, **options))

    expected = fit(model.embed_images(files, batch_size=3), labels)
    for given in (folder, files, list(map(str, files))):
        assert fit(given, labels, batch_size=3) == expected
    assert fit(data) == fit(features[64], labels * 2)  # which tells the labels itself
    assert fit(data, batch_size=5, workers=1) == fit(features[5], labels * 2)
    shifted = [(i + 1) % 4 for i in labels * 2]
    assert fit(data, shifted) == fit(features[64], shifted)  # what is told goes before


def test_a_class_may_have_no_pictures(classifier: ImageClassifier, few: Path) -> None:
    features, labels = few[0][few[1] < 2], few[1][few[1] < 2]
    classifier.fit(features, labels)
    assert (
        classifier.provenance["counts"] == [7, 5, 0, 0] and classifier.provenance["pictures"] == 12
    )
    assert logits(classifier, features).shape == (12, 4)


def bad_fits() -> dict[str, tuple[Any, Any, type[Exception], str]]:
    one, features = [0] * 7, torch.eye(8, 32)
    labels = [*one, 1]
    return {
        "names": (
            features,
            ["blue"] * 6 + ["violet", "ochre"],
            DataError,
            "no class .* is called 'ochre', 'violet'",
        ),
        "one name": (features, "blue", DataError, "no class .* is called 'b', 'e'"),
        "count": (features, one, DataError, r"a label for each picture, .* not \(7,\) labels"),
        "count of names": (
            features,
            ["blue"] * 9,
            DataError,
            r"a label for each picture, .* not \(9,\) labels",
        ),
        "none": (features[:0], [], DataError, r"one at least, not \(0,\) labels"),
        "two-dimensional": (features, torch.tensor([labels]).T, DataError, r"not \(8, 1\) labels"),
        "fractions": (features, [0.5, *one], DataError, "integers from 0 to 3, not torch.float32"),
        "too high": (features, [4, *one], DataError, "integers from 0 to 3, not .* 4"),
        "negative": (features, [-1, *one], DataError, "integers from 0 to 3, not .* -1"),
        "no labels": (features, None, DataError, "features need labels"),
        "no labels with pictures": (
            Coloured(labels, False),
            None,
            DataError,
            "come without labels: pass labels",
        ),
        "images": (
            torch.zeros(8, 3, 32, 32),
            labels,
            DataError,
            r"features \(N, D\), not \(8, 3, 32, 32\): see embed",
        ),
        "width": (
            torch.eye(8, 31),
            labels,
            ConfigError,
            r"must have shape \(N, 32\), not \(8, 31\)",
        ),
        "not finite": (features / 0, labels, DataError, "not finite"),
        "missing": (["nowhere.png"] * 8, labels, ImageError, "nowhere.png"),
        "no pictures": ([], [], ConfigError, "at least one image"),
    }


@pytest.mark.parametrize("case", bad_fits())
def test_a_fit_that_fails_changes_nothing(classifier: ImageClassifier, few: Path, case) -> None:
    given, labels, error, message = bad_fits()[case]
    before = known(classifier.fit(*few))
    with pytest.raises(error, match=message):
        classifier.fit(given, labels)
    assert known(classifier) == before


def test_methods_and_options_that_do_not_exist_are_refused(
    classifier: ImageClassifier, few: Path
) -> None:
    before = known(classifier)
    with pytest.raises(
        ConfigError, match="method must be one of anchored, .*cache_finetuned, not 'best'"
    ):
        classifier.fit(*few, "best")
    with pytest.raises(TypeError, match="unexpected keyword argument 'depth'"):
        classifier.fit(*few, depth=3)
    with pytest.raises(ConfigError, match="strength must be above 0, not 0"):
        classifier.fit(*few, strength=0)
    single = ImageClassifier.zero_shot(classifier.model, ["blue"])
    with pytest.raises(ConfigError, match="a single class"):
        single.fit(few[0], [0] * 22)
    assert known(classifier) == before


@pytest.mark.parametrize("method", METHODS)
def test_every_method_starts_from_zero_shot_and_ends_the_same(
    model: CLIP, few: Path, method: str
) -> None:
    features, labels = few
    options = QUICK.get(method, {})
    classifier = ImageClassifier.zero_shot(model, RAGGED, ["a {}.", "{}"])
    start = copy.deepcopy(classifier.zero_shot_head)
    classifier.fit(features, labels.flip(0)).fit(features, labels, method, seed=3, **options)
    extra: dict[str, Any] = {}
    if method == "prompt_weights":  # by hand: classes of 6, 2, 4 and 2 prompts
        rows = iter(model.embed_texts([prompt for own in classifier.prompts for prompt in own]))
        extra["captions"] = torch.zeros(4, 6, 32)
        for c, k in [(c, k) for c, count in enumerate((6, 2, 4, 2)) for k in range(count)]:
            extra["captions"][c, k] = next(rows)
        assert isinstance(classifier.head, WeightedPromptHead)
        assert_close(classifier.head.captions, extra["captions"])
    head, chosen = fit_head(features, labels, start, method, 3, **options, **extra)
    assert type(classifier.head) is type(head) and not classifier.head.training
    assert_close(logits(classifier, features), head(features))
    assert (
        classifier.provenance.keys() == {*chosen, "counts"}
        and classifier.provenance["method"] == method
    )
    assert torch.equal(classifier.zero_shot_head.weight, start.weight)
    again = ImageClassifier.zero_shot(model, RAGGED, ["a {}.", "{}"]).fit(
        features, labels, method, seed=3, **options
    )
    assert torch.equal(logits(classifier, features), logits(again, features))
    right = lambda c: (logits(c, features).argmax(dim=1) == labels).double().mean()  # noqa: E731
    assert method in QUICK or right(classifier) > right(
        ImageClassifier.zero_shot(model, RAGGED, ["a {}.", "{}"])
    )
