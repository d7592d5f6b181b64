"""A language model as judge, behind any OpenAI-compatible endpoint (extra ``[judge]``)."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import random
import re
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.judge.templates import JudgeTemplate
from swirl_lightning.transition import State

_RETRIED = (408, 409, 429)  # and 5xx; other answers of a server will not change
_SETTINGS = (401, 403, 404)  # key, rights, model or address: no question will be answered


@dataclass(frozen=True)
class JudgeAnswer:
    """The outcome of one question.

    Attributes:
        score: within the template's scale, or None.
        problem: ``unparsable`` (an answer without a score in the scale), ``failed`` (no answer), or None.
        prompt_tokens: used for it, 0 where the answer came from the cache.
        completion_tokens: the same.
        cached: the answer was in the cache.
    """

    score: float | None
    problem: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached: bool = False


class Judge:
    """Asks a model for scores: concurrently, with retries, and never the same question twice.

    Answers are kept in ``cache_dir``, one small file each, keyed by all that the question consists of
    (model, endpoint, template, texts, pixels), so that an interrupted evaluation goes on where it was and a
    finished one costs nothing. Only answers are kept: a question that failed is asked again.

    Args:
        model: name of the model at the endpoint.
        base_url: of the endpoint; null for OpenAI's.
        api_key_env: environment variable that holds the key. The key itself is in no config, file or log.
        cache_dir: folder of answers.
        concurrency: questions under way at a time, for each process.
        timeout: of one attempt, in seconds.
        retries: further attempts after a failure that may pass (rate limit, timeout, server error).
        backoff: seconds before the first retry; doubled for each further one, up to a minute.
        max_tokens: of an answer.
        temperature: of the model; null leaves it out of the request, as some models demand.

    Raises:
        ValueError: a number makes no sense.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        api_key_env: str = "OPENAI_API_KEY",
        cache_dir: str = ".cache/judge",
        concurrency: int = 8,
        timeout: float = 60.0,
        retries: int = 5,
        backoff: float = 1.0,
        max_tokens: int = 512,
        temperature: float | None = 0.0,
    ) -> None:
        self.model, self.base_url, self.api_key_env = model, base_url, api_key_env
        self.cache_dir = Path(cache_dir)
        self.concurrency, self.timeout, self.retries, self.backoff = concurrency, timeout, retries, backoff
        self.max_tokens, self.temperature = max_tokens, temperature
        check_ranges(
            "judge",
            vars(self),
            concurrency="[1, inf)",
            timeout="(0, inf)",
            retries="[0, inf)",
            backoff="[0, inf)",
            max_tokens="[1, inf)",
            temperature="[0, inf) or null",
        )
        self._client: Any = None
        self._pool: ThreadPoolExecutor | None = None

    def check(self) -> None:
        """Checks that the package is installed and the key is set; asks nothing.

        Raises:
            ImportError: ``openai`` is missing.
            ValueError: the environment has no key.
        """
        try:
            import openai  # noqa: F401
        except ImportError as error:
            raise ImportError("the judge needs a package: pip install 'swirl-lightning[judge]'") from error
        if not os.environ.get(self.api_key_env):
            raise ValueError(
                f"the judge's key is not set: export {self.api_key_env}=... (any word, if the endpoint "
                "needs none), or set judge to null"
            )

    def settings(self) -> dict[str, Any]:
        """The options that scores depend on, for ``results.json``."""
        return {"model": self.model, "base_url": self.base_url, "temperature": self.temperature}

    def submit(self, template: JudgeTemplate, states: Sequence[State], **words: str) -> Future[JudgeAnswer]:
        """Asks in the background.

        Args:
            template: the question and its scale.
            states: images (or texts) that the question is about, in the template's order.
            words: what the template's braces stand for.
        """
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="judge")
        content = [{"type": "text", "text": template.text.format(**words)}, *map(_part, states)]
        return self._pool.submit(self._ask, template, content)

    # ---- one question ----------------------------------------------------------------------------
    def _ask(self, template: JudgeTemplate, content: list[dict[str, Any]]) -> JudgeAnswer:
        key = self._key(template, content)
        path = self.cache_dir / key[:2] / f"{key}.json"
        kept = _read(path)
        if kept is not None:
            return JudgeAnswer(*template.parse(kept), cached=True)
        try:
            text, prompt_tokens, completion_tokens = self._call(content)
        except _Failed:
            return JudgeAnswer(None, "failed")
        answer = JudgeAnswer(*template.parse(text), prompt_tokens, completion_tokens)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}-{random.getrandbits(32):08x}")
        partial.write_text(json.dumps({"answer": text, **asdict(answer), "model": self.model}))
        os.replace(partial, path)
        return answer

    def _call(self, content: list[dict[str, Any]]) -> tuple[str, int, int]:
        import openai

        client = self._connect()
        options = {} if self.temperature is None else {"temperature": self.temperature}
        for attempt in range(self.retries + 1):
            if attempt:
                wait = min(60.0, self.backoff * 2 ** (attempt - 1))
                time.sleep(wait * random.uniform(0.75, 1.25))
            try:
                reply = client.chat.completions.create(
                    model=self.model,
                    messages=[{"role": "user", "content": content}],
                    max_tokens=self.max_tokens,
                    **options,
                )
                usage = reply.usage
                text = reply.choices[0].message.content if reply.choices else None
                return text or "", usage.prompt_tokens if usage else 0, usage.completion_tokens if usage else 0
            except openai.APIStatusError as error:
                if error.status_code in _SETTINGS:
                    raise ValueError(
                        f"the judge's endpoint refuses ({error.status_code}): {_redacted(error.message)}"
                    ) from None
                if error.status_code < 500 and error.status_code not in _RETRIED:
                    break  # of this question alone: an image against its rules, for example
            except (openai.APIConnectionError, openai.APIResponseValidationError, ValueError):
                pass  # includes timeouts; ValueError: an answer that is no JSON
        raise _Failed

    def _connect(self) -> Any:
        if self._client is None:
            import openai

            self._client = openai.OpenAI(
                api_key=os.environ.get(self.api_key_env),
                base_url=self.base_url,
                timeout=self.timeout,
                max_retries=0,  # counted here
            )
        return self._client

    def _key(self, template: JudgeTemplate, content: list[dict[str, Any]]) -> str:
        asked = {
            "model": self.model,
            "base_url": self.base_url,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "template": template.text,
            "content": content,
        }
        return hashlib.blake2b(json.dumps(asked, sort_keys=True).encode(), digest_size=20).hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        """Without connection and threads: metrics are copied."""
        return self.__dict__ | {"_client": None, "_pool": None}


class _Failed(Exception):
    """No answer after all attempts."""


def _part(state: State) -> dict[str, Any]:
    """A state as a part of a message."""
    if isinstance(state, str):
        return {"type": "text", "text": state}
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_png(state)}"}}


def _png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _read(path: Path) -> str | None:
    """The kept answer; None if there is none or the file is damaged."""
    try:
        return str(json.loads(path.read_text())["answer"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _redacted(message: str) -> str:
    """Servers like to repeat a part of the key."""
    return re.sub(r"\b(sk|key)[-_][^\s\"']+", "[key]", message)[:300]
