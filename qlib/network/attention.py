"""Exact rewrite: timm's attention with its two products and its softmax as modules.

A bare ``q @ k`` cannot be found and quantized; a module can. Covers timm's `Attention` (ViT,
DeiT and kin) and `WindowAttention` (Swin). The arithmetic is timm's unfused path, step by step.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from timm.layers.attention import Attention
    from timm.models.swin_transformer import WindowAttention


class MatMul(nn.Module):
    """The product a @ b as a module; in attention a is q or the probabilities, b kᵀ or v."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a @ b


class ExplicitAttention(nn.Module):
    """Multi-head self attention over (batch, tokens, channels), every product a module."""

    qkv: nn.Module
    q_norm: nn.Module
    k_norm: nn.Module
    attn_drop: nn.Module
    norm: nn.Module
    proj: nn.Module
    proj_drop: nn.Module

    def __init__(self, fused: "Attention") -> None:
        super().__init__()
        for name, child in fused.named_children():
            self.add_module(name, child)
        self.num_heads = fused.num_heads
        self.scale = fused.scale
        self.scores = MatMul()
        self.softmax = nn.Softmax(dim=-1)
        self.mix = MatMul()

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        if is_causal:
            raise NotImplementedError("Causal attention has no place in an image classifier.")
        batch, tokens, _ = x.shape
        gate: nn.Module | None = getattr(self, "gate", None)  # few networks have one
        opened = None if gate is None else gate(x).sigmoid()
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # each (batch, heads, tokens, head width)
        q, k = self.q_norm(q), self.k_norm(k)
        scores = self.scores(q * self.scale, k.transpose(-2, -1))
        if attn_mask is not None:
            scores = scores + _additive(attn_mask, scores)
        mixed = self.mix(self.attn_drop(self.softmax(scores)), v)
        mixed = self.norm(mixed.transpose(1, 2).reshape(batch, tokens, -1))
        return self.proj_drop(self.proj(mixed if opened is None else mixed * opened))


class ExplicitWindowAttention(nn.Module):
    """Attention inside Swin's windows: (windows · batch, tokens, channels)."""

    qkv: nn.Module
    softmax: nn.Module
    attn_drop: nn.Module
    proj: nn.Module
    proj_drop: nn.Module
    position_bias: Tensor

    def __init__(self, fused: "WindowAttention") -> None:
        super().__init__()
        for name, child in fused.named_children():
            self.add_module(name, child)
        self.num_heads = fused.num_heads
        self.scale = fused.scale
        self.scores = MatMul()
        self.mix = MatMul()
        with torch.no_grad():  # depends on weights only, and these no longer change
            self.register_buffer("position_bias", fused._get_rel_pos_bias().clone())

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # each (windows · batch, heads, tokens, head width)
        scores = self.scores(q * self.scale, k.transpose(-2, -1)) + self.position_bias
        if mask is not None:  # (windows, tokens, tokens), 0 or −inf across the shifted border
            windows = mask.shape[0]
            scores = scores.view(-1, windows, self.num_heads, tokens, tokens)
            scores = scores + mask.unsqueeze(1).unsqueeze(0)
            scores = scores.view(-1, self.num_heads, tokens, tokens)
        mixed = self.mix(self.attn_drop(self.softmax(scores)), v)
        return self.proj_drop(self.proj(mixed.transpose(1, 2).reshape(batch, tokens, -1)))


def rewrite_attention(net: nn.Module) -> nn.Module:
    """Replace, in place, every attention that is known here; others run unfused if they can."""
    from timm.layers.attention import Attention
    from timm.models.swin_transformer import WindowAttention

    explicit = {Attention: ExplicitAttention, WindowAttention: ExplicitWindowAttention}
    for name, module in list(net.named_modules()):
        if type(module) in explicit:
            net.set_submodule(name, explicit[type(module)](module))
        elif hasattr(module, "fused_attn"):
            # the stub lets a module have no attributes but tensors and modules
            module.fused_attn = False  # pyright: ignore[reportArgumentType]
    return net


def _additive(mask: Tensor, scores: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, float("-inf"))
