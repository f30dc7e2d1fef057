"""Take what huggingface_hub's own client uploads: new repositories, large files, commits.

It answers as the hub does, and refuses as the hub does: without a token, with one that may only
read, for a name that is taken, and for front matter that is no YAML.
"""

import base64
import hashlib
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import yaml

if TYPE_CHECKING:
    from tests.helpers.hub_server import HubServer

LARGE = (".safetensors", ".bin", ".gz")  # what goes another way, as .gitattributes says there


class Uploads:
    """Answer POST and PUT. It is a part of the server's handler."""

    hub: "HubServer"
    path: str
    command: str
    headers: Any
    rfile: Any
    close_connection: bool

    def reply(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        """Send an answer; the handler has it."""
        raise NotImplementedError

    def do_POST(self) -> None:
        if self.hub.stopped:
            self.close_connection = True
            return
        path = unquote(self.path.split("?")[0])
        body = self._read_body()
        if self.hub.status is not None:
            self.reply(self.hub.status)
        elif path == "/api/validate-yaml":
            self._validate(json.loads(body)["content"])
        elif self._is_refused():
            pass  # it was told so
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._answer({"transfer": "basic", "objects": self._wanted(json.loads(body))})
        elif "/preupload/" in path:
            files = [one["path"] for one in json.loads(body)["files"]]
            self._answer({"files": [_mode(name) for name in files]})
        elif "/commit/" in path:
            repo_id, _, revision = path.removeprefix("/api/models/").partition("/commit/")
            self._commit(repo_id, revision, [json.loads(line) for line in body.splitlines()])
        else:
            self.reply(404)

    def do_PUT(self) -> None:
        """Keep a large file. The address alone says who may send it."""
        content = self._read_body()
        digest = hashlib.sha256(content).hexdigest()
        status = self.hub.status_of_large_files
        if self.path != f"/upload/{digest}" or status != 200:
            self.reply(400 if status == 200 else status)
            return
        self.hub.blobs[f"/store/{digest}"] = content
        self.reply(200, {"ETag": f'"{digest}"'})

    def _read_body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts: list[bytes] = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, values: dict[str, Any], status: int = 200) -> None:
        self.reply(status, {"Content-Type": "application/json"}, json.dumps(values).encode())

    def _is_refused(self) -> bool:
        """Return whether the token may not write, and say so."""
        given = self.headers.get("Authorization")
        if given is None:
            self._answer({"error": "Invalid username or password."}, 401)
        elif given != f"Bearer {self.hub.writer}":
            self._answer({"error": "You don't have the rights to create a model here"}, 403)
        return given != f"Bearer {self.hub.writer}"

    def _validate(self, content: str) -> None:
        """Answer whether the front matter of a card can be read."""
        try:
            found: Any = yaml.safe_load(content.split("---\n")[1])
        except (yaml.YAMLError, IndexError):
            found = None
        sound = isinstance(found, dict) and isinstance(found.get("license", ""), str)
        errors = [] if sound else [{"message": "no front matter"}]
        self._answer({"errors": errors, "warnings": []}, 400 if errors else 200)

    def _create(self, wanted: dict[str, Any]) -> None:
        repo_id = f"{wanted['organization'] or 'me'}/{wanted['name']}"
        url = f"{self.hub.url}/{repo_id}"
        if repo_id in self.hub.repos:
            self._answer({"error": "You already created this model repo", "url": url}, 409)
            return
        self.hub.add_repo(repo_id, {})
        if wanted.get("visibility") == "private" or wanted.get("private"):
            self.hub.repos[repo_id].token = self.hub.writer
        self._answer({"url": url, "name": repo_id})

    def _wanted(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """Return where each large file goes that is not there yet."""
        wanted: list[dict[str, Any]] = []
        for one in batch["objects"]:
            known = f"/store/{one['oid']}" in self.hub.blobs
            action = {"upload": {"href": f"{self.hub.url}/upload/{one['oid']}"}}
            wanted.append({**one, **({} if known else {"actions": action})})
        return wanted

    def _commit(self, repo_id: str, revision: str, lines: list[dict[str, Any]]) -> None:
        """Add the files of a commit to those of the branch."""
        files = dict(self.hub.repos[repo_id].revisions[revision])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[f"/store/{value['oid']}"]
        repo = self.hub.repos[repo_id]
        commit = self.hub.add_repo(
            repo_id, files, revision=revision, token=repo.token, gated=repo.gated
        )
        repo.messages.append(lines[0]["value"]["summary"])
        url = f"{self.hub.url}/{repo_id}/commit/{commit}"
        self._answer({"commitOid": commit, "commitUrl": url, "success": True})


def _mode(name: str) -> dict[str, Any]:
    """Return by which way a file goes."""
    mode = "lfs" if name.endswith(LARGE) else "regular"
    return {"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": None}
