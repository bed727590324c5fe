"""Serve the report on the loopback interface, for a browser at the other end of an SSH tunnel."""

from __future__ import annotations

import errno
import hmac
import os
import re
import secrets
import shutil
import socket
import socketserver
import sys
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO

from hpc_tumor.errors import UsageError

LOOPBACK = "127.0.0.1"
PATIENCE = 30  # seconds without a byte after which a connection is closed
CHUNK = 64 * 1024

# A tunnel may change the port. Other host names are refused: they may come from DNS rebinding.
_HOST = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?", re.IGNORECASE | re.ASCII)
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:;"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def serve_report(report: Path, port: int = 0, announce: Callable[[str], None] = print) -> None:
    """Serve `report` on 127.0.0.1, at a path that cannot be guessed, until Ctrl-C.

    `announce` is called with each line to print: the address and the ssh command of the tunnel. The file is read again
    at each request. Port 0 picks a free port.

    Raises:
        UsageError: `report` cannot be read, or the port is in use, not permitted or out of range.
    """
    _open(report).close()
    try:
        with ReportServer(report, port) as server:
            announce(f"Report: {server.url}")
            announce(f"From another machine: {server.tunnel}")
            announce("Press Ctrl-C to stop.")
            server.serve_forever()
    except KeyboardInterrupt:
        return


def _open(report: Path) -> BinaryIO:
    """Open the file `report`.

    Raises:
        UsageError: it is missing, not a regular file, or not readable.
    """
    try:
        if report.exists() and not report.is_file():
            raise UsageError(f"{report} is not a file.")
        return report.open("rb")
    except OSError as error:
        raise UsageError(f"{report} cannot be read: {error.strerror}.") from None


class ReportServer(ThreadingHTTPServer):
    """A server of one file, with a thread per request, so that a hanging client does not block others."""

    daemon_threads = True
    allow_reuse_port = False  # no other process may listen on it
    request_queue_size = 128  # with the default 5, a few hanging clients delay others by seconds

    def __init__(self, report: Path, port: int = 0) -> None:
        """Listen on `port` of 127.0.0.1. Raises UsageError if it is in use, not permitted or out of range."""
        self.report = report
        self.token = secrets.token_urlsafe(24)
        if not 0 <= port <= 65535:
            raise UsageError(f"port {port} is not between 0 and 65535; 0 picks a free port.")
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except OSError as error:
            reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
            raise UsageError(f"port {port} {reason}: choose another, or 0 for a free port.") from None

    @property
    def url(self) -> str:
        """The address of the report."""
        return f"http://{LOOPBACK}:{self.server_port}/{self.token}/"

    @property
    def tunnel(self) -> str:
        """The ssh command that makes the address work on another machine."""
        return f"ssh -N -L {self.server_port}:{LOOPBACK}:{self.server_port} {socket.gethostname()}"

    def server_bind(self) -> None:
        """Bind without resolving this machine's full name, which can take a minute."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = LOOPBACK, self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore lost connections."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    timeout = PATIENCE
    server: ReportServer

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def __getattr__(self, name: str) -> Any:
        # http.server answers 501 for requests without a do_ method.
        if name.startswith("do_"):
            return lambda: self.send_error(HTTPStatus.METHOD_NOT_ALLOWED)
        raise AttributeError(name)

    def _answer(self, with_body: bool) -> None:
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or not _HOST.fullmatch(hosts[0].strip()):
            self.send_error(HTTPStatus.FORBIDDEN)
            return
        path = self.path.partition("?")[0].removesuffix("/")
        if not hmac.compare_digest(path.encode("utf-8", "surrogatepass"), f"/{self.server.token}".encode()):
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        try:
            file = _open(self.server.report)
        except UsageError:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        with file:
            self._send_head(HTTPStatus.OK, "text/html; charset=utf-8", os.fstat(file.fileno()).st_size)
            if with_body:
                shutil.copyfileobj(file, self.wfile, CHUNK)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer with the code and its name only."""
        body = f"{HTTPStatus(code).phrase}\n".encode()
        self._send_head(code, "text/plain; charset=utf-8", len(body))
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_head(self, code: int, kind: str, size: int) -> None:
        self.close_connection = True
        self.send_response(code, HTTPStatus(code).phrase)
        if code == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        for name, value in {"Content-Type": kind, "Content-Length": str(size), **_HEADERS}.items():
            self.send_header(name, value)
        self.end_headers()

    def version_string(self) -> str:
        return "hpc-tumor"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name in http.server
        pass
