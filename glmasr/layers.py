"""The parts that encoders and decoders share: rotary positions, attention, the MLP with GELU, the key-value cache.

Axes:  A recordings, B rows (recordings x beams), T time, S slots of a cache, D width, H query heads, G key heads,
       K head size, V vocabulary.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# -- rotary positions --------------------------------------------------------------------------------------------------

Rope = tuple[Tensor, Tensor]  # cosines and sines (T, size)


def rope_table(positions: Tensor, size: int, theta: float, dtype: torch.dtype) -> Rope:
    """Cosines and sines (T, size) for positions (T,): angle = position * theta^(-2i / size), the same for dims i and
    i + size/2 (the half-split layout). Computed in float32, then rounded to `dtype`, as in
    training (RoFormer, eq. 34)."""
    exponents = torch.arange(0, size, 2, device=positions.device, dtype=torch.float32) / size
    angles = positions.float()[:, None] * (1.0 / theta**exponents)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, table: Rope) -> Tensor:
    """Turns the leading dims of each head of x (B, H, T, K) by the table's angles; dims beyond the table stay."""
    cos, sin = table
    size = cos.shape[-1]
    turned, rest = x[..., :size], x[..., size:]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned


# -- a product with few rows -------------------------------------------------------------------------------------------

FEW = 16  # rows


def multiply(x: Tensor, weight: Tensor) -> Tensor:
    """x (..., in) and weight (out, in) -> (..., out), as `F.linear`.

    TRAP: for a few rows of float32 and a large weight, x W' takes two to six times as long as W x' (measured on an
    AMD EPYC with AVX2). W x' of a single column takes as long as either, so it has two; they are copies, for columns
    that share memory take as long again.
    """
    count = x.numel() // weight.shape[1]
    if x.device.type != "cpu" or x.dtype != torch.float32 or not 0 < count <= FEW:
        return F.linear(x, weight)
    rows = x.reshape(count, -1)
    columns = weight @ (rows if count > 1 else rows.repeat(2, 1)).mT
    return columns[:, :count].mT.contiguous().view(*x.shape[:-1], len(weight))


