"""The notebooks of examples/: every code cell runs, with small sizes in place of the parameters."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name, **parameters):
    """Run the cells in one namespace; return it with the values of their last expressions."""
    names, values = {"__name__": "__main__"}, []
    for cell in json.loads((EXAMPLES / f"{name}.ipynb").read_text())["cells"]:
        if cell["cell_type"] != "code":
            continue
        *lines, last = (source := "".join(cell["source"])).splitlines()
        try:
            shown = compile(last, name, "eval") if not last.startswith((" ", ")", "}", "]")) else None
        except SyntaxError:
            shown = None
        exec(compile("\n".join(lines) if shown else source, name, "exec"), names)
        if shown:
            values.append(eval(shown, names))
        if "parameters" in cell["metadata"].get("tags", ()):
            assert parameters.keys() <= names.keys()
            names |= parameters
    return names, values


def test_quickstart(tmp_path):
    sizes = {"warmup_size": 16, "state_only_size": 16, "validation_size": 4, "test_size": 4}
    names, values = run("quickstart", sizes=sizes, warmup_epochs=1, folder=str(tmp_path))
    assert names["trainer"].current_epoch == 3
    scores, actions, grid, again = [value for value in values if value is not None]
    assert set(scores) >= {"test/fwm/greedy/exact_match", "test/idm/sampled/exact_match"}
    assert (len(actions), len(again), len(names["futures"])) == (4, 1, 4)
    assert isinstance(grid, Image.Image)


def test_own_text_data(tmp_path, gemma_path):
    names, values = run("own_text_data", base=str(gemma_path), folder=str(tmp_path), warmup_epochs=1, rows=8)
    assert names["trainer"].current_epoch == 3
    assert names["model"].backbone.max_state_tokens < 60
    after, actions = values[-1]
    assert isinstance(after, str)
    assert len(actions) == 3


def test_label_and_simulate(minigrid):
    names, values = run("label_and_simulate", run=str(minigrid), count=6)
    shares, steps, grid = values
    assert all(0 <= share <= 1 for share in shares.values())
    assert [action for action, _ in steps] == names["actions"]
    assert isinstance(grid, Image.Image)


def test_they_hold_no_large_outputs():
    files = sorted(EXAMPLES.glob("*.ipynb"))
    assert [path.stem for path in files] == ["label_and_simulate", "own_text_data", "quickstart"]
    assert all(path.stat().st_size < 50_000 for path in files)


def test_their_folders_are_those_of_the_repository():
    """Jupyter runs a notebook in its own folder."""
    for path in EXAMPLES.glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        (source,) = ("".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", ()))
        names = {}
        exec(source, names)
        for name in {"run", "base", "folder"} & names.keys():
            assert (EXAMPLES / names[name]).resolve().parents[1] == EXAMPLES.parent, (path.name, name)
