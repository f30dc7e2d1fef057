"""A small Hugging Face hub on 127.0.0.1, for huggingface_hub's own client.

It answers as the hub does: commits, entity tags and sizes in the headers, large files redirected to another path,
byte ranges, and errors named in X-Error-Code. Faults come on order. The `hub` fixture points the client to it;
tests/conftest.py hands the fixture to every test module.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pytest


@dataclass
class Repo:
    """Files by revision: branches, tags and commits alike."""

    revisions: dict[str, dict[str, bytes]] = field(default_factory=dict)
    commits: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    gated: bool = False


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    """With lower-case names."""


@dataclass
class HubServer:
    """Repositories by id, the log of requests, and the faults ordered."""

    repos: dict[str, Repo] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    status: int | None = None
    stopped: bool = False

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
        """Serve `files` at a revision, with `token` only to requests that carry it; returns the commit."""
        repo = self.repos.setdefault(repo_id, Repo())
        repo.token, repo.gated = token, gated
        commit = hashlib.sha1(repr((repo_id, revision, sorted(files.items()))).encode()).hexdigest()
        repo.revisions |= {revision: files, commit: files}
        repo.commits |= {revision: commit, commit: commit}
        return commit

    def add_blob(self, path: str, content: bytes) -> str:
        """Serve plain bytes at an address outside any repository, and return the address."""
        self.blobs[path] = content
        return self.url + path

    def cut_after(self, *counts: int) -> None:
        """Close the connection after that many bytes of a body: once for each count, in the order of the GETs."""
        self.cuts += counts

    def fail(self, status: int | None) -> None:
        """Answer everything with this status, or normally again."""
        self.status = status

    def stop(self) -> None:
        """Go off the network: new connections are refused, and those that the client keeps open are dropped."""
        if not self.stopped:
            self.stopped = True
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            if hub.stopped:
                self.close_connection = True
                return
            path = unquote(self.path.split("?")[0])
            hub.requests.append(
                Request(self.command, path, {k.lower(): v for k, v in self.headers.items()})
            )
            if hub.status is not None:
                return self.reply(hub.status)
            if path in hub.blobs:
                return self.serve(hub.blobs[path], {})
            api = path.startswith("/api/models/")
            for repo_id, repo in hub.repos.items():
                prefix = f"/api/models/{repo_id}" if api else f"/{repo_id}/resolve/"
                if path.startswith(prefix):
                    return self.serve_repo(
                        repo_id, repo, None if api else path.removeprefix(prefix)
                    )
            # The hub does not tell strangers a missing repository from a private one.
            self.reply(
                404 if "Authorization" in self.headers else 401, {"X-Error-Code": "RepoNotFound"}
            )

        def serve_repo(self, repo_id: str, repo: Repo, entry: str | None) -> None:
            if repo.token and self.headers.get("Authorization") != f"Bearer {repo.token}":
                known = "Authorization" in self.headers
                return self.reply(
                    403 if known else 401,
                    {"X-Error-Code": "GatedRepo" if repo.gated else "RepoNotFound"},
                )
            if entry is None:
                siblings = [{"rfilename": name} for name in repo.revisions["main"]]
                body = json.dumps(
                    {"id": repo_id, "sha": repo.commits["main"], "siblings": siblings}
                )
                return self.serve(body.encode(), {"Content-Type": "application/json"})
            revision, _, name = entry.partition("/")
            if revision not in repo.commits:
                return self.reply(404, {"X-Error-Code": "RevisionNotFound"})
            commit = {"X-Repo-Commit": repo.commits[revision]}
            files = repo.revisions[revision]
            if name not in files:
                return self.reply(404, {"X-Error-Code": "EntryNotFound", **commit})
            content = files[name]
            tag = hashlib.sha256(content).hexdigest()
            if name.endswith(".json"):
                return self.serve(content, {"ETag": f'"{tag}"', **commit})
            # Large files live at another host; what is known of them comes with the redirect.
            hub.blobs[f"/store/{tag}"] = content
            linked = {
                "X-Linked-ETag": f'"{tag}"',
                "X-Linked-Size": str(len(content)),
                "ETag": f'"{tag}"',
            }
            self.reply(302, {"Location": f"{hub.store}/store/{tag}", **linked, **commit})

        def serve(self, content: bytes, headers: dict[str, str]) -> None:
            start, status = 0, 200
            if wanted := self.headers.get("Range"):
                start, status = int(wanted.removeprefix("bytes=").split("-")[0]), 206
                headers = {
                    **headers,
                    "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}",
                }
            self.reply(status, {"Accept-Ranges": "bytes", **headers}, content[start:])

        def reply(
            self, status: int, headers: dict[str, str] | None = None, body: bytes = b""
        ) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            if body and hub.cuts:
                body = body[: hub.cuts.pop(0)]
                self.close_connection = True
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A running `HubServer`, known to huggingface_hub as the hub; waits between its retries take no time.

    huggingface_hub reads its environment when it is imported, so its constants are set, not the variables.
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
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1,localhost")
    close_session()  # the client's connections keep the proxies that they were made with
    yield server
    close_session()
    server.stop()
