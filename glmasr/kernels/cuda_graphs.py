"""The step of a token on a GPU, captured as a CUDA graph, and the encoder likewise.

A token costs an H100 a millisecond, and the CPU twenty times as much to launch its kernels one by one. A graph is
captured once and replayed. For that, shapes and addresses have to stay the same from step to step:

    Memory          keys and values of so many rows and slots, taken once; a step reads all slots, and a mask hides the
                    empty ones
    Pool            memories by size: rows in powers of two, slots in multiples of SLOTS, each with its own graph
    StaticCache     what the search holds: it moves to a smaller or larger memory when rows leave or fork
    Captured        an encoder as a graph for each number of whole windows; windows of other lengths run as they are
    GraphedModel    a `GlmAsr` over all these, with the interface that the search drives

Without a GPU nothing is captured and the same steps run as they are, which is how they are tested.
"""

import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..config import HOP, GlmAsrConfig
from ..layers import causal_mask
from ..model import GlmAsr, TextEncoder

SLOTS = 256  # capacities are multiples of it: empty slots are read too
KEPT = 8  # memories that are kept for later, those used last: as many sizes as a batch of 128 rows goes through
SHARE = 8  # and they take at most an eighth of a GPU's memory
SHAPES = 8  # of a captured module
WARM_UP = 3  # runs before a capture, in which libraries choose their kernels


def capture(run: Callable[[], None], device: torch.device) -> torch.cuda.CUDAGraph:
    """`run` as a CUDA graph of this device, after WARM_UP runs of it. It has to use the same memory each time."""
    with torch.cuda.device(device):  # TRAP: streams and captures are those of the current device
        stream = torch.cuda.Stream()  # TRAP: what runs before a capture must not run on the default stream
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            graph, capture_error_mode="thread_local"
        ):  # what other threads ask of the GPU meanwhile is fine
            run()
        return graph


