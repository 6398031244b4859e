"""A proxy in front of a real tracker: it writes down what is asked, and can answer in its place."""

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Call(NamedTuple):
    method: str
    path: str  # without what is in front of mlflow/ or mlflow-artifacts/
    body: Any


class Proxy:
    """`answer` gives a status and a text for a call that is not to be handed on, else None."""

    def __init__(self, target: str) -> None:
        self.target, self.calls = target, list[Call]()
        self.answer: Callable[[Call], tuple[int, str] | None] = lambda _: None
        self.uri = ""

    def made(self, path: str) -> list[Any]:
        """Bodies of the calls to a path, that were handed on."""
        return [call.body for call in self.calls if call.path == path]


def error(status: int, code: str) -> tuple[int, str]:
    """An answer as MLflow's server gives it."""
    return status, json.dumps({"error_code": code, "message": f"{code} of the proxy"})


@contextmanager
def proxied(target: str) -> Iterator[Proxy]:
    proxy = Proxy(target)

    class Handler(BaseHTTPRequestHandler):
        def handle_one(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.partition("?")[0].partition("/api/2.0/")[2]
            is_json = content.startswith(b"{")
            call = Call(self.command, path, json.loads(content) if is_json else content)
            status, text = proxy.answer(call) or (0, "")
            data = text.encode()
            if not status:
                proxy.calls.append(call)
                status, data = self.hand_on(content)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def hand_on(self, content: bytes) -> tuple[int, bytes]:
            kept = ("Content-Type", "Accept")
            headers = {name: self.headers[name] for name in kept if name in self.headers}
            request = urllib.request.Request(
                proxy.target + self.path, content or None, headers, method=self.command
            )
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return answer.status, answer.read()
            except urllib.error.HTTPError as error:
                return error.code, error.read()
            except OSError:
                return 502, b"away"

        def log_message(self, *_: Any) -> None:
            pass

    for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        setattr(Handler, f"do_{method}", Handler.handle_one)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        proxy.uri = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield proxy
        finally:
            server.shutdown()
