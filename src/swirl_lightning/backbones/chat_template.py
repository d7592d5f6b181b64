"""Chat templates, which are programs of a base's folder, rendered without trust in them."""

from __future__ import annotations

import threading
from typing import Any

from swirl_lightning.backbones.base import Backbone
from swirl_lightning.backbones.loading import misfit

SLOT = "\u0001"
"""Stands for the prompt while a template is laid out; no template contains it."""

_SECONDS = 20.0  # real ones take milliseconds
_LONGEST = 100_000  # characters around the prompt


def around_prompt(backbone: Backbone, tokenizer: Any) -> tuple[str, str]:
    """Return what a tokenizer's chat template puts before and after a prompt, as a user's turn.

    transformers runs templates in jinja's sandbox, which reads no file and calls no code of Python's, but lets loops
    run for ever.

    Raises:
        ValueError: the template fails, does not end, does not show the prompt exactly once, or shows too much else.
    """
    turn, found = [{"role": "user", "content": SLOT}], []

    def render() -> None:
        try:
            found.append(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
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
    head, tail = framed.split(SLOT)
    return head, tail
