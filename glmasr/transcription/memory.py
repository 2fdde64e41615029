"""How many windows are decoded together: as many as a quarter of the free memory holds."""

import torch

from ..audio import HOP
from ..config import EncoderDecoderConfig
from ..kernels import devices, prepare
from ..kernels.cuda_graphs import GraphedModel
from ..model import EncoderDecoder, GlmAsr
from .families import Family
from .options import Options
from .search import BEST_OF
from .window_decoder import TOKENS_A_SECOND, TOKENS_AT_LEAST

MOST_ROWS = 32  # windows in a batch, if the caller sets no number and memory allows more


def batch_size(model: GlmAsr | EncoderDecoder | GraphedModel, family: Family, options: Options) -> int:
    """Jobs that a quarter of the free memory holds, each with the longest window, prompt and answer that the options
    allow, and sampled where that may come. A cache is copied where rows fork or leave, and not everything is counted
    here."""
    config, size = family.config, model.dtype.itemsize
    encoder, decoder = config.encoder, config.decoder
    crossing = isinstance(config, EncoderDecoderConfig)
    windows = 1 if isinstance(config, EncoderDecoderConfig) or options.long != "whole" else config.longest_windows
    rows = max(options.beams or 1, BEST_OF if max(options.temperature_schedule) > 0 else 1)
    prompt = 4 if crossing else windows * config.window // family.samples_per_state + 32
    answer = options.max_new_tokens or round(TOKENS_AT_LEAST + TOKENS_A_SECOND * config.window_seconds * windows)
    tokens = prompt + min(answer, family.token_limit(prompt))
    key_heads = getattr(decoder, "key_heads", decoder.heads)
    cache = 2 * decoder.layers * key_heads * decoder.head_size * tokens * size * rows
    frames = config.window // HOP
    encoding = frames * (encoder.hidden + 4 * encoder.width) * size + 4 * windows * config.window
    masks = prompt**2 * (1 + decoder.heads // key_heads * (1 + size))
    reading = prompt * (2 * decoder.hidden + 8 * decoder.width) * size + masks
    logits = 4 * decoder.vocabulary * 4 * rows
    cross = 2 * decoder.layers * decoder.width * frames * size if crossing else 0
    free = devices.free_memory(model.device) - prepare.unpacked_bytes(model)
    if model.device.type == "cuda":  # what PyTorch holds and doesn't use is free too
        free += torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
    return max(1, min(MOST_ROWS, int(free / 4 / (cache + encoding + reading + logits + cross))))
