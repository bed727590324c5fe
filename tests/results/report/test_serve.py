"""The report over HTTP: who gets it, and who gets nothing."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hpc_tumor.errors import UsageError
from hpc_tumor.results.report.serve import ReportServer, serve_report

PAGE = "<!doctype html><title>Dice ± sd</title>"


@pytest.fixture
def report(tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    path.write_text(PAGE, encoding="utf-8")
    (tmp_path / "secret.txt").write_text("secret")
    return path


@pytest.fixture
def server(report: Path) -> Iterator[ReportServer]:
    with ReportServer(report) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(
    server: ReportServer, path: str, method: str = "GET", host: str | None = None
) -> tuple[http.client.HTTPResponse, bytes]:
    """The answer to one request; `host` stands in place of the address in its Host header."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.request(method, path, headers={} if host is None else {"Host": host})
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response, body


def raw(server: ReportServer, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as client:
        client.sendall(request)
        answer = b""
        while more := client.recv(4096):
            answer += more
    return answer


def test_the_address_gives_the_page_with_headers_that_keep_it_to_itself(server: ReportServer) -> None:
    assert server.url == f"http://127.0.0.1:{server.server_port}/{server.token}/"
    for path in (f"/{server.token}/", f"/{server.token}", f"/{server.token}/?anything"):
        response, body = ask(server, path)
        assert (response.status, body.decode()) == (200, PAGE)
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert response.headers["Content-Security-Policy"].startswith("default-src 'none'; ")
    assert response.headers["Server"] == "hpc-tumor"


def test_head_gives_the_same_headers_and_no_body(server: ReportServer) -> None:
    response, body = ask(server, f"/{server.token}/", "HEAD")
    assert (response.status, body) == (200, b"")
    assert response.headers["Content-Length"] == str(len(PAGE.encode()))
    assert ask(server, "/", "HEAD")[1] == b""
    assert raw(server, b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n").endswith(b"\r\n\r\n")


def test_any_other_path_is_404_and_says_nothing(server: ReportServer) -> None:
    token = server.token
    paths = (
        "/", "//", "/report.html", "/favicon.ico", f"/{token[:-1]}/", f"/{token}x/", f"/{token.swapcase()}/",
        f"/{token}/report.html", f"/{token}/../secret.txt", "/../secret.txt", f"/{token}/..%2fsecret.txt",
        f"/{token}//", f"/?token={token}", f"/%{ord(token[0]):02x}{token[1:]}/", "/" + "\xff" * 32 + "/", "*",
        f"http://127.0.0.1/{token}/", "/" + "a" * 10_000,
    )  # fmt: skip
    answers = set()
    for path in paths:
        line = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode("latin-1")
        head, _, body = raw(server, line).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.0 404 "), path
        answers.add((re.sub(rb"\r\nDate: [^\r]*", b"", head), body))
    assert len(answers) == 1
    assert answers.pop()[1] == b"Not Found\n"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "CONNECT", "get", "FOO"])
def test_other_methods_are_405(server: ReportServer, method: str) -> None:
    for path in (f"/{server.token}/", "/"):
        response, body = ask(server, path, method)
        assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD")
        assert body == b"Method Not Allowed\n"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:1", "[::1]:80"])
def test_hosts_at_the_end_of_a_tunnel_are_taken(server: ReportServer, host: str) -> None:
    assert ask(server, f"/{server.token}/", host=host)[0].status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "127.0.0.1:80:80", "", "127.0.0.2"]
)
def test_other_hosts_are_refused_with_the_token_and_without(server: ReportServer, host: str) -> None:
    for path in (f"/{server.token}/", "/"):
        response, body = ask(server, path, host=host)
        assert (response.status, body) == (403, b"Forbidden\n")


@pytest.mark.parametrize("hosts", [b"", b"Host: localhost\r\nHost: evil.example\r\n"])
def test_no_host_and_two_hosts_are_refused(server: ReportServer, hosts: bytes) -> None:
    request = b"GET /" + server.token.encode() + b"/ HTTP/1.1\r\n" + hosts + b"\r\n"
    assert raw(server, request).startswith(b"HTTP/1.0 403 ")


