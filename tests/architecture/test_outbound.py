"""Whoever opens connections is known: what users name is reached through the egress guard alone."""

import ast

from tests.support.repository import PACKAGES, ROOT, sources

# What opens a connection to an address of its caller's choice, by module or by name.
CLIENTS = {
    "httpx", "httpcore", "aiohttp", "requests", "urllib3", "urllib.request", "http.client",
    "ftplib", "smtplib", "poplib", "imaplib", "telnetlib", "nntplib", "xmlrpc.client", "websockets",
    "pycurl", "qdrant_client", "socketserver", "asyncssh", "paramiko",
}  # fmt: skip
CALLS = {
    "connect_tcp", "connect_unix", "open_connection", "open_unix_connection", "create_connection",
    "create_datagram_endpoint", "create_udp_socket", "create_connected_udp_socket", "sock_connect",
    "urlopen", "urlretrieve",
}  # fmt: skip

# Behind the guard: they get a client from runtime/egress.py and never open one themselves.
GUARDED = {
    "crawl/body.py": "reads the body of a guarded answer",
    "crawl/fetch.py": "asks runtime.egress for the crawl's client",
    "crawl/robots.py": "fetches robots.txt by the crawl's client",
    "crawl/site.py": "hands the crawl's client on",
    "crawl/visit.py": "hands the crawl's client on",
    "webhooks/request.py": "posts by the deliveries' wire",
    "webhooks/wire.py": "opens the deliveries' connections by the guard's backend",
    "workers/handlers/crawl.py": "holds the crawl's client of a slot",
}
# Beside it: to our own servers, whose addresses an operator sets and no request can.
OWN = {
    "chaos/clients.py": "calls the API of the stack under test",
    "chaos/index_audit.py": "calls the search role of the stack under test",
    "chaos/proxy.py": "stands before the servers of the stack under test",
    "chaos/rates.py": "calls the API of the stack under test",
    "chaos/run.py": "calls the API of the stack under test",
    "cli/client.py": "calls our API at XNAI_API_URL",
    "cli/listen.py": "hands events on to the address that its user typed, on his machine",
    "corpus/search_client.py": "calls our search role",
    "engines/gguf_xllamacpp.py": "calls the model's server on loopback",
    "runtime/egress.py": "is the guard",
    "runtime/embedded_valkey.py": "asks the embedded Valkey whether it is up",
}


def _imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def _called(tree: ast.AST) -> set[str]:
    functions = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    named = {function.attr for function in functions if isinstance(function, ast.Attribute)}
    return named | {function.id for function in functions if isinstance(function, ast.Name)}


def _opens(text: str) -> bool:
    tree = ast.parse(text)
    return bool(_imported(tree) & CLIENTS or _called(tree) & CALLS)


def test_only_known_modules_open_connections() -> None:
    found = {str(path.relative_to(ROOT)) for path in sources(*PACKAGES) if _opens(path.read_text())}
    assert found - {*GUARDED, *OWN} == set(), "go through runtime.egress, or give the reason here"
    gone = {name for name in {*GUARDED, *OWN} - found if (ROOT / name).exists()}
    assert gone == set(), "opens nothing any more"


def test_modules_behind_the_guard_make_no_client_of_their_own() -> None:
    makers = {"AsyncClient", "Client", "AsyncHTTPTransport", "HTTPTransport", "AnyIOBackend"}
    makers |= {"AutoBackend", "get", "post", "request", "stream"}
    for name in GUARDED:
        path = ROOT / name
        made = {
            ast.unparse(node.func)
            for node in ast.walk(ast.parse(path.read_text() if path.exists() else ""))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id in {"httpx", "httpcore"}
            and node.func.attr in makers
        }
        assert made == set(), name


def test_every_pool_of_connections_is_given_the_guard() -> None:
    pools = [
        (str(path.relative_to(ROOT)), {keyword.arg for keyword in node.keywords})
        for path in sources(*PACKAGES)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("ConnectionPool")
        if "httpcore" in ast.unparse(node.func)
    ]
    assert pools
    assert [name for name, given in pools if "network_backend" not in given] == []
    assert [name for name, given in pools if given & {"proxy", "uds"}] == []


def test_scan_recognises_what_it_is_for() -> None:
    for text in (
        "import httpx",
        "from urllib.request import urlopen",
        "from urllib import request",
        "await anyio.connect_tcp(host, 80)",
        "create_connection((host, 80))",
    ):
        assert _opens(text), text
    assert not _opens("from urllib.parse import urlsplit")
