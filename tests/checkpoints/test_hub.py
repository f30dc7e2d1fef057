"""Download from a hub and a web server on this machine, through the clients of their makers."""

import hashlib
from pathlib import Path

import pytest
from huggingface_hub.utils import close_session

from clipkit.checkpoints.hub import fetch_hub, fetch_url
from clipkit.errors import CheckpointNotFoundError, CorruptCheckpointError, DownloadError
from tests.helpers.hub_server import HubServer

REPO = "owner/clip"
WEIGHTS = bytes(range(256)) * 800  # 200 KiB, several chunks


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def leftovers(folder: Path) -> list[Path]:
    """Return the partial downloads in a folder."""
    suffixes = (".incomplete", ".partial", ".tmp")
    return [path for path in folder.rglob("*") if path.suffix in suffixes]


def sent(hub: HubServer, method: str) -> list[str]:
    return [request.path for request in hub.requests if request.method == method]


def test_first_candidate_is_downloaded_once(hub: HubServer, tmp_path: Path) -> None:
    hub.add_repo(REPO, {"model.safetensors": WEIGHTS, "pytorch_model.bin": b"other"})
    path = fetch_hub(REPO, ["model.safetensors", "pytorch_model.bin"], cache_dir=tmp_path)
    assert path.name == "model.safetensors"
    assert path.read_bytes() == WEIGHTS
    assert fetch_hub(REPO, ["model.safetensors"], cache_dir=tmp_path) == path
    assert len(sent(hub, "GET")) == 1
    assert leftovers(tmp_path) == []


def test_missing_candidate_gives_way_to_the_next(hub: HubServer, tmp_path: Path) -> None:
    hub.add_repo(REPO, {"pytorch_model.bin": WEIGHTS, "config.json": b"{}"})
    path = fetch_hub(REPO, ["model.safetensors", "pytorch_model.bin"], cache_dir=tmp_path)
    assert path.name == "pytorch_model.bin"
    assert path.read_bytes() == WEIGHTS
    assert fetch_hub(REPO, ["config.json"], cache_dir=tmp_path).read_bytes() == b"{}"
    assert fetch_hub(REPO, ["config.json"], cache_dir=tmp_path).parent == path.parent


def test_no_candidate_exists(hub: HubServer, tmp_path: Path) -> None:
    hub.add_repo(REPO, {"README.md": b"hello"})
    with pytest.raises(
        CheckpointNotFoundError, match=r"'owner/clip' has none of .*: a\.safetensors, b\.bin"
    ):
        fetch_hub(REPO, ["a.safetensors", "b.bin"], cache_dir=tmp_path)


# The hub answers 401 without a token and 404 with one.
@pytest.mark.parametrize("token", [None, "hf_valid"])
def test_no_such_repository(hub: HubServer, tmp_path: Path, token: str | None) -> None:
    with pytest.raises(
        CheckpointNotFoundError, match="no repository 'owner/nothing', or it is private"
    ):
        fetch_hub("owner/nothing", ["model.safetensors"], cache_dir=tmp_path, token=token)


def test_not_a_hub_id(hub: HubServer, tmp_path: Path) -> None:
    for local in (False, True):
        with pytest.raises(CheckpointNotFoundError, match="'a/b/c' is no hub id"):
            fetch_hub("a/b/c", ["model.safetensors"], cache_dir=tmp_path, local_files_only=local)
    assert hub.requests == []


def test_revision(hub: HubServer, tmp_path: Path) -> None:
    hub.add_repo(REPO, {"w.bin": b"new"})
    commit = hub.add_repo(REPO, {"w.bin": b"old"}, revision="v1")
    assert fetch_hub(REPO, ["w.bin"], cache_dir=tmp_path).read_bytes() == b"new"
    assert fetch_hub(REPO, ["w.bin"], cache_dir=tmp_path, revision="v1").read_bytes() == b"old"
    assert fetch_hub(REPO, ["w.bin"], cache_dir=tmp_path, revision=commit).read_bytes() == b"old"
    with pytest.raises(CheckpointNotFoundError, match="'owner/clip' has no revision 'v9'"):
        fetch_hub(REPO, ["w.bin"], cache_dir=tmp_path, revision="v9")
    for revision in ("v1", commit):
        path = fetch_hub(
            REPO, ["w.bin"], cache_dir=tmp_path, revision=revision, local_files_only=True
        )
        assert path.read_bytes() == b"old"
    with pytest.raises(
        DownloadError, match=r"owner/clip \(revision v9\): w\.bin.*asked for local files only"
    ):
        fetch_hub(REPO, ["w.bin"], cache_dir=tmp_path, revision="v9", local_files_only=True)


