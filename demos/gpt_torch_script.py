"""A GPT training script in PyTorch as people write it today, for `19_pytorch_gpt.py`: one line of it is the conversion.

Pre-norm blocks with norms on q and k, matrices with weight decay and gains without, warm-up and
cosine set by hand, gradients clipped by their norm, two micro-batches per step, validation.
`muon=True` gives the blocks' matrices to Muon.
"""

import math
import pydoc_data.topics

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from minibn.pytorch import remove_weight_decay, report


class Block(nn.Module):
    """`x + attention(norm(x))`, then `x + mlp(norm(x))`; q and k are normalised in each head."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=0.0, bias=False) for _ in range(2))
        self.q, self.k, self.v, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x):
        y = self.norm1(x)
        q, k, v = (linear(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for linear in (self.q, self.k, self.v))
        q, k = (F.layer_norm(a, a.shape[-1:], eps=0.0) for a in (q, k))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """Embedding and learned positions, blocks, a norm and a head that is not tied to the embedding."""

    def __init__(self, vocabulary, length, width, depth=2, heads=2):
        super().__init__()
        self.embedding, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width, eps=0.0, bias=False), nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens):
        x = self.embedding(tokens) + self.positions.weight[: tokens.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def reference():
    """Python's own language reference as letters: (tokens to train on, tokens to validate with, size of the vocabulary)."""
    text = "\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))[:60_000]
    letters = sorted(set(text))
    tokens = np.array([letters.index(letter) for letter in text])
    return tokens[:50_000], tokens[50_000:], len(letters)


def train(steps, *, converted=False, weight_decay=1.0, muon=False, width=32, length=32, batch=8):
    """Returns {"loss", "norm": one number per step, "validation": some}, and what `report` has found, if `converted`.

    The norm is that of the embedding as it is held.
    """
    train_tokens, test_tokens, vocabulary = reference()
    torch.manual_seed(0)
    model = GPT(vocabulary, length, width).double()

    def loss_of(model, tokens, rng):
        starts = rng.integers(len(tokens) - length - 1, size=(batch, 1))
        window = torch.tensor(tokens[starts + np.arange(length + 1)])
        return F.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())

    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim == 2 and all(p is not q for q in matrices)]
    gains = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": others if muon else [*matrices, *others], "weight_decay": weight_decay},
              {"params": gains, "weight_decay": 0.0}]
    optimizers = [torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95))]
    if muon:
        optimizers.append(torch.optim.Muon(matrices, lr=1e-2, weight_decay=weight_decay))
    found = None
    if converted:
        found = report(model, lambda model: loss_of(model, train_tokens, np.random.default_rng(0)))
        remove_weight_decay(optimizers, found)  # the one line
    rng, log = np.random.default_rng(1), {"loss": [], "norm": [], "validation": []}
    for step in range(steps):
        warm = steps // 10
        rate = (step + 1) / warm if step < warm else 0.55 + 0.45 * math.cos(math.pi * (step - warm) / (steps - warm))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 * rate
            optimizer.zero_grad()
        total = 0.0
        for _ in range(2):  # micro-batches
            loss = loss_of(model, train_tokens, rng) / 2
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        log["loss"].append(total)
        log["norm"].append(model.embedding.weight.detach().norm().item())
        if step % (steps // 5) == steps // 5 - 1:
            with torch.no_grad():
                log["validation"].append(loss_of(model, test_tokens, np.random.default_rng(2)).item())
    return {name: np.array(values) for name, values in log.items()}, found
