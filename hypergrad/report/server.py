"""The page over HTTP on this machine, read-only, while a run goes on."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import socket
import socketserver
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, final
from urllib.parse import urlsplit

from hypergrad.errors import HypergradError, InputError
from hypergrad.report.document import SILENT, read_document
from hypergrad.report.page import render
from hypergrad.report.reading import Folder

LOCAL = ("localhost", "127.0.0.1", "::1")
HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Type": "text/html; charset=utf-8",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
WAIT = 1.0
"""Seconds for which a page that was made is not made again, however often it is asked for."""


@final
class Pages:
    """The page of one directory, made again when a file has changed.

    Args:
        directory: the run's directory.

    Raises:
        InputError: no such directory, or nothing of a run in it.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        """Make the first page, so that what is wrong is said before anything is served."""
        self.directory = directory
        self._lock = threading.Lock()
        self._tag, self._page, self._made = "", b"", 0.0
        self.current()

    def current(self) -> tuple[str, bytes]:
        """Return the tag and the page; while the directory cannot be read, the last one."""
        with self._lock:
            if time.monotonic() - self._made < WAIT:
                return self._tag, self._page
            try:
                folder = Folder(self.directory)
                tag = _tag(folder)
                if tag != self._tag:
                    self._page = render(read_document(self.directory, folder), tag=tag).encode()
                    self._tag = tag
            except HypergradError:
                if not self._page:
                    raise
            self._made = time.monotonic()
            return self._tag, self._page


def make_server(
    directory: str | os.PathLike[str], *, host: str = "127.0.0.1", port: int = 0, allow_remote: bool = False
) -> Server:
    """Return a server of the page, bound and not yet serving; its address is ``server_address``.

    It answers GET and HEAD of ``/`` and nothing else. A request that names another host than the one asked for is
    refused, so that no foreign page can read the report by a name of its own for this machine.

    Args:
        directory: the run's directory.
        host: address to listen on.
        port: from 0 to 65535; 0 for any that is free.
        allow_remote: whether other machines may connect; a host that is not of this machine alone needs it.

    Raises:
        InputError: a host or port that cannot be used, no such directory, or nothing of a run in it.
    """
    if not _is_local(host) and not allow_remote:
        raise InputError(
            passed=f"host={host!r}, which other machines can reach",
            expected="127.0.0.1, or the wish in so many words: whoever can connect can read the report",
            do="leave host out, or add --allow-remote",
        )
    if not 0 <= port <= 65535:
        raise InputError(f"port={port}", "a port from 0 to 65535", "leave port out, or pass 0 for any that is free")
    pages = Pages(directory)
    try:
        return Server((host, port), pages, remote=allow_remote)
    except OSError as error:
        raise InputError(
            passed=f"host={host!r}, port={port}, which cannot be listened on ({error.strerror or error})",
            expected="an address of this machine, and a port that nobody uses",
            do="pass another port; --port 0 takes any that is free",
        ) from error


@final
class Server(ThreadingHTTPServer):
    """A server of one page."""

    daemon_threads = True
    allow_reuse_address = os.name == "posix"  # elsewhere it would let two servers share a port

    def __init__(self, address: tuple[str, int], pages: Pages, *, remote: bool) -> None:
        self.pages, self.remote = pages, remote
        self.names = {name.lower() for name in (*LOCAL, address[0], socket.gethostname())}
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def end_with_the_run(self) -> None:
        """End once the run has ended, a moment after the page said so."""

        def look() -> None:
            while read_document(self.pages.directory).going:
                time.sleep(WAIT)
            time.sleep(2 * WAIT)
            self.shutdown()

        threading.Thread(target=look, daemon=True).start()

    def server_bind(self) -> None:
        """Bind without asking the name service who we are."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of readers that hang up."""


@final
class _Handler(BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]
    server_version, sys_version = "hypergrad", ""
    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_GET(self) -> None:
        """Answer with the page."""
        self._answer(body=True)

    def do_HEAD(self) -> None:
        """Answer with the page's headers."""
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        name = _name(self.headers.get("Host", ""))
        if name not in self.server.names and not (self.server.remote and _is_address(name)):
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST, body=body)
        elif self.path.partition("?")[0] != "/":
            self._refuse(HTTPStatus.NOT_FOUND, body=body)
        else:
            tag, page = self.server.pages.current()
            quoted = f'"{tag}"'
            if self.headers.get("If-None-Match", "").strip('"') == tag:
                self._send(HTTPStatus.NOT_MODIFIED, b"", {"ETag": quoted}, body=False)
            else:
                self._send(HTTPStatus.OK, page, {"ETag": quoted, **HEADERS}, body=body)

    def _refuse(self, status: HTTPStatus, *, body: bool) -> None:
        text = f"{status.value} {status.phrase}\n".encode()
        self._send(status, text, {**HEADERS, "Content-Type": "text/plain; charset=utf-8"}, body=body)

    def _send(self, status: HTTPStatus, content: bytes, headers: dict[str, str], *, body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != HTTPStatus.NOT_MODIFIED:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing."""


def _tag(folder: Folder) -> str:
    """Return what changes with the files, and now and then while a run is silent."""
    silence = min(1000, int((time.time() - folder.written()) / SILENT))
    return hashlib.sha256(repr((folder.stamp(), silence)).encode()).hexdigest()[:32]


def _name(host: str) -> str:
    """Return the name in a Host header, without port and brackets."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