class Memory:
    """Keys and values (layers, rows, G, capacity, K), and the step over them: `tokens` (rows,) go in, logits (rows, V)
    come out."""

    def __init__(self, model: GlmAsr, rows: int, capacity: int, captured: bool):
        config, embed = model.decoder.config, model.decoder.embed.weight
        shape = config.layers, rows, config.key_heads, capacity, config.head_size
        with torch.inference_mode(False):  # TRAP: what is made within can be written to within only
            self.keys, self.values = (torch.zeros(shape, dtype=embed.dtype, device=embed.device) for _ in range(2))
            self.tokens, self.padding = (torch.zeros(rows, dtype=torch.long, device=embed.device) for _ in range(2))
            self.position = torch.zeros(1, dtype=torch.long, device=embed.device)
        self.rows, self.capacity, self.captured = rows, capacity, captured
        self.mask: Tensor | None = None
        self._logits = self.keys.new_empty(0)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._decoder = model.decoder

    @property
    def bytes(self) -> int:
        """Size of the keys and values in bytes."""
        return self.keys.nbytes + self.values.nbytes

    def step(self, tokens: Tensor, position: int) -> Tensor:
        """One token for each of the first rows, (B,), into the slot `position` -> logits (B, V), which stay until the
        next step."""
        self.tokens[: len(tokens)] = tokens
        self.position.fill_(position)
        if not self.captured:
            self._run()
        else:
            self._graph = self._graph or capture(self._run, self.tokens.device)
            self._graph.replay()
        return self._logits[: len(tokens)]

    def _run(self) -> None:
        decoder = self._decoder
        self._logits = decoder.head(decoder(decoder.embed(self.tokens[:, None]), self)[:, -1])

    # What the decoder asks of a cache. No number here is read on the CPU, so a capture fixes none.

    def begin(self, count: int) -> Tensor:
        """The position (1,) of the one new token. Sets `mask` (rows, 1, 1, capacity), which hides empty slots, too."""
        self.mask = causal_mask(self.position, self.capacity, self.padding)
        return self.position

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Stores key, value (rows, G, 1, K) at `position`; returns all slots, (rows, G, capacity, K)."""
        for x, new in ((self.keys[layer], key), (self.values[layer], value)):
            x.index_copy_(2, self.position, new)
        return self.keys[layer], self.values[layer]


def rows_of(rows: int) -> int:
    """The rows of the memory that so many are in."""
    return 1 << (rows - 1).bit_length()


class Pool:
    """Memories for a model. `captured`: their steps are CUDA graphs."""

    def __init__(self, model: GlmAsr, captured: bool):
        self.model, self.captured = model, captured
        self.free: list[Memory] = []
        device = model.decoder.embed.weight.device
        on_gpu = device.type == "cuda"
        self.most = torch.cuda.get_device_properties(device).total_memory // SHARE if on_gpu else 2**63
        self._lock = (
            threading.RLock()
        )  # TRAP: a cache that is collected gives its memory back, within `take` and `give` too

    def take(self, rows: int, capacity: int) -> Memory:
        """A zeroed memory of at least this size, a free one if there is any; to be returned with `give`."""
        size = rows_of(rows), -(-capacity // SLOTS) * SLOTS
        with self._lock:
            found = next((memory for memory in self.free if (memory.rows, memory.capacity) == size), None)
            if found is not None:
                self.free.remove(found)
        if found is None:
            return Memory(self.model, *size, self.captured)
        for x in (found.keys, found.values):  # a NaN would come through any mask
            x.zero_()
        found.padding.zero_()  # TRAP: only prompts that differ in length set it; an old one would hide a prompt's slots
        return found

    def give(self, memory: Memory) -> None:
        """Returns a memory to the pool, which frees the least recently used ones beyond KEPT or `most` bytes."""
        with self._lock:
            self.free.insert(0, memory)
            while len(self.free) > KEPT or sum(memory.bytes for memory in self.free) > self.most:
                self.free.pop()


class StaticCache:
    """`layers.Cache` for the search and for reading prompts, over the memories of a pool."""

    def __init__(self, pool: Pool, rows: int, capacity: int):
        self.pool, self.rows, self.capacity = pool, rows, capacity
        self.memory = pool.take(rows, capacity)
        self.length, self.beams, self.shared = 0, 1, 0
        self.mask: Tensor | None = None

    def __del__(self) -> None:
        if hasattr(self, "memory"):
            self.pool.give(self.memory)

    @property
    def padding(self) -> Tensor:
        """(B,) slots at the left of each row that hold nothing: a view of the memory."""
        return self.memory.padding[: self.rows]

    def pad(self, padding: Tensor) -> None:
        """As `Cache.pad`, but copies: the graph always reads the same address."""
        self.memory.padding[: self.rows] = padding

    def begin(self, count: int) -> Tensor:
        """As `Cache.begin`, for prompts only. Raises ValueError if `count` tokens don't fit."""
        if self.length + count > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens; {self.length} + {count} do not fit")
        positions = torch.arange(self.length, self.length + count, device=self.padding.device)
        self.length += count
        self.mask = causal_mask(positions, self.length, self.padding)
        return positions

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """As `Cache.append`; returns views (B, G, length, K) of the memory."""
        keys, values = (x[layer, : self.rows, :, : self.length] for x in (self.memory.keys, self.memory.values))
        first = self.length - key.shape[2]
        keys[:, :, first:], values[:, :, first:] = key, value
        return keys, values

    def step(self, tokens: Tensor) -> Tensor:
        """tokens (B,) -> logits (B, V), valid until the next step. Raises ValueError if the cache is full."""
        if self.length >= self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens; one more does not fit")
        self.length += 1
        return self.memory.step(tokens, self.length - 1)

    def fork(self, beams: int) -> None:
        """As `Cache.fork`; moves to a larger memory if the rows need one."""
        if beams > 1:
            self._move(torch.arange(self.rows, device=self.padding.device).repeat_interleave(beams))
        self.beams, self.shared = beams, self.length

    def keep(self, recordings: Tensor) -> None:
        """As `Cache.keep`; moves to a smaller memory if the rows fit into one."""
        beams = torch.arange(self.beams, device=recordings.device)
        self._move((recordings[:, None] * self.beams + beams).flatten())

    def reorder(self, rows: Tensor) -> None:
        """As `Cache.reorder`, in place: the captured graph needs the same addresses."""
        new = slice(self.shared, self.length)
        for x in (self.memory.keys, self.memory.values):
            x[:, : self.rows, :, new] = x[:, rows, :, new]

    def _move(self, rows: Tensor) -> None:
        """Row i becomes what row rows[i] was, in a memory of the right size."""
        old, self.rows = self.memory, len(rows)
        if rows_of(self.rows) != old.rows:
            self.memory = self.pool.take(self.rows, self.capacity)
        for x, y in ((self.memory.keys, old.keys), (self.memory.values, old.values)):
            x[:, : self.rows, :, : self.length] = y[:, rows, :, : self.length]
        self.pad(old.padding[rows])
        if self.memory is not old:
            self.pool.give(old)


