"""Exact rewrite: fused attention with its two products and its softmax as modules.

Covers timm's `Attention` (ViT, DeiT and kin) and `WindowAttention` (Swin), step by step as in
timm's unfused path, and PyTorch's `nn.MultiheadAttention`. Attention that a network writes itself,
or with PyTorch's fused function, is `qlib.network.products`' business.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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


class ScaledDotProduct(nn.Module):
    """`torch.nn.functional.scaled_dot_product_attention` with its products as modules.

    q, k, v: (…, tokens, head width); k and v may have fewer heads (``enable_gqa``).
    """

    def __init__(self) -> None:
        super().__init__()
        self.scores = MatMul()
        self.softmax = nn.Softmax(dim=-1)
        self.mix = MatMul()

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,  # some networks leave it on when they answer
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if enable_gqa:
            key, value = (
                x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value)
            )
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        scores = self.scores(query * factor, key.transpose(-2, -1))
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
        if attn_mask is not None:
            scores = scores + _additive(attn_mask, scores)
        probabilities = F.dropout(self.softmax(scores), dropout_p, training=dropout_p > 0)
        return self.mix(probabilities, value)


class ExplicitMultiheadAttention(nn.Module):
    """`nn.MultiheadAttention` with its projections as layers and its products as modules."""

    in_proj_bias = None  # PyTorch's encoder layers look here for a way past their layers

    def __init__(self, fused: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim, self.num_heads = fused.embed_dim, fused.num_heads
        self.batch_first, self.head_dim = fused.batch_first, fused.head_dim
        self._qkv_same_embed_dim = fused._qkv_same_embed_dim
        self.add_zero_attn = fused.add_zero_attn
        self.bias_k, self.bias_v = fused.bias_k, fused.bias_v
        if fused.in_proj_weight is not None:
            weights = fused.in_proj_weight.chunk(3)
        else:
            weights = (fused.q_proj_weight, fused.k_proj_weight, fused.v_proj_weight)
        biases = (None,) * 3 if fused.in_proj_bias is None else fused.in_proj_bias.chunk(3)
        self.q_proj, self.k_proj, self.v_proj = map(linear_layer, weights, biases)
        self.scores = MatMul()
        self.softmax = nn.Softmax(dim=-1)
        self.mix = MatMul()
        self.out_proj = fused.out_proj

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,  # a hint about ``attn_mask``, which is used
    ) -> tuple[Tensor, Tensor | None]:
        single = query.dim() == 2
        if single:
            query, key, value = (x.unsqueeze(1 - self.batch_first) for x in (query, key, value))
        # the layers see (batch, tokens, channels) in both layouts
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        batch = len(q)
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(batch, -1, -1)], 1)
            v = torch.cat([v, self.bias_v.expand(batch, -1, -1)], 1)
        if self.add_zero_attn:
            k, v = (torch.cat([x, torch.zeros_like(x[:, :1])], 1) for x in (k, v))
        q, k, v = (
            x.reshape(batch, -1, self.num_heads, self.head_dim).transpose(1, 2) for x in (q, k, v)
        )
        scores = self.scores(q * self.head_dim**-0.5, k.transpose(-2, -1))
        mask = self._mask(attn_mask, key_padding_mask, scores)
        probabilities = self.softmax(scores if mask is None else scores + mask)
        mixed = self.mix(probabilities, v)  # (batch, heads, tokens, head width)
        y = self.out_proj(mixed.transpose(1, 2).reshape(batch, -1, self.embed_dim))
        weights = None
        if need_weights:
            weights = probabilities.mean(1) if average_attn_weights else probabilities
        y = y if self.batch_first else y.transpose(0, 1)
        if single:
            y = y.squeeze(1 - self.batch_first)
            weights = None if weights is None else weights.squeeze(0)
        return y, weights

    def _mask(
        self, attn_mask: Tensor | None, padding: Tensor | None, scores: Tensor
    ) -> Tensor | None:
        """Both masks as one to be added, in PyTorch's sense: True is left out."""
        masks = []
        if attn_mask is not None:
            heads = (-1, self.num_heads) if attn_mask.dim() == 3 else ()
            masks.append(attn_mask.reshape(*heads, *attn_mask.shape[-2:]))
        if padding is not None:
            masks.append(padding[:, None, None, :])
        added = [_left_out(mask, scores) for mask in masks]
        return added[0] + sum(added[1:]) if added else None


def _left_out(mask: Tensor, scores: Tensor) -> Tensor:
    """A mask to be added to scores, of which True leaves out; what is appended to keys stays in."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=scores.dtype).masked_fill(mask, float("-inf"))
    return F.pad(mask.to(scores.dtype), (0, scores.shape[-1] - mask.shape[-1]))


def linear_layer(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A layer around a weight (out, in) and a bias (out,) or None that are there already."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().contiguous(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().contiguous(), requires_grad=False)
    return layer


def rewrite_attention(net: nn.Module) -> nn.Module:
    """Replace, in place, every attention that is known here; others run unfused if they can."""
    from timm.layers.attention import Attention
    from timm.models.swin_transformer import WindowAttention

    explicit = {
        Attention: ExplicitAttention,
        WindowAttention: ExplicitWindowAttention,
        nn.MultiheadAttention: ExplicitMultiheadAttention,
    }
    for name, module in list(net.named_modules()):
        if type(module) in explicit:
            net.set_submodule(name, explicit[type(module)](module))
        elif hasattr(module, "fused_attn"):
            # the stub lets a module have no attributes but tensors and modules
            module.fused_attn = False  # pyright: ignore[reportArgumentType]
    return net


def _additive(mask: Tensor, scores: Tensor) -> Tensor:
    """A mask to be added; of booleans, True may be attended to (as in the fused function)."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, float("-inf"))
