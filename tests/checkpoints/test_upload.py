"""Models are uploaded to the hub with a card whose code runs, and come back bit for bit."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, constants

from clipkit import CLIP, CLIPConfig, Tokenizer, errors
from clipkit.checkpoints.card import plain
from clipkit.checkpoints.save import FolderLayout
from clipkit.errors import ConfigError, UploadError
from tests.helpers.hub_server import HubServer
from tests.helpers.models import assert_same, random_clip

# The client itself calls its own client library in a way that is out of use.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

REPO = "me/pets"
PHOTO = Path(__file__).parents[2] / "examples" / "photos" / "cat.jpg"


def files_of(hub: HubServer, repo_id: str = REPO) -> dict[str, bytes]:
    return hub.repos[repo_id].revisions["main"]


def card_of(hub: HubServer) -> Any:
    return ModelCard(files_of(hub)["README.md"].decode())


def asked(hub: HubServer, method: str) -> list[str]:
    return [request.path for request in hub.requests if request.method == method]


@pytest.mark.parametrize("layout", ["clipkit", "open_clip", "transformers"])
def test_what_was_uploaded_loads_bit_for_bit(
    hub: HubServer,
    vit_config: CLIPConfig,
    small_tokenizer: Tokenizer,
    tmp_path: Path,
    layout: FolderLayout,
) -> None:
    model = random_clip(vit_config, small_tokenizer)
    address = model.push_to_hub(REPO, token=hub.writer, layout=layout)
    assert address == f"{hub.url}/{REPO}"
    loaded = CLIP.from_pretrained(REPO, cache_dir=tmp_path / "cache", device="cpu")
    assert_same(loaded, model)
    model.save_pretrained(tmp_path / "local", layout=layout)
    local = {path.name: path.read_bytes() for path in (tmp_path / "local").glob("[!.]*")}
    uploaded = {name: content for name, content in files_of(hub).items() if name != "README.md"}
    assert uploaded == local
    assert card_of(hub).data.library_name == layout


def test_the_code_of_the_card_runs(
    hub: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    model = CLIP.from_pretrained("tiny", device="cpu")
    model.push_to_hub(REPO, token=hub.writer, license="mit", base_model="someone/base")
    card = card_of(hub)
    assert card.data.license == "mit"
    assert card.data.base_model == "someone/base"
    assert card.data.pipeline_tag == "zero-shot-image-classification"
    assert card.data.tags == ["clip"]
    (code,) = re.findall(r"^```python\n(.*?)^```", card.text, re.M | re.S)
    assert len(code.splitlines()) == 3
    shutil.copy(PHOTO, tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    expected = model.embed_images([PHOTO]) @ model.embed_texts(["a cat", "a dog"]).T
    assert capsys.readouterr().out == f"{expected}\n"


def test_a_card_without_license_has_no_field_for_it(
    hub: HubServer, vit: CLIP, tmp_path: Path
) -> None:
    vit.push_to_hub(REPO, token=hub.writer)
    assert b"license" not in files_of(hub)["README.md"]
    assert b"base_model" not in files_of(hub)["README.md"]
    loaded = CLIP.from_pretrained(REPO, cache_dir=tmp_path, device="cpu")
    assert loaded.hub_id == REPO
    loaded.push_to_hub("me/other", token=hub.writer)
    other = ModelCard(files_of(hub, "me/other")["README.md"].decode())
    assert other.data.to_dict()["base_model"] == REPO
    assert CLIP.from_pretrained("tiny", device="cpu").hub_id is None


@pytest.mark.parametrize("private", [True, False, None])
def test_private_repositories(
    hub: HubServer, vit: CLIP, tmp_path: Path, private: bool | None
) -> None:
    vit.push_to_hub("pets", token=hub.writer, private=private, commit_message="First")
    assert b"from_pretrained('me/pets')" in files_of(hub)["README.md"]
    assert hub.repos[REPO].token == (hub.writer if private else None)
    assert hub.repos[REPO].messages == ["First"]
    assert CLIP.from_pretrained(REPO, cache_dir=tmp_path, device="cpu", token=hub.writer)


# A repository that is there


def test_a_name_that_is_taken_needs_a_word(hub: HubServer, vit: CLIP, resnet: CLIP) -> None:
    vit.push_to_hub(REPO, token=hub.writer)
    before = files_of(hub)
    with pytest.raises(UploadError, match=r"has a repository 'me/pets' already: pass update=True"):
        resnet.push_to_hub(REPO, token=hub.writer)
    assert files_of(hub) == before
    files_of(hub)["README.md"] = b"Written by hand."
    resnet.push_to_hub(REPO, token=hub.writer, update=True)
    assert files_of(hub)["README.md"] == b"Written by hand."
    assert files_of(hub)["config.json"] != before["config.json"]
    assert hub.repos[REPO].messages == ["Upload by clipkit"] * 2


def test_weights_that_load_would_take_instead_are_in_the_way(hub: HubServer, vit: CLIP) -> None:
    vit.push_to_hub(REPO, token=hub.writer, layout="open_clip")
    before = files_of(hub)
    with pytest.raises(ConfigError, match="holds open_clip_model.safetensors, which load would"):
        vit.push_to_hub(REPO, token=hub.writer, update=True)
    assert files_of(hub) == before


# What goes wrong


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, r"takes nothing for 'me/pets' without a token: pass token=... with write access"),
        (False, r"without a token: .*log in with `hf auth login`"),
        (True, r"without a token"),
        ("hf_reader", r"may not write to 'me/pets': You don't have the rights .*Pass a token="),
    ],
)
def test_tokens_that_will_not_do(
    hub: HubServer, vit: CLIP, monkeypatch: pytest.MonkeyPatch, token: Any, message: str
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(UploadError, match=message):
        vit.push_to_hub(REPO, token=token)
    assert hub.repos == {}


def test_no_network(hub: HubServer, vit: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.stop()
    with pytest.raises(UploadError, match="try again where there is a network, with update=True"):
        vit.push_to_hub(REPO, token=hub.writer)
    with pytest.raises(UploadError, match=f"later with `hf upload {REPO} FOLDER`"):
        vit.push_to_hub(REPO, token=hub.writer)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UploadError, match="HF_HUB_OFFLINE forbids the network: unset it"):
        vit.push_to_hub(REPO, token=hub.writer)


def test_an_upload_that_breaks_off_can_be_done_again(
    hub: HubServer, vit: CLIP, tmp_path: Path
) -> None:
    hub.status_of_large_files = 403
    with pytest.raises(UploadError, match="may not write to 'me/pets'"):
        vit.push_to_hub(REPO, token=hub.writer)
    hub.status_of_large_files = 500
    with pytest.raises(UploadError, match="with update=True if the repository is there by now"):
        vit.push_to_hub(REPO, token=hub.writer, update=True)
    assert files_of(hub) == {}
    hub.status_of_large_files = 200
    vit.push_to_hub(REPO, token=hub.writer, update=True)
    assert_same(CLIP.from_pretrained(REPO, cache_dir=tmp_path, device="cpu"), vit)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"repo_id": "me/my pets"},
            "must be a hub id such as 'owner/name', not 'me/my pets': Repo id",
        ),
        ({"repo_id": "a/b/c"}, "not 'a/b/c': Repo id must be in the form"),
        ({"repo_id": ""}, "not '': Repo id must use"),
        ({"private": "yes"}, "private must be True, False or None, not 'yes'"),
        ({"token": 5}, "token must be a string or a bool, not of type int"),
        ({"commit_message": 5}, "commit_message must be a text, not 5"),
        ({"layout": "openclip"}, "layout must be 'clipkit', 'open_clip' or 'transformers'"),
        ({"license": ["mit"]}, r"license must be a text, not \['mit'\]"),
    ],
)
def test_impossible_arguments(
    hub: HubServer, vit: CLIP, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        given: dict[str, Any] = {"repo_id": REPO, "token": hub.writer, **arguments}
        vit.push_to_hub(**given)
    assert hub.repos == {}


def test_an_optimized_copy_stays_here(hub: HubServer, vit: CLIP) -> None:
    with pytest.raises(ConfigError, match="inference-only copy .*: upload the model it is of"):
        vit.optimize().push_to_hub(REPO, token=hub.writer)
    assert asked(hub, "POST") == []


def test_an_upload_error_is_a_runtime_error() -> None:
    assert issubclass(errors.UploadError, RuntimeError)


def test_texts_of_a_card_are_no_markdown() -> None:
    assert plain("a_b *c* <d>\n[e](f)") == r"a\_b \*c\* \<d\> \[e\]\(f\)"
