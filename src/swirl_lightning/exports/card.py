"""Model cards: base, data, settings, results, licence, and how to load, as the Hugging Face hub shows them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import hf_hub_download
from torch import nn

from swirl_lightning.backbones.base import BUILTIN_PREFIX, Backbone
from swirl_lightning.files.markdown import escaped
from swirl_lightning.files.safe_yaml import load

Results = Mapping[str, Mapping[str, float]]

_ABOUT = (
    "The forward world model (FWM) predicts the next state from a state and an action, the inverse dynamics model "
    "(IDM) the action between two states. Trained by [SWIRL](https://arxiv.org/abs/2602.06130) with swirl-lightning."
)
_OURS = """```python
from swirl_lightning import SWIRL

model = SWIRL.from_pretrained("{here}"{base})  # a folder, or its name on the hub
next_states = model.predict_state(before, action="...", n=4)  # y ~ P(y | x, z)
actions = model.predict_action(before, after, n=4)  # z ~ Q(z | x, y)
```"""
_PEFT = """```python
{imports}import torch
from peft import PeftModel
from transformers import {classes}

base = {kind}.from_pretrained({options})
model = PeftModel.from_pretrained(base, "{here}", subfolder="{adapter}"){other}
```"""
_NF4 = """quantization_config=BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype={dtype},
        llm_int8_skip_modules={kept},
    )"""
_ROUNDED = (
    "On CPUs with bfloat16 instructions bitsandbytes rounds to bfloat16 in evaluation mode, and probabilities are not "
    "those of the training. `swirl export RUN --merged` writes whole weights, which give the same."
)
_MERGED = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{here}", subfolder="{adapter}")
tokenizer = AutoTokenizer.from_pretrained("{here}", subfolder="{adapter}")
```"""
_LICENCE = re.compile(r"[\w.+-]{1,100}", re.ASCII)
_MOST_CHARACTERS = 100_000  # of a base's card, of which the head is read
HERE = "PATH_OR_NAME"
"""Stands for the folder in the code of a card."""


def adapter_card(
    settings: Mapping[str, Any],
    backbone: Backbone,
    base: nn.Module,
    adapters: Sequence[str],
    data: str,
    results: Results,
) -> str:
    """Write the card of adapters.

    Args:
        settings: of :func:`swirl_lightning.exports.settings.settings_of`.
        backbone: tells the licence of the base, and how it was loaded.
        base: the base, whose class the code in plain PEFT names.
        adapters: names of their folders.
        data: name of the training data.
        results: rows of a table.
    """
    local = "/" not in settings["base"]["name"]
    ours = _OURS.format(here=HERE, base=', base="FOLDER_OF_THE_BASE"' if local else "")
    meta = {"library_name": "peft", "tags": ["swirl", "world-model", "lora"]}
    how = ["## Use", "", ours, "", *_in_plain_peft(settings["base"], backbone, type(base), adapters)]
    return _card(meta, "adapters", settings, backbone, data, results, how)


def _in_plain_peft(base: Mapping[str, Any], backbone: Backbone, kind: type, adapters: Sequence[str]) -> list[str]:
    """Code that loads each adapter on the base as it was trained: rounded as there, and of that revision."""
    if backbone.gguf_file is not None:
        return ["Plain PEFT loads no such base: `swirl export RUN --merged` writes whole weights for transformers."]
    if not kind.__module__.startswith("transformers."):
        return [
            "In plain PEFT: load the base as its own card says, since it has code of its own, and quantised as above."
        ]
    classes, options = kind.__name__, [_base_in_code(base["name"], "/" not in base["name"])]
    if base["revision"]:
        options.append(f'revision="{base["revision"]}"')
    options.append(f"dtype={backbone.dtype}")
    if backbone.quantization is not None:
        classes = ", ".join(sorted((classes, "BitsAndBytesConfig")))
        options.append(_NF4.format(dtype=backbone.dtype, kept=json.dumps(list(backbone.keep_unquantized))))
    told = {
        "imports": "from importlib.resources import files\n\n" if base["name"].startswith(BUILTIN_PREFIX) else "",
        "classes": classes,
        "kind": kind.__name__,
        "options": "".join(f"\n    {option}," for option in options) + "\n",
    }
    other = "".join(f'  # or "{name}"' for name in adapters[1:])
    code = _PEFT.format(**told, here=HERE, adapter=adapters[0], other=other)
    rounds = [] if backbone.quantization is None else ["", _ROUNDED]
    return ["In plain PEFT, a model over token ids:", "", code, *rounds]


