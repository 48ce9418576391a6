"""A model hub on loopback that speaks as much of the Hub's HTTP as huggingface_hub asks for.

Real sockets and the real client: what is not real is the network. Faults are planted by setting
attributes of `Hub`.
"""

import contextlib
import hashlib
import json
import threading
import time
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from http.server import ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LFS_SUFFIXES = (".safetensors", ".gguf", ".bin")


class Hub:
    """The repositories, the faults, and what was asked for.

    Attributes:
        repositories: files by repository name.
        refused: repositories that answer (status, X-Error-Code) for their files.
        hidden: repositories that answer (status, X-Error-Code) for everything.
        cuts: how many answers with a weight's bytes break off in the middle.
        wait_s: how long each answer takes.
        sent_bytes: bytes of weights that went out.
        paths: what was asked for, method and path.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.refused: dict[str, tuple[int, str]] = {}
        self.hidden: dict[str, tuple[int, str]] = {}
        self.cuts, self.wait_s, self.sent_bytes = 0, 0.0, 0
        self.paths: list[str] = []
        self.endpoint = self.files_endpoint = ""

    def blob(self, digest: str) -> bytes | None:
        """Return a large file by its digest, as the Hub's own file servers do."""
        for files in self.repositories.values():
            for raw in files.values():
                if hashlib.sha256(raw).hexdigest() == digest:
                    return raw
        return None


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    """Run a hub on a port of its own."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    # Another host, as at the real one: the client follows redirects within a host by itself.
    hub.files_endpoint = f"http://localhost:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        time.sleep(self.hub.wait_s)
        self.hub.paths.append(f"{self.command} {self.path}")
        parts = [urllib.parse.unquote(p) for p in self.path.partition("?")[0].split("/")[1:]]
        if parts[0] == "cdn":
            raw = self.hub.blob(parts[1])
            return self.send(404, b"") if raw is None else self.send_file(raw)
        if "resolve" not in parts and parts[:2] != ["api", "models"]:
            return self.send(404, b"")
        if parts[:2] == ["api", "models"]:
            return self.answer_api("/".join(parts[2:4]), parts[4:])
        name, revision, file = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        return self.answer_file(name, revision, file)

    def answer_api(self, name: str, rest: list[str]) -> None:
        if self.refuse(self.hub.hidden, name):
            return
        if name not in self.hub.repositories:
            return self.send_error_code(404, "RepoNotFound")
        if rest and rest[1] not in ("main", COMMIT, COMMIT[:7], "refs/pr/1"):
            return self.send_error_code(404, "RevisionNotFound")
        files = self.hub.repositories[name]
        if rest and rest[0] == "tree":
            content = [_entry(path, raw) for path, raw in sorted(files.items())]
        else:
            siblings = [{"rfilename": path} for path in sorted(files)]
            content = {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings,
                       "private": False, "tags": [], "downloads": 0, "likes": 0}  # fmt: skip
        self.send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def answer_file(self, name: str, revision: str, file: str) -> None:
        if self.refuse(self.hub.hidden, name) or self.refuse(self.hub.refused, name):
            return
        raw = self.hub.repositories.get(name, {}).get(file)
        if raw is None or revision not in (COMMIT, "main"):
            return self.send_error_code(404, "EntryNotFound")
        digest = hashlib.sha256(raw).hexdigest()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(raw).hexdigest()}"'}
        if not file.endswith(LFS_SUFFIXES):
            return self.send_file(raw, headers)
        headers |= {"X-Linked-Size": str(len(raw)), "X-Linked-Etag": f'"{digest}"'}
        self.send(302, b"", headers | {"Location": f"{self.hub.files_endpoint}/cdn/{digest}"})

    def refuse(self, table: dict[str, tuple[int, str]], name: str) -> bool:
        if name in table:
            self.send_error_code(*table[name])
        return name in table

    def send_error_code(self, status: int, code: str) -> None:
        self.send(status, b"", {"X-Error-Code": code, "X-Error-Message": f"fake: {code}"})

    def send_file(self, raw: bytes, headers: dict[str, str] | None = None) -> None:
        headers = {"ETag": f'"{hashlib.sha256(raw).hexdigest()}"'} | (headers or {})
        wanted = self.headers.get("Range")
        if wanted is None:
            return self.send(200, raw, headers)
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last or len(raw) - 1), len(raw) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(raw)}"
        return self.send(206, raw[start : end + 1], headers)

    def send(self, status: int, raw: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.path.startswith("/cdn/"):
            if self.hub.cuts:
                self.hub.cuts -= 1
                raw = raw[: len(raw) // 2]
                self.close_connection = True
            self.hub.sent_bytes += len(raw)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(raw)


def _entry(path: str, raw: bytes) -> dict[str, object]:
    digest = hashlib.sha256(raw).hexdigest()
    entry: dict[str, object] = {
        "type": "file", "path": path, "size": len(raw), "oid": hashlib.sha1(raw).hexdigest()
    }  # fmt: skip
    if path.endswith(LFS_SUFFIXES):
        entry["lfs"] = {"oid": digest, "size": len(raw), "pointerSize": 134}
    return entry
