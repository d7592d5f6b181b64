"""The file of a study: a configuration, what differs between its rows, and which row each one goes on from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yaml import YAMLError

from swirl_lightning.console.run import nearest
from swirl_lightning.files.reading import read_words
from swirl_lightning.files.safe_yaml import load


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        start: the row whose last checkpoint it goes on from; None starts from the base.
        options: command-line options beyond the study's, by their dotted names.
        trains: False tests the start's checkpoint under these options.
    """

    start: str | None
    options: dict[str, Any]
    trains: bool = True


@dataclass(frozen=True)
class Study:
    """Rows to compare, and the options that they share.

    Attributes:
        configs: configurations that all rows share, each laid over the one before.
        seeded: options that get a seed, and what is added to it.
        options: options of every row.
        rows: by name; a row comes after the one that it starts from.
        iterations: lines of a diagram by iteration: a name, and the rows of its iterations from 0 on.
        shared_test: True: all seeds are tested on the same transitions.
    """

    configs: tuple[str, ...]
    seeded: dict[str, int]
    options: dict[str, Any]
    rows: dict[str, Row]
    iterations: dict[str, list[str]]
    shared_test: bool

    @classmethod
    def load(cls, path: Path) -> Study:
        """Read a study file.

        Raises:
            OSError: it cannot be read.
            ValueError: it is no study, or a row starts from one that does not stand before it.
        """
        try:
            given = load(read_words(path))
        except YAMLError as error:
            raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
        kinds = {
            "config": str | list,
            "seeded": dict,
            "options": dict,
            "rows": dict,
            "iterations": dict,
            "shared_test": bool,
        }
        found = _fields(given, path, kinds, ("config", "rows"))
        if wrong := [option for option, base in found.get("seeded", {}).items() if type(base) is not int]:
            raise ValueError(f"{path}: seeded has to give a whole number for {', '.join(map(str, wrong))}")
        rows: dict[str, Row] = {}
        for name, row in found["rows"].items():
            where = f"{path}: row {name!r}"
            if not isinstance(name, str):
                raise ValueError(f"{where} must be named by a text: put it in quotes")
            own = _fields({} if row is None else row, where, {"start": str | None, "options": dict, "train": bool})
            start, trains = own.get("start"), own.get("train", True)
            if start is not None and start not in rows:
                raise ValueError(f"{where} starts from {start!r}, which does not stand before it")
            if start is None and not trains:
                raise ValueError(f"{where} trains nothing, and has no start whose checkpoint is tested")
            if start is not None and not rows[start].trains:
                raise ValueError(f"{where} starts from {start!r}, which trains nothing and has no checkpoint")
            if same := [other for other in rows if folder_name(other) == folder_name(name)]:
                raise ValueError(f"{where} would be trained in the folder of {same[0]!r}: give it another name")
            rows[name] = Row(start, own.get("options", {}), trains)
        for line, names in found.get("iterations", {}).items():
            if not isinstance(names, list) or any(str(name) not in rows for name in names):
                raise ValueError(f"{path}: iterations of {line!r} must be a list of rows, not {str(names)[:60]!r}")
        seeded, options, iterations = (found.get(part, {}) for part in ("seeded", "options", "iterations"))
        config = found["config"]
        configs = tuple([config] if isinstance(config, str) else map(str, config))
        return cls(configs, seeded, options, rows, iterations, found.get("shared_test", False))

    def arguments(self, name: str, seed: int, folder: Path) -> list[str]:
        """Command-line arguments of a row's runs, after the subcommand."""
        seeds = {option: base + seed for option, base in self.seeded.items()}
        options = {**self.options, **self.rows[name].options, **seeds, "trainer.default_root_dir": str(folder)}
        layers = [word for config in self.configs for word in ("-c", config)]
        return [*layers, *(f"--{option}={written(value)}" for option, value in options.items())]


def _fields(given: Any, where: object, kinds: Mapping[str, Any], needed: Sequence[str] = ()) -> dict[str, Any]:
    """Return the keys of a part of a study; ValueError where it is none, has others, lacks one or has another type."""
    if not isinstance(given, dict):
        raise ValueError(f"{where} must be a mapping of {', '.join(kinds)}, not {str(given)[:60]!r}")
    if unknown := [str(name) for name in given if name not in kinds]:
        raise ValueError(f"{where} has no key {unknown[0]!r}{nearest(unknown[0], kinds)}")
    if lacking := [name for name in needed if name not in given]:
        raise ValueError(f"{where} lacks {', '.join(lacking)}")
    if wrong := [name for name in given if not isinstance(given[name], kinds[name])]:
        raise ValueError(f"{where}: {wrong[0]} cannot be {str(given[wrong[0]])[:60]!r}")
    return given


def written(value: Any) -> str:
    """An option's value as the command line takes it: classes bare, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def folder_name(row: str) -> str:
    """Name of a row's folder."""
    return row.replace(" ", "_").replace(",", "")
