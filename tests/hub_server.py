"""A hub on the loopback interface: the part of the Hugging Face hub's HTTP interface that the snapshot stages call."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

REVISION = "0123456789abcdef0123456789abcdef01234567"

_API = re.compile(r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)(?P<rest>/.*)?")
_RESOLVE = re.compile(r"/(?P<kind>datasets/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


@dataclass
class Hub:
    """Repositories by (kind, name), kind being `models` or `datasets`, each a folder served at one revision."""

    repositories: dict[tuple[str, str], Path] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def downloaded(self) -> set[str]:
        """Paths of the files whose content was asked for."""
        return {match["path"] for line in self.requests if (match := _RESOLVE.search(line)) and line.startswith("GET")}


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub at `hub.url` within the block."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _entries(folder: Path, inside: str) -> list[dict[str, object]]:
    """The tree as the hub lists it: files and folders below `inside`."""
    rows: list[dict[str, object]] = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if inside and not name.startswith(inside + "/"):
            continue
        if path.is_dir():
            rows.append({"type": "directory", "oid": "0" * 40, "size": 0, "path": name})
        else:
            rows.append({"type": "file", "oid": _etag(path)[:40], "size": path.stat().st_size, "path": name})
    return rows


def _etag(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            self._answer(body=True, posted=self.rfile.read(length))

        def _answer(self, *, body: bool, posted: bytes = b"") -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            if match := _API.fullmatch(path):
                self._api(match["kind"], match["name"], match["rest"] or "", body, posted)
            elif match := _RESOLVE.fullmatch(path):
                self._file(
                    "datasets" if match["kind"] else "models", match["name"], match["revision"], match["path"], body
                )
            else:
                self._refuse(404, "EntryNotFound", body)

        def _api(self, kind: str, name: str, rest: str, body: bool, posted: bytes) -> None:
            folder = hub.repositories.get((kind, name))
            if folder is None:
                self._refuse(401, "RepoNotFound", body)
                return
            _, action, revision, *inside = (*rest.split("/", 3), "", "")[:4] if rest else ("", "revision", REVISION)
            if revision != REVISION:
                self._refuse(404, "RevisionNotFound", body)
            elif action == "revision":
                siblings = [{"rfilename": row["path"]} for row in _entries(folder, "") if row["type"] == "file"]
                self._json({"id": name, "sha": REVISION, "siblings": siblings, "tags": [], "private": False}, body)
            elif action == "tree":
                where = (inside or [""])[0]
                if where and not (folder / where).is_dir():
                    self._refuse(404, "EntryNotFound", body)
                else:
                    self._json(_entries(folder, where), body)
            elif action == "paths-info":
                wanted = json.loads(posted)["paths"]
                self._json([row for row in _entries(folder, "") if row["path"] in wanted], body)
            else:
                self._refuse(404, "EntryNotFound", body)

        def _file(self, kind: str, name: str, revision: str, inside: str, body: bool) -> None:
            folder = hub.repositories.get((kind, name))
            if folder is None:
                self._refuse(401, "RepoNotFound", body)
            elif revision != REVISION:
                self._refuse(404, "RevisionNotFound", body)
            elif not (folder / inside).is_file():
                self._refuse(404, "EntryNotFound", body)
            elif name in hub.gated:
                self._refuse(403, "GatedRepo", body)
            else:
                self._content(folder / inside, body)

        def _content(self, path: Path, body: bool) -> None:
            content = path.read_bytes()
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            status, headers = 200, {"ETag": f'"{_etag(path)}"', "X-Repo-Commit": REVISION, "Accept-Ranges": "bytes"}
            if wanted:
                first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
                headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
                status, content = 206, content[first : last + 1]
            self._send(status, content, {**headers, "Content-Type": "application/octet-stream"}, body)

        def _json(self, answer: object, body: bool) -> None:
            self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"}, body)

        def _refuse(self, status: int, code: str, body: bool) -> None:
            self._send(
                status, b'{"error": "refused"}', {"X-Error-Code": code, "Content-Type": "application/json"}, body
            )

        def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

    return Handler
