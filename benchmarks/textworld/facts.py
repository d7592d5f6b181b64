"""Facts that a player sees, and plain sentences that state them, one fact a sentence, exact in both directions.

TextWorld's own descriptions are drawn from a grammar with free wording, which no parser reads back exactly. So
states are written here, from the facts that ``look`` and ``inventory`` describe.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

Facts = dict[str, str]
"""Facts of a state, as thing -> value: ``{"you": "attic", "chest": "closed", "coin": "carried"}``.

Keys are ``you`` (the value is the room), a direction (``free``: a way without a door) and names. A door's value is
``north, closed``; a container is ``open``, ``closed`` or ``locked``; a supporter is ``here``; anything else is
``carried``, ``on the floor``, ``in the chest`` or ``on the table``.
"""

CONTRADICTION = ""
"""Value of a thing about which a text contradicts itself; it equals no true value."""

DIRECTIONS = ("north", "east", "south", "west")

_WAYS = "|".join(DIRECTIONS)
_YOU = re.compile(r"You are in the (.+)")
_WAY = re.compile(rf"You can go ({_WAYS})")
_CARRIED = re.compile(r"You carry the (.+)")
_DOOR = re.compile(rf"The (.+) to the ({_WAYS}) is (open|closed|locked)")
_THING = re.compile(r"The (.+?) is (open|closed|locked|here|on the floor|(?:in|on) the .+)")


def visible(propositions: Iterable[Any]) -> Facts:
    """Return the facts that ``look`` and ``inventory`` describe.

    Args:
        propositions: of the whole world (`textworld.logic.Proposition`), arguments by the names that players read.

    Returns:
        In the order of `write`: the room, its exits, its things with what is in or on them, what is carried. What is
        in a closed container, which key fits, and other rooms are not seen.

    Raises:
        ValueError: the sentences of these facts would not be read back as the same facts.
    """
    holds: dict[str, list[tuple[Any, ...]]] = {}
    for fact in propositions:
        holds.setdefault(fact.name, []).append(tuple(fact.arguments))
    ((_, room),) = ((thing, place) for thing, place in holds["at"] if thing.type == "P")
    facts: Facts = {"you": room.name}
    status = {thing.name: name for name in ("open", "closed", "locked") for (thing,) in holds.get(name, ())}
    doors = {there: door.name for here, door, there in holds.get("link", ()) if here == room}
    for way in DIRECTIONS:
        for there, here in holds.get(f"{way}_of", ()):
            if here == room and there in doors:
                facts[doors[there]] = f"{way}, {status[doors[there]]}"
            elif here == room:
                facts[way] = "free"
    held: dict[str, dict[str, str]] = {}
    for relation in ("in", "on"):
        for thing, holder in holds.get(relation, ()):
            held.setdefault(holder.name, {})[thing.name] = f"{relation} the {holder.name}"
    here = {thing.name: thing.type for thing, place in holds["at"] if place == room and thing.type != "P"}
    for name in sorted(here, key=lambda name: (here[name] not in ("c", "s"), name)):
        facts[name] = {"c": status.get(name, ""), "s": "here"}.get(here[name], "on the floor")
        if facts[name] in ("open", "here"):
            facts |= dict(sorted(held.get(name, {}).items()))
    facts |= dict.fromkeys(sorted(held.get("I", ())), "carried")
    if read(write(facts)) != (facts, 0):
        raise ValueError(f"these facts cannot be told from their sentences: {facts}")
    return facts


def write(facts: Facts) -> str:
    """Write the sentences of facts, in their order, as one line.

    >>> write({"you": "attic", "north": "free", "hatch": "east, closed", "coin": "carried"})
    'You are in the attic. You can go north. The hatch to the east is closed. You carry the coin.'
    """
    return " ".join(f"{_sentence(name, value)}." for name, value in facts.items())


def read(text: str) -> tuple[Facts, int]:
    """Read the facts of a text; returns them and the number of its sentences that state none.

    >>> read("You are in the attic. The coin is in the chest. The coin glitters.")
    ({'you': 'attic', 'coin': 'in the chest'}, 1)
    """
    facts: Facts = {}
    unread = 0
    for sentence in re.split(r"\.(?:\s+|$)", text.strip()):
        if not sentence:
            continue
        found = _fact(" ".join(sentence.split()))
        if found is None:
            unread += 1
        elif facts.setdefault(*found) != found[1]:
            facts[found[0]] = CONTRADICTION
    return facts, unread


def _sentence(name: str, value: str) -> str:
    if name == "you":
        return f"You are in the {value}"
    if value == "free":
        return f"You can go {name}"
    if value == "carried":
        return f"You carry the {name}"
    way, comma, state = value.partition(", ")
    return f"The {name} to the {way} is {state}" if comma else f"The {name} is {value}"


def _fact(sentence: str) -> tuple[str, str] | None:
    if match := _YOU.fullmatch(sentence):
        return "you", match[1]
    if match := _WAY.fullmatch(sentence):
        return match[1], "free"
    if match := _CARRIED.fullmatch(sentence):
        return match[1], "carried"
    if match := _DOOR.fullmatch(sentence):
        return match[1], f"{match[2]}, {match[3]}"
    if match := _THING.fullmatch(sentence):
        return match[1], match[2]
    return None