# -- attention ---------------------------------------------------------------------------------------------------------


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k' / sqrt(K)) v for query (B, H, T, K) and key, value (B, G, S, K) -> (B, T, H * K).

    Grouped heads: the H / G queries that share a key head are laid one after the other on the time axis, so that the
    keys are read once and never copied. `mask` (1 or B, 1, T, S) is True where a query may attend.
    """
    batch, heads, time, size = query.shape
    shared = heads // key.shape[1]
    if shared > 1:
        query = query.reshape(batch, key.shape[1], shared * time, size)
        if mask is not None and time > 1:  # that of one token is alike for all
            mask = mask.repeat(1, 1, shared, 1)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return mixed.reshape(batch, heads, time, size).transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """The four projections of an attention. With `bias`, query, value and output have one; the key never has (a bias
    there would only shift all scores of a query alike)."""

    def __init__(self, width: int, heads: int, key_heads: int, head_size: int, *, bias: bool):
        super().__init__()
        self.head_size = head_size
        self.query = nn.Linear(width, heads * head_size, bias=bias)
        self.key = nn.Linear(width, key_heads * head_size, bias=False)
        self.value = nn.Linear(width, key_heads * head_size, bias=bias)
        self.out: nn.Module = nn.Linear(heads * head_size, width, bias=bias)

    def split(self, x: Tensor) -> Tensor:
        """x (B, T, H * K) -> (B, H, T, K), whatever H is."""
        return x.unflatten(-1, (-1, self.head_size)).transpose(1, 2)  # (B, T, H*K) -> (B, H, T, K)


class SelfAttention(Attention):
    """x (B, T, D) attends to itself and, with a cache, to what came before it -> (B, T, D)."""

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query (B, H, T, K), key and value (B, G, T, K)."""
        return self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))

    def forward(
        self,
        x: Tensor,
        rope: Rope | None = None,
        cache: "LayerCache | None" = None,
        layer: int = 0,
        mask: Tensor | None = None,
    ) -> Tensor:
        """x (B, T, D) -> (B, T, D). With a cache, the caller has called `begin` and passes its `mask`."""
        query, key, value = self.project(x)
        if rope is not None:
            query, key = rotate(query, rope), rotate(key, rope)
        if cache is not None:
            key, value = cache.append(layer, key, value)
        else:
            # The attention kernel is a little faster on it; query and key are so after `rotate`.
            value = value.contiguous()
        return self.out(self.mix(query, key, value, mask))

    def mix(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """`attend` -> (B, T, H * K). A method because `kernels` override it."""
        return attend(query, key, value, mask)


class CrossAttention(Attention):
    """x (B, T, D) attends to encoder states -> (B, T, D)."""

    def project(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (A, H, S, K) of encoder states (A, S, D): once for a recording, whatever is decoded."""
        return self.split(self.key(states)).contiguous(), self.split(self.value(states)).contiguous()

    def forward(self, x: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """x (A * W, T, D) for W beams, key and value (A, H, S, K) from `project` -> (A * W, T, D)."""
        # Nothing is masked here, so the beams of a recording are just more queries to its keys: they are laid on the
        # time axis, (A*W, T, D) -> (A, W*T, D), and keys and values are never copied for them.
        query = self.query(x)
        mixed = attend(self.split(query.reshape(len(key), -1, query.shape[-1])), key, value)
        return self.out(mixed.reshape(query.shape))


class MLP(nn.Module):
    """x (B, T, D) -> (B, T, D): two layers with biases and the exact GELU (with erf) between them."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.up: nn.Module = nn.Linear(width, hidden)
        self.down: nn.Module = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., D) -> (..., D)."""
        return self.down(F.gelu(self.up(x)))


# -- the key-value cache -----------------------------------------------------------------------------------------------


def causal_mask(positions: Tensor, slots: int, padding: Tensor | None = None) -> Tensor:
    """(1 or B, 1, T, S), True where the query at `positions` (T,) may see a slot: it is neither later nor padding.

    `padding` (B,) counts the slots at the left of each row that hold nothing.
    TRAP: a padding query must see something, or its softmax is 0/0 and the NaN spreads: it sees itself.
    """
    slot = torch.arange(slots, device=positions.device)
    mask = (slot <= positions[:, None])[None, None]
    if padding is not None:
        mask = mask & (slot >= padding[:, None])[:, None, None] | (slot == positions[:, None])
    return mask


class LayerCache(Protocol):
    """What a forward through a decoder asks of a cache: of `Cache`, or of memory that stays in place (`kernels`)."""

    @property
    def mask(self) -> Tensor | None:
        """(1 or B, 1, T, S), True where a new token may attend to a slot; None: everywhere."""

    def begin(self, count: int) -> Tensor:
        """Opens slots for `count` new tokens, sets `mask`, and returns their positions (count,)."""

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Stores key, value (B, G, count, K) of a layer; returns those to attend to, (B, G, S, K)."""


class PromptCache(LayerCache, Protocol):
    """And what reading prompts of different lengths asks of it."""

    def pad(self, padding: Tensor) -> None:
        """padding (B,): so many slots at the left of each row hold nothing. To be called before `begin`."""


class Cache:
    """Keys and values of every layer, in memory taken once: (layers, B, G, capacity, K) each.

    A value that the caller holds; one forward through the decoder is `begin(n)`, then `append` in each layer. `mask` is
    what the new tokens may see, made once a forward.
    """

    def __init__(
        self,
        layers: int,
        rows: int,
        key_heads: int,
        capacity: int,
        head_size: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ):
        shape = layers, rows, key_heads, capacity, head_size
        self.keys, self.values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        self.length = 0  # slots in use
        self.beams = 1  # rows of each recording
        self.shared = 0  # slots that all beams of a recording have in common: the prompt
        self.padding: Tensor | None = None  # (B,) slots at the left that hold nothing, or None
        self.mask: Tensor | None = None
        # For each layer of a decoder with cross-attention, the keys and values (A, H, S, K) of encoder states. Beams
        # share them: neither `fork` nor `reorder` touches them.
        self.cross: list[tuple[Tensor, Tensor]] = []

    @property
    def capacity(self) -> int:
        """Slots of each row: the longest prompt and answer together."""
        return self.keys.shape[3]

    def pad(self, padding: Tensor) -> None:
        """padding (B,): so many slots at the left of each row hold nothing."""
        self.padding = padding

    def begin(self, count: int) -> Tensor:
        """Opens `count` slots for the tokens of this forward and returns their positions (count,)."""
        if self.length + count > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens; {self.length} + {count} do not fit")
        positions = torch.arange(self.length, self.length + count, device=self.keys.device)
        self.length += count
        # One token at the end may see everything, so the mask is left out there.
        alone = count == 1 and self.padding is None
        self.mask = None if alone else causal_mask(positions, self.length, self.padding)
        return positions

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Puts key, value (B, G, count, K) into the slots just opened; returns all up to them, (B, G, length, K)."""
        new = slice(self.length - key.shape[2], self.length)
        self.keys[layer, :, :, new], self.values[layer, :, :, new] = key, value
        return self.keys[layer, :, :, : self.length], self.values[layer, :, :, : self.length]

    def cut(self, length: int) -> None:
        """Forgets all tokens after the first `length`."""
        self.length = length

    def fork(self, beams: int) -> None:
        """Repeats each row `beams` times: A rows after the prompt become A * beams."""
        if beams > 1:
            self._pick(torch.arange(self.keys.shape[1], device=self.keys.device).repeat_interleave(beams))
        self.beams, self.shared = beams, self.length

    def keep(self, recordings: Tensor) -> None:
        """The rows of these recordings (M,) stay, in this order, and so do their cross keys and values."""
        beams = torch.arange(self.beams, device=recordings.device)
        self._pick((recordings[:, None] * self.beams + beams).flatten())
        self.cross = [(key[recordings], value[recordings]) for key, value in self.cross]

    def _pick(self, rows: Tensor) -> None:
        self.keys, self.values = (self._picked(x, rows) for x in (self.keys, self.values))
        self.padding = None if self.padding is None else self.padding[rows]

    def _picked(self, x: Tensor, rows: Tensor) -> Tensor:
        picked = x.new_zeros(len(x), len(rows), *x.shape[2:])  # slots that are not in use stay untouched memory
        picked[:, :, :, : self.length] = x[:, rows, :, : self.length]
        return picked

    def reorder(self, rows: Tensor) -> None:
        """Row i becomes what row `rows[i]` was. Beams of one recording share their prompt, so only the rest moves."""
        new = slice(self.shared, self.length)
        for x in (self.keys, self.values):
            x[:, :, :, new] = x[:, rows, :, new]
