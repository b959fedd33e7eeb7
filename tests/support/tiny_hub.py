"""A Hugging Face hub on this machine: directories, served over HTTP to the real clients.

It answers only what `huggingface_hub`, `transformers` and `datasets` ask for when they read, and what `huggingface_hub`
sends when it makes a repository, a branch or a commit, with regular files and those of Git LFS. A name without an owner
is redirected to the repository of that name with an owner, as the hub does with `glue` and `roberta-base`.

A request to write needs the token of the repository's owner, `hf_<owner>`; `private.txt` beside the revisions of a
repository marks it private, and `log.jsonl` there holds its commits.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pytest

MAIN = "main"
_API = re.compile(r"/api/(models|datasets)/(.+?)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?")
_WRITE = re.compile(r"/api/models/(.+?)/(preupload|commit|branch)/([^/]+)")
_LFS = re.compile(r"/(.+?)\.git/info/lfs/objects/batch")
_BLOB = re.compile(r"/lfs-upload/([0-9a-f]{64})")
_FILE = re.compile(r"/(datasets/)?(.+?)/resolve/([^/]+)/(.+)")


@contextmanager
def serving(root: Path) -> Iterator[str]:
    """Serve `models/<id>/<revision>/...` and `datasets/<id>/<revision>/...` below `root`, and yield the hub's address.

    The name of a revision's directory is quoted, as in addresses.
    """

    class Hub(_Handler):
        directory = root

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def reaching(root: Path, cache: Path) -> Iterator[None]:
    """Have this process reach the hub of `root`, as `user`, with a cache of its own."""
    import transformers.utils.hub
    from huggingface_hub import constants

    from capaft.exchange.hub_download import fetch_adapter
    from capaft.support import hub

    def forget() -> None:
        hub.offline.cache_clear()
        fetch_adapter.cache_clear()

    with serving(root) as address, pytest.MonkeyPatch.context() as changed:
        changed.setenv("HF_TOKEN", "hf_user")
        # They have been read from the environment by now.
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
        values = {"ENDPOINT": address, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_CACHE": str(cache)}
        for name, value in {**values, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():
            changed.setattr(constants, name, value)
        # Transformers keeps a client, which keeps the address that there was when it was made.
        changed.setattr(transformers.utils.hub, "_hf_api", None)
        forget()
        try:
            yield
        finally:
            forget()


class _Handler(BaseHTTPRequestHandler):
    directory: Path
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self._body()
        # A slash inside a revision is quoted.
        path = urlsplit(self.path).path
        if self.command in ("POST", "PUT") and self._written(path, body):
            return
        if path == "/api/whoami-v2":
            self._who()
        elif match := _API.fullmatch(path):
            kind, name, query, revision, below = (unquote(part or "") for part in match.groups())
            if self._redirected(kind, name, path):
                return
            if commit := self._commit(kind, name, revision or MAIN):
                self._about(commit, name, query or "revision", below, body)
        elif match := _FILE.fullmatch(path):
            kind, (name, revision, file) = "datasets" if match[1] else "models", map(unquote, match.groups()[1:])
            if not self._redirected(kind, name, path) and (commit := self._commit(kind, name, revision)):
                self._content(commit, file)
        else:
            self._missing("Entry")

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815 # the names that http.server looks for

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _written(self, path: str, body: bytes) -> bool:
        """Answer a request that writes; False if it is none."""
        if path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif match := _WRITE.fullmatch(path):
            name, what, revision = map(unquote, match.groups())
            repository = self.directory / "models" / name
            if not repository.is_dir():
                self._missing("Repo")
            elif self._may_write(name):
                {"preupload": self._preupload, "commit": self._commit_files, "branch": self._branch}[what](
                    repository, revision, body
                )
        elif match := _LFS.fullmatch(path):
            objects = [
                {**asked, "actions": {"upload": {"href": f"{self._address()}/lfs-upload/{asked['oid']}"}}}
                for asked in json.loads(body)["objects"]
            ]
            self._json({"transfer": "basic", "objects": objects})
        elif match := _BLOB.fullmatch(path):
            assert hashlib.sha256(body).hexdigest() == match[1]
            (self.directory / "lfs").mkdir(exist_ok=True)
            (self.directory / "lfs" / match[1]).write_bytes(body)
            self._json({})
        else:
            return False
        return True

    def _address(self) -> str:
        return f"http://{self.headers['Host']}"

    def _owner(self) -> str | None:
        """The user that the request's token belongs to."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return token.removeprefix("hf_") if token.startswith("hf_") else None

    def _who(self) -> None:
        """Tell the request's user, with a token of the kind that the user's name may end in, as `user-read`."""
        if (owner := self._owner()) is None:
            self._answer(401, b"{}", message="Invalid credentials in Authorization header")
            return
        user, _, role = owner.partition("-")
        token = {"displayName": "tests", "role": role or "write"}
        self._json({"name": user, "orgs": [{"name": "team"}], "auth": {"accessToken": token}})

    def _may_write(self, name: str) -> bool:
        """True if the request's user owns a repository; sends the hub's answer if not."""
        if self._owner() is None:
            self._answer(401, b"{}", message="Invalid credentials in Authorization header")
        elif name.partition("/")[0] != self._owner():
            self._answer(403, b"{}", message="you do not have the required permissions")
        else:
            return True
        return False

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization') or self._owner()}/{asked['name']}"
        if not self._may_write(name):
            return
        repository = self.directory / "models" / name
        url = {"url": f"{self._address()}/{name}", "name": name}
        if repository.is_dir():
            self._answer(409, json.dumps(url).encode(), kind="application/json")
            return
        (repository / MAIN).mkdir(parents=True)
        if asked.get("private") or asked.get("visibility") == "private":
            (repository / "private.txt").touch()
        self._json(url)

    def _branch(self, repository: Path, revision: str, body: bytes) -> None:
        directory = repository / quote(revision, safe="")
        if directory.is_dir():
            self._answer(409, b"{}")
        else:
            shutil.copytree(repository / MAIN, directory)
            self._json({})

    def _preupload(self, repository: Path, revision: str, body: bytes) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".png")) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self._json({"files": files})

    def _commit_files(self, repository: Path, revision: str, body: bytes) -> None:
        directory = repository / quote(revision, safe="")
        header, *operations = [json.loads(line) for line in body.splitlines()]
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                content = base64.b64decode(value["content"])
            else:
                assert operation["key"] == "lfsFile"
                content = (self.directory / "lfs" / value["oid"]).read_bytes()
                assert len(content) == value["size"]
            target = directory / value["path"]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        record = {"summary": header["value"]["summary"], "files": [each["value"]["path"] for each in operations]}
        with (repository / "log.jsonl").open("a") as log:
            log.write(json.dumps(record) + "\n")
        commit = _sha(directory)
        name = repository.relative_to(self.directory / "models").as_posix()
        self._json({"commitUrl": f"{self._address()}/{name}/commit/{commit}", "commitOid": commit})

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _redirected(self, kind: str, name: str, path: str) -> bool:
        owned = [] if "/" in name else [*(self.directory / kind).glob(f"*/{name}")]
        if owned:
            full = owned[0].relative_to(self.directory / kind).as_posix()
            self._answer(307, b"", location=path.replace(f"/{name}", f"/{full}", 1))
        return bool(owned)

    def _commit(self, kind: str, name: str, revision: str) -> Path | None:
        """Directory of a revision, named as such or by its commit; None, and an error is sent, if it is missing."""
        repository = self.directory / kind / name
        if (repository / "private.txt").exists() and name.partition("/")[0] != self._owner():
            self._missing("Repo")
            return None
        for commit in repository.iterdir() if repository.is_dir() else ():
            if commit.is_dir() and revision in (unquote(commit.name), _sha(commit)):
                return commit
        self._missing("Revision" if repository.is_dir() else "Repo")
        return None

    def _about(self, commit: Path, name: str, query: str, below: str, body: bytes) -> None:
        names = [file.relative_to(commit).as_posix() for file in sorted(commit.rglob("*")) if file.is_file()]
        if query == "revision":
            siblings = [{"rfilename": file} for file in names]
            self._json({"id": name, "sha": _sha(commit), "siblings": siblings, "private": False, "tags": []})
            return
        if query == "paths-info":
            is_json = "json" in self.headers.get("Content-Type", "")
            asked = json.loads(body)["paths"] if is_json else parse_qs(body.decode()).get("paths", [])
            chosen = [file for file in names if file in asked]
        else:
            chosen = [file for file in names if file.startswith(f"{below}/" if below else "")]
        entries = [_entry(commit, file) for file in chosen]
        folders = {folder.as_posix() for file in chosen for folder in Path(file).parents} - {"."}
        if query == "tree":
            entries += [{"type": "directory", "path": path, "oid": _digest(path.encode())} for path in sorted(folders)]
        self._json(entries)

    def _content(self, commit: Path, file: str) -> None:
        if not (commit / file).is_file():
            self._missing("Entry", _sha(commit))
        else:
            self._answer(200, (commit / file).read_bytes(), _sha(commit))

    def _json(self, value: Any) -> None:
        self._answer(200, json.dumps(value).encode(), kind="application/json")

    def _missing(self, kind: str, commit: str = "") -> None:
        self._answer(404, b"{}", commit, error=f"{kind}NotFound")

    def _answer(
        self,
        code: int,
        body: bytes,
        commit: str = "",
        kind: str = "text/plain",
        error: str = "",
        location: str = "",
        message: str = "",
    ) -> None:
        headers = Message()
        start, end = _range(self.headers.get("Range", ""), len(body))
        headers["Content-Type"] = kind
        headers["Content-Length"] = str(end - start)
        headers["ETag"] = f'"{_digest(body)}"'
        if commit:
            headers["X-Repo-Commit"] = commit
        if error:
            headers["X-Error-Code"] = error
        if message:
            headers["X-Error-Message"] = message
        if location:
            headers["Location"] = location
        if code == 200 and end - start < len(body):
            code = 206
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(body)}"
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[start:end])


def _range(asked: str, size: int) -> tuple[int, int]:
    """First byte of a `Range` header, and the one after its last."""
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", asked)
    return (int(match[1]), min(int(match[2]) + 1, size) if match[2] else size) if match else (0, size)


def _entry(commit: Path, name: str) -> dict[str, Any]:
    content = (commit / name).read_bytes()
    return {"type": "file", "path": name, "size": len(content), "oid": _digest(content)}


def _sha(commit: Path) -> str:
    """The hash of a revision: of its name, and of the last commit if there was one."""
    log = commit.parent / "log.jsonl"
    commits = log.read_bytes() if log.is_file() else b""
    return _digest(f"{commit.parent.name}/{commit.name}".encode() + commits)


def _digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
