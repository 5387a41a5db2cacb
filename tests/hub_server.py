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
    gated: bool = False  # its listing is public, its files are for readers
    private: bool = False  # for others than readers it does not exist
    readers: frozenset[str] = frozenset()  # tokens
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
    stuck: str = ""  # files with this ending begin to come, and never end; parts of them, as planning reads, do
    begun: list[str] = field(default_factory=list)  # paths of those
    accounts: dict[str, str] = field(default_factory=dict)  # names by token; other tokens are refused
    tokens: set[str | None] = field(default_factory=set)  # that requests came with


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


def parquet(*questions: str) -> bytes:
    """A Parquet file of questions and answers."""
    sink = io.BytesIO()
    pq.write_table(pa.table({"question": list(questions), "answer": [f"{one}!" for one in questions]}), sink)
    return sink.getvalue()


class _Handler(BaseHTTPRequestHandler):
    served: Hub

    def do_GET(self) -> None:
        path = unquote(self.path.split("?")[0])
        token = self._token()
        self.served.tokens.add(token)
        if self.served.is_broken:
            self._send(500, {}, b"{}")
        elif token is not None and token not in self.served.accounts:
            self._send(401, {"X-Error-Message": "Invalid credentials in Authorization header"}, b"{}")
        elif path == "/api/whoami-v2":
            self._send(200, {}, json.dumps({"name": self.served.accounts[token or ""]}).encode())
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
            if not name.endswith("/auth-check"):
                self._send_listing(name, revision or "main")
            elif self._opens(name.removesuffix("/auth-check"), files=True):
                self._send(200, {}, b"{}")

    do_HEAD = do_GET

    def _token(self) -> str | None:
        return self.headers.get("authorization", "").removeprefix("Bearer ") or None

    def _opens(self, name: str, *, files: bool = False) -> bool:
        """Whether who asks may see the repository, or read its files; answers with the refusal where not."""
        repository = self.served.repositories.get(name)
        is_reader = repository is not None and self._token() in repository.readers
        if repository is None or (repository.private and not is_reader):
            self._send(401 if self._token() is None else 404, {"X-Error-Code": "RepoNotFound"}, b"{}")
            return False
        if files and repository.gated and not is_reader:
            self._send(403, {"X-Error-Code": "GatedRepo"}, b"{}")
            return False
        return True

    def _send_listing(self, name: str, revision: str) -> None:
        if not self._opens(name):
            return
        repository = self.served.repositories[name]
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
        if not self._opens(name):
            return
        found = self.served.repositories[name].at(revision)
        if found is None:
            self._send(404, {"X-Error-Code": "RevisionNotFound"}, b"{}")
            return
        files = found[1]
        tree = [{"type": "file", "path": path, "size": len(files[path]), "oid": path} for path in files]
        self._send(200, {}, json.dumps(tree).encode())

    def _send_file(self, name: str, revision: str, path: str) -> None:
        if not self._opens(name, files=True):
            return
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
        headers = {"ETag": etag, "X-Repo-Commit": found[0]}
        if self.command == "GET" and not asked and self.served.stuck and path.endswith(self.served.stuck):
            self.served.begun.append(path)
            self._begin(headers, content)
            return
        self._send(206 if asked else 200, headers, content)

    def _send(self, status: int, headers: dict[str, str], content: bytes, *, length: int | None = None) -> None:
        self.send_response(status)
        size = len(content) if length is None else length
        for name, value in {"content-type": "application/json", **headers, "content-length": str(size)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def _begin(self, headers: dict[str, str], content: bytes) -> None:
        """Send half of it, and then nothing until the client goes away."""
        self._send(200, {**headers, "content-type": "application/octet-stream"}, b"", length=len(content))
        self.wfile.write(content[: len(content) // 2])
        self.wfile.flush()
        self.connection.recv(1)

    def log_message(self, *_arguments: Any) -> None:
        """Be quiet."""
