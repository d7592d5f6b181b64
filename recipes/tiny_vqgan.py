"""Training of the tiny VQGAN, in which a code stands for one kind of patch whatever is around it.

The frames of the tiny world are made of a closed set of 8 x 8 patches, so the codes need not be found by
straight-through gradients: the patches are clustered, cluster i becomes code i, the encoder is trained
to map a patch nearest to its code, and the decoder to reconstruct it, both on random compositions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from swirl_lightning.backbones.vqgan import VQGAN, VQGANConfig

CONFIG = VQGANConfig(
    embed_dim=16,
    n_embed=128,
    z_channels=32,
    resolution=48,
    ch=12,
    ch_mult=(1, 2, 2, 4),
    num_res_blocks=1,
)
"""Of frames of 6 x 6 cells; of others only the resolution differs."""
SMALL, WHOLE = (3, 32), 16
"""Cells along a side of small images and their number in a step; number of whole ones. Most steps have small images:
the model is convolutional.
"""
STAGES = {"both": (500, 200), "decoder": (900, 200)}
"""Steps on small and on whole images, of encoder and decoder together, then of the decoder alone."""
LEARNING_RATE = 3e-3

Log = Callable[[str], None]


def random_grids(patches: int, floor: int, wall: int, count: int, side: int, rng: torch.Generator) -> Tensor:
    """Draw ids (count, side, side): half are independent patches, half are walled rooms with a few things."""
    grids = torch.randint(patches, (count, side, side), generator=rng)
    rooms = torch.rand(count, 1, 1, generator=rng) < 0.5
    empty = torch.rand(count, side, side, generator=rng) < 0.75
    grids[rooms & empty] = floor
    border = torch.ones(side, side, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    mostly = torch.rand(count, side, side, generator=rng) < 0.9
    grids[rooms & border & mostly] = wall
    return grids


def compose(atlas: Tensor, grids: Tensor) -> Tensor:
    """Compose images (B, 3, n * p, n * p) of patches (T, 3, p, p) by ids (B, n, n)."""
    b, n, _ = grids.shape
    p = atlas.shape[-1]
    return atlas[grids].permute(0, 3, 1, 4, 2, 5).reshape(b, 3, n * p, n * p)


def _code_loss(model: VQGAN, pixels: Tensor, grids: Tensor) -> Tensor:
    """Compute the cross entropy of the right code among all, by distance."""
    z = model.latents(pixels).permute(0, 2, 3, 1).flatten(0, 2)
    e = model.quantize.embedding.weight
    return F.cross_entropy(2 * z @ e.t() - e.pow(2).sum(1), grids.flatten())


def _paint_loss(model: VQGAN, pixels: Tensor, grids: Tensor) -> Tensor:
    """Compute the error of decoding the right codes."""
    painted = model.decode_latents(model.quantize.embedding(grids).permute(0, 3, 1, 2))
    return 4 * F.mse_loss(painted, pixels) + F.l1_loss(painted, pixels)


def train_vqgan(atlas: Tensor, floor: int, wall: int, seed: int, log: Log, config: VQGANConfig = CONFIG) -> VQGAN:
    """Train on compositions of the patches (T, 3, p, p) in [-1, 1]; patch i gets code i.

    Args:
        atlas: the centre of each cluster of patches.
        floor: index of the patch that fills rooms.
        wall: index of the patch around rooms.
        seed: of weights and images.
        log: called with a line every 100 steps.
        config: its ``grid`` is the side of whole images in cells.
    """
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    model = VQGAN(config)
    for stage, (small, whole) in STAGES.items():
        if stage == "decoder":
            for part in (model.encoder, model.quant_conv, model.quantize):
                part.requires_grad_(False)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.0)
        for step in range(small + whole):
            left = 1 - step / (small + whole)
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * min(1, (step + 1) / 30, 0.02 + 1.5 * left)
            side, count = SMALL if step < small else (config.grid, WHOLE)
            grids = random_grids(len(atlas), floor, wall, count, side, rng)
            pixels = compose(atlas, grids)
            loss = paint = _paint_loss(model, pixels, grids)
            if stage == "both":
                loss = paint + _code_loss(model, pixels, grids)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            if step % 100 == 0:
                log(f"vqgan {stage} {step} loss {loss.item():.4f} paint {paint.item():.4f}")
    return model.eval().requires_grad_(False)


@torch.no_grad()
def check_vqgan(model: VQGAN, atlas: Tensor, floor: int, wall: int, seed: int) -> tuple[float, float]:
    """Measure on unseen compositions the shares of cells with the right code and with a recognisable decoding."""
    rng = torch.Generator().manual_seed(seed)
    p, coded, painted = atlas.shape[-1], [], []
    for _ in range(16):
        grids = random_grids(len(atlas), floor, wall, 64, model.config.grid, rng)
        codes = model.encode(compose(atlas, grids))
        coded.append(codes.flatten() == grids.flatten())
        cells = model.decode(grids.flatten(1)).unfold(2, p, p).unfold(3, p, p)
        cells = cells.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)
        painted.append(torch.cdist(cells, atlas.flatten(1)).argmin(1) == grids.flatten())
    return float(torch.cat(coded).float().mean()), float(torch.cat(painted).float().mean())