def merged_card(
    settings: Mapping[str, Any], backbone: Backbone, adapters: Sequence[str], data: str, results: Results
) -> str:
    """Write the card of whole weights; arguments as for :func:`adapter_card`."""
    code = [_MERGED.format(here=HERE, adapter=adapter) for adapter in adapters]
    meta = {"library_name": "transformers", "tags": ["swirl", "world-model"]}
    served = "Each folder is a model of plain transformers, in the format that vLLM reads. Prompts: see Settings."
    return _card(meta, "whole weights", settings, backbone, data, results, ["## Use", "", served, "", *code])


def _card(
    meta: dict[str, Any],
    kind: str,
    settings: Mapping[str, Any],
    backbone: Backbone,
    data: str,
    results: Results,
    how: list[str],
) -> str:
    base, lora, licence = settings["base"], settings["lora"], base_licence(backbone)
    if "/" in base["name"] and not base["name"].startswith(BUILTIN_PREFIX):
        meta = {"base_model": base["name"], **meta}
    if licence:
        meta = {"license": licence.lower(), **meta}
    rows = {
        "state": settings["label"],
        "base": base["name"] + (f", revision {base['revision']}" if base["revision"] else ""),
        "family": settings["backbone"]["family"],
        "data": data or "not told",
        "LoRA": f"r {lora['r']}, alpha {lora['alpha']}" + (", shared by both" if settings["shared_weights"] else ""),
        "quantization of the base": settings["backbone"]["options"].get("quantization") or "none",
        "sampling": ", ".join(f"{k} {v}" for k, v in settings["sampling"].items() if v is not None),
        "prompt of the FWM": json.dumps(settings["templates"]["fwm"], ensure_ascii=False),
        "prompt of the IDM": json.dumps(settings["templates"]["idm"], ensure_ascii=False),
    }
    front = yaml.safe_dump(meta, sort_keys=False, allow_unicode=True).rstrip()
    title = f"# Two world models on {base['name']} ({kind})"
    table = ["| | |", "|---|---|", *(f"| {escaped(key)} | {escaped(value)} |" for key, value in rows.items())]
    told = f"that of the base, {licence}" if licence else "see that of the base, which these weights derive from"
    lines = ["---", front, "---", "", title, "", _ABOUT, "", "## Settings", "", *table, "", *_results(results)]
    return "\n".join([*lines, *how, "", "## Licence", "", f"Of these weights: {told}."]) + "\n"


def _results(results: Results) -> list[str]:
    # a row that is named by another test's setting may name folders of this machine
    results = {row: values for row, values in results.items() if not re.search(r"\(.*[/\\].*\)", row)}
    if not results:
        return []
    keys = dict.fromkeys(key for row in results.values() for key in row)
    head = ["| metric | " + " | ".join(map(escaped, results)) + " |", "|---|" + "---:|" * len(results)]
    lines = [
        f"| {escaped(key)} | " + " | ".join(f"{row[key]:.3f}" if key in row else "–" for row in results.values()) + " |"
        for key in keys
    ]
    return ["## Results", "", *head, *lines, ""]


def base_licence(backbone: Backbone) -> str:
    """Return the licence that the base's own card names, or nothing."""
    if backbone.name.startswith(BUILTIN_PREFIX):
        return "Apache-2.0"
    folder = Path(backbone.path)
    try:
        if (folder / "source.json").is_file():
            found = json.loads(_beginning(folder / "source.json"))
        elif folder.exists():
            found = _front_matter(folder / "README.md")
        else:
            found = _front_matter(Path(hf_hub_download(backbone.name, "README.md", revision=backbone.revision)))
        licence = found.get("license")
    except (OSError, ValueError, AttributeError, RecursionError, yaml.YAMLError):
        return ""  # a card without its licence is better than no export
    return licence if isinstance(licence, str) and _LICENCE.fullmatch(licence) else ""


def _front_matter(card: Path) -> Any:
    """Read the YAML at the head of a card of the hub."""
    _, front, _ = re.split(r"^---\s*$", _beginning(card), maxsplit=2, flags=re.MULTILINE)
    return load(front)


def _beginning(path: Path) -> str:
    if not path.is_file():  # a pipe is never read to its end
        raise FileNotFoundError(path)
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(_MOST_CHARACTERS)


def _base_in_code(name: str, local: bool) -> str:
    if name.startswith(BUILTIN_PREFIX):
        return f'str(files("swirl_lightning") / "assets" / "{name.removeprefix(BUILTIN_PREFIX)}")'
    return '"FOLDER_OF_THE_BASE"' if local else f'"{name}"'
