"""A Hugging Face hub on this machine: directories, given out over HTTP to the real clients.

Of the hub's interface only what `huggingface_hub`, `transformers` and `datasets` ask for when they read. A name without
an owner is redirected to the repository of that name that has one, as the hub does with `glue` and `roberta-base`.
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
    """The hub's address, while it serves `models/<id>/<revision>/...` and `datasets/<id>/<revision>/...` below `root`.

    In a directory's name a revision is quoted, as it is in addresses.
    """

    class Hub(_Handler):
        where = root

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    where: Path
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        # A slash inside a revision is quoted.
        path = urlsplit(self.path).path
        if found := _API.fullmatch(path):
            kind, name, what, revision, below = (unquote(each or "") for each in found.groups())
            if self._redirected(kind, name, path):
                return
            if commit := self._commit(kind, name, revision or MAIN):
                self._about(commit, name, what or "revision", below, body)
        elif found := _FILE.fullmatch(path):
            kind, (name, revision, file) = "datasets" if found[1] else "models", map(unquote, found.groups()[1:])
            if not self._redirected(kind, name, path) and (commit := self._commit(kind, name, revision)):
                self._content(commit, file)
        else:
            self._missing("Entry")

    do_HEAD = do_POST = do_GET  # noqa: N815 # the names that http.server looks for

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _redirected(self, kind: str, name: str, path: str) -> bool:
        owned = [] if "/" in name else [*(self.where / kind).glob(f"*/{name}")]
        if owned:
            full = owned[0].relative_to(self.where / kind).as_posix()
            self._answer(307, b"", location=path.replace(f"/{name}", f"/{full}", 1))
        return bool(owned)

    def _commit(self, kind: str, name: str, revision: str) -> Path | None:
        """The directory of a revision, which may be named by its commit too; None once told that there is none."""
        there = self.where / kind / name
        for each in there.iterdir() if there.is_dir() else ():
            if revision in (unquote(each.name), _sha(each)):
                return each
        self._missing("Revision" if there.is_dir() else "Repo")
        return None

    def _about(self, commit: Path, name: str, what: str, below: str, body: bytes) -> None:
        files = sorted(each for each in commit.rglob("*") if each.is_file())
        names = [each.relative_to(commit).as_posix() for each in files]
        if what == "revision":
            siblings = [{"rfilename": each} for each in names]
            self._json({"id": name, "sha": _sha(commit), "siblings": siblings, "private": False, "tags": []})
            return
        if what == "paths-info":
            is_json = "json" in self.headers.get("Content-Type", "")
            asked = json.loads(body)["paths"] if is_json else parse_qs(body.decode()).get("paths", [])
            chosen = [each for each in names if each in asked]
        else:
            chosen = [each for each in names if each.startswith(f"{below}/" if below else "")]
        entries = [_entry(commit, each) for each in chosen]
        folders = {folder.as_posix() for each in chosen for folder in Path(each).parents} - {"."}
        if what == "tree":
            entries += [{"type": "directory", "path": each, "oid": _digest(each.encode())} for each in sorted(folders)]
        self._json(entries)

    def _content(self, commit: Path, file: str) -> None:
        if not (commit / file).is_file():
            self._missing("Entry", _sha(commit))
        else:
            self._answer(200, (commit / file).read_bytes(), _sha(commit))

    def _json(self, value: Any) -> None:
        self._answer(200, json.dumps(value).encode(), kind="application/json")

    def _missing(self, what: str, commit: str = "") -> None:
        self._answer(404, b"{}", commit, error=f"{what}NotFound")

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
    """First byte, and the one after the last, of a `Range` header."""
    found = re.fullmatch(r"bytes=(\d+)-(\d*)", asked)
    return (int(found[1]), min(int(found[2]) + 1, size) if found[2] else size) if found else (0, size)


def _entry(commit: Path, name: str) -> dict[str, Any]:
    content = (commit / name).read_bytes()
    return {"type": "file", "path": name, "size": len(content), "oid": _digest(content)}


def _sha(commit: Path) -> str:
    return _digest(f"{commit.parent.name}/{commit.name}".encode())


def _digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
