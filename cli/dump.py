"""Streams a whole database out and in by PostgreSQL's own programs; knows nothing of folders.

Passwords travel in the environment, never in an argument list.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from runtime.embedded_postgres import client_program
from runtime.errors import DiskFullError, EmbeddedServerError, NotReachableError, XnaiError
from runtime.sql import load_queries

QUERIES = load_queries("cli")
CHUNK_BYTES = 256 * 1024

# Servers before 17 do not know this setting, which newer programs write into every script.
_NEWER_SETTING = b"SET transaction_timeout = 0;\n"
_NEWER_SETTING_SINCE = 17
_LOST_SERVER = ("connection to server", "server closed the connection", "terminating connection")


class DumpError(XnaiError):
    """A program of PostgreSQL refused or broke off; the message is its own."""


@dataclass(frozen=True, slots=True)
class Address:
    """A database's address without its password, and the environment that holds it."""

    url: str
    environment: dict[str, str]


def address_of(url: str) -> Address:
    """Take the password out of a database's address."""
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query))
    password = options.pop("password", None) or (parts.password and unquote(parts.password))
    user, _, host = parts.netloc.rpartition("@")
    netloc = f"{user.partition(':')[0]}@{host}" if user else host
    plain = urlunsplit(parts._replace(scheme="postgresql", netloc=netloc, query=urlencode(options)))
    environment = {**os.environ, "LC_ALL": "C", "PGCONNECT_TIMEOUT": "10"}
    return Address(plain, environment | ({"PGPASSWORD": password} if password else {}))


def read_database(url: str) -> Iterator[bytes]:
    """Yield a consistent copy of the database, compressed; raises DumpError when it breaks off."""
    address = address_of(url)
    command = [
        _program("pg_dump"),
        f"--dbname={address.url}",
        "--no-password",
        "--format=custom",
        "--schema=public",
        "--no-owner",
        "--no-privileges",
        "--exclude-table-data=search_servers",
    ]
    with _started(command, address) as dump:
        while chunk := dump.pipe.read(CHUNK_BYTES):
            yield chunk
        dump.assert_well()


def write_database(url: str, dump: Path, major: int, tell: Callable[[int], None]) -> None:
    """Replace an empty database's tables by those of the dump: all of them or, on any error, none.

    `tell` hears how many bytes of SQL have been sent. The commit is sent last, so that a program or
    a server that dies anywhere before leaves the database as it was.
    """
    address = address_of(url)
    options = ["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--file=-"]
    command = [_program("psql"), f"--dbname={address.url}", "--no-password", *options]
    with _started(command, address, takes_input=True) as psql:
        try:
            _send(psql.pipe, "clear_for_restore", begin=True)
            _send_script(psql.pipe, dump, major, tell)
            for name in ("use_our_schema", "end_restored_slots", "rebase_positions"):
                _send(psql.pipe, name)
            psql.pipe.write(b"COMMIT;\n")
            psql.pipe.close()
        except BrokenPipeError:
            psql.process.wait()
        psql.assert_well()


def _send(sink: IO[bytes], name: str, *, begin: bool = False) -> None:
    sink.write(f"{'BEGIN;' if begin else ''}\n{QUERIES[name]};\n".encode())
    sink.flush()


def _send_script(sink: IO[bytes], dump: Path, major: int, tell: Callable[[int], None]) -> None:
    options = ["--file=-", "--schema=public", "--no-owner", "--no-privileges"]
    command = [_program("pg_restore"), *options, str(dump)]
    with _started(command, address_of("")) as script:
        sent = 0
        while chunk := script.pipe.read(CHUNK_BYTES):
            is_header = sent == 0 and major < _NEWER_SETTING_SINCE
            sink.write(chunk.replace(_NEWER_SETTING, b"", 1) if is_header else chunk)
            sent += len(chunk)
            tell(sent)
        script.assert_well()


@dataclass(frozen=True, slots=True)
class _Program:
    """A running program, its input or output, and the file that collects its complaints."""

    name: str
    process: subprocess.Popen[bytes]
    pipe: IO[bytes]
    complaints: IO[bytes]

    def assert_well(self) -> None:
        """Wait for its end; raise what it said when that was no success."""
        if self.process.wait():
            self.complaints.seek(0)
            raise _explain(self.name, self.complaints.read().decode(errors="replace"))


@contextmanager
def _started(
    command: list[str], address: Address, *, takes_input: bool = False
) -> Iterator[_Program]:
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if takes_input else subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if takes_input else subprocess.PIPE,
            stderr=complaints,
            env=address.environment,
        )
        pipe = cast("IO[bytes]", process.stdin if takes_input else process.stdout)
        try:
            yield _Program(Path(command[0]).name, process, pipe, complaints)
        finally:
            # Before its pipe is closed: psql must never take a broken script for a whole one.
            process.kill()
            process.wait()
            with suppress(BrokenPipeError):
                pipe.close()


def _program(name: str) -> str:
    """A client program of the wheel, else of the system."""
    try:
        return str(client_program(name))
    except EmbeddedServerError as error:
        if (found := shutil.which(name)) is not None:
            return found
        message = f"no {name} on this machine: install xnai[embedded], or PostgreSQL's client"
        raise DumpError(message) from error


def _explain(name: str, said: str) -> XnaiError:
    lines = [line for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if "ERROR:" in line or "error:" in line] or lines or ["killed"]
    line = errors[0].partition("ERROR:")[2].strip() or errors[0]
    if "No space left on device" in said:
        return DiskFullError(f"no space left on the server's disk: free some ({line})")
    if any(sign in said for sign in _LOST_SERVER):
        return NotReachableError(f"Postgres went away ({line}): start it, and try again")
    return DumpError(line if line.startswith(("the database is not", name)) else f"{name}: {line}")
