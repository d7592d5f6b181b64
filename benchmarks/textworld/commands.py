"""Commands that a state allows, as a player types them, by the facts that are seen."""

from __future__ import annotations

from swirl_lightning.benchmarks.textworld.facts import DIRECTIONS, Facts


def commands(facts: Facts) -> list[str]:
    """Return the commands whose outcome is decided by what is seen.

    The others are left out: to go and to open a container shows what was hidden; which key fits and what can be eaten
    is not seen.

    >>> commands({"you": "attic", "chest": "open", "hat": "in the chest", "coin": "carried"})
    ['close chest', 'take hat from chest', 'drop coin', 'insert coin into chest']
    """
    containers = [name for name, value in facts.items() if value == "open"]
    supporters = [name for name, value in facts.items() if value == "here"]
    found = []
    for name, value in facts.items():
        if name == "you" or name in DIRECTIONS:
            continue
        relation, _, holder = value.partition(" the ")
        if value == "open":
            found.append(f"close {name}")
        elif value.endswith((", open", ", closed")):
            found.append(f"{'close' if value.endswith('open') else 'open'} {name}")
        elif value == "on the floor":
            found.append(f"take {name}")
        elif value == "carried":
            found.append(f"drop {name}")
            found += [f"insert {name} into {container}" for container in containers]
            found += [f"put {name} on {supporter}" for supporter in supporters]
        elif relation in ("in", "on"):
            found.append(f"take {name} from {holder}")
    return found
