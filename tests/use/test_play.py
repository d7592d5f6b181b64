"""`swirl play`: the game without a page, the page without a browser, and both in one where there is a browser."""

from __future__ import annotations

import http.client
import io
import json
import shutil
import socket
import struct
import threading
import time
from base64 import b64decode, b64encode
from contextlib import contextmanager

import pytest
from PIL import Image

from support.swirl import build, randomize
from support.tiny import text_backbone
from swirl_lightning import SWIRL
from swirl_lightning.transition import Transition
from swirl_lightning.use import label, playing, simulate
from swirl_lightning.use.game import Game
from swirl_lightning.use.page import Page, _Handler
from swirl_lightning.use.playing import open_page
from swirl_lightning.use.runs import Run


class Sevens:
    """A world in which every action leads to 77, and the third one nowhere."""

    name = "sevens"

    def states(self, state, actions):
        if actions[-1] == "nope":
            raise ValueError("'nope' is no action of sevens")
        return ["77" if n < 2 else None for n, _ in enumerate(actions)]

    def same(self, one, other):
        return one == other


@pytest.fixture(scope="module")
def models(gemma_path):
    found = {}
    for name, seed in (("SFT", 1), ("SWIRL", 2)):
        found[name] = build(gemma_path, quantization=None)
        randomize(found[name], seed)
        found[name].eval()
    return found


# ---- the game ----------------------------------------------------------------------------------------
def test_both_models_predict_and_any_state_goes_on(models):
    game = Game(models, Sevens())
    game.begin("37")
    game.act("inc", count=3, seed=5)
    for name, model in models.items():
        assert game.predicted[name] == [s for (s,) in simulate(model, "37", ["inc"], branches=3, seed=5)]
    assert game.true == "77"
    chosen = game.predicted["SWIRL"][2].state
    game.choose("SWIRL", 2)
    assert (game.state, game.actions, game.predicted, game.true) == (chosen, ("inc",), {}, None)
    game.act("dec", count=1)
    assert game.predicted["SFT"] == simulate(models["SFT"], chosen, ["dec"])[0]
    game.choose("true", 0)
    assert (game.state, game.actions) == ("77", ("inc", "dec"))
    game.act("inc", count=1)
    assert (game.true, game.note) == (None, "sevens cannot tell the state any more")
    game.act("nope", count=1)
    assert (game.true, game.note) == (None, "'nope' is no action of sevens")
    states = []
    for _ in range(3):
        game.undo()
        states.append(game.state)
    assert states == ["77", chosen, "37"]
    with pytest.raises(ValueError, match="nothing to take back"):
        game.undo()


def test_both_models_name_what_happened(models):
    game = Game(models)
    game.begin("37")
    found = game.explain("73")
    for name, model in models.items():
        assert [found[name]] == label(model, [Transition("37", "73", id="play")], alternatives=2)


def test_what_cannot_be_played_is_refused_and_changes_nothing(models, gemma_path):
    game = Game(models)
    for call, told in (
        (lambda: game.act("inc"), "there is no state yet"),
        (lambda: game.explain("1"), "there is no state yet"),
        (lambda: Game({}), "no model is given"),
        (lambda: Game({"x": SWIRL(text_backbone(gemma_path), roles=("idm",))}), "x has none"),
        (lambda: game.begin(Image.new("RGB", (8, 8))), "TextLLM reads"),
    ):
        with pytest.raises(ValueError, match=told):
            call()
    assert game.state is None
    game.begin("37")
    game.act("inc", count=2)
    before = (game.state, game.predicted)
    for call, told in (
        (lambda: game.act(""), "an action must have words"),
        (lambda: game.act("increase"), "outside the grammar of TextLLM"),
        (lambda: game.act("inc", count=17), r"play.count must lie in \[1, 16\], got 17"),
        (lambda: game.choose("SFT", 2), "no state 3 of 'SFT'"),
        (lambda: game.choose("other", 0), "no state 1 of 'other'"),
        (lambda: game.choose("true", 0), "no state 1 of 'true'"),
    ):
        with pytest.raises(ValueError, match=told):
            call()
    assert (game.state, game.predicted) == before