@pytest.mark.parametrize("request_line", [b"\x00\xff\x16\x03", b"GET", b"GET / HTTP/9.9", b"GET / / /", b"A" * 70_000])
def test_what_is_no_request_gets_an_error_and_no_trace(
    server: ReportServer, request_line: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    answer = raw(server, request_line + b"\r\n\r\n")
    assert answer == b"" or re.match(rb"HTTP/1.0 (4|5)\d\d |[A-Z][A-Za-z -]+\n$", answer), answer
    assert ask(server, f"/{server.token}/")[0].status == 200
    assert "Traceback" not in "".join(capfd.readouterr())


def test_only_this_machine_is_listened_to(server: ReportServer) -> None:
    assert server.socket.getsockname()[0] == "127.0.0.1"
    with pytest.raises(OSError, match="refused"):  # the same machine by another of its addresses
        socket.create_connection(("127.0.0.2", server.server_port), timeout=5)


def test_a_new_report_shows_at_the_next_request(server: ReportServer, report: Path) -> None:
    new = report.with_name("new")
    new.write_text("newer")
    new.replace(report)
    assert ask(server, f"/{server.token}/")[1] == b"newer"
    report.unlink()
    assert ask(server, f"/{server.token}/")[0].status == 404


def test_a_big_report_to_many_at_once(server: ReportServer, report: Path) -> None:
    page = os.urandom(1 << 20) * 24
    report.write_bytes(page)
    with ThreadPoolExecutor(8) as pool:
        bodies = list(pool.map(lambda _: ask(server, f"/{server.token}/")[1], range(8)))
    assert all(body == page for body in bodies)


def test_clients_that_never_finish_keep_nobody_waiting(
    server: ReportServer, report: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    report.write_bytes(b"x" * (1 << 24))
    clients = [socket.create_connection(("127.0.0.1", server.server_port)) for _ in range(20)]
    for index, client in enumerate(clients):
        if index % 3:  # others say nothing, or begin a request
            client.sendall(
                b"GET /" + (server.token.encode() + b"/ HTTP/1.1\r\nHost: localhost\r\n\r\n") * (index % 3 - 1)
            )
    assert len(ask(server, f"/{server.token}/")[1]) == 1 << 24
    for client in clients:  # some in the middle of the page that they asked for
        client.close()
    assert len(ask(server, f"/{server.token}/")[1]) == 1 << 24
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_client_that_falls_silent_is_hung_up_on(server: ReportServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.RequestHandlerClass, "timeout", 0.2)
    assert raw(server, b"GET /") == b""


def test_tokens_differ_and_cannot_be_guessed(report: Path) -> None:
    tokens = set()
    for _ in range(3):
        with ReportServer(report) as server:
            tokens.add(server.token)
    assert len(tokens) == 3
    assert min(map(len, tokens)) >= 32


def test_a_port_that_is_taken_and_ports_that_are_none(server: ReportServer, report: Path) -> None:
    taken = f"port {server.server_port} is in use: choose another, or 0 for a free port."
    for port, message in ((server.server_port, taken), (-1, "port -1 is not between"), (65536, "port 65536 is not")):
        with pytest.raises(UsageError, match=message) as caught:
            serve_report(report, port, announce=pytest.fail)
        assert "\n" not in str(caught.value)


def test_a_report_that_is_not_there_or_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, message in (("none.html", "No such file"), ("", "is not a file"), ("pipe", "is not a file")):
        with pytest.raises(UsageError, match=message):
            serve_report(tmp_path / name, announce=pytest.fail)


def test_ctrl_c_ends_it_quietly(report: Path) -> None:
    code = (
        "import sys, pathlib; from hpc_tumor.results.report.serve import serve_report;"
        "serve_report(pathlib.Path(sys.argv[1]))"
    )
    command = [sys.executable, "-u", "-c", code, str(report)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        port = re.fullmatch(r"Report: http://127\.0\.0\.1:(\d+)/[\w-]{32}/\n", lines[0])
        assert port, lines
        tunnel = f"ssh -N -L {port[1]}:127.0.0.1:{port[1]} {socket.gethostname()}"
        assert lines[1:] == [f"From another machine: {tunnel}\n", "Press Ctrl-C to stop.\n"]
        with socket.create_connection(("127.0.0.1", int(port[1]))):  # also while a client hangs
            process.send_signal(signal.SIGINT)
            rest = process.communicate(timeout=20)
    assert (process.returncode, rest) == (0, ("", ""))
