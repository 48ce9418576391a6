"""An S3 on loopback: the requests that boto3 makes for objects, with faults to plant.

SeaweedFS stands for a real store (test_stores.py, marker slow); this one breaks off, changes and
damages objects on demand.
"""

import contextlib
import email.utils
import hashlib
import re
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from http.server import ThreadingHTTPServer
from typing import NamedTuple
from xml.sax.saxutils import escape

FAULTS = ("down", "cut", "flipped", "stalled")
STALL_S = 1.0


class Stored(NamedTuple):
    """An object: bytes, ETag, metadata headers, sizes of its parts."""

    raw: bytes
    etag: str
    metadata: dict[str, str]
    parts: tuple[int, ...]
    modified_s: float = 0.0


class Store:
    """The objects, the faults, and what was asked for.

    Attributes:
        objects: by "bucket/key".
        cuts: how many answers with bytes of an object break off in the middle.
        broken_uploads: how many objects arrive before every write is refused; None for no limit.
        is_closed: everything is refused with 403.
        is_down: everything is answered with 503.
        is_expired: everything is refused as by a token that has expired.
        damaged_uploads: how many objects arrive with one bit flipped.
        draw_fault: called for each answer with bytes of an object; returns one of FAULTS, or "".
        requests: what was asked for: method and "bucket/key".
    """

    def __init__(self) -> None:
        self.objects: dict[str, Stored] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.cuts = 0
        self.broken_uploads: int | None = None
        self.is_closed = self.is_down = self.is_expired = False
        self.damaged_uploads = 0
        self.draw_fault: Callable[[], str] = lambda: ""
        self.requests: list[str] = []
        self.endpoint = ""

    def put(self, name: str, raw: bytes, metadata: dict[str, str] | None = None) -> None:
        """Store an object as one part."""
        if self.damaged_uploads and raw:
            self.damaged_uploads -= 1
            raw = bytes([raw[0] ^ 1]) + raw[1:]
        etag = hashlib.md5(raw).hexdigest()
        self.objects[name] = Stored(raw, etag, metadata or {}, (), time.time())

    def gets(self, name: str = "") -> list[str]:
        """Return the names of the objects whose bytes went out."""
        return [r[4:] for r in self.requests if r.startswith("GET ") and r.endswith(name)]


