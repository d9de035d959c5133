"""The page on this machine while a run goes on."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hypergrad.errors import InputError
from hypergrad.report import server as serving
from hypergrad.report.server import Server, make_server
from tests.report.directories import run_directory, train, write

Answer = tuple[int, dict[str, str], str]


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Server, Path]]:
    """A server of a run's directory on a free port."""
    monkeypatch.setattr(serving, "WAIT", 0.0)
    folder = run_directory(tmp_path / "run", steps=2)
    (tmp_path / "secret").write_text("the secret", encoding="utf-8")
    with make_server(folder) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server, folder
        server.shutdown()
        thread.join()


def ask(server: Server, path: str = "/", method: str = "GET", **headers: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.putrequest(method, path, skip_host="Host" in named, skip_accept_encoding=True)
        for name, value in named.items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read().decode()
    finally:
        connection.close()


def test_the_page_is_served_and_refreshed(served: tuple[Server, Path]) -> None:
    server, folder = served
    status, headers, text = ask(server)
    assert status == 200
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert "finished after 2 of 2 steps" in text
    assert '<noscript><meta http-equiv="refresh" content="10"></noscript>' in text
    assert ask(server, If_None_Match=headers["ETag"])[0] == 304
    run_directory(folder, steps=3)
    status, changed, text = ask(server, If_None_Match=headers["ETag"])
    assert status == 200
    assert changed["ETag"] != headers["ETag"]
    assert "finished after 3 of 3 steps" in text
    assert not (folder / "report.html").exists()


def test_head_has_no_body(served: tuple[Server, Path]) -> None:
    status, headers, text = ask(served[0], method="HEAD")
    assert (status, text) == (200, "")
    assert int(headers["Content-Length"]) > 10_000


@pytest.mark.parametrize(
    "path",
    [
        *("/run.json", "/../secret", "/..%2fsecret", "/%2e%2e/secret", "//secret", "/report.html", "/etc/passwd"),
        *("/..\\secret", "/.", "/%00", "/favicon.ico", "http://127.0.0.1/run.json"),
    ],
)
def test_nothing_else_is_served(path: str, served: tuple[Server, Path]) -> None:
    status, _, text = ask(served[0], path)
    assert status == 404
    assert text == "404 Not Found\n"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "MOVE"])
def test_nothing_can_be_changed(method: str, served: tuple[Server, Path]) -> None:
    server, folder = served
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert ask(server, method=method)[0] == 501
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *(("127.0.0.1", 200), ("localhost:80", 200), ("[::1]:8617", 200), ("LOCALHOST", 200)),
        *(("evil.example", 421), ("127.0.0.1.evil.example", 421), ("", 421), ("[", 421), ("10.0.0.1", 421)),
    ],
)
def test_foreign_names_are_refused(host: str, status: int, served: tuple[Server, Path]) -> None:
    found, _, text = ask(served[0], Host=host)
    assert found == status
    assert ("finished" in text) == (status == 200)


def test_a_remote_server_still_refuses_foreign_names(tmp_path: Path) -> None:
    train(tmp_path, steps=1)
    with make_server(tmp_path, host="0.0.0.0", allow_remote=True) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        assert ask(server, Host="192.0.2.7:80")[0] == 200
        assert ask(server, Host="evil.example")[0] == 421
        server.shutdown()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.org", ""])
def test_other_machines_have_to_be_asked_for(host: str, tmp_path: Path) -> None:
    train(tmp_path, steps=1)
    with pytest.raises(InputError, match="which other machines can reach") as caught:
        make_server(tmp_path, host=host)
    assert "--allow-remote" in caught.value.do


def test_a_taken_port_is_said(served: tuple[Server, Path]) -> None:
    server, folder = served
    with pytest.raises(InputError, match="cannot be listened on") as caught:
        make_server(folder, port=server.server_port)
    assert "--port 0" in caught.value.do


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_out_of_range_is_refused(port: int, tmp_path: Path) -> None:
    train(tmp_path, steps=1)
    with pytest.raises(InputError, match=f"port={port}"):
        make_server(tmp_path, port=port)


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        make_server(tmp_path / "none")


def test_the_page_stays_while_the_directory_is_away(served: tuple[Server, Path]) -> None:
    server, folder = served
    folder.rename(folder.with_name("away"))
    status, _, text = ask(server)
    assert status == 200
    assert "finished after 2 of 2 steps" in text
    folder.with_name("away").rename(folder)


def test_readers_that_hang_up_do_no_harm(served: tuple[Server, Path]) -> None:
    server, _ = served
    for text in (b"", b"GET / HTT", b"\x00\xff\r\n\r\n", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", server.server_port)) as connection:
            connection.sendall(text)
    assert ask(server)[0] == 200


PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have background jobs ignore it
from hypergrad.cli import main
sys.exit(main())
"""


@contextmanager
def watch(folder: Path, *flags: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", PROGRAM, "watch", str(folder), "--port", "0", "--json", *flags]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_control_c_ends_it_cleanly(tmp_path: Path) -> None:
    train(tmp_path, steps=1)
    with watch(tmp_path) as process:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        connection = http.client.HTTPConnection(url.removeprefix("http://").rstrip("/"), timeout=60)
        connection.request("GET", "/")
        assert connection.getresponse().status == 200
        connection.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_it_can_end_with_the_run(tmp_path: Path) -> None:
    write(tmp_path, "run.json", {"began": "2026-01-01T00:00:00+00:00", "ended": None, "planned_steps": 9})
    with watch(tmp_path, "--until-ended") as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.5)
        assert process.poll() is None
        write(tmp_path, "run.json", {"began": "2026-01-01T00:00:00+00:00", "ended": "2026-01-01T00:01:00+00:00"})
        assert process.wait(60) == 0
