"""Classifiers are uploaded to the hub with a card, and loaded from there by their id."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, constants
from torch import Tensor

from clipkit import ImageClassifier
from clipkit.classify.hub_folder import classifier_card
from clipkit.errors import (
    CheckpointNotFoundError,
    ConfigError,
    CorruptCheckpointError,
    DownloadError,
    UploadError,
)
from tests.helpers.hub_server import HubServer
from tests.helpers.toy_classifier import NAMES, fitted, state_of
from tests.helpers.toy_data import toy_config

# The client itself calls its own client library in a way that is out of use.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

REPO = "me/colors"


@pytest.fixture
def pushed(toy: Any, few: tuple[Tensor, Tensor], hub: HubServer) -> ImageClassifier:
    """Return a fitted classifier that is on the hub."""
    classifier = fitted(toy, few, "anchored")
    classifier.provenance["skipped"] = [["/home/me/secret.png", "broken"]]
    assert classifier.push_to_hub(REPO, token=hub.writer, license="mit") == f"{hub.url}/{REPO}"
    return classifier


def files_of(hub: HubServer) -> dict[str, bytes]:
    return hub.repos[REPO].revisions["main"]


def card_of(hub: HubServer) -> Any:
    return ModelCard(files_of(hub)["README.md"].decode())


def load(cache: Path, **options: Any) -> ImageClassifier:
    return ImageClassifier.load(REPO, device="cpu", cache_dir=cache, **options)


# There and back


def test_it_comes_back_to_the_bit(
    hub: HubServer, pushed: ImageClassifier, tmp_path: Path, color_folder: Path
) -> None:
    loaded = load(tmp_path)
    assert torch.equal(loaded.probabilities(color_folder), pushed.probabilities(color_folder))
    skipped = pushed.provenance.pop("skipped")
    assert state_of(loaded) == state_of(pushed)
    assert skipped == [["/home/me/secret.png", "broken"]]  # known here, and not told there
    assert not any(b"secret" in content for content in files_of(hub).values())
    names = {"README.md", "head.safetensors", "zero_shot.safetensors"}
    assert names < files_of(hub).keys()
    assert {name for name in files_of(hub) if name.startswith("model/")} == {
        "model/config.json",
        "model/model.safetensors",
        "model/merges.txt",
    }


def test_the_commit_is_the_same_for_all_files(
    hub: HubServer, pushed: ImageClassifier, tmp_path: Path
) -> None:
    """Somebody may push while another loads."""
    commit = hub.repos[REPO].commits["main"]
    load(tmp_path)
    resolved = [request.path for request in hub.requests if "/resolve/" in request.path]
    asked = {path.split("/resolve/")[1].split("/", 1)[0] for path in resolved}
    assert asked == {"main", commit}
    assert sum("/resolve/main/" in path and "head" not in path for path in resolved) == 0


def test_revisions(
    hub: HubServer, pushed: ImageClassifier, tmp_path: Path, few: tuple[Tensor, Tensor]
) -> None:
    first = hub.repos[REPO].commits["main"]
    before = state_of(load(tmp_path))
    pushed.fit(*few, "gaussian").push_to_hub(REPO, token=hub.writer, update=True)
    assert load(tmp_path).provenance["method"] == "gaussian"
    assert state_of(load(tmp_path, revision=first)) == before
    with pytest.raises(CheckpointNotFoundError, match="'me/colors' has no revision 'v9'"):
        load(tmp_path, revision="v9")


def test_without_a_network_it_comes_from_the_cache(
    hub: HubServer, pushed: ImageClassifier, tmp_path: Path
) -> None:
    before = state_of(load(tmp_path))
    count = len(hub.requests)
    assert state_of(load(tmp_path, local_files_only=True)) == before
    assert len(hub.requests) == count
    hub.stop()
    assert state_of(load(tmp_path)) == before
    with pytest.raises(DownloadError, match="(?s)To go on without.*Nor is there a local folder"):
        load(tmp_path / "other")


def test_private_classifiers_need_the_token(
    hub: HubServer, classifier: ImageClassifier, tmp_path: Path
) -> None:
    classifier.push_to_hub(REPO, token=hub.writer, private=True)
    with pytest.raises(CheckpointNotFoundError, match=r"it is private; for a private one pass tok"):
        load(tmp_path, token=False)
    assert load(tmp_path, token=hub.writer).labels == NAMES


# What a name means


def test_a_folder_of_the_same_spelling_comes_first(
    hub: HubServer,
    pushed: ImageClassifier,
    classifier: ImageClassifier,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    classifier.save(REPO)
    assert load(tmp_path).provenance["method"] == "zero_shot"
    shutil.rmtree(REPO)
    assert load(tmp_path).provenance["method"] == "anchored"
    count = len(hub.requests)
    for path in (Path(REPO), f"./{REPO}", f"{REPO}/"):
        with pytest.raises(CheckpointNotFoundError, match="does not exist: name the folder of a"):
            ImageClassifier.load(path)
    assert len(hub.requests) == count


def test_what_is_not_there(hub: HubServer, toy: Any, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointNotFoundError, match="(?s)has no repository.*a local folder 'me/c"
    ):
        load(tmp_path)
    toy.push_to_hub(REPO, token=hub.writer)
    message = r"has no head\.safetensors, so it is no classifier.*zero_shot\('me/colors', class_na"
    with pytest.raises(CheckpointNotFoundError, match=message):
        load(tmp_path)


def test_files_that_are_not_of_one_classifier(
    hub: HubServer, pushed: ImageClassifier, tmp_path: Path
) -> None:
    files_of(hub)["zero_shot.safetensors"] = files_of(hub)["head.safetensors"]
    with pytest.raises(CorruptCheckpointError, match="are not of one classifier"):
        load(tmp_path)


# The card


def test_the_card_is_true(
    hub: HubServer,
    pushed: ImageClassifier,
    color_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    card = card_of(hub)
    assert card.data.license == "mit"
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.library_name == "clipkit"
    assert card.data.tags == ["clip", "image-classification"]
    assert "by the method anchored on 22 images, 5 to 7 a class (strength " in card.text
    assert "## Labels\n\n- blue\n- dark red\n- green\n- white\n" in card.text
    (code,) = re.findall(r"^```python\n(.*?)^```", card.text, re.M | re.S)
    assert len(code.splitlines()) == 3
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        shutil.copy(color_folder / "blue" / "00.png", "photo.jpg")
        exec(code, {})
        assert capsys.readouterr().out == f"{pushed.predict('photo.jpg').top(5)}\n"


def test_cards_of_other_classifiers(hub: HubServer, toy: Any) -> None:
    names = [f"<b>c_{i}" for i in range(120)]
    classifier = ImageClassifier.zero_shot(toy, names, None)
    classifier.model.hub_id = "someone/base"
    try:
        classifier.push_to_hub(REPO, token=hub.writer)
    finally:
        classifier.model.hub_id = None
    card = card_of(hub)
    assert card.data.base_model == "someone/base"
    assert "without images (zero-shot)" in card.text
    assert card.text.count("\n- ") == 101
    assert "- \\<b\\>c\\_99\n- and 20 more" in card.text


def test_uploads_are_refused_as_those_of_models(
    hub: HubServer, classifier: ImageClassifier, pushed: ImageClassifier
) -> None:
    with pytest.raises(UploadError, match="pass update=True"):
        classifier.push_to_hub(REPO, token=hub.writer)
    with pytest.raises(UploadError, match="without a token"):
        classifier.push_to_hub("me/other", token=False)
    with pytest.raises(ConfigError, match="must be a hub id"):
        classifier.push_to_hub("no id", token=hub.writer)
    fast = ImageClassifier.zero_shot(classifier.model.optimize(), NAMES)
    with pytest.raises(ConfigError, match="upload the classifier of the model it is of"):
        fast.push_to_hub("me/other", token=hub.writer)
    assert list(hub.repos) == [REPO]


def test_a_method_on_a_card_is_no_markdown() -> None:
    """Provenance comes from files that anybody can write."""
    told = {"method": "`<b>x</b> [a](b)"}
    text = classifier_card(toy_config(), ["cat"], told, "me/pets", None, None)
    assert r"by the method \`\<b\>x\</b\> \[a\]\(b\)." in text
