"""A small hub: the parts of Hugging Face's interface that rolecall asks for, with faults, on two ports of loopback."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Fault:
    """What the next request for a file meets, ``times`` of them (-1: all).

    ``cut_after``: so many bytes of the answer come, then the connection ends. ``pause_s`` stands before each kilobyte.
    ``status`` is an error with ``headers``; ``content`` is sent instead; ``ranges`` False ignores what is asked for.
    """

    times: int = 1
    cut_after: int | None = None
    pause_s: float = 0
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    ranges: bool = True


@dataclass
class Repo:
    """A repository: its files, its revision (40 hexadecimal digits), what its card says.

    ``listed`` are sizes that the listing states instead of the true ones. Files of 1 kB and more are large ones.
    """

    files: dict[str, bytes]
    revision: str = "a" * 40
    license: str | None = "apache-2.0"
    gated: str | bool = False
    private: bool = False
    downloads: int = 100
    license_tag_only: bool = False
    listed: dict[str, int] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """What was asked of the hub ("hub") or of where its large files lie ("cdn")."""

    host: str
    method: str
    path: str
    authorization: str | None
    range: str | None


@dataclass
class HubServer:
    """The state of a hub, which tests change while it runs."""

    repos: dict[str, Repo] = field(default_factory=dict)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    tokens: set[str] = field(default_factory=lambda: {"hf_good"})
    granted: set[str] = field(default_factory=set)
    """Gated repositories whose terms were accepted."""
    url: str = ""
    cdn: str = ""

    def fault(self, path: str, fault: Fault) -> None:
        """Let requests for a file (or for ``/api/…``) meet a fault."""
        self.faults.setdefault(path, []).append(fault)

    def asked(self, name: str, host: str = "cdn") -> list[str | None]:
        """Return the ranges with which a file's content was asked for."""
        return [each.range for each in self.requests if each.host == host and each.path.endswith(name)]

    def next_fault(self, path: str) -> Fault | None:
        """Return the fault that a request meets."""
        for fault in self.faults.get(path, ()):
            if fault.times:
                fault.times -= 1
                return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer
    host = "hub"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        headers = self.headers
        self.hub.requests.append(
            Request(self.host, self.command, path, headers.get("Authorization"), headers.get("Range"))
        )
        with suppress(BrokenPipeError, ConnectionResetError):
            self.answer(path, parse_qs(parts.query))

    def answer(self, path: str, query: Mapping[str, list[str]]) -> None:
        if path.startswith("/api/"):
            fault = self.hub.next_fault(path)
            if fault and fault.status:
                self.error(fault.status, **fault.headers)
            elif fault and fault.content is not None:
                self.send(200, fault.content)
            elif path == "/api/models":
                self.search(query)
            else:
                self.info(path.removeprefix("/api/models/"))
            return
        name, _, rest = path.strip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        self.resolve(name, revision, file)

    def search(self, query: Mapping[str, list[str]]) -> None:
        words, kinds = query.get("search", [""])[0].lower(), query.get("filter", [])
        found = [
            self.about(name, repo, blobs=False)
            for name, repo in self.hub.repos.items()
            if words in name.lower() and ("gguf" not in kinds or any(file.endswith(".gguf") for file in repo.files))
        ]
        found.sort(key=lambda each: -each["downloads"])
        self.send_json(found[: int(query.get("limit", ["100"])[0])])

    def about(self, name: str, repo: Repo, *, blobs: bool) -> dict[str, Any]:
        tags = ["gguf", *([f"license:{repo.license}"] if repo.license else [])]
        return {
            "id": name,
            "sha": repo.revision,
            "gated": repo.gated,
            "private": repo.private,
            "downloads": repo.downloads,
            "likes": 3,
            "tags": tags,
            "cardData": {"license": repo.license} if repo.license and not repo.license_tag_only else {},
            "gguf": {"total": 8_000_000_000, "architecture": "llama", "context_length": 32768},
            "siblings": [self.sibling(repo, file) if blobs else {"rfilename": file} for file in repo.files],
        }

    def sibling(self, repo: Repo, file: str) -> dict[str, Any]:
        content = repo.files[file]
        size = repo.listed.get(file, len(content))
        known: dict[str, Any] = {"rfilename": file, "size": size, "blobId": git_sha1(content)}
        if len(content) >= 1024:
            sha256 = repo.hashes.get(file) or hashlib.sha256(content).hexdigest()
            known["lfs"] = {"size": size, "sha256": sha256, "pointerSize": 130}
        return known

    def info(self, path: str) -> None:
        name, _, revision = path.partition("/revision/")
        repo = self.readable(name)
        if repo is None:
            return
        if revision not in ("", "main", repo.revision):
            self.error(404, **{"X-Error-Code": "RevisionNotFound"})
            return
        self.send_json(self.about(name, repo, blobs=True))

    def readable(self, name: str) -> Repo | None:
        """Return a repository that the caller may see; else the answer was sent."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        repo = self.hub.repos.get(name)
        if token and token not in self.hub.tokens:
            self.error(401, **{"X-Error-Message": "Invalid credentials in Authorization header"})
        elif repo is None or (repo.private and not token):
            self.error(404 if token else 401, **{"X-Error-Code": "RepoNotFound", "X-Error-Message": "Not found"})
        else:
            return repo
        return None

    def resolve(self, name: str, revision: str, file: str) -> None:
        repo = self.readable(name)
        if repo is None:
            return
        if repo.gated and not (self.headers.get("Authorization") and name in self.hub.granted):
            self.error(403 if self.headers.get("Authorization") else 401, **{"X-Error-Code": "GatedRepo"})
        elif revision not in ("main", repo.revision):
            self.error(404, **{"X-Error-Code": "RevisionNotFound"})
        elif file not in repo.files:
            self.error(404, **{"X-Error-Code": "EntryNotFound"})
        elif len(repo.files[file]) >= 1024:
            self.send_response(302)
            self.send_header("Location", f"{self.hub.cdn}/{name}/{file}")
            self.send_header("X-Repo-Commit", repo.revision)
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.content(repo.files[file], self.hub.next_fault(file))

    def content(self, content: bytes, fault: Fault | None) -> None:
        fault = fault or Fault()
        if fault.status:
            self.error(fault.status, **fault.headers)
            return
        content = content if fault.content is None else fault.content
        wanted = self.headers.get("Range") if fault.ranges else None
        start, end = 0, len(content)
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last) + 1 if last else len(content), len(content))
            if start >= len(content):
                self.error(416)
                return
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        self.body(content[start:end], fault)

    def body(self, content: bytes, fault: Fault) -> None:
        if self.command == "HEAD":
            return
        content = content if fault.cut_after is None else content[: fault.cut_after]
        if not fault.pause_s:
            self.wfile.write(content)
        for at in range(0, len(content) if fault.pause_s else 0, 1024):
            time.sleep(fault.pause_s)
            self.wfile.write(content[at : at + 1024])
        if fault.cut_after is not None:
            self.wfile.flush()
            self.close_connection = True

    def error(self, status: int, **headers: str) -> None:
        self.send(status, b'{"error":"so it is"}', **headers)

    def send_json(self, value: Any) -> None:
        self.send(200, json.dumps(value).encode())

    def send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Cdn(_Handler):
    host = "cdn"

    def answer(self, path: str, query: Mapping[str, list[str]]) -> None:
        del query
        organisation, name, file = path.strip("/").split("/", 2)
        self.content(self.hub.repos[f"{organisation}/{name}"].files[file], self.hub.next_fault(file))


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that left."""


def git_sha1(content: bytes) -> str:
    """Return how git names a content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@contextmanager
def running_hub() -> Iterator[HubServer]:
    """Run a hub without repositories."""
    hub = HubServer()
    servers = [_Server(("127.0.0.1", 0), type("Bound", (handler,), {"hub": hub})) for handler in (_Handler, _Cdn)]
    hub.url, hub.cdn = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
    threads = [threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()
