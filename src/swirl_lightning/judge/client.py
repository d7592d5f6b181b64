"""A language model as judge, behind any OpenAI-compatible endpoint (extra ``[judge]``)."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from warnings import warn

from PIL import Image

from swirl_lightning.console.secrets import without_key
from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.files.paths import check_writable
from swirl_lightning.files.writing import whole_file
from swirl_lightning.judge.endpoint import Endpoint, Unanswered
from swirl_lightning.judge.templates import JudgeTemplate, builtin, read_template
from swirl_lightning.transition import State

_AHEAD = 8  # questions that wait, for each that is under way


@dataclass(frozen=True)
class JudgeAnswer:
    """Outcome of one question.

    Attributes:
        score: within the template's scale, or None.
        problem: ``unparsable`` (an answer without a score in the scale), ``failed`` (no answer), or None.
        prompt_tokens: used for it, 0 where the answer came from the cache.
        completion_tokens: the same.
        cached: the answer was in the cache.
        reason: of ``failed``, in words.
    """

    score: float | None
    problem: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached: bool = False
    reason: str = ""


class Judge:
    """Client that asks a model for scores: concurrently, with retries, and never the same question twice.

    Answers are kept in ``cache_dir``, one small file each, keyed by all that the question consists of
    (model, endpoint, template, texts, pixels), so that an interrupted evaluation goes on where it was and a
    finished one costs nothing. Only answers with a score are kept: a question without one is asked again by the next
    evaluation.

    The endpoint is not trusted: its time is limited, its bodies are, too, and of what it sends a score within
    the scale and numbers of tokens are used.

    Args:
        model: name of the model at the endpoint.
        base_url: of the endpoint, http or https; null for OpenAI's.
        api_key_env: environment variable that holds the key. The key itself is in no config, file or log.
        cache_dir: folder of answers.
        concurrency: questions under way at a time, for each process.
        timeout: of one attempt, in seconds: from connecting to the last byte.
        retries: further attempts after a failure that may pass (rate limit, timeout, server error, an answer that is
            no chat completion).
        backoff: seconds before the first retry; doubled for each further one, up to a minute. A server's
            ``Retry-After`` makes it longer.
        deadline: of a question with all its attempts and pauses, in seconds. Where the server asks for a longer
            pause, the question has failed.
        max_tokens: of an answer.
        temperature: of the model; null leaves it out of the request, as some models demand.
        template: file of the question about predicted states, as
            :func:`swirl_lightning.judge.templates.read_template` reads it; null for the suite's, in our own words.
        action_template: the same for predicted actions.
        quality_template: the same for the quality of predicted images, which GEdit-Bench asks about.

    Attributes:
        answers: questions that the endpoint has answered, in this process or before; others it may refuse.

    Raises:
        FileNotFoundError: a template is not there.
        ValueError: a number makes no sense, or ``base_url`` or a template does not.
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
        deadline: float = 600.0,
        max_tokens: int = 512,
        temperature: float | None = 0.0,
        template: str | None = None,
        action_template: str | None = None,
        quality_template: str | None = None,
    ) -> None:
        self.model, self.base_url, self.api_key_env = model, base_url, api_key_env
        self.cache_dir = Path(cache_dir)
        self.concurrency, self.timeout, self.retries, self.backoff = concurrency, timeout, retries, backoff
        self.deadline, self.max_tokens, self.temperature = deadline, max_tokens, temperature
        check_ranges(
            "judge",
            vars(self),
            concurrency="whole [1, inf)",
            timeout="(0, inf)",
            deadline="(0, inf)",
            retries="whole [0, inf)",
            backoff="[0, inf)",
            max_tokens="whole [1, inf)",
            temperature="[0, inf) or null",
        )
        self.template, self.action_template, self.quality_template = template, action_template, quality_template
        self._templates = {
            path: read_template(Path(path)) for path in (template, action_template, quality_template) if path
        }
        self._endpoint = Endpoint(base_url, api_key_env, timeout, retries, backoff, deadline)
        self.answers = 0
        self._begin()

    def _begin(self) -> None:
        self._slots: asyncio.Semaphore | None = None
        self._waiting = threading.BoundedSemaphore(_AHEAD * self.concurrency)
        self._under_way: dict[tuple[Path, str], asyncio.Task[JudgeAnswer]] = {}

    def check(self) -> None:
        """Check that the package is installed, the key is set and answers can be kept, without a question.

        Raises:
            ImportError: ``httpx2`` is missing.
            ValueError: the environment has no key, or one that no request can carry.
            OSError: ``cache_dir`` cannot be written to.
        """
        self._endpoint.check()
        check_writable(self.cache_dir, "judge.cache_dir")

    def template_of(self, suite: str) -> JudgeTemplate:
        """Return the template of a suite, of ``action`` or of ``quality``: the one that is set, or our own.

        Raises:
            ValueError: there is none of our own.
        """
        own = builtin(suite)
        path = {"action": self.action_template, "quality": self.quality_template}.get(suite, self.template)
        return self._templates[path] if path else own

    def settings(self, templates: Mapping[str, str]) -> dict[str, Any]:
        """Return the options that scores of a suite depend on, for ``results.json``.

        Args:
            templates: what is asked about -> what :meth:`template_of` takes.
        """
        options = {"model": self.model, "base_url": self.base_url, "temperature": self.temperature}
        return options | {"templates": {kind: self.template_of(name).facts() for kind, name in templates.items()}}

    def submit(self, template: JudgeTemplate, states: Sequence[State], **words: str) -> Future[JudgeAnswer]:
        """Ask a question in the background; waits while too many are waiting, whose images fill the memory.

        Args:
            template: the question and its scale.
            states: images (or texts) that the question is about, in the template's order.
            words: values of the names in the template's braces.
        """
        content = [{"type": "text", "text": template.fill(**words)}, *map(_part, states)]
        self._waiting.acquire()
        answer = asyncio.run_coroutine_threadsafe(self._once(template, content), _loop())
        answer.add_done_callback(lambda _: self._waiting.release())
        return answer

    # ---- one question ----------------------------------------------------------------------------
    async def _once(self, template: JudgeTemplate, content: list[dict[str, Any]]) -> JudgeAnswer:
        """Ask a question, or wait for the answer to the same one that is under way."""
        path = self._path(template, content)
        key = (path, template.digest)
        if (asked := self._under_way.get(key)) is not None:
            return replace(await asyncio.shield(asked), prompt_tokens=0, completion_tokens=0)
        self._under_way[key] = asyncio.create_task(self._ask(template, content, path))
        try:
            return await self._under_way[key]
        finally:
            del self._under_way[key]

    async def _ask(self, template: JudgeTemplate, content: list[dict[str, Any]], path: Path) -> JudgeAnswer:
        if self._slots is None:
            self._slots = asyncio.Semaphore(self.concurrency)
        async with self._slots:
            score, _ = template.parse(_read(path))
            if score is not None:
                self.answers += 1
                return JudgeAnswer(score, cached=True)
            try:
                reply = await self._endpoint.ask(self._question(template, content))
            except Unanswered as error:
                return JudgeAnswer(None, "failed", reason=str(error))
            self.answers += 1
            answer = JudgeAnswer(*template.parse(reply.text), reply.prompt_tokens, reply.completion_tokens)
            if answer.score is not None:
                self._keep(path, reply.text, answer)
            return answer

    def _keep(self, path: Path, text: str, answer: JudgeAnswer) -> None:
        words = without_key(text, self._endpoint.check())  # a server may repeat what it was sent
        try:
            with whole_file(path, alone=False) as file:
                file.write(json.dumps({"answer": words, **asdict(answer), "model": self.model}).encode())
        except OSError as error:  # it has been paid for
            warn(f"an answer of the judge is used and not kept, so that it will be asked again: {error}")

    def _question(self, template: JudgeTemplate, content: list[dict[str, Any]]) -> dict[str, Any]:
        options = {} if self.temperature is None else {"temperature": self.temperature}
        system: list[dict[str, Any]] = [{"role": "system", "content": template.system}] if template.system else []
        messages = [*system, {"role": "user", "content": content}]
        return {"model": self.model, "messages": messages, "max_tokens": self.max_tokens, **options}

    def _path(self, template: JudgeTemplate, content: list[dict[str, Any]]) -> Path:
        """Place of the answer in the cache."""
        asked = {
            "model": self.model,
            "base_url": self.base_url,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "template": [template.system, template.text],
            "content": content,
        }
        key = hashlib.blake2b(json.dumps(asked, sort_keys=True).encode(), digest_size=20).hexdigest()
        return self.cache_dir / key[:2] / f"{key}.json"

    def __getstate__(self) -> dict[str, Any]:
        """Without what is under way: metrics are copied."""
        own = ("_slots", "_waiting", "_under_way")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """With nothing under way."""
        self.__dict__.update(state)
        self._begin()


@lru_cache(maxsize=1)
def _loop() -> asyncio.AbstractEventLoop:
    """Runs the questions of all judges, in a thread that does not keep the process from ending."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="judge", daemon=True).start()
    return loop


def _part(state: State) -> dict[str, Any]:
    """Turn a state into a part of a message."""
    if isinstance(state, str):
        return {"type": "text", "text": state}
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_png(state)}"}}


def _png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _read(path: Path) -> str:
    """The kept answer; nothing if there is none or the file is damaged."""
    try:
        return str(json.loads(path.read_text())["answer"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
