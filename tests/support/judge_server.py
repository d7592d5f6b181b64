"""An OpenAI-compatible endpoint on localhost."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "sk-very-secret-0123456789"


class Server(ThreadingHTTPServer):
    """Answers from a script, and keeps what it was asked.

    The script has a status for each request, or a function that gets the handler and writes whatever it likes.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests, self.script, self.keys = [], [], []
        self.answer = lambda request: '{"score": 7}'
        self.delay, self.active, self.most = 0.0, 0, 0
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.requests.append(request)
            server.keys.append(self.headers["Authorization"])
            status = server.script.pop(0) if server.script else 200
            server.active += 1
            server.most = max(server.most, server.active)
        time.sleep(server.delay)
        if callable(status):
            with suppress(OSError):  # the client hangs up
                status(self)
            with server.lock:
                server.active -= 1
            return
        body = {"error": {"message": f"no {KEY}"}}
        if status == 200:
            message = {"role": "assistant", "content": server.answer(request)}
            body = {
                "id": "1",
                "object": "chat.completion",
                "created": 0,
                "model": request["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105},
            }
        with server.lock:
            server.active -= 1
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


def body(content, status=200, **headers):
    """A whole answer of any content."""

    def write(handler):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        handler.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data)

    return write


def completion(text):
    """The fields of a whole answer."""
    return {"choices": [{"message": {"content": text}}], "usage": {"prompt_tokens": 100, "completion_tokens": 5}}


@contextmanager
def serving() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
