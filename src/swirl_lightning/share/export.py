"""Export of a run's models by its folder."""

from __future__ import annotations

from pathlib import Path

from swirl_lightning.exports.merged import write_merged
from swirl_lightning.files.paths import check_folder
from swirl_lightning.files.safe_yaml import load
from swirl_lightning.files.writing import whole_folder
from swirl_lightning.results.table import FILE, read, tested
from swirl_lightning.use.runs import Run


def export_run(run: Run, folder: Path, merged: bool = False) -> None:
    """Write the models of a run into a new folder.

    Args:
        run: the trained run.
        folder: must not exist, or be empty.
        merged: whole weights instead of adapters.

    Raises:
        FileExistsError: the folder holds something.
        ValueError: the run's checkpoint or settings cannot be used, or the folder is that of the process.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and holds something; give --to another folder, or remove it")
    check_folder(folder)
    module = run.load(run.build())
    results = tested(read(run.config.parent / FILE))
    data = _data_class(run.config)
    with whole_folder(folder) as new:
        if merged:
            write_merged(module, new, data, results)
        else:
            module.export(new, data, results)


def _data_class(config: Path) -> str:
    """Name the class of a configuration's data, which may not be there or not be importable here."""
    found = load(config.read_text(encoding="utf-8"))
    data = found.get("data") if isinstance(found, dict) else None
    path = data.get("class_path") if isinstance(data, dict) else data
    return path.rpartition(".")[2] if isinstance(path, str) else ""
