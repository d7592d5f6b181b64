"""Export of a run's models by its folder."""

from __future__ import annotations

from pathlib import Path

from swirl_lightning.exports.merged import write_merged
from swirl_lightning.files.paths import check_folder
from swirl_lightning.files.writing import whole_folder
from swirl_lightning.results.about import data_name
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
    try:
        data = data_name(run.data())
    except (ImportError, OSError, ValueError):
        data = ""  # a configuration without data, or with data of another machine: the card does not name them
    results = tested(read(run.config.parent / FILE))
    with whole_folder(folder) as new:
        if merged:
            write_merged(module, new, data, results)
        else:
            module.export(new, data, results)
