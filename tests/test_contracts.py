"""Contracts of import-linter: they fail if a file imports a layer above it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytest.importorskip("importlinter", reason="import-linter is a tool of development")


@pytest.mark.parametrize(
    ("planted", "broken"),
    [
        ("", None),
        ("def late():\n    from swirl_lightning.backbones.vlm import VLM\n", "swirl_lightning.backbones.vlm"),
        ("from swirl_lightning import files\n", "the engine imports nothing of the project BROKEN"),
        ("from swirl_lightning import SWIRL\n", "no part imports the public face BROKEN"),
    ],
    ids=["as it is", "a backbone", "a lower layer", "the public face"],
)
def test_the_engine_imports_nothing_of_the_project(planted, broken, tmp_path):
    shutil.copytree(ROOT / "src/swirl_lightning", tmp_path / "swirl_lightning", ignore=shutil.ignore_patterns("assets"))
    for part in ("callbacks", "benchmarks"):
        shutil.copytree(ROOT / part, tmp_path / "swirl_lightning" / part)
    with open(tmp_path / "swirl_lightning/engine/noise.py", "a") as file:
        file.write(planted)
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(sys.argv[1], no_cache=True))"
    command = [sys.executable, "-c", code, str(ROOT / "pyproject.toml")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode == 0) == (broken is None), done.stdout + done.stderr
    assert broken is None or broken in done.stdout


def test_no_file_is_longer_than_400_lines():
    folders = ("src", "callbacks", "benchmarks", "recipes", "perf", "tests")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 300
    assert not [path for path in files if len(path.read_text().splitlines()) > 400]
