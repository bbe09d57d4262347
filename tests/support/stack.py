"""A whole stack as a user runs it: `xnai up` on its own data directory, and the command line."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from cli.client import Api
from runtime.errors import XnaiError
from runtime.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parents[2]
START_S = 60.0
STOP_S = 40.0
POLL_S = 0.05


@dataclass(slots=True)
class Stack:
    """A running stack; `settings` are those of a user on the same data directory."""

    data_dir: Path
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    is_covered: bool = True
    _seen: set[psutil.Process] = field(default_factory=set)

    @property
    def settings(self) -> Settings:
        allowed = tuple(filter(None, self.environment.get("XNAI_EGRESS_ALLOW", "").split(",")))
        given = {
            name: self.environment[f"XNAI_{name.upper()}"]
            for name in ("api_url", "api_key")
            if f"XNAI_{name.upper()}" in self.environment
        }
        return load_settings(data_dir=self.data_dir, egress_allow=allowed, **given)

    def start(self) -> None:
        """Run `xnai up` until it is ready."""
        self.process = self.spawn("up", "--port", "0")
        self.wait_ready()

    def spawn(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start `xnai …` on this data directory, without waiting for it."""
        return subprocess.Popen(_command(arguments), cwd=ROOT, env=self._environment())

    def wait_ready(self) -> None:
        """Return when /readyz answers 200."""

        def is_ready() -> bool:
            if self.process is not None and self.process.poll() is not None:
                raise AssertionError(f"the stack ended with {self.process.returncode}")
            try:
                with Api(self.settings) as api:
                    api.get("/readyz")
            except XnaiError:
                return False
            return True

        wait_until(is_ready, timeout_s=START_S, what="the stack to be ready")

    def stop(self) -> int:
        """Drain the stack; its exit code."""
        if self.process is None:
            raise AssertionError("not started")
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_S)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            _command(arguments),
            cwd=ROOT,
            env=self._environment(),
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def json(self, *arguments: str) -> Any:
        """Run a command with --json and parse what it prints."""
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr or done.stdout
        return json.loads(done.stdout)

    @contextmanager
    def api(self) -> Iterator[Api]:
        with Api(self.settings) as api:
            yield api

    def processes(self) -> list[psutil.Process]:
        """Every living process of this stack: descendants, once seen, and embedded servers."""
        with suppress(psutil.NoSuchProcess):
            if self.process is not None:
                launcher = psutil.Process(self.process.pid)
                self._seen.update((launcher, *launcher.children(recursive=True)))
        for process in psutil.process_iter():
            with suppress(psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
                if str(self.data_dir) in process.cwd():
                    self._seen.add(process)
        return [process for process in self._seen if _is_alive(process)]

    def titled(self, title: str) -> list[psutil.Process]:
        """Processes of this stack whose command line begins with `xnai TITLE`."""
        found = []
        for process in self.processes():
            try:
                if " ".join(process.cmdline()).startswith(f"xnai {title}"):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        return found

    def _environment(self) -> dict[str, str]:
        # Measuring coverage costs each process some 15 MB, which would be taken for the product's.
        inherited = {
            name: value
            for name, value in os.environ.items()
            if self.is_covered or not name.startswith("COVERAGE")
        }
        return {
            **inherited,
            "XNAI_DATA_DIR": str(self.data_dir),
            "XNAI_LOG_LEVEL": "warning",
            **self.environment,
        }


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _command(arguments: tuple[str, ...]) -> list[str]:
    return [sys.executable, "-m", "cli.main", *arguments]


def wait_until(condition: Callable[[], bool], *, timeout_s: float, what: str) -> None:
    """Poll a condition that no signal tells; fail with what was waited for."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s:g} s for {what}")
        time.sleep(POLL_S)
