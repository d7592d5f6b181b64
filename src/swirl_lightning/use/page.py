"""Web page of ``swirl play``: a game as JSON over HTTP, for this machine's browser alone unless told otherwise."""

from __future__ import annotations

import base64
import io
import json
import re
import sys
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from PIL import Image

from swirl_lightning.console.run import MENDABLE
from swirl_lightning.data.images import open_rgb
from swirl_lightning.transition import State
from swirl_lightning.use.game import Game

_HTML = Path(__file__).parents[1] / "assets" / "play" / "index.html"
_MOST_BYTES = 32 * 2**20
_RECORD = re.compile(r"test:\d+", re.ASCII)
_LOOPBACK = ("127.0.0.1", "localhost", "::1")  # the last one behind a forwarded port
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; connect-src 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class Page(ThreadingHTTPServer):
    """Server of one game.

    A request must name a host that is served, so that no other site's name can lead a browser here, and a change must
    come as JSON, which a browser lets no other site send.

    Args:
        game: what is played.
        read: makes a state of a name, one of ``starts`` or another ``test:N``.
        starts: names of states to choose among.
        actions: to choose among.
        host: address to listen on.
        port: 0 takes a free one.

    Raises:
        OSError: the port is in use, or the address is none of this machine's.
    """

    daemon_threads = True

    def __init__(
        self,
        game: Game,
        read: Callable[[str], State],
        starts: Sequence[str] = (),
        actions: Sequence[str] = (),
        host: str = "127.0.0.1",
        port: int = 7860,
    ) -> None:
        self.game, self.read, self.starts, self.actions = game, read, starts, actions
        self.lock = threading.Lock()  # one model call at a time
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            raise OSError(
                f"cannot listen on {host}:{port} ({getattr(error, 'strerror', None) or str(error).rstrip('.')}): give "
                "another --port (0 takes one that is free), or a --host of this machine"
            ) from error
        names = {host.lower(), str(self.server_address[0])}  # as it was given, and as `url` has it
        self.hosts = names.union(_LOOPBACK) if names.intersection(_LOOPBACK) else names

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://{self.server_address[0]!s}:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a browser that has gone, as one does that loads the page anew during a prediction."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)

    def seen(self) -> dict[str, Any]:
        """Return all that the page shows."""
        game = self.game
        return {
            "starts": list(self.starts),
            "actions": list(self.actions),
            "world": None if game.world is None else game.world.name,
            "models": list(game.models),
            "state": _shown(game.state),
            "path": list(game.actions),
            "action": game.action,
            "predicted": {
                name: [{"state": _shown(s.state), "score": s.score, "log_prob": s.log_prob} for s in steps]
                for name, steps in game.predicted.items()
            },
            "true": _shown(game.true),
            "note": game.note,
        }

    def take(self, what: str, given: dict[str, Any]) -> dict[str, Any]:
        """Do what the page asks for, and return what it shows then.

        Raises:
            ValueError: it cannot be done; as `Game`.
        """
        with self.lock:
            if what == "begin":
                self.game.begin(self._state(given))
            elif what == "act":
                self.game.act(str(given.get("action", "")), int(given.get("count", 4)), int(given.get("seed", 0)))
            elif what == "choose":
                self.game.choose(str(given.get("model", "")), int(given.get("place", -1)))
            elif what == "undo":
                self.game.undo()
            elif what == "explain":
                found = self.game.explain(self._state(given))
                return {**self.seen(), "labels": {name: _told(label) for name, label in found.items()}}
            else:
                raise ValueError(f"unknown request {what!r}")
            return self.seen()

    def _state(self, given: dict[str, Any]) -> State:
        """An uploaded image, or a state by name or in words."""
        if "image" in given:
            return open_rgb(base64.b64decode(str(given["image"]), validate=True))
        name = str(given.get("state", ""))
        known = self.starts and _RECORD.fullmatch(name)  # of a long split not all are offered
        return self.read(name) if known or name in self.starts else _words(name)


class _Handler(BaseHTTPRequestHandler):
    server: Page
    timeout = 60  # seconds, of each read and write; a connection that says nothing is closed then

    def do_GET(self) -> None:
        """Give the page, or the game as JSON."""
        if not self._host_is_served():
            return
        if self.path == "/":
            self._send(200, _HTML.read_bytes(), "text/html; charset=utf-8")
        elif self.path == "/game":
            with self.server.lock:
                seen = self.server.seen()
            self._json(200, seen)  # without the lock: a browser may be slow to take it
        else:
            self._json(404, {"error": "no such page"})

    def do_POST(self) -> None:
        """Do what the page asks for."""
        if not self._host_is_served():
            return
        length = self.headers.get("Content-Length", "")
        if self.headers.get("Content-Type", "").partition(";")[0] != "application/json":
            self._json(415, {"error": "send application/json"})
        elif not length.isdecimal() or len(length) > 9 or int(length) > _MOST_BYTES:
            self.close_connection = True
            self._json(413, {"error": f"send at most {_MOST_BYTES >> 20} MiB"})
        else:
            self._json(*self._taken(int(length)))

    def _taken(self, length: int) -> tuple[int, dict[str, Any]]:
        try:
            given = json.loads(self.rfile.read(length))
            if not isinstance(given, dict):
                raise ValueError("send an object")
            return 200, self.server.take(self.path.removeprefix("/"), given)
        except (*MENDABLE, TypeError, OverflowError, RecursionError) as error:
            return 400, {"error": str(error)}

    def _host_is_served(self) -> bool:
        name = re.sub(r":\d+$", "", self.headers.get("Host", "")).strip("[]").lower()  # at port 80 it has no port
        if "0.0.0.0" in self.server.hosts or name in self.server.hosts:
            return True
        self._json(403, {"error": "this host is not served"})
        return False

    def _json(self, status: int, given: dict[str, Any]) -> None:
        self._send(status, json.dumps(given).encode(), "application/json")

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def _shown(state: State | None) -> dict[str, str] | None:
    if not isinstance(state, Image.Image):
        return None if state is None else {"text": state}
    file = io.BytesIO()
    state.save(file, "PNG")
    return {"image": "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()}


def _told(label: Any) -> list[dict[str, Any]]:
    return [
        {"action": one.action, "log_prob": one.log_prob, "agreement": one.agreement}
        for one in (label, *label.alternatives)
    ]


def _words(text: str) -> str:
    if not text.strip():
        raise ValueError("the state is empty: choose one, upload an image or type words")
    return text
