"""The VQGAN of Chameleon and Liquid, which turns pixels into codes and back, loaded from its published files."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from swirl_lightning.backbones.vqgan_layers import Codebook, Decoder, Encoder
from swirl_lightning.files.reading import small_text
from swirl_lightning.files.safe_torch import load_torch
from swirl_lightning.files.safe_yaml import load
from swirl_lightning.files.writing import whole_file

CONFIG_FILE = "vqgan.yaml"
SAFETENSORS_FILE = "vqgan.safetensors"
CKPT_FILE = "vqgan.ckpt"
_TRAINING_ONLY = "loss."


class VQGANError(ValueError):
    """Error of a VQGAN's files: something is missing or does not fit; the message names the cure."""


@dataclass(frozen=True)
class VQGANConfig:
    """Sizes of a VQGAN: ``model.params`` of ``vqgan.yaml``, without ``lossconfig``.

    The defaults are the published Chameleon VQGAN.
    """

    embed_dim: int = 256
    n_embed: int = 8192
    z_channels: int = 256
    resolution: int = 512
    in_channels: int = 3
    out_ch: int = 3
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = ()
    dropout: float = 0.0
    double_z: bool = False

    def __post_init__(self) -> None:
        if self.resolution % self.downsample:
            raise VQGANError(f"resolution {self.resolution} is not a multiple of {self.downsample}")

    @property
    def downsample(self) -> int:
        """Number of pixels along the side of a code."""
        return int(2 ** (len(self.ch_mult) - 1))

    @property
    def grid(self) -> int:
        """Number of codes along the side of an image."""
        return self.resolution // self.downsample

    @classmethod
    def from_yaml(cls, path: Path) -> VQGANConfig:
        """Read the taming YAML.

        Raises:
            VQGANError: the file is missing, is no YAML, or lacks an entry.
        """
        if not path.is_file():
            raise VQGANError(f"no VQGAN config at {path}; put the checkpoint's {CONFIG_FILE} there")
        try:
            params = load(small_text(path))["model"]["params"]
            dd = dict(params["ddconfig"])
            dd.setdefault("attn_resolutions", ())
            dd.setdefault("dropout", 0.0)
            dd.setdefault("double_z", False)
            return cls(
                embed_dim=int(params["embed_dim"]),
                n_embed=int(params["n_embed"]),
                **{name: int(dd[name]) for name in ("z_channels", "resolution", "in_channels", "out_ch")},
                **{name: int(dd[name]) for name in ("ch", "num_res_blocks")},
                ch_mult=tuple(dd["ch_mult"]),
                attn_resolutions=tuple(dd["attn_resolutions"] or ()),
                dropout=float(dd["dropout"]),
                double_z=bool(dd["double_z"]),
            )
        except VQGANError:
            raise
        except (KeyError, TypeError, ValueError, ArithmeticError, RecursionError, yaml.YAMLError) as error:
            raise VQGANError(
                f"{path} is not a taming VQGAN config ({type(error).__name__}: {error}); "
                "needed: model.params with embed_dim, n_embed and ddconfig"
            ) from error

    def to_yaml(self, path: Path) -> None:
        """Write the taming YAML."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        del plain["embed_dim"], plain["n_embed"]
        params = {"embed_dim": self.embed_dim, "n_embed": self.n_embed, "ddconfig": plain}
        path.write_text(yaml.safe_dump({"model": {"params": params}}, sort_keys=False))


class VQGAN(nn.Module):
    """Vector-quantised autoencoder from pixels in [-1, 1] to codes, row by row, and back.

    Args:
        config: sizes.
    """

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        self.config = c = config
        shared: dict[str, Any] = {
            name: getattr(c, name)
            for name in ("ch", "ch_mult", "num_res_blocks", "attn_resolutions", "resolution", "dropout")
        }
        self.encoder = Encoder(in_channels=c.in_channels, z_channels=c.z_channels, double_z=c.double_z, **shared)
        self.decoder = Decoder(out_ch=c.out_ch, z_channels=c.z_channels, **shared)
        self.quantize = Codebook(c.n_embed, c.embed_dim)
        self.quant_conv = nn.Conv2d(c.z_channels * (2 if c.double_z else 1), c.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(c.embed_dim, c.z_channels, 1)

    def latents(self, pixels: Tensor) -> Tensor:
        """Encode pixels as latents before quantisation: (B, 3, R, R) in [-1, 1] -> (B, embed_dim, grid, grid)."""
        return self.quant_conv(self.encoder(pixels))

    def encode(self, pixels: Tensor) -> Tensor:
        """Encode pixels as codes: (B, 3, R, R) in [-1, 1] -> (B, grid * grid)."""
        z = self.latents(pixels)
        return self.quantize.nearest(z.permute(0, 2, 3, 1).flatten(0, 2)).view(len(pixels), -1)

    def decode_latents(self, z: Tensor) -> Tensor:
        """Decode latents to pixels: (B, embed_dim, grid, grid) -> (B, 3, R, R), about [-1, 1]."""
        return self.decoder(self.post_quant_conv(z))

    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes to pixels: (B, grid * grid) -> (B, 3, R, R), about [-1, 1]."""
        side = self.config.grid
        return self.decode_latents(self.quantize.embedding(codes).transpose(1, 2).unflatten(2, (side, side)))

    @classmethod
    def from_folder(cls, folder: str | Path) -> VQGAN:
        """Load ``vqgan.yaml`` with ``vqgan.safetensors`` or, where that is missing, ``vqgan.ckpt``.

        Raises:
            VQGANError: a file is missing or does not fit; the message names the cure.
        """
        folder = Path(folder)
        model = cls(VQGANConfig.from_yaml(folder / CONFIG_FILE))
        path = weights_path(folder)
        state = read_weights(path)
        check_weights(state, model.state_dict(), path)
        model.load_state_dict(state)
        return model.eval().requires_grad_(False)


