"""The VQGAN: names and shapes of the published files, numbers against an independent encoder, errors."""

from __future__ import annotations

import pickle
import runpy
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import ChameleonVQVAE, ChameleonVQVAEConfig

from swirl_lightning.backbones.vqgan import (
    VQGAN,
    VQGANConfig,
    VQGANError,
    convert_to_safetensors,
    vqgan_fingerprint,
)
from swirl_lightning.console.run import run_command
from swirl_lightning.prepare.vqgan import main

SMALL = VQGANConfig(embed_dim=8, n_embed=16, z_channels=8, resolution=16, ch=12, ch_mult=(1, 2), num_res_blocks=1)


def write(folder: Path, model: VQGAN, ckpt: bool = False, **extra: torch.Tensor) -> Path:
    folder.mkdir(exist_ok=True)
    model.config.to_yaml(folder / "vqgan.yaml")
    if ckpt:
        torch.save({"state_dict": {**model.state_dict(), **extra}, "epoch": 3}, folder / "vqgan.ckpt")
    else:
        save_file(model.state_dict(), folder / "vqgan.safetensors")
    return folder


def test_published_config_has_the_taming_names_and_shapes() -> None:
    with torch.device("meta"):
        state = VQGAN(VQGANConfig()).state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    expected = {
        "encoder.conv_in.weight": (128, 3, 3, 3),
        "encoder.down.0.block.0.norm1.weight": (128,),
        "encoder.down.0.downsample.conv.weight": (128, 128, 3, 3),
        "encoder.down.2.block.0.nin_shortcut.weight": (256, 128, 1, 1),
        "encoder.down.4.block.1.conv2.bias": (512,),
        "encoder.mid.block_1.conv1.weight": (512, 512, 3, 3),
        "encoder.mid.attn_1.proj_out.weight": (512, 512, 1, 1),
        "encoder.norm_out.weight": (512,),
        "encoder.conv_out.weight": (256, 512, 3, 3),
        "decoder.conv_in.weight": (512, 256, 3, 3),
        "decoder.mid.attn_1.q.weight": (512, 512, 1, 1),
        "decoder.up.4.upsample.conv.weight": (512, 512, 3, 3),
        "decoder.up.3.block.0.nin_shortcut.weight": (256, 512, 1, 1),
        "decoder.up.0.block.2.conv2.weight": (128, 128, 3, 3),
        "decoder.norm_out.bias": (128,),
        "decoder.conv_out.weight": (3, 128, 3, 3),
        "quantize.embedding.weight": (8192, 256),
        "quant_conv.weight": (256, 256, 1, 1),
        "post_quant_conv.bias": (256,),
    }
    assert expected.items() <= shapes.items()
    assert not [name for name in shapes if ".attn." in name]  # attn_resolutions is empty, the middle has one
    assert not [name for name in shapes if name.startswith(("encoder.down.4.down", "decoder.up.0.up"))]
    # Encoder: 2 blocks in 5 levels and 2 in the middle; decoder: 3 in 5 and 2. 8 tensors each, 2 per shortcut.
    shortcuts = sum("nin_shortcut.weight" in name for name in shapes)
    assert shortcuts == 2 + 2
    assert len(shapes) == 8 * (12 + 17) + 2 * shortcuts + 10 * 2 + 2 * 8 + 6 * 2 + 4 + 1


def test_attention_where_the_config_says() -> None:
    config = VQGANConfig(resolution=16, ch=12, ch_mult=(1, 2), num_res_blocks=2, attn_resolutions=(8,))
    names = VQGAN(config).state_dict()
    assert {"encoder.down.1.attn.1.norm.weight", "decoder.up.1.attn.2.q.weight"} <= names.keys()
    assert not [n for n in names if n.startswith(("encoder.down.0.attn", "decoder.up.0.attn"))]


def test_512_pixels_are_32_by_32_codes() -> None:
    small = VQGANConfig(ch=4, z_channels=8, embed_dim=8, n_embed=32, num_res_blocks=1)  # ch_mult is published
    assert (small.resolution, small.downsample, small.grid) == (512, 16, 32)
    model = VQGAN(small).eval()
    codes = model.encode(torch.zeros(1, 3, 512, 512))
    assert codes.shape == (1, 1024)
    assert model.decode(codes).shape == (1, 3, 512, 512)


