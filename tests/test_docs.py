"""Files, modules, names, commands and configs that the docs name exist."""

from __future__ import annotations

import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SOURCES = [*PAGES, *sorted((ROOT / "configs").glob("*.yaml"))]


def name(path):
    return str(path.relative_to(ROOT))


def resolve(dotted):
    """The object of a dotted name; raises where there is none."""
    module, _, rest = dotted, "", ""
    while True:
        try:
            found = import_module(module)
            break
        except ModuleNotFoundError:
            module, _, last = module.rpartition(".")
            rest = f"{last}.{rest}" if rest else last
            if not module:
                raise
    for part in filter(None, rest.split(".")):
        found = getattr(found, part) if hasattr(found, part) else found.__dataclass_fields__[part]
    return found


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_names_of_the_package_exist(page):
    for dotted in set(re.findall(r"(?<!-m )\bswirl_lightning(?:\.\w+)+(?!\.py)", page.read_text())):
        resolve(dotted)


def test_the_table_of_places_names_each_folder_and_module():
    rows = re.findall(r"^\| `([\w/]+/)` \| (.*) \|$", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.M)
    package = ROOT / "src" / "swirl_lightning"
    folders = {f"{path.relative_to(ROOT)}/" for path in package.iterdir() if path.is_dir() and "__" not in path.name}
    assert {folder for folder, _ in rows if folder.startswith("src/")} == {"src/swirl_lightning/", *folders}
    modules = {path.stem for path in package.glob("*.py") if "__" not in path.name}
    assert set(re.findall(r"`(\w+)`", dict(rows)["src/swirl_lightning/"])) == modules


def test_classes_that_pages_and_configs_name_are_in_the_reference():
    """What is chosen by class path is looked up there."""
    reference = "".join(page.read_text() for page in (ROOT / "docs/api").glob("*.md"))
    shown = tuple(f"{module}." for module in re.findall(r"^::: (swirl_lightning\.\S+)", reference, flags=re.M))
    text = "".join(page.read_text() for page in SOURCES)
    dotted = set(re.findall(r"\bswirl_lightning(?:\.[a-z]\w*)+\.[A-Z]\w+", text))
    assert "swirl_lightning.training.learners.BestOfN" in dotted
    assert not [name for name in sorted(dotted) if not name.startswith(shown)]


def test_code_of_the_paper_exists():
    table = (ROOT / "docs" / "paper_to_code.md").read_text()
    rows = [line.split("|")[2] for line in table.splitlines() if line.startswith("| ") and "| paper |" not in line]
    dotted = {found for row in rows for found in re.findall(r"`(\w+(?:\.\w+)+)`", row)}
    assert len(dotted) > 10
    for found in dotted:
        resolve(f"swirl_lightning.{found}")


def test_extras_are_quoted_as_zsh_needs_them():
    code = [path for folder in ("src", "benchmarks", "callbacks") for path in (ROOT / folder).rglob("*.py")]
    bare = [name(path) for path in [*SOURCES, *code] if "pip install swirl-lightning[" in path.read_text("utf-8")]
    assert not bare


@pytest.mark.parametrize("page", SOURCES, ids=name)
def test_modules_and_configs_of_commands_exist(page):
    text = page.read_text()
    for module in set(re.findall(r"python -m ([\w.]+)", text)):
        assert find_spec(module) is not None, module
    for path in set(re.findall(r"\bconfigs/\w+\.yaml", text)):
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_exist(page):
    text = page.read_text()
    folders = "src|tests|docs|benchmarks|callbacks|recipes|perf"
    named = re.findall(rf"`((?:{folders})/[\w/.]+)`", text)
    named += re.findall(rf"(?<![\w/.-])((?:{folders})/[\w/]+(?:\.\w+)+)", text)  # within commands, too
    for path in set(named):
        assert (ROOT / path).exists() or (ROOT / "tests" / path).exists(), path
    for target in set(re.findall(r"\]\((?!https?:)([^)#\s]+)", text)):
        assert (page.parent / target).exists(), target


def test_the_guards_of_the_threat_model_are_tests():
    table = (ROOT / "SECURITY.md").read_text()
    files = set(re.findall(r"`((?:\w+/)*test_\w+\.py)", table))
    everything = "".join((ROOT / "tests" / path).read_text() for path in files)
    named = set(re.findall(r"::(test_\w+)", table))
    assert named
    assert {test for test in named if f"def {test}(" not in everything} == set()


def test_the_metadata_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{citation["version"]}"' in project
    assert f'license = "{citation["license"]}"' in project