# ---- the page ----------------------------------------------------------------------------------------
@contextmanager
def served(page):
    thread = threading.Thread(target=page.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield page
    finally:
        page.shutdown()
        page.server_close()
        thread.join()


def send(page, path, given=None, **headers):
    """Status and answer of a request."""
    line = http.client.HTTPConnection("127.0.0.1", page.server_address[1], timeout=60)
    body = None if given is None else given if isinstance(given, bytes) else json.dumps(given).encode()
    headers = {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
    line.request("GET" if given is None else "POST", path, body, headers)
    answer = line.getresponse()
    content = answer.read()
    line.close()
    return answer.status, json.loads(content) if "json" in answer.headers["Content-Type"] else content.decode()


def test_the_game_is_played_by_requests(models):
    with served(Page(Game(models), {"test:0": "37"}.__getitem__, ["test:0"], ["inc"], port=0)) as page:
        assert page.server_address[0] == "127.0.0.1"
        status, text = send(page, "/")
        assert (status, "<title>swirl play</title>" in text) == (200, True)
        assert send(page, "/game")[1]["starts"] == ["test:0"]
        assert send(page, "/begin", {"state": "test:0"})[1]["state"] == {"text": "37"}
        status, seen = send(page, "/act", {"action": "inc", "count": 2})
        (one, _), (two, _) = (seen["predicted"][name] for name in ("SFT", "SWIRL"))
        assert status == 200
        assert {"state", "score", "log_prob"} == set(one) == set(two)
        assert send(page, "/choose", {"model": "SFT", "place": 0})[1]["state"] == one["state"]
        assert send(page, "/undo", {})[1]["state"] == {"text": "37"}
        _, seen = send(page, "/explain", {"state": "73"})
        assert set(seen["labels"]) == {"SFT", "SWIRL"}
        assert {"action", "log_prob", "agreement"} == set(seen["labels"]["SFT"][0])
        assert send(page, "/begin", {"state": "in words"})[1]["state"] == {"text": "in words"}

        host = f"127.0.0.1:{page.server_address[1]}"
        for path, given, headers, status, told in (
            ("/act", {"action": "inc"}, {"Host": "evil.example:80"}, 403, "this host is not served"),
            ("/game", None, {"Host": "evil.example"}, 403, "this host is not served"),
            ("/act", {"action": "inc"}, {"Content_Type": "text/plain"}, 415, "send application/json"),
            ("/act", {"action": "inc"}, {"Content_Length": str(2**40)}, 413, "send at most 32 MiB"),
            ("/act", b"{", {}, 400, "Expecting property name"),
            ("/act", [], {}, 400, "send an object"),
            ("/act", {"action": "inc", "count": [1]}, {}, 400, "int()"),
            ("/act", b'{"action": "inc", "count": 1e999}', {}, 400, "cannot convert float infinity"),
            ("/act", b"[" * 100_000, {}, 400, "recursion"),
            ("/act", {"action": "inc"}, {"Content_Length": "9" * 5000}, 413, "send at most 32 MiB"),
            ("/act", {"action": "increase"}, {}, 400, "outside the grammar of TextLLM"),
            ("/begin", {"state": " "}, {}, 400, "the state is empty"),
            ("/begin", {"image": b64encode(b"none").decode()}, {}, 400, "cannot read the image"),
            ("/begin", {"image": "?"}, {}, 400, "base64"),
            ("/none", {}, {}, 400, "unknown request 'none'"),
            ("/etc/passwd", None, {}, 404, "no such page"),
        ):
            found, answer = send(page, path, given, **({"Host": host} | headers))
            assert (found, told in answer["error"]) == (status, True), (path, answer)
        assert send(page, "/game")[1]["state"] == {"text": "in words"}


def test_a_browser_that_leaves_or_says_nothing(models, monkeypatch, capfd):
    """Its answer goes nowhere, without a traceback on the terminal; a silent connection is closed."""
    monkeypatch.setattr(_Handler, "timeout", 0.2)
    with served(Page(Game(models), {}.__getitem__, port=0)) as page:
        silent = socket.create_connection(page.server_address, timeout=10)
        gone = socket.create_connection(page.server_address)
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # reset, not ended
        body = b'{"state": "37"}'
        head = "POST /begin HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
        with page.lock:
            gone.sendall(f"{head}{len(body)}\r\n\r\n".encode() + body)
            time.sleep(0.1)
            gone.close()
        assert silent.recv(1) == b""
        silent.close()
        assert send(page, "/game")[0] == 200
    assert page.game.state == "37"
    assert capfd.readouterr().err == ""


def test_a_browser_that_does_not_read_keeps_nobody_waiting(models, monkeypatch):
    monkeypatch.setattr(Page, "seen", lambda page: {"state": "7" * 30_000_000})  # more than the connection holds
    with (
        served(Page(Game(models), {}.__getitem__, port=0)) as page,
        socket.create_connection(page.server_address) as slow,
    ):
        slow.sendall(b"GET /game HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert slow.recv(8) == b"HTTP/1.0"
        assert page.lock.acquire(timeout=30)
        page.lock.release()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LocalHost", "127.1"])
def test_the_address_that_is_told_is_served(models, host):
    with served(Page(Game(models), {}.__getitem__, host=host, port=0)) as page:
        own = page.url.removeprefix("http://").rstrip("/")
        for name in (own, f"{host.lower()}:{page.server_address[1]}", "localhost", "127.0.0.1:9000"):
            assert send(page, "/game", Host=name)[0] == 200, name
        for name in ("evil.example", "evil.example:80", "", ":80"):
            assert send(page, "/game", Host=name)[0] == 403, name


def test_a_page_in_a_browser(minigrid, tmp_path):
    """A keyboard alone starts, acts five times, goes on, undoes and asks for the action of a pair."""
    browsers = pytest.importorskip("playwright.sync_api", reason="the browser test needs: pip install playwright")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("the browser test needs an installed chromium")
    folder = shutil.copytree(minigrid, tmp_path / "run") / "checkpoints"
    shutil.copy(folder / "last.ckpt", folder / "epoch=0.ckpt")
    runs = [Run.find(folder / "epoch=0.ckpt"), Run.find(folder / "last.ckpt")]
    with served(open_page(runs, port=0)) as page, browsers.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": 1280, "height": 1100})
        view.set_default_timeout(300_000)  # the models answer, on a machine that may be busy
        errors = []
        view.on("pageerror", lambda error: errors.append(str(error)))
        view.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
        view.goto(page.url)
        view.wait_for_selector("#present img")
        view.fill("#count", "1")
        view.focus("#action")
        for turn in range(5):
            view.keyboard.press("Control+A")
            view.keyboard.type("turn left")
            view.keyboard.press("Enter")
            view.wait_for_selector(".choice")
            assert view.locator(".choice").count() == 1 + 1 + 1  # of both checkpoints, and the truth
            if turn < 4:
                view.keyboard.press("3")
                view.wait_for_selector(f"#present figcaption:text('{', '.join(['turn left'] * (turn + 1))}')")
                view.keyboard.press("a")
        tops = [title.bounding_box()["y"] for title in view.locator("#predicted h2").all()]
        assert len(tops) == 3
        assert len(set(tops)) == 1  # side by side
        view.screenshot(path=tmp_path / "play.png", full_page=True)
        assert page.game.actions == ("turn left",) * 4
        view.keyboard.press("u")
        view.wait_for_selector(".choice", state="detached")
        view.focus("#other")
        view.keyboard.type("test:1")
        view.keyboard.press("Enter")
        view.wait_for_selector("#labels li")
        view.focus("#action")
        view.keyboard.press("Control+A")
        view.keyboard.type("no words of this grammar at all, and by far too many of them")
        view.keyboard.press("Enter")
        view.wait_for_selector("#error:has-text('outside the grammar')")
        assert [error for error in errors if "400" not in error] == []  # the refused action alone
        browser.close()
    assert Image.open(tmp_path / "play.png").width == 1280


# ---- the command -------------------------------------------------------------------------------------
def test_a_run_is_opened_with_its_starts_actions_and_truth(minigrid, monkeypatch):
    monkeypatch.setattr(playing, "_OFFERED", 3)
    with served(open_page([Run.find(minigrid)], port=0)) as page:
        _, seen = send(page, "/game")
        assert seen["starts"] == [f"test:{n}" for n in range(3)]
        assert (seen["models"], seen["world"]) == (["last.ckpt"], "MiniGrid")
        assert seen["actions"]
        image = Image.open(io.BytesIO(b64decode(seen["state"]["image"].partition(",")[2])))
        assert image.size == (48, 48)
        status, seen = send(page, "/begin", {"image": seen["state"]["image"].partition(",")[2]})
        assert status == 200
        status, last = send(page, "/begin", {"state": "test:7"})  # not all are offered
        assert (status, last["state"] == seen["state"]) == (200, False)
        assert send(page, "/begin", {"state": "test:8"})[1]["error"].startswith("no state test:8: the split has 8 rec")