def test_private_repository_needs_the_token(hub: HubServer, tmp_path: Path) -> None:
    hub.add_repo(REPO, {"w.bin": WEIGHTS}, token="hf_secret")
    with pytest.raises(
        CheckpointNotFoundError, match=r"it is private; for a private one pass token="
    ):
        fetch_hub(REPO, ["w.bin"], cache_dir=tmp_path)
    assert "authorization" not in hub.requests[-1].headers
    assert fetch_hub(REPO, ["w.bin"], cache_dir=tmp_path, token="hf_secret").read_bytes() == WEIGHTS
    sent_tokens = [request.headers.get("authorization") for request in hub.requests[-2:]]
    assert sent_tokens == ["Bearer hf_secret", None]


@pytest.mark.parametrize("token", [None, "hf_someone"])  # 401, 403
def test_gated_repository(hub: HubServer, tmp_path: Path, token: str | None) -> None:
    hub.add_repo(REPO, {"w.bin": WEIGHTS}, token="hf_secret", gated=True)
    with pytest.raises(
        DownloadError, match=r"(?s)refused access to 'owner/clip'.*accept its terms .*token="
    ):
        fetch_hub(REPO, ["w.bin"], cache_dir=tmp_path, token=token)


def test_forbidden(hub: HubServer, tmp_path: Path) -> None:
    hub.add_repo(REPO, {"w.bin": WEIGHTS})
    hub.fail(403)
    with pytest.raises(DownloadError, match="refused access to 'owner/clip'"):
        fetch_hub(REPO, ["w.bin"], cache_dir=tmp_path)