def test_codes_equal_those_of_an_independent_encoder() -> None:
    torch.manual_seed(0)
    config = ChameleonVQVAEConfig(resolution=64, base_channels=32, latent_channels=32, embed_dim=16, num_embeddings=64)
    other = ChameleonVQVAE(config).eval()
    some = torch.rand(4, 3, 64, 64) * 2 - 1
    with torch.no_grad():  # a codebook of real latents, or one code would be nearest to all
        latents = other.quant_conv(other.encoder(some)).permute(0, 2, 3, 1).flatten(0, 2)
        other.quantize.embedding.weight.copy_(latents)
    ours = VQGAN(VQGANConfig(resolution=64, ch=32, z_channels=32, embed_dim=16, n_embed=64)).eval()
    missing, unexpected = ours.load_state_dict(other.state_dict(), strict=False)
    assert not unexpected
    assert all(name.startswith(("decoder.", "post_quant_conv.")) for name in missing)
    pixels = torch.rand(3, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(ours.latents(pixels), other.quant_conv(other.encoder(pixels)), rtol=1e-4, atol=1e-5)
        codes = other.encode(pixels).image_tokens.view(3, -1)
    assert torch.equal(ours.encode(pixels), codes)
    assert len(codes.unique()) > 3


def test_codes_run_row_by_row() -> None:
    model = VQGAN(SMALL).eval()
    codes = torch.arange(64).view(1, 64) % 16
    grid = model.quantize.embedding(codes).transpose(1, 2).unflatten(2, (8, 8))
    torch.testing.assert_close(model.decode(codes), model.decode_latents(grid))
    assert torch.equal(grid[0, :, 0, 5], model.quantize.embedding.weight[5])


def test_ckpt_loads_weights_only_and_drops_the_loss(tmp_path: Path) -> None:
    model = VQGAN(SMALL)
    folder = write(tmp_path, model, ckpt=True, **{"loss.discriminator.weight": torch.ones(1)})
    loaded = VQGAN.from_folder(folder)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
    assert not any(p.requires_grad for p in loaded.parameters())
    assert not loaded.training


def test_conversion_to_safetensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command of the module."""
    folder = write(tmp_path, VQGAN(SMALL), ckpt=True, **{"loss.logvar": torch.ones(())})
    before = VQGAN.from_folder(folder)
    monkeypatch.setattr("sys.argv", ["vqgan", str(folder)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # runpy: the module is imported already
        runpy.run_module("swirl_lightning.prepare.vqgan", run_name="__main__")
    assert capsys.readouterr().out.strip() == str(folder / "vqgan.safetensors")
    assert (folder / "vqgan.safetensors").stat().st_mode == (folder / "vqgan.yaml").stat().st_mode  # for others, too
    assert not [name for name in load_file(folder / "vqgan.safetensors") if name.startswith("loss.")]
    torch.save({"state_dict": {"quant_conv.weight": torch.ones(1)}}, folder / "vqgan.ckpt")
    with pytest.raises(VQGANError, match="missing"):
        convert_to_safetensors(folder)  # what is there stays as it was
    (folder / "vqgan.ckpt").unlink()
    with pytest.raises(VQGANError, match="nothing to convert"):
        convert_to_safetensors(folder)
    after = VQGAN.from_folder(folder)
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))


def test_the_command_explains_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as asked:
        main(["--help"])
    assert asked.value.code == 0
    assert "folder with vqgan.yaml and vqgan.ckpt" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"error: no vqgan.ckpt in .*; nothing to convert"):
        run_command(lambda: main([str(tmp_path)]))


def test_the_yaml_of_taming_is_understood(tmp_path: Path) -> None:
    ddconfig = {"double_z": False, "z_channels": 256, "resolution": 512, "in_channels": 3, "out_ch": 3}
    ddconfig |= {
        "ch": 128,
        "ch_mult": [1, 1, 2, 2, 4],
        "num_res_blocks": 2,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    params = {"embed_dim": 256, "n_embed": 8192, "ddconfig": ddconfig, "lossconfig": {"target": "x.Y"}}
    path = tmp_path / "vqgan.yaml"
    path.write_text(yaml.safe_dump({"model": {"target": "taming.VQModel", "params": params}}))
    assert VQGANConfig.from_yaml(path) == VQGANConfig()
    VQGANConfig().to_yaml(path)
    assert VQGANConfig.from_yaml(path) == VQGANConfig()


def test_errors_name_what_does_not_fit(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", VQGAN(SMALL))
    state = load_file(folder / "vqgan.safetensors")
    del state["quant_conv.weight"]
    state["stray"] = torch.ones(1)
    state["quantize.embedding.weight"] = torch.ones(32, 8)
    save_file(state, folder / "vqgan.safetensors")
    with pytest.raises(VQGANError, match=r"quant_conv\.weight.*stray.*\(32, 8\) instead of \(16, 8\)"):
        VQGAN.from_folder(folder)
    (folder / "vqgan.safetensors").write_bytes(b"")
    with pytest.raises(VQGANError, match="truncated"):
        VQGAN.from_folder(folder)
    (folder / "vqgan.safetensors").unlink()
    with pytest.raises(VQGANError, match=r"no vqgan\.safetensors and no vqgan\.ckpt"):
        VQGAN.from_folder(folder)
    (folder / "vqgan.yaml").write_text("model: {params: {embed_dim: 4}}")
    with pytest.raises(VQGANError, match="ddconfig"):
        VQGAN.from_folder(folder)
    (folder / "vqgan.yaml").unlink()
    with pytest.raises(VQGANError, match="no VQGAN config"):
        VQGAN.from_folder(folder)


class _Payload:
    """Object that would run code if it were unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("unpickled",)


def test_a_ckpt_with_code_in_it_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path, VQGAN(SMALL))
    (folder / "vqgan.safetensors").unlink()
    torch.save({"state_dict": {}, "x": _Payload()}, folder / "vqgan.ckpt")
    with pytest.raises(VQGANError, match="plain tensors"):
        VQGAN.from_folder(folder)
    (folder / "vqgan.ckpt").write_bytes(pickle.dumps(_Payload()))
    with pytest.raises(VQGANError, match="plain tensors"):
        VQGAN.from_folder(folder)
    assert "unpickled" not in capsys.readouterr().out


def test_fingerprint_follows_the_weights(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", VQGAN(SMALL)), write(tmp_path / "b", VQGAN(SMALL))
    assert vqgan_fingerprint(a) == vqgan_fingerprint(a) != vqgan_fingerprint(b)


def test_it_can_be_trained() -> None:
    model = VQGAN(SMALL)
    model.decode_latents(model.latents(torch.rand(2, 3, 16, 16))).sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert without == ["quantize.embedding.weight"]
