"""A PostgreSQL of Debian for tests, started from nothing and gone afterwards.

A test module gets it by ``from tests.postgres import postgres``. The package is ``postgresql``. Without it the tests
are skipped, and fail where ``CI=true``. PostgreSQL refuses to run as root, who runs it as the user ``postgres``.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import skip_or_fail

FOLDERS = Path("/usr/lib/postgresql")


class Postgres:
    """A server on a socket of its own, in a folder of its own."""

    def __init__(self, programs: Path, folder: Path, user: str) -> None:
        self.programs, self.folder, self.user = programs, folder, user
        self.url = f"postgresql+psycopg://{user}@/postgres?host={folder}"
        self.run("initdb", "-D", f"{folder}/data", "-U", user, "-A", "trust", "--no-sync", "-E", "UTF8")

    def run(self, program: str, *words: str) -> None:
        """Run one of PostgreSQL's programs to its end."""
        account: dict[str, Any] = {"user": self.user, "group": pwd.getpwnam(self.user).pw_gid, "extra_groups": []}
        log = self.folder / "programs.log"
        with log.open("ab") as output:  # no pipe: the server would keep it open
            done = subprocess.run(
                [self.programs / program, *words],
                check=False,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=120,
                **(account if os.getuid() == 0 else {}),
            )
        assert done.returncode == 0, log.read_text(encoding="utf-8")

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = f"-k {self.folder} -c listen_addresses= -c fsync=off"
        self.run("pg_ctl", "-D", f"{self.folder}/data", "-l", f"{self.folder}/server.log", "-o", options, "-w", "start")

    def stop(self) -> None:
        """Break off every connection and stop."""
        self.run("pg_ctl", "-D", f"{self.folder}/data", "-m", "immediate", "-w", "stop")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A running server."""
    found = sorted(FOLDERS.glob("*/bin/pg_ctl"), key=lambda path: int(path.parts[-3]))
    user = "postgres" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
    if not found or user not in {entry.pw_name for entry in pwd.getpwall()}:
        skip_or_fail("no PostgreSQL that could run here: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a socket's path may have 107 characters
    if os.getuid() == 0:
        shutil.chown(folder, user)
    try:
        server = Postgres(found[-1].parent, folder, user)
        server.start()
        yield server
        server.stop()
    finally:
        shutil.rmtree(folder)
