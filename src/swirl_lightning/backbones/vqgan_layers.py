"""Encoder and decoder of the taming-transformers VQGAN, with its parameter names and nothing else of it.

Module names must stay: the weights of published checkpoints (Chameleon, Liquid) are found by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_GROUPS = 32


def _norm(channels: int) -> nn.GroupNorm:
    """Make a group norm of 32 groups as in taming, or of groups of four channels if 32 does not divide them."""
    groups = NORM_GROUPS if channels % NORM_GROUPS == 0 else max(1, channels // 4)
    return nn.GroupNorm(groups, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    """Residual block of two convolutions, with a 1x1 shortcut where the numbers of channels differ."""

    def __init__(self, channels_in: int, channels_out: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = _norm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = _norm(channels_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        if channels_in != channels_out:
            self.nin_shortcut = nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block: (B, in, H, W) -> (B, out, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """Single-head attention over all positions of a feature map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Attend: (B, C, H, W) -> (B, C, H, W)."""
        h = self.norm(x)
        q, k, v = (f(h).flatten(2).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return x + self.proj_out(mixed.transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """Convolution that halves the resolution; it pads right and below only, as in taming."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Halve the resolution: (B, C, H, W) -> (B, C, H/2, W/2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Convolution after doubling the resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Double the resolution: (B, C, H, W) -> (B, C, 2H, 2W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _middle(channels: int, dropout: float) -> nn.Module:
    mid = nn.Module()
    mid.block_1 = ResnetBlock(channels, channels, dropout)
    mid.attn_1 = AttnBlock(channels)
    mid.block_2 = ResnetBlock(channels, channels, dropout)
    return mid


def _level(channels: list[int], attention: bool, dropout: float) -> nn.Module:
    """Make residual blocks through ``channels``, each followed by attention where wanted."""
    level = nn.Module()
    pairs = list(pairwise(channels))
    level.block = nn.ModuleList(ResnetBlock(a, b, dropout) for a, b in pairs)
    level.attn = nn.ModuleList(AttnBlock(b) for _, b in pairs if attention)
    return level


def _run_level(level: nn.Module, h: Tensor) -> Tensor:
    for i, block in enumerate(level.block):  # type: ignore[arg-type]
        h = block(h)
        if len(level.attn):  # type: ignore[arg-type]
            h = level.attn[i](h)  # type: ignore[operator,index]
    return h


def _run_middle(mid: nn.Module, h: Tensor) -> Tensor:
    return mid.block_2(mid.attn_1(mid.block_1(h)))  # type: ignore[operator]


class Encoder(nn.Module):
    """Encoder of pixels to latents, f = 2 ** (len(ch_mult) - 1) times smaller in height and width."""

    def __init__(
        self,
        ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        resolution: int,
        in_channels: int,
        z_channels: int,
        double_z: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, ch, 3, padding=1)
        widths = [ch * m for m in (1, *ch_mult)]
        self.down = nn.ModuleList()
        for i in range(len(ch_mult)):
            chain = [widths[i]] + [widths[i + 1]] * num_res_blocks
            level = _level(chain, resolution // 2**i in attn_resolutions, dropout)
            if i < len(ch_mult) - 1:
                level.downsample = Downsample(widths[i + 1])
            self.down.append(level)
        self.mid = _middle(widths[-1], dropout)
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], z_channels * (2 if double_z else 1), 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Encode: (B, in_channels, R, R) -> (B, z_channels, R/f, R/f)."""
        h = self.conv_in(x)
        for level in self.down:
            h = _run_level(level, h)
            if hasattr(level, "downsample"):
                h = level.downsample(h)  # type: ignore[operator]
        return self.conv_out(F.silu(self.norm_out(_run_middle(self.mid, h))))


class Decoder(nn.Module):
    """Decoder of latents to pixels: the inverse of :class:`Encoder` in shape."""

    def __init__(
        self,
        ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        resolution: int,
        out_ch: int,
        z_channels: int,
        dropout: float,
    ) -> None:
        super().__init__()
        widths = [ch * m for m in ch_mult]
        self.conv_in = nn.Conv2d(z_channels, widths[-1], 3, padding=1)
        self.mid = _middle(widths[-1], dropout)
        levels = []
        for i, width in enumerate(widths):
            above = widths[min(i + 1, len(widths) - 1)]
            chain = [above] + [width] * (num_res_blocks + 1)
            level = _level(chain, resolution // 2**i in attn_resolutions, dropout)
            if i > 0:
                level.upsample = Upsample(width)
            levels.append(level)
        self.up = nn.ModuleList(levels)
        self.norm_out = _norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], out_ch, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """Decode: (B, z_channels, R/f, R/f) -> (B, out_ch, R, R)."""
        h = _run_middle(self.mid, self.conv_in(z))
        for level in reversed(self.up):
            h = _run_level(level, h)
            if hasattr(level, "upsample"):
                h = level.upsample(h)  # type: ignore[operator]
        return self.conv_out(F.silu(self.norm_out(h)))


class Codebook(nn.Module):
    """Codebook of ``n_embed`` vectors: ``quantize.embedding.weight`` of the checkpoint."""

    def __init__(self, n_embed: int, embed_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_embed, embed_dim)

    def nearest(self, z: Tensor) -> Tensor:
        """Find the nearest code of each latent: (N, embed_dim) -> (N,) ids."""
        e = self.embedding.weight
        distance = z.pow(2).sum(1, keepdim=True) + e.pow(2).sum(1) - 2 * z @ e.t()
        return torch.argmin(distance, dim=1)
