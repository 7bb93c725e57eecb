"""DINOv2's vision transformer (Oquab et al., TMLR-24), as its published weights name its parts.

An image becomes a class token and a token per patch; each block adds attention between all tokens, then a
network of two layers on each, both scaled per channel. The class token after the last norm is the feature.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

EPSILON = 1e-6


class DINOv2(nn.Module):
    """ViT-L/14: `(B, 3, H, W)` float32, normalized, sides a multiple of 14, -> `(B, 1024)`.

    trained_px: the side that its position embeddings were trained for; for another they are interpolated.
    """

    WIDTH = 1024

    def __init__(
        self, width: int = WIDTH, depth: int = 24, heads: int = 16, patch_px: int = 14, trained_px: int = 518
    ) -> None:
        super().__init__()
        self.grid = trained_px // patch_px
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid**2, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))  # of its training; in the file, of no use here
        projection = nn.Conv2d(3, width, patch_px, stride=patch_px)
        self.patch_embed = nn.Sequential(OrderedDict(proj=projection))
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=EPSILON)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patch_embed(images)
        tokens = patches.flatten(2).mT
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), tokens], dim=1)
        features: Tensor = self.norm(self.blocks(tokens + self._positions(patches.shape[-1])))[:, 0]
        return features

    def _positions(self, grid: int) -> Tensor:
        if grid == self.grid:
            return self.pos_embed
        of_class, of_patches = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        plane = of_patches.mT.reshape(1, -1, self.grid, self.grid)
        # The published network scales by this and not to a size, which gives slightly other values.
        scale = (grid + 0.1) / self.grid
        plane = functional.interpolate(plane, scale_factor=(scale, scale), mode="bicubic")
        return torch.cat([of_class, plane.flatten(2).mT], dim=1)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=EPSILON), nn.LayerNorm(width, eps=EPSILON)
        self.attn = _Attention(width, heads)
        wide, narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.mlp = nn.Sequential(OrderedDict(fc1=wide, act=nn.GELU(), fc2=narrow))
        self.ls1, self.ls2 = _Scale(width), _Scale(width)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens)))
        added: Tensor = tokens + self.ls2(self.mlp(self.norm2(tokens)))
        return added


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        # (B, tokens, 3 width) -> three of (B, heads, tokens, width / heads)
        query, key, value = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        projected: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return projected


class _Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens * self.gamma
