"""Chat templates, which are programs of a base's folder, rendered without trust in them."""

from __future__ import annotations

import threading
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from swirl_lightning.backbones.base import Backbone
from swirl_lightning.backbones.loading import misfit

SLOT = "\u0001"
"""Stands for the prompt while a template is laid out; no template contains it."""

_SECONDS = 20.0  # real ones take milliseconds
_LONGEST = 100_000  # characters around the prompt
_DATE = "26 Jul 2024"  # which Llama's templates take where they have no clock


def around_prompt(backbone: Backbone, tokenizer: Any) -> tuple[str, str]:
    """Return what a tokenizer's chat template puts before and after a prompt, as a user's turn.

    transformers runs templates in jinja's sandbox, which reads no file and calls no code of Python's, but lets loops
    run for ever. Templates that show the date, as Llama's do, get a fixed one: a model is used on another day.

    Raises:
        ValueError: the template fails, does not end, does not show the prompt exactly once, or shows too much else.
    """
    turn, found = [{"role": "user", "content": SLOT}], []

    def render() -> None:
        try:
            found.append(
                tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True, date_string=_DATE)
            )
        except Exception as error:  # whatever a program can raise
            found.append(error)

    thread = threading.Thread(target=render, daemon=True)  # dies with the process
    thread.start()
    thread.join(_SECONDS)
    if not found:
        misfit(backbone, f"its chat template has not ended after {_SECONDS:g} s; mend chat_template")
    (framed,) = found
    if isinstance(framed, Exception):
        reason = " ".join(str(framed).split())[:200]
        misfit(backbone, f"its chat template fails ({type(framed).__name__}: {reason}); mend chat_template")
    if not isinstance(framed, str) or framed.count(SLOT) != 1:
        misfit(backbone, "its chat template does not show the user's message exactly once; mend chat_template")
    if len(framed) > _LONGEST:
        misfit(backbone, f"its chat template gives {len(framed):,} characters; mend chat_template")
    template = str(getattr(tokenizer, "chat_template", ""))
    if "strftime_now" in template and "date_string" not in template:
        rank_zero_warn(f"the chat template of {backbone.name!r} shows today's date, so prompts of another day differ")
    head, tail = framed.split(SLOT)
    return head, tail
