"""What the command line says when something is wrong: one clear line and the right exit code."""

import socket
from pathlib import Path

from tests.support.stack import Stack


def one_line(text: str) -> str:
    (line,) = text.strip().splitlines()
    return line


def test_without_a_server(tmp_path: Path) -> None:
    done = Stack(tmp_path, {"XNAI_API_URL": "http://127.0.0.1:1"}).run("jobs", "list")
    assert done.returncode == 3
    assert "xnai up" in one_line(done.stderr)


def test_with_a_wrong_key(stack: Stack) -> None:
    wrong = Stack(stack.data_dir, {"XNAI_API_KEY": "xnai_wrong_key"})
    done = wrong.run("jobs", "list")
    assert done.returncode == 1
    assert "XNAI_API_KEY" in one_line(done.stderr)


def test_with_a_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = Stack(tmp_path).run("up", "--port", str(port))
    assert done.returncode == 1
    assert str(port) in one_line(done.stderr)


def test_with_an_unknown_setting(tmp_path: Path) -> None:
    done = Stack(tmp_path, {"XNAI_PROT": "1"}).run("jobs", "list")
    assert done.returncode == 2
    assert "XNAI_PORT" in one_line(done.stderr)


def test_a_bad_payload_names_its_field(stack: Stack) -> None:
    done = stack.run("submit", "crawl", "url=file:///etc/passwd")
    assert done.returncode == 1
    assert "/payload/url" in one_line(done.stderr)


def test_a_private_address_names_the_entry_that_would_permit_it(stack: Stack) -> None:
    done = stack.run("submit", "crawl", "url=http://10.1.2.3/")
    assert done.returncode == 1
    assert "EGRESS_ALLOW" in one_line(done.stderr)


def test_a_second_up_on_the_same_data_directory_is_refused(stack: Stack) -> None:
    done = stack.run("up", "--port", "0")
    assert done.returncode == 1
    assert str(stack.process.pid if stack.process else "") in one_line(done.stderr)


def test_env_is_for_eval(stack: Stack) -> None:
    done = stack.run("env")
    names = {line.split("=")[0] for line in done.stdout.splitlines()}
    wanted = ("XNAI_DATABASE_URL", "XNAI_REDIS_URL", "XNAI_API_URL", "XNAI_API_KEY")
    assert names == {f"export {name}" for name in wanted}
