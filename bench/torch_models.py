"""The architectures of tinylm's presets in PyTorch, written for speed: fused projections, fused attention.

Shapes are entries of `common.PRESETS`. `forward(ids, targets)` gives the mean cross-entropy."""

import torch
from torch import nn
from torch.nn import functional as F


def build(shape):
    """The model of a preset, with random weights."""
    return {"gpt2": Gpt2, "qwen3": Qwen3}[shape["arch"]](shape)


class Gpt2Block(nn.Module):
    def __init__(self, shape):
        super().__init__()
        width, self.heads, self.dropout = shape["width"], shape["heads"], shape["dropout"]
        self.gelu = shape["gelu"]  # PyTorch's `approximate`: "tanh", or "none" for the exact one
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, shape["mlp"]), nn.Linear(shape["mlp"], width)
        self.drop = nn.Dropout(self.dropout)

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = (y.view(b, t, self.heads, -1).transpose(1, 2) for y in self.qkv(self.ln_1(x)).split(c, 2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=self.dropout)
        x = x + self.drop(self.proj(y.transpose(1, 2).reshape(b, t, c)))
        return x + self.drop(self.down(F.gelu(self.up(self.ln_2(x)), approximate=self.gelu)))


class Gpt2(nn.Module):
    def __init__(self, shape):
        super().__init__()
        vocab, width = shape["vocab"], shape["width"]
        self.wte, self.wpe = nn.Embedding(vocab, width), nn.Embedding(shape["length"], width)
        self.drop = nn.Dropout(shape["dropout"])
        self.blocks = nn.ModuleList(Gpt2Block(shape) for _ in range(shape["layers"]))
        self.ln_f = nn.LayerNorm(width)

    def forward(self, ids, targets):
        x = self.drop(self.wte(ids) + self.wpe.weight)
        for block in self.blocks:
            x = block(x)
        logits = self.ln_f(x) @ self.wte.weight.T
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def rotate(x, cos, sin):
    """Rotary positions, the halves of a head paired: `x` is batch x heads x length x head width."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Qwen3Block(nn.Module):
    def __init__(self, shape):
        super().__init__()
        width, self.heads, self.kv_heads = shape["width"], shape["heads"], shape["kv_heads"]
        self.size, self.dropout = width // self.heads, shape["dropout"]
        self.norm_1, self.norm_2 = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.q_norm, self.k_norm = nn.RMSNorm(self.size, eps=1e-6), nn.RMSNorm(self.size, eps=1e-6)
        self.qkv = nn.Linear(width, (self.heads + 2 * self.kv_heads) * self.size, bias=False)
        self.proj = nn.Linear(width, width, bias=False)
        self.gate_up = nn.Linear(width, 2 * shape["mlp"], bias=False)
        self.down = nn.Linear(shape["mlp"], width, bias=False)
        self.drop = nn.Dropout(self.dropout)

    def forward(self, x, cos, sin):
        b, t, c = x.shape
        heads = self.qkv(self.norm_1(x)).view(b, t, -1, self.size)
        q, k, v = heads.split([self.heads, self.kv_heads, self.kv_heads], 2)
        q = rotate(self.q_norm(q).transpose(1, 2), cos, sin)
        k = rotate(self.k_norm(k).transpose(1, 2), cos, sin)
        grouped = self.heads != self.kv_heads
        y = F.scaled_dot_product_attention(
            q, k, v.transpose(1, 2), is_causal=True, dropout_p=self.dropout, enable_gqa=grouped
        )
        x = x + self.drop(self.proj(y.transpose(1, 2).reshape(b, t, c)))
        gate, up = self.gate_up(self.norm_2(x)).chunk(2, -1)
        return x + self.drop(self.down(F.silu(gate) * up))


class Qwen3(nn.Module):
    def __init__(self, shape, base=10_000.0):
        super().__init__()
        self.embed = nn.Embedding(shape["vocab"], shape["width"])
        self.drop = nn.Dropout(shape["dropout"])
        self.blocks = nn.ModuleList(Qwen3Block(shape) for _ in range(shape["layers"]))
        self.norm = nn.RMSNorm(shape["width"], eps=1e-6)
        size = shape["width"] // shape["heads"]
        angles = torch.outer(torch.arange(shape["length"]), base ** (-torch.arange(0, size, 2) / size))
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, ids, targets):
        x = self.drop(self.embed(ids))
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = self.norm(x) @ self.embed.weight.T
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())