@pytest.mark.parametrize("xet", [True, False])
def test_interrupted_download_resumes(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, xet: bool
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", not xet)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)
    hub.add_repo(REPO, {"w.bin": WEIGHTS})
    hub.cut_after(70_000, 30_000)
    assert fetch_hub(REPO, ["w.bin"], cache_dir=tmp_path).read_bytes() == WEIGHTS
    ranges = [request.headers.get("range") for request in hub.requests if request.method == "GET"]
    assert ranges == [None, "bytes=70000-", "bytes=100000-"]
    assert leftovers(tmp_path) == []


def test_download_that_never_completes_leaves_nothing(hub: HubServer, tmp_path: Path) -> None:
    hub.add_repo(REPO, {"w.bin": WEIGHTS})
    hub.cut_after(*[0] * 20)
    with pytest.raises(
        DownloadError,
        match=r"cache gave owner/clip \(revision main\): w\.bin\. The reason: .*closed",
    ):
        fetch_hub(REPO, ["w.bin"], cache_dir=tmp_path)
    assert leftovers(tmp_path) == []
    assert list(tmp_path.rglob("w.bin")) == []
    hub.cuts.clear()
    assert fetch_hub(REPO, ["w.bin"], cache_dir=tmp_path).read_bytes() == WEIGHTS


def go_offline(how: str, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Cut the network in one of four ways. Return whether `local_files_only` is to be passed."""
    if how == "HF_HUB_OFFLINE":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    if how in ("no network", "lost connection"):
        hub.stop()
    if how == "no network":
        close_session()
    hub.requests.clear()
    return how == "local_files_only"


OFFLINE = pytest.mark.parametrize(
    "how", ["HF_HUB_OFFLINE", "no network", "lost connection", "local_files_only"]
)


@OFFLINE
def test_offline_with_a_filled_cache(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    hub.add_repo(REPO, {"w.bin": WEIGHTS})
    fetch_hub(REPO, ["w.safetensors", "w.bin"], cache_dir=tmp_path)
    local = go_offline(how, hub, monkeypatch)
    path = fetch_hub(REPO, ["w.safetensors", "w.bin"], cache_dir=tmp_path, local_files_only=local)
    assert path.name == "w.bin"
    assert path.read_bytes() == WEIGHTS
    assert hub.requests == []


@OFFLINE
def test_offline_with_an_empty_cache(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    hub.add_repo(REPO, {"w.bin": WEIGHTS})
    local = go_offline(how, hub, monkeypatch)
    message = (
        r"cache gave owner/clip \(revision main\): w\.safetensors, w\.bin\. "
        r"The reason: .*[^.]\. To go on without a network"
    )
    with pytest.raises(DownloadError, match=message):
        fetch_hub(REPO, ["w.safetensors", "w.bin"], cache_dir=tmp_path, local_files_only=local)
    assert hub.requests == []


@OFFLINE
def test_offline_remembers_what_a_repository_lacks(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    hub.add_repo(REPO, {"w.bin": WEIGHTS})
    fetch_hub(REPO, ["extra.json", "w.bin"], cache_dir=tmp_path)
    local = go_offline(how, hub, monkeypatch)
    with pytest.raises(
        CheckpointNotFoundError, match="had none of the files tried when last asked: extra.json"
    ):
        fetch_hub(REPO, ["extra.json"], cache_dir=tmp_path, local_files_only=local)
    with pytest.raises(DownloadError, match="cache gave owner/clip .*: extra.json, other.json"):
        fetch_hub(REPO, ["extra.json", "other.json"], cache_dir=tmp_path, local_files_only=local)


def test_hub_that_is_down(hub: HubServer, tmp_path: Path) -> None:
    hub.fail(503)
    with pytest.raises(
        DownloadError, match="(?s)Neither the hub nor the cache .*503.*go on without a network"
    ):
        fetch_hub(REPO, ["w.safetensors", "w.bin"], cache_dir=tmp_path)
    # There is one wait, and not one for each file.
    assert {request.path.split("/")[-1] for request in hub.requests} == {"w.safetensors"}


def test_url_is_downloaded_once(hub: HubServer, tmp_path: Path) -> None:
    url = hub.add_blob("/clip/models/ViT-toy.pt", WEIGHTS)
    path = fetch_url(url, digest(WEIGHTS).upper(), tmp_path / "new")
    assert path == tmp_path / "new" / "ViT-toy.pt"
    assert path.read_bytes() == WEIGHTS
    hub.stop()
    assert fetch_url(url, digest(WEIGHTS).upper(), tmp_path / "new") == path
    assert fetch_url(url, digest(WEIGHTS), tmp_path / "new", local_files_only=True) == path


def test_url_default_folder_is_that_of_openai(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    url = hub.add_blob("/ViT-toy.pt", WEIGHTS)
    assert fetch_url(url, digest(WEIGHTS)) == tmp_path / ".cache" / "clip" / "ViT-toy.pt"


def test_url_damaged_copy_is_replaced(hub: HubServer, tmp_path: Path) -> None:
    url = hub.add_blob("/toy.pt", WEIGHTS)
    (tmp_path / "toy.pt").write_bytes(WEIGHTS[:1000])
    assert fetch_url(url, digest(WEIGHTS), tmp_path).read_bytes() == WEIGHTS
    assert list(tmp_path.iterdir()) == [tmp_path / "toy.pt"]


def test_url_damaged_copy_offline_is_named_and_kept(hub: HubServer, tmp_path: Path) -> None:
    url = hub.add_blob("/toy.pt", WEIGHTS)
    (tmp_path / "toy.pt").write_bytes(b"mine")
    for local in (True, False):
        with pytest.raises(
            DownloadError, match=rf"its SHA-256 digest is {digest(b'mine')}, so it was not used"
        ):
            fetch_url(url, digest(WEIGHTS), tmp_path, local_files_only=local)
        assert hub.requests == []
        hub.stop()
    assert (tmp_path / "toy.pt").read_bytes() == b"mine"


def test_url_wrong_bytes_leave_nothing(hub: HubServer, tmp_path: Path) -> None:
    url = hub.add_blob("/toy.pt", b"something else")
    with pytest.raises(CorruptCheckpointError, match=r"is not the promised file, or not all of it"):
        fetch_url(url, digest(WEIGHTS), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_url_interrupted_leaves_nothing(hub: HubServer, tmp_path: Path) -> None:
    url = hub.add_blob("/toy.pt", WEIGHTS)
    hub.cut_after(50_000)
    with pytest.raises(CorruptCheckpointError, match="not all of it"):
        fetch_url(url, digest(WEIGHTS), tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert fetch_url(url, digest(WEIGHTS), tmp_path).read_bytes() == WEIGHTS


def test_url_that_is_gone_and_no_network(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        DownloadError, match=r"Could not download .*/toy\.pt.*(404|401).*go on without a network"
    ):
        fetch_url(hub.url + "/toy.pt", digest(WEIGHTS), tmp_path)
    hub.stop()
    with pytest.raises(
        DownloadError, match="Could not download .*refused.*go on without a network"
    ):
        fetch_url(hub.url + "/toy.pt", digest(WEIGHTS), tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match=r"Offline, and no good copy of .*/toy\.pt"):
        fetch_url(hub.url + "/toy.pt", digest(WEIGHTS), tmp_path)
    assert list(tmp_path.iterdir()) == []
