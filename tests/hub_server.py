"""A Hugging Face Hub on loopback, in memory: the part of its HTTP API that the real client uses.

Repositories have branches and commits, files are in git or in LFS (in one part or in several), access follows tokens.
`Hub.faults` makes it answer with an error, cut the connection or stall; `Hub.requests` is what it was asked.
"""

from __future__ import annotations

import json
import re
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from hub_repos import Blob, Commit, Repo, is_lfs
from hub_routes import Refused, route


@dataclass
class Fault:
    """What goes wrong with requests whose `METHOD /path` matches.

    Attributes:
        status: the answer; without it the connection is cut.
        after: bytes of the body that pass before the cut, in the direction in which the body goes.
        times: how often it happens before things work again.
        late: the request is carried out first, only its answer is lost.
        stalls: the connection stays silent from there on, until `release` is set, and is cut then.
        reached: set when it happens.
    """

    match: str
    status: int | None = None
    after: int = 0
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    message: str = "planned"
    late: bool = False
    stalls: bool = False
    reached: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    received: int


class Hub:
    """The server. `tokens` maps a token to its user; users in `readers` may write nowhere."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.part_size = 2**40
        self.tokens = {"hf_ownersecret": "owner", "hf_readersecret": "reader"}
        self.readers = {"reader"}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.connections: list[socket.socket] = []
        self.lock = threading.RLock()
        # Large files come from another origin, as from the Hub's storage: the client must not send its token there.
        self.servers = [ThreadingHTTPServer(("127.0.0.1", 0), self._handler()) for _ in range(2)]
        for server in self.servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def _handler(self) -> type[Handler]:
        return type("BoundHandler", (Handler,), {"hub": self})

    def close(self) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()
        for connection in self.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.servers[0].server_port}"

    @property
    def storage(self) -> str:
        return f"http://localhost:{self.servers[1].server_port}"

    def add(self, repo_id: str, files: dict[str, bytes] | None = None, **values: Any) -> Repo:
        """Make a repository with files in one commit."""
        repo = Repo(repo_id, **values)
        self.repos[repo.type, repo_id] = repo
        if files:
            blobs = {path: Blob(content, is_lfs(path, len(content))) for path, content in files.items()}
            repo.commit("main", "files", blobs, set())
            self.lfs |= {blob.sha256: blob.content for blob in blobs.values() if blob.lfs}
        return repo

    def repo(self, repo_id: str, kind: str = "model") -> Repo:
        return self.repos[kind, repo_id]

    def asked(self, pattern: str) -> list[Request]:
        """Requests whose `METHOD /path` matches."""
        return [request for request in self.requests if re.search(pattern, f"{request.method} {request.path}")]

    def uploaded(self) -> int:
        """Bytes of large files that were received."""
        return sum(request.received for request in self.asked("PUT /storage/"))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes; the second would wait 40 ms
    hub: Hub

    def setup(self) -> None:
        super().setup()
        self.hub.connections.append(self.connection)

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        path = unquote(parts.path)
        asked = f"{self.command} {path}"
        with self.hub.lock:
            fault = next((item for item in self.hub.faults if item.times and re.search(item.match, asked)), None)
            if fault:
                fault.times -= 1
        self.fault = fault
        self.cut = fault.after if fault and fault.status is None else None
        up = self.command in ("POST", "PUT")
        self.body = self.read(self.cut if up and fault and not fault.late else None)
        headers = {key.lower(): value for key, value in self.headers.items()}
        with self.hub.lock:
            self.hub.requests.append(Request(self.command, path, headers, len(self.body)))
        if fault and fault.status is not None:
            fault.reached.set()
            return self.send(fault.status, {"error": fault.message}, **fault.headers)
        if self.cut is not None and (up or self.cut == 0) and not fault.late:
            return self.hang_up()
        try:
            with self.hub.lock:
                route(self, path)
        except Refused as refusal:
            self.send(refusal.status, {"error": str(refusal)}, **refusal.headers)
        return None

    do_HEAD = do_POST = do_PUT = do_GET

    def read(self, most: int | None) -> bytes:
        """The request's body; with `most`, so many bytes of it."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
                if most is not None and len(body) >= most:
                    break
            else:
                self.rfile.readline()
            return body if most is None else body[:most]
        length = int(self.headers.get("Content-Length") or 0)
        return self.rfile.read(length if most is None else min(most, length))

    def hang_up(self) -> None:
        """Cut the connection, at once or after a silence."""
        assert self.fault is not None
        self.close_connection = True
        self.wfile.flush()
        self.fault.reached.set()
        if self.fault.stalls:
            self.fault.release.wait(60)
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()

    def send(self, status: int, content: Any = b"", **headers: str) -> None:
        if self.fault and self.fault.late:
            return self.hang_up()
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return None
        whole = self.cut is None or self.cut >= len(data)
        self.wfile.write(data if whole else data[: self.cut])
        return None if whole else self.hang_up()

    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    @property
    def user(self) -> str | None:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not given:
            return None
        if given not in self.hub.tokens:
            raise Refused(401, "Invalid credentials in Authorization header")
        return self.hub.tokens[given]

    def found(self, kind: str, repo_id: str, *, write: bool = False) -> Repo:
        user, repo = self.user, self.hub.repos.get((kind, repo_id))
        owner = repo_id.partition("/")[0]
        if repo is None or (repo.private and user != owner):
            if user is None:
                raise Refused(401, "Invalid username or password.")
            raise Refused(404, "Repository not found", "RepoNotFound")
        if write:
            if user is None:
                raise Refused(401, "Invalid username or password.")
            if user != owner or user in self.hub.readers:
                raise Refused(403, "Forbidden: pass a token with write access to this repository")
        return repo

    def revision(self, repo: Repo, name: str) -> Commit:
        commit = repo.at(name)
        if commit is None:
            raise Refused(404, f"Invalid rev id: {name}", "RevisionNotFound")
        return commit

    def log_message(self, format: str, *args: Any) -> None:
        """Tests read `Hub.requests` instead."""
