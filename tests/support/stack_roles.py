"""Small roles for the tests of `xnai up`: `python -m tests.support.stack_roles ROLE`.

`serve` answers HTTP on the socket of `up`; `idle` waits for SIGTERM; `stubborn` ignores it;
`broken` ends.
"""

import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from runtime.listening import inherited
from runtime.readiness import Notifier


class _Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    role = sys.argv[1]
    if role == "broken":
        sys.exit(1)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if role == "stubborn" else _leave)
    Path(os.environ["XNAI_DATA_DIR"], f"{role}.pid").write_text(str(os.getpid()))
    notifier = Notifier.from_environment()
    if role == "serve":
        (listener,) = inherited()
        with listener, HTTPServer(("", 0), _Healthy, bind_and_activate=False) as server:
            server.socket.close()
            server.socket = listener
            notifier.ready()
            server.serve_forever()
    notifier.ready()
    while True:
        signal.pause()


def _leave(*_: object) -> None:
    os._exit(0)


if __name__ == "__main__":
    main()
