"""Prompts of both models, from one source for warm-up, rollout and reward.

A prompt is assembled from token ids, never from text that is tokenised again: fixed pieces of the
template are tokenised once, and states and actions enter as ids. So the scoring model reads a sampled
state or action as exactly the ids that were sampled.
"""

from __future__ import annotations

from dataclasses import dataclass
from string import Formatter

from swirl_lightning.backbones.base import Backbone
from swirl_lightning.engine.grammar import TokenIds
from swirl_lightning.files.hashes import digest


@dataclass(frozen=True)
class PromptTemplates:
    """Wording of the two prompts.

    Attributes:
        fwm: prompt of the forward world model P(y | x, z); must use ``{before}`` and ``{action}``.
        idm: prompt of the inverse dynamics model Q(z | x, y); must use ``{before}`` and ``{after}``.

    ``{before}`` comes first in both, so that the G members of a group share it as a prefix.
    """

    fwm: str = "Before: {before}\nAction: {action}\nAfter: "
    idm: str = "Before: {before}\nAfter: {after}\nAction: "

    def __post_init__(self) -> None:
        for name, text, needed in (
            ("fwm", self.fwm, {"before", "action"}),
            ("idm", self.idm, {"before", "after"}),
        ):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"templates.{name} is no text that can be encoded ({error.reason}): {text!r}"
                ) from None
            slots = [found for found in Formatter().parse(text) if found[1] is not None]
            used = [slot for _, slot, _, _ in slots]
            if any(form or conversion for _, _, form, conversion in slots):
                raise ValueError(
                    f"templates.{name}: states and actions enter as they are, without ':' or '!': {text!r}"
                )
            if set(used) != needed or len(used) != len(needed):
                raise ValueError(
                    f"templates.{name} must use each of {sorted(needed)} once in braces; it uses {used}: {text!r}"
                )

    def hashes(self) -> dict[str, str]:
        """Return a hash of each wording, by which a checkpoint tells whether it was trained with it."""
        return {name: digest(text.encode()) for name, text in vars(self).items()}


class PromptBuilder:
    """Builder of the prompts of FWM and IDM from token ids of states and actions.

    Args:
        backbone: supplies the token ids of text pieces and the marks around a state.
        templates: the wording.
    """

    def __init__(self, backbone: Backbone, templates: PromptTemplates) -> None:
        self._backbone = backbone
        self._fwm = self._compile(templates.fwm)
        self._idm = self._compile(templates.idm)

    def fwm(self, before: TokenIds, action: TokenIds) -> TokenIds:
        """Build the prompt of P(y | x, z); a state follows it."""
        filled = self._fill(self._fwm, before=self._backbone.wrap_state(before), action=action)
        return filled + self._backbone.state_opening()

    def idm(self, before: TokenIds, after: TokenIds) -> TokenIds:
        """Build the prompt of Q(z | x, y); an action follows it."""
        wrap = self._backbone.wrap_state
        return self._fill(self._idm, before=wrap(before), after=wrap(after))

    def _compile(self, template: str) -> list[TokenIds | str]:
        """Turn literal pieces into token ids; slots stay as their names."""
        parts: list[TokenIds | str] = []
        for piece in self._backbone.frame_prompt(template):
            for literal, slot, _, _ in Formatter().parse(piece) if isinstance(piece, str) else ():
                if literal:
                    parts.append(self._backbone.encode_text(literal))
                if slot is not None:
                    parts.append(slot)
            if not isinstance(piece, str):
                parts.append(piece)
        return parts

    @staticmethod
    def _fill(parts: list[TokenIds | str], **slots: TokenIds) -> TokenIds:
        ids: TokenIds = []
        for part in parts:
            ids.extend(slots[part] if isinstance(part, str) else part)
        return ids
