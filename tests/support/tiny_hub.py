"""A Hugging Face hub on this machine: directories, served over HTTP to the real clients.

It answers only what `huggingface_hub`, `transformers` and `datasets` ask for when they read. A name without an owner is
redirected to the repository of that name with an owner, as the hub does with `glue` and `roberta-base`.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

MAIN = "main"
_API = re.compile(r"/api/(models|datasets)/(.+?)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?")
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


class _Handler(BaseHTTPRequestHandler):
    directory: Path
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        # A slash inside a revision is quoted.
        path = urlsplit(self.path).path
        if match := _API.fullmatch(path):
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

    do_HEAD = do_POST = do_GET  # noqa: N815 # the names that http.server looks for

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
        for commit in repository.iterdir() if repository.is_dir() else ():
            if revision in (unquote(commit.name), _sha(commit)):
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
        self, code: int, body: bytes, commit: str = "", kind: str = "text/plain", error: str = "", location: str = ""
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
    return _digest(f"{commit.parent.name}/{commit.name}".encode())


def _digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