@contextlib.contextmanager
def serve() -> Iterator[Store]:
    """Run a store on a port of its own."""
    store = Store()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"store": store}))
    server.daemon_threads = True
    store.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: Store

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def prepare(self) -> tuple[str, dict[str, str], bytes]:
        path, _, query = self.path.partition("?")
        name = urllib.parse.unquote(path.lstrip("/"))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.store.requests.append(f"{self.command} {name}")
        return name, dict(urllib.parse.parse_qsl(query, keep_blank_values=True)), body

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_DELETE(self) -> None:
        name, _, _ = self.prepare()
        if self.is_refused(name):
            return None
        self.store.objects.pop(name, None)
        return self.send(204, b"")

    def do_GET(self) -> None:
        name, query, _ = self.prepare()
        if self.is_closed():
            return None
        if "list-type" in query:
            return self.list_objects(name.rstrip("/"), query.get("prefix", ""))
        found = self.store.objects.get(name)
        if found is None:
            return self.fail(404, "NoSuchKey")
        if self.headers.get("If-Match", found.etag).strip('"') != found.etag:
            return self.fail(412, "PreconditionFailed")
        modified = email.utils.formatdate(found.modified_s, usegmt=True)
        headers = {"ETag": f'"{found.etag}"', "Last-Modified": modified, **found.metadata}
        raw, status = found.raw, 200
        if query.get("partNumber") == "1" and found.parts:
            raw, status = raw[: found.parts[0]], 206
        if wanted := self.headers.get("Range"):
            first, last = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted).groups()
            headers["Content-Range"] = f"bytes {first}-{last}/{len(raw)}"
            raw, status = raw[int(first) : int(last) + 1], 206
        return self.send_or_fail(status, raw, headers)

    def send_or_fail(self, status: int, raw: bytes, headers: dict[str, str]) -> None:
        fault = self.store.draw_fault() if raw and self.command == "GET" else ""
        if fault == "down":
            return self.fail(503, "SlowDown")
        if fault == "flipped":
            raw = raw[:-1] + bytes([raw[-1] ^ 1])
        if fault in ("cut", "stalled"):
            self.store.cuts += 1
            time.sleep(STALL_S if fault == "stalled" else 0)
        return self.send(status, raw, headers)

    def do_PUT(self) -> None:
        name, query, body = self.prepare()
        if "partNumber" in query:
            if self.is_closed():
                return None
            self.store.uploads[query["uploadId"]][int(query["partNumber"])] = body
            return self.send(200, b"", {"ETag": f'"{hashlib.md5(body).hexdigest()}"'})
        if self.is_refused(name):
            return None
        if self.headers.get("If-None-Match") == "*" and name in self.store.objects:
            return self.fail(412, "PreconditionFailed")
        self.store.put(name, body, self.metadata())
        return self.send(200, b"", {"ETag": f'"{self.store.objects[name].etag}"'})

    def do_POST(self) -> None:
        name, query, _ = self.prepare()
        if "uploads" in query:
            if self.is_refused(name):
                return None
            number = uuid.uuid4().hex
            self.store.uploads[number] = {0: repr(self.metadata()).encode()}
            return self.send_xml("InitiateMultipartUploadResult", f"<UploadId>{number}</UploadId>")
        parts = self.store.uploads.pop(query["uploadId"])
        metadata = dict(re.findall(r"'([^']+)': '([^']+)'", parts.pop(0).decode()))
        pieces = [parts[number] for number in sorted(parts)]
        joined = b"".join(hashlib.md5(piece).digest() for piece in pieces)
        etag = f"{hashlib.md5(joined).hexdigest()}-{len(pieces)}"
        sizes = tuple(map(len, pieces))
        self.store.objects[name] = Stored(b"".join(pieces), etag, metadata, sizes, time.time())
        return self.send_xml("CompleteMultipartUploadResult", f'<ETag>"{etag}"</ETag>')

    def is_refused(self, name: str) -> bool:
        if self.is_closed():
            return True
        left = self.store.broken_uploads
        if left == 0:
            self.fail(403, "AccessDenied")
            return True
        if left is not None:
            self.store.broken_uploads = left - 1
        return False

    def is_closed(self) -> bool:
        """Answer with the fault that is set for everything, if there is one."""
        faults = (
            (self.store.is_down, 503, "SlowDown"),
            (self.store.is_expired, 400, "ExpiredToken"),
            (self.store.is_closed, 403, "AccessDenied"),
        )
        for is_set, status, code in faults:
            if is_set:
                self.fail(status, code)
                return True
        return False

    def metadata(self) -> dict[str, str]:
        return {k: v for k, v in self.headers.items() if k.lower().startswith("x-amz-meta-")}

    def list_objects(self, bucket: str, prefix: str) -> None:
        start = f"{bucket}/{prefix}"
        found = [(n, s) for n, s in sorted(self.store.objects.items()) if n.startswith(start)]
        content = "".join(
            f"<Contents><Key>{escape(name.removeprefix(f'{bucket}/'))}</Key>"
            f'<Size>{len(stored.raw)}</Size><ETag>"{stored.etag}"</ETag></Contents>'
            for name, stored in found
        )
        self.send_xml("ListBucketResult", f"<IsTruncated>false</IsTruncated>{content}")

    def send_xml(self, tag: str, content: str) -> None:
        text = f'<{tag} xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{content}</{tag}>'
        self.send(200, text.encode(), {"Content-Type": "application/xml"})

    def fail(self, status: int, code: str) -> None:
        self.send(status, f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode())

    def send(self, status: int, raw: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if status == 206 and self.store.cuts:
            self.store.cuts -= 1
            raw, self.close_connection = raw[: len(raw) // 2], True
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(raw)