_Capture = tuple[Tensor, list[Tensor], torch.cuda.CUDAGraph]  # what goes in, what came out, and the work between them


class Captured(nn.Module):
    """A module of one tensor (B, M, T); its work is a graph for each shape that comes, of the SHAPES that came last.

    Other lengths than `frames` come once each (windows that are padded to the end of speech): they run as they are.
    """

    def __init__(self, module: nn.Module, frames: int):
        super().__init__()
        self.module, self.frames = module, frames
        self._graphs: dict[torch.Size, _Capture] = {}
        self._lock = threading.Lock()  # held from the copy into `given` to the copy of the output

    def forward(self, x: Tensor) -> Tensor:
        """x (B, M, T) -> the module's output, as a copy: the next replay overwrites the graph's own."""
        if x.shape[-1] != self.frames:
            return self.module(x)
        with self._lock:
            kept = self._graphs.pop(x.shape) if x.shape in self._graphs else self._capture(x)
            self._graphs[x.shape] = kept  # the last one now
            given, found, graph = kept
            given.copy_(x)
            graph.replay()
            return found[0].clone()

    def _capture(self, x: Tensor) -> _Capture:
        if len(self._graphs) == SHAPES:
            self._graphs.pop(next(iter(self._graphs)))
        with torch.inference_mode(False):
            given = torch.zeros_like(x)
        found: list[Tensor] = []

        def run() -> None:
            found[:] = [self.module(given)]

        return given, found, capture(run, x.device)


class GraphedModel(nn.Module):
    """A `GlmAsr` whose steps run over static memory; with `captured`, on a GPU, they and the encoder are graphs.

    The methods are those of `GlmAsr`, and the model itself is left as it is.
    """

    def __init__(self, model: GlmAsr, captured: bool):
        super().__init__()
        self.model = model
        self.encoder = Captured(model.encoder, model.config.window // HOP) if captured else model.encoder
        self.pool = Pool(model, captured)

    @property
    def config(self) -> GlmAsrConfig:
        """The configuration of `model`."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """The device of the weights and of all static memory."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, keys and values."""
        return self.model.dtype

    def encode(self, mel: Tensor, samples: Sequence[int]) -> list[Tensor]:
        """As `GlmAsr.encode`; the encoder is a graph where it was captured, the projector never is."""
        return self.model.project(self.encoder(mel.to(self.device, self.dtype)), samples)

    def prompt(self, tokenizer: TextEncoder, rows: int, instruction: str | None = None) -> list[int]:
        """The ids of the prompt for `rows` audio embeddings, as `GlmAsr.prompt`."""
        return self.model.prompt(tokenizer, rows, instruction)

    def new_cache(self, rows: int, capacity: int) -> StaticCache:
        """A cache over a memory of the pool, which gets it back when the cache is garbage-collected."""
        return StaticCache(self.pool, rows, capacity)

    def prefill(self, audio: list[Tensor], prompt: Sequence[Sequence[int]], cache: StaticCache) -> Tensor:
        """As `GlmAsr.prefill`, never captured: the lengths of prompts differ. Fills `cache` -> logits (A, V)."""
        return self.model.prefill(audio, prompt, cache)

    def step(self, tokens: Tensor, cache: StaticCache) -> Tensor:
        """tokens (B,) -> logits (B, V), overwritten by the next step; a graph where captured."""
        return cache.step(tokens)
