"""An OpenAI-compatible endpoint that is not trusted: its time and its bodies are bounded, its key is not repeated."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from swirl_lightning.console.secrets import redacted

OPENAI = "https://api.openai.com/v1"
_RETRIED = (408, 409, 429)  # and 5xx; other answers of a server will not change
_SETTINGS = (301, 302, 303, 307, 308, 401, 403, 404)
"""Answers to a wrong address, key or model; some servers give one of them to a single question, too."""
_LARGEST = 4 * 2**20  # bytes of a body; an answer has some thousand
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]{0,63}")


class Unanswered(Exception):
    """No answer to this question; its text says why, without the key."""


class Refused(ValueError):
    """The endpoint, it seems, answers no question as it is set up; its text says why, without the key."""


class _MayPass(Unanswered):
    """The same, of an attempt after which another one may succeed.

    Args:
        reason: why.
        wait: seconds to wait at least, as the server asks.
    """

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class Reply:
    """Answer of a model.

    Attributes:
        text: its words, never empty.
        prompt_tokens: used for it, as the server says; 0 where it says nothing plausible.
        completion_tokens: the same.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int


class Endpoint:
    """Asks ``<base_url>/chat/completions``.

    Args:
        base_url: http or https, without query; null for OpenAI's.
        api_key_env: environment variable that holds the key.
        timeout: of one attempt from connecting to the last byte, in seconds.
        retries: further attempts after a failure that may pass.
        backoff: seconds before the first retry; doubled for each further one, up to a minute.
        deadline: of a question with all its attempts and pauses, in seconds.

    Raises:
        ValueError: ``base_url`` is no such address, or holds a name or password.
    """

    def __init__(
        self, base_url: str | None, api_key_env: str, timeout: float, retries: int, backoff: float, deadline: float
    ) -> None:
        self.url, self.api_key_env = _checked(base_url or OPENAI), api_key_env
        self.timeout, self.retries, self.backoff, self.deadline = timeout, retries, backoff, deadline
        self._client: Any = None

    def check(self) -> str:
        """The key, if it and the package are there.

        Raises:
            ImportError: ``httpx2`` is missing.
            ValueError: the environment has no key, or one that no request can carry.
        """
        try:
            import httpx2  # noqa: F401
        except ImportError as error:
            raise ImportError("the judge needs a package: pip install 'swirl-lightning[judge]'") from error
        key = os.environ.get(self.api_key_env, "").strip()
        if not key and not _VARIABLE.fullmatch(self.api_key_env):  # it may be the key itself, which no message shows
            raise ValueError(
                "judge.api_key_env is the name of no environment variable that is set: give the name of one, such as "
                "OPENAI_API_KEY, and not the key itself"
            )
        if not key:
            raise ValueError(
                f"the judge's key is not set: export {self.api_key_env}=... (any word, if the endpoint "
                "needs none), or set judge to null"
            )
        if not (key.isascii() and key.isprintable()):
            raise ValueError(f"the judge's key in {self.api_key_env} holds characters that no request can carry")
        return key

    async def ask(self, question: dict[str, Any]) -> Reply:
        """The answer to one question, after as many attempts as it takes.

        Args:
            question: the request's fields.

        Raises:
            Unanswered: none after all attempts, or within the deadline.
            Refused: for the key, its rights, the model or the address.
            ValueError: there is no key, or the address cannot be used.
        """
        key, end, body = self.check(), time.monotonic() + self.deadline, json.dumps(question).encode()
        for attempt in range(self.retries + 1):
            try:
                return await self._attempt(key, body, min(self.timeout, end - time.monotonic()))
            except _MayPass as error:
                # no float holds 2**1024, and attempts may be many
                pause = min(60.0, self.backoff * 2.0 ** min(attempt, 1000)) * random.uniform(0.75, 1.25)
                pause = max(pause, error.wait)
                if attempt == self.retries or time.monotonic() + pause >= end:
                    raise
            await asyncio.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    async def _attempt(self, key: str, body: bytes, seconds: float) -> Reply:
        import httpx2

        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        try:
            async with (
                asyncio.timeout(seconds),  # httpx2's own limits are of each read, and a server may drip
                self._connected().stream("POST", self.url, content=body, headers=headers) as response,
            ):
                content = await _body(response)
        except TimeoutError:
            raise _MayPass(f"no whole answer within {seconds:.3g} s") from None
        except (httpx2.HTTPError, OSError, ValueError) as error:  # ValueError: of where a redirect leads
            raise _MayPass(f"{type(error).__name__}: {redacted(str(error), key)}") from None
        except httpx2.InvalidURL as error:
            raise ValueError(f"judge: base_url cannot be used ({error})") from None
        status = response.status_code
        if status == 200:
            return _reply(content)
        said = redacted(_message(content), key)
        if status in _SETTINGS:
            raise Refused(f"the judge's endpoint refuses ({status}): {said}")
        if status >= 500 or status in _RETRIED:
            raise _MayPass(f"HTTP {status}: {said}", _retry_after(response.headers.get("Retry-After")))
        raise Unanswered(f"HTTP {status}: {said}")  # of this question alone: an image against its rules, for example

    def _connected(self) -> Any:
        if self._client is None:
            import httpx2

            # no encoding: a compressed body could be far larger than what is read
            self._client = httpx2.AsyncClient(
                timeout=None,
                limits=httpx2.Limits(max_connections=None),
                headers={"Accept": "application/json", "Accept-Encoding": "identity"},
            )
        return self._client

    def __getstate__(self) -> dict[str, Any]:
        """Without connections: metrics are copied."""
        return self.__dict__ | {"_client": None}


def _checked(address: str) -> str:
    """The full address of the questions."""
    parts = urlsplit(address)
    if "@" in parts.netloc:
        raise ValueError("judge: base_url holds a name or password, and it is written to files: use api_key_env")
    try:
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is none
        usable = False
    if not usable or parts.query or parts.fragment or any(c.isspace() for c in address):
        raise ValueError(f"judge: base_url must be like {OPENAI}, without a query, got {address!r}")
    return f"{address.rstrip('/').removesuffix('/chat/completions')}/chat/completions"


async def _body(response: Any) -> bytes:
    content = bytearray()
    async for piece in response.aiter_raw():
        content += piece
        if len(content) > _LARGEST:
            raise _MayPass(f"HTTP {response.status_code}: a body of more than {_LARGEST} bytes")
    return bytes(content)


def _reply(content: bytes) -> Reply:
    """The reply in a body, which may be anything."""
    try:
        found = json.loads(content)
        text = found["choices"][0]["message"]["content"]
        usage = found.get("usage")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _MayPass(f"the answer is no chat completion ({type(error).__name__})") from None
    if not isinstance(text, str) or not text.strip():
        raise _MayPass("the answer has no words")
    usage = usage if isinstance(usage, dict) else {}
    return Reply(text, *(_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens")))


def _count(value: Any) -> int:
    return value if type(value) is int and 0 <= value < 2**31 else 0


def _message(content: bytes) -> str:
    """Return what an error's body says, as OpenAI's API has it, or as it is."""
    text = content.decode(errors="replace")
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return text


def _retry_after(value: str | None) -> float:
    """Seconds of the header, which are a number or a date; 0 for anything else."""
    if value is None:
        return 0.0
    if value.strip().isdecimal():
        return float(value.strip()[:12])
    try:
        until = parsedate_to_datetime(value)
        return max(0.0, (until - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return 0.0
