"""Upload of an exported folder to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

KINDS = (".safetensors", ".json", ".md", ".txt", ".model", ".jinja")
"""Endings of what an export holds."""


def files_of(folder: Path) -> list[Path]:
    """Return the files of an exported folder.

    Raises:
        FileNotFoundError: there is no such folder, or it has no model card.
        ValueError: it holds something that no export does: other files are not published.
    """
    if not (folder / "README.md").is_file():
        raise FileNotFoundError(f"{folder} is no exported folder, it has no README.md: write one with swirl export")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if odd := [str(path.relative_to(folder)) for path in files if path.suffix not in KINDS or path.is_symlink()]:
        raise ValueError(f"{folder} holds what no export does, and is not uploaded: {', '.join(odd[:5])}; remove it")
    return files


def check_name(name: str) -> None:
    """Raise ValueError for what cannot be the name of a repository."""
    from huggingface_hub.utils import validate_repo_id

    if name.count("/") != 1:
        raise ValueError(f"{name!r} is no name of a repository: give owner/name")
    validate_repo_id(name)


def upload(folder: Path, name: str, private: bool = False) -> str:
    """Upload an exported folder as one commit, and return its address.

    In the folders that it holds (``fwm``, ``idm``), files of an earlier upload that it lacks are deleted: a library
    would load adapters that lie beside merged weights. The card's code gets the repository's name. The token is the one
    that huggingface_hub knows; it is in no message.

    Raises:
        ValueError: the name is none of a repository.
        OSError: the hub refuses it, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    from swirl_lightning.console.secrets import redacted
    from swirl_lightning.exports.card import HERE

    operations: list[CommitOperationAdd | CommitOperationDelete] = []
    for path in files_of(folder):
        content: str | bytes = str(path)
        if path == folder / "README.md":
            content = path.read_text(encoding="utf-8").replace(HERE, name).encode()
        operations.append(CommitOperationAdd(path.relative_to(folder).as_posix(), content))
    api = HfApi(library_name="swirl-lightning")
    try:
        api.create_repo(name, private=private, exist_ok=True)
        ours = {operation.path_in_repo for operation in operations}
        folders = {path.rpartition("/")[0] for path in ours} - {""}
        stale = [path for path in api.list_repo_files(name) if path.rpartition("/")[0] in folders and path not in ours]
        operations += map(CommitOperationDelete, stale)
        return str(api.create_commit(name, operations, commit_message="Upload world models").commit_url)
    except Exception as error:  # of the libraries below it, whichever cannot reach the hub or read its answer
        reason = redacted(" ".join(f"{type(error).__name__}: {error}".split()), get_token() or "")
        raise OSError(
            f"the hub does not take {name}: {reason}; may the token of hf auth login or HF_TOKEN write there?"
        ) from None
