"""Contracts of import-linter: they fail if a file imports a layer above it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.processes import run_module

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


def test_not_even_for_types_does_the_engine_import_the_project():
    """The contracts leave out imports under ``TYPE_CHECKING``."""
    imported = {
        name
        for path in (ROOT / "src/swirl_lightning/engine").glob("*.py")
        for name in re.findall(r"^\s*(?:from|import) (swirl_lightning\S*)", path.read_text(), flags=re.M)
    }
    assert "swirl_lightning.engine.grammar" in imported
    assert {".".join(name.split(".")[:2]) for name in imported} == {"swirl_lightning.engine"}


def test_importing_the_package_loads_no_library():
    code = """
import sys
from support.process_state import state
before = state()
import swirl_lightning
assert state() == before
assert not {"torch", "lightning", "transformers", "numpy"} & sys.modules.keys()
"""
    # this process has imported the package: what that may have set is not handed on
    clean = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    clean["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT / "tests"), os.environ.get("PYTHONPATH")]))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean)
    assert done.returncode == 0, done.stderr


def test_importing_all_of_the_package_changes_nothing_in_the_process():
    """No variable, warning filter, signal handler, log handler or path."""
    done = run_module("support.imported_anew")
    assert done.returncode == 0, done.stderr


def test_no_file_is_longer_than_400_lines():
    folders = ("src", "callbacks", "benchmarks", "recipes", "perf", "tests")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 300
    assert not [path for path in files if len(path.read_text().splitlines()) > 400]


def test_no_test_module_is_imported_by_another():
    """Helpers of several test modules are in tests/support."""
    files = list((ROOT / "tests").rglob("*.py"))
    imported = {
        name for path in files for name in re.findall(r"^\s*(?:from|import) ([\w.]+)", path.read_text(), flags=re.M)
    }
    assert "support.trainers" in imported
    assert not [name for name in imported if any(part.startswith("test_") for part in name.split("."))]