def weights_path(folder: Path) -> Path:
    """Return the weight file of a VQGAN folder; safetensors first."""
    for name in (SAFETENSORS_FILE, CKPT_FILE):
        if (folder / name).is_file():
            return folder / name
    raise VQGANError(f"no {SAFETENSORS_FILE} and no {CKPT_FILE} in {folder}; put one of them beside the YAML")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the state dict of a VQGAN file, without ``loss.*``, which is for training alone.

    Raises:
        VQGANError: the file cannot be read as plain tensors.
    """
    try:
        if path.suffix == ".safetensors":
            state: Mapping[str, Any] = load_file(path)
        else:
            state = load_torch(path, "cpu")
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError) as error:
        raise VQGANError(
            f"{path} cannot be read as plain tensors ({type(error).__name__}: {str(error)[:200]}); it is "
            "truncated, or pickles more than tensors: download it again or use the published file"
        ) from error
    if isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    return {k: v for k, v in state.items() if isinstance(v, Tensor) and not k.startswith(_TRAINING_ONLY)}


def check_weights(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    """Compare names and shapes of weights with those expected.

    Raises:
        VQGANError: one message that lists what is missing, unexpected or of another shape.
    """
    missing = sorted(expected.keys() - state.keys())
    extra = sorted(state.keys() - expected.keys())
    shapes = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(expected[k].shape)}"
        for k in sorted(expected.keys() & state.keys())
        if state[k].shape != expected[k].shape
    ]
    named = (("missing", missing), ("unexpected", extra), ("of another shape", shapes))
    problems = [f"{len(names)} {what}: {_some(names)}" for what, names in named if names]
    if problems:
        raise VQGANError(
            f"{path} does not fit its {CONFIG_FILE}: {'; '.join(problems)}. "
            f"Use the {CONFIG_FILE} and the weights of one and the same VQGAN (taming layout)."
        )


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def convert_to_safetensors(folder: str | Path) -> Path:
    """Write the tensors of a folder's ``vqgan.ckpt``, without ``loss.*``, to ``vqgan.safetensors`` beside it.

    Raises:
        VQGANError: the folder's files do not fit; nothing is written then.
    """
    folder = Path(folder)
    ckpt, out = folder / CKPT_FILE, folder / SAFETENSORS_FILE
    if not ckpt.is_file():
        raise VQGANError(f"no {CKPT_FILE} in {folder}; nothing to convert")
    state = read_weights(ckpt)
    with torch.device("meta"):
        expected = VQGAN(VQGANConfig.from_yaml(folder / CONFIG_FILE)).state_dict()
    check_weights(state, expected, ckpt)
    with whole_file(out) as file:  # safetensors' own save_file gives it to its owner alone
        file.write(save({k: v.contiguous().clone() for k, v in state.items()}))
    return out


def vqgan_fingerprint(folder: str | Path) -> str:
    """Hash a VQGAN's YAML and weights: equal hashes mean equal codes."""
    folder = Path(folder)
    digest = hashlib.sha256()
    for path in (folder / CONFIG_FILE, weights_path(folder)):
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]
