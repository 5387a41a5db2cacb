"""A small server in a hub's place: the few endpoints that huggingface_hub needs for data sets and models."""

import io
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

CONVERTED = "refs/convert/parquet"
COMMIT, NEXT_COMMIT, CONVERTED_COMMIT = "a" * 40, "b" * 40, "c" * 40


@dataclass
class Repository:
    """A data set or a model: files by revision, each revision's commit, and what its card says."""

    revisions: dict[str, tuple[str, Mapping[str, bytes]]]
    card: dict[str, Any] = field(default_factory=dict)
    gated: bool = False
    hides_sizes: bool = False

    def at(self, revision: str) -> tuple[str, Mapping[str, bytes]] | None:
        """The commit and the files of a branch or a commit."""
        by_commit = {commit: (commit, files) for commit, files in self.revisions.values()}
        return self.revisions.get(revision) or by_commit.get(revision)


@dataclass
class Hub:
    """What the server serves, and the paths of the files that were fetched from it."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    fetched: list[str] = field(default_factory=list)
    is_broken: bool = False


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub on a free port."""
    hub = Hub()

    class Handler(_Handler):
        served = hub

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


def talk_to(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the library in this process take `hub` for the hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    for module in ("core.datasets.hub", "core.registry.hub"):
        monkeypatch.setattr(f"{module}.HfApi", lambda: huggingface_hub.HfApi(endpoint=hub.url))


def parquet(*questions: str) -> bytes:
    """A Parquet file of questions and answers."""
    sink = io.BytesIO()
    pq.write_table(pa.table({"question": list(questions), "answer": [f"{one}!" for one in questions]}), sink)
    return sink.getvalue()


class _Handler(BaseHTTPRequestHandler):
    served: Hub

    def do_GET(self) -> None:
        path = unquote(self.path.split("?")[0])
        if self.served.is_broken:
            self._send(500, {}, b"{}")
        elif "/resolve/" in path:
            name, _, rest = path.removeprefix("/datasets/").lstrip("/").partition("/resolve/")
            self._send_file(name, *rest.split("/", 1))
        else:
            kind = "/api/models/" if path.startswith("/api/models/") else "/api/datasets/"
            listing, _, tree = path.removeprefix(kind).partition("/tree/")
            if tree:
                self._send_tree(listing, tree)
                return
            name, _, revision = path.removeprefix(kind).partition("/revision/")
            if name.endswith("/auth-check"):
                asked = self.served.repositories.get(name.removesuffix("/auth-check"))
                is_open = kind == "/api/models/" and asked is not None and not asked.gated
                self._send(*((200, {}) if is_open else (403, {"X-Error-Code": "GatedRepo"})), b"{}")
            else:
                self._send_listing(name, revision or "main")

    do_HEAD = do_GET

    def _send_listing(self, name: str, revision: str) -> None:
        repository = self.served.repositories.get(name)
        if repository is None:
            self._send(401, {"X-Error-Code": "RepoNotFound"}, b"{}")
            return
        found = repository.at(revision)
        if found is None:
            self._send(404, {"X-Error-Code": "RevisionNotFound"}, b"{}")
            return
        commit, files = found
        siblings = [
            {"rfilename": path, **({} if repository.hides_sizes else {"size": len(content)})}
            for path, content in files.items()
        ]
        body = {"id": name, "sha": commit, "gated": "auto" if repository.gated else False, "siblings": siblings}
        self._send(200, {}, json.dumps({**body, "cardData": repository.card}).encode())

    def _send_tree(self, name: str, revision: str) -> None:
        found = self.served.repositories[name].at(revision)
        if found is None:
            self._send(404, {"X-Error-Code": "RevisionNotFound"}, b"{}")
            return
        files = found[1]
        tree = [{"type": "file", "path": path, "size": len(files[path]), "oid": path} for path in files]
        self._send(200, {}, json.dumps(tree).encode())

    def _send_file(self, name: str, revision: str, path: str) -> None:
        found = self.served.repositories[name].at(revision)
        content = found[1].get(path) if found else None
        if found is None or content is None:
            self._send(404, {"X-Error-Code": "EntryNotFound"}, b"")
            return
        if self.command == "GET":
            self.served.fetched.append(f"{name}@{revision[:1]}/{path}")
        etag = f'"{found[0][:8]}-{len(content)}"'
        asked = self.headers.get("range", "")
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            content = content[int(first) : int(last or len(content)) + 1]
        self._send(206 if asked else 200, {"ETag": etag, "X-Repo-Commit": found[0]}, content)

    def _send(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in {"content-type": "application/json", **headers, "content-length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_arguments: Any) -> None:
        """Be quiet."""
