"""Run a small Hugging Face hub on 127.0.0.1, for huggingface_hub's own client.

It answers as the hub does: commits, entity tags and sizes in the headers, large files redirected to
another path, byte ranges, and errors named in X-Error-Code. Faults come on order. What it is sent,
`hub_uploads` takes. The `hub` fixture points the client to it, and tests/conftest.py hands the
fixture to every test module.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pytest

from tests.helpers.hub_uploads import Uploads


@dataclass
class Repo:
    """Hold files by revision: branches, tags and commits alike."""

    revisions: dict[str, dict[str, bytes]] = field(default_factory=dict)
    commits: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    gated: bool = False
    messages: list[str] = field(default_factory=list)  # of the commits that were uploaded


@dataclass
class Request:
    """Hold what the client asked. The names of the headers are in lower case."""

    method: str
    path: str
    headers: dict[str, str]


@dataclass
class HubServer:
    """Serve repositories by id, log the requests, and make the faults that are ordered.

    Who uploads needs `writer`, a token of the account "me".
    """

    repos: dict[str, Repo] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    status: int | None = None
    stopped: bool = False
    writer: str = "hf_writer"
    status_of_large_files: int = 200

    def __post_init__(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}
        )
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.store = f"http://localhost:{self._server.server_port}"

    def add_repo(
        self,
        repo_id: str,
        files: dict[str, bytes],
        *,
        revision: str = "main",
        token: str | None = None,
        gated: bool = False,
    ) -> str:
        """Serve `files` at a revision, and return the commit.

        With a `token` only requests that carry it are served.
        """
        repo = self.repos.setdefault(repo_id, Repo())
        repo.token = token
        repo.gated = gated
        commit = hashlib.sha1(repr((repo_id, revision, sorted(files.items()))).encode()).hexdigest()
        repo.revisions |= {revision: files, commit: files}
        repo.commits |= {revision: commit, commit: commit}
        return commit

    def add_blob(self, path: str, content: bytes) -> str:
        """Serve plain bytes at an address outside any repository, and return the address."""
        self.blobs[path] = content
        return self.url + path

    def cut_after(self, *counts: int) -> None:
        """Close the connection after that many bytes of a body, once for each count."""
        self.cuts += counts

    def fail(self, status: int | None) -> None:
        """Answer everything with this status, or normally again."""
        self.status = status

    def stop(self) -> None:
        """Go off the network: refuse new connections, and drop those that the client keeps open."""
        if not self.stopped:
            self.stopped = True
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()


class _Handler(Uploads, BaseHTTPRequestHandler):
    """Answer one request after another of a connection, as the hub in `hub` orders."""

    hub: HubServer  # set by `_handler`
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.hub.stopped:
            self.close_connection = True
            return
        path = unquote(self.path.split("?")[0])
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.requests.append(Request(self.command, path, headers))
        if self.hub.status is not None:
            self.reply(self.hub.status)
        elif path in self.hub.blobs:
            self.serve(self.hub.blobs[path], {})
        else:
            self.find_repo(path)

    def find_repo(self, path: str) -> None:
        """Answer for the repository that a path names."""
        api = path.startswith("/api/models/")
        for repo_id, repo in self.hub.repos.items():
            prefix = f"/api/models/{repo_id}" if api else f"/{repo_id}/resolve/"
            if path.startswith(prefix):
                self.serve_repo(repo_id, repo, None if api else path.removeprefix(prefix))
                return
        # The hub does not tell strangers a missing repository from a private one.
        status = 404 if "Authorization" in self.headers else 401
        self.reply(status, {"X-Error-Code": "RepoNotFound"})

    def serve_repo(self, repo_id: str, repo: Repo, entry: str | None) -> None:
        """Serve "revision/file" of a repository, or what the API says of it."""
        if repo.token and self.headers.get("Authorization") != f"Bearer {repo.token}":
            status = 403 if "Authorization" in self.headers else 401
            self.reply(status, {"X-Error-Code": "GatedRepo" if repo.gated else "RepoNotFound"})
            return
        if entry is None:
            siblings = [{"rfilename": name} for name in repo.revisions["main"]]
            about = {"id": repo_id, "sha": repo.commits["main"], "siblings": siblings}
            self.serve(json.dumps(about).encode(), {"Content-Type": "application/json"})
            return
        revision, _, name = entry.partition("/")
        if revision not in repo.commits:
            self.reply(404, {"X-Error-Code": "RevisionNotFound"})
            return
        self.serve_file(name, repo.revisions[revision], {"X-Repo-Commit": repo.commits[revision]})

    def serve_file(self, name: str, files: dict[str, bytes], commit: dict[str, str]) -> None:
        """Serve a small file, or redirect to where a large one lies."""
        if name not in files:
            self.reply(404, {"X-Error-Code": "EntryNotFound", **commit})
            return
        content = files[name]
        digest = hashlib.sha256(content).hexdigest()
        tag = f'"{digest}"'
        if name.endswith(".json"):
            self.serve(content, {"ETag": tag, **commit})
            return
        # Large files lie at another host. Their size and tags come with the redirect.
        self.hub.blobs[f"/store/{digest}"] = content
        linked = {"X-Linked-ETag": tag, "X-Linked-Size": str(len(content)), "ETag": tag}
        self.reply(302, {"Location": f"{self.hub.store}/store/{digest}", **linked, **commit})

    def serve(self, content: bytes, headers: dict[str, str]) -> None:
        """Send a body, or the part of it that the request's range asks for."""
        start = 0
        status = 200
        wanted = self.headers.get("Range")
        if wanted:
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            status = 206
            content_range = f"bytes {start}-{len(content) - 1}/{len(content)}"
            headers = {**headers, "Content-Range": content_range}
        self.reply(status, {"Accept-Ranges": "bytes", **headers}, content[start:])

    def reply(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        """Send a whole answer, unless a cut is ordered."""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if body and self.hub.cuts:
            body = body[: self.hub.cuts.pop(0)]
            self.close_connection = True
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the tests' output clean."""


def _handler(hub: HubServer) -> type[_Handler]:
    """Return a handler that knows its hub."""
    return type("Handler", (_Handler,), {"hub": hub})


def do_not_wait(seconds: float) -> None:
    """Take the place of `time.sleep`."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """Run a `HubServer`, and let huggingface_hub take it for the hub.

    Waits between the client's retries take no time. It reads its environment when it is imported,
    so its constants are set, and not the variables.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    server = HubServer()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        server.url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # it has a server of its own
    monkeypatch.setattr("time.sleep", do_not_wait)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1,localhost")
    close_session()  # the client's connections keep the proxies that they were made with
    yield server
    close_session()
    server.stop()
