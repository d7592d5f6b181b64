"""Trains the tiny VQGAN on random compositions of tiles, so that a code means a tile whatever is around it."""

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
    ch=16,
    ch_mult=(1, 1, 2, 4),
    num_res_blocks=1,
)
BATCH = 32
WARM_STEPS = 200
VQ_STEPS = 500
DECODER_STEPS = 150
LEARNING_RATE = 2e-3

Log = Callable[[str], None]


def random_grids(tiles: int, floor: int, wall: int, count: int, side: int, rng: torch.Generator) -> Tensor:
    """(count, side, side) ids: half are independent tiles, half are walled rooms with a few things in."""
    grids = torch.randint(tiles, (count, side, side), generator=rng)
    rooms = torch.rand(count, 1, 1, generator=rng) < 0.5
    empty = torch.rand(count, side, side, generator=rng) < 0.75
    grids[rooms & empty] = floor
    border = torch.ones(side, side, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    mostly = torch.rand(count, side, side, generator=rng) < 0.9
    grids[rooms & border & mostly] = wall
    return grids


def compose(atlas: Tensor, grids: Tensor) -> Tensor:
    """Tiles (T, 3, p, p) and ids (B, n, n) -> pictures (B, 3, n * p, n * p)."""
    b, n, _ = grids.shape
    p = atlas.shape[-1]
    return atlas[grids].permute(0, 3, 1, 4, 2, 5).reshape(b, 3, n * p, n * p)


def _flat(z: Tensor) -> Tensor:
    """(B, D, n, n) -> (B * n * n, D)."""
    return z.permute(0, 2, 3, 1).flatten(0, 2)


def _spread_codes(z: Tensor, count: int) -> Tensor:
    """Farthest-first choice of ``count`` of the vectors z (N, D): every cluster gets a code."""
    chosen = [0]
    distance = (z - z[0]).pow(2).sum(1)
    for _ in range(count - 1):
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (z - z[chosen[-1]]).pow(2).sum(1))
    return z[chosen]


def train_vqgan(atlas: Tensor, floor: int, wall: int, seed: int, log: Log) -> VQGAN:
    """Trains on compositions of the tiles (T, 3, p, p) in [-1, 1].

    Three stages: a plain autoencoder whose latent of a cell must not depend on the cells around it;
    with the codebook, set farthest-first; then the decoder alone on the frozen codes.
    """
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    model = VQGAN(CONFIG)
    side, total = CONFIG.grid, WARM_STEPS + VQ_STEPS + DECODER_STEPS
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.0)
    for step in range(total):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / 30) * (1 - 0.97 * step / total)
        if step == WARM_STEPS:
            with torch.no_grad():
                grids = random_grids(len(atlas), floor, wall, 256, side, rng)
                model.quantize.embedding.weight.copy_(
                    _spread_codes(_flat(model.latents(compose(atlas, grids))), CONFIG.n_embed)
                )
        if step == WARM_STEPS + VQ_STEPS:
            for part in (model.encoder, model.quant_conv, model.quantize):
                part.requires_grad_(False)
        loss, parts = _loss(model, atlas, floor, wall, rng, quantised=step >= WARM_STEPS)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            log(f"vqgan {step}/{total} " + " ".join(f"{k} {v:.4f}" for k, v in parts.items()))
    return model.eval().requires_grad_(False)


def _loss(
    model: VQGAN, atlas: Tensor, floor: int, wall: int, rng: torch.Generator, quantised: bool
) -> tuple[Tensor, dict[str, float]]:
    """Reconstruction, independence of the context and (``quantised``) commitment."""
    side, half = CONFIG.grid, BATCH // 2
    grids = random_grids(len(atlas), floor, wall, BATCH, side, rng)
    kept = torch.rand(half, side, side, generator=rng) < 0.5
    grids[half:] = torch.where(kept, grids[:half], grids[half:])
    pixels = compose(atlas, grids)
    z = model.latents(pixels)
    scale = z.detach().var().clamp_min(1e-4)
    context = (z[:half] - z[half:]).pow(2).mean(1)[kept].mean() / scale
    parts = {"context": context}
    quantised_z = z
    if quantised:
        flat = _flat(z)
        codes = model.quantize.nearest(flat.detach())
        e = model.quantize.embedding(codes)
        parts["codebook"] = (e - flat.detach()).pow(2).mean() + 0.25 * (e.detach() - flat).pow(2).mean()
        e = e.view(len(z), side, side, -1).permute(0, 3, 1, 2)
        quantised_z = z + (e - z).detach()
    output = model.decode_latents(quantised_z)
    parts["pixels"] = 4 * F.mse_loss(output, pixels) + F.l1_loss(output, pixels)
    return torch.stack(list(parts.values())).sum(), {k: v.item() for k, v in parts.items()}


@torch.no_grad()
def tile_codes(model: VQGAN, atlas: Tensor, floor: int, wall: int, seed: int) -> tuple[Tensor, float]:
    """The usual code of each tile (T,), and the share of cells that get it in unseen compositions."""
    rng = torch.Generator().manual_seed(seed)
    grids = torch.cat([random_grids(len(atlas), floor, wall, 64, CONFIG.grid, rng) for _ in range(16)])
    codes = torch.cat([model.encode(compose(atlas, g)) for g in grids.split(64)])
    counts = torch.zeros(len(atlas), CONFIG.n_embed)
    counts.index_put_((grids.flatten(), codes.flatten()), torch.ones(codes.numel()), accumulate=True)
    usual = counts.argmax(1)
    return usual, float((usual[grids.flatten()] == codes.flatten()).float().mean())


@torch.no_grad()
def decoded_exactly(model: VQGAN, atlas: Tensor, floor: int, wall: int, seed: int) -> float:
    """Share of cells whose tile is the nearest one to decode(encode(picture))."""
    rng = torch.Generator().manual_seed(seed)
    p, right = atlas.shape[-1], []
    for _ in range(8):
        grids = random_grids(len(atlas), floor, wall, 64, CONFIG.grid, rng)
        out = model.decode(model.encode(compose(atlas, grids)))
        cells = out.unfold(2, p, p).unfold(3, p, p).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)
        right.append(torch.cdist(cells, atlas.flatten(1)).argmin(1) == grids.flatten())
    return float(torch.cat(right).float().mean())
