"""`GlmAsr`: encoder, projector and decoder as one model, with the interface that the search drives.

    encode(mel, samples) -> audio rows      prompt(tokenizer, rows) -> ids
    new_cache(rows, capacity)               prefill(audio, prompt, cache) -> logits      step(tokens, cache) -> logits

The decoder is a chat model: it reads a prompt whose placeholders `<|pad|>` were replaced by what the encoder heard, and
writes the transcript as the answer. There is no cross-attention.
"""

import torch
from torch import Tensor, nn

from .config import GlmAsrConfig
from .conv_frontend import audio_rows
from .decoder import LlamaDecoder
from .encoder import AudioEncoder, Projector
from .layers import Cache


class GlmAsr(nn.Module):
    def __init__(self, config: GlmAsrConfig):
        super().__init__()
        self.config = config
        self.encoder = AudioEncoder(config.encoder)
        self.projector = Projector(config.merge, config.encoder.width, config.decoder.width)
        self.decoder = LlamaDecoder(config.decoder)

    @property
    def device(self) -> torch.device:
        return self.decoder.embed.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.embed.weight.dtype

    def encode(self, mel: Tensor, samples: list[int]) -> list[Tensor]:
        """Windows of log-mel (B, bands, frames) -> for each window the rows (N, D) that the decoder hears.

        `samples` says how much of each window is recording; the rows of its padding are dropped, AFTER the padding was heard.
        """
        rows = self.projector(self.encoder(mel.to(self.device, self.dtype)))
        return [heard[:audio_rows(count, self.config.merge)] for heard, count in zip(rows, samples, strict=True)]

    def prompt(self, tokenizer, rows: int) -> list[int]:
        """The ids of the prompt that the model was trained with, for `rows` audio rows.

        TRAP: the second `<|user|>` behind the audio. Other ports leave it out, or the instruction, and the model drifts
        or repeats itself.
        """
        before = tokenizer.encode("<|user|>\n<|begin_of_audio|>")
        after = tokenizer.encode(f"<|end_of_audio|><|user|>\n{self.config.instruction}<|assistant|>\n")
        return before + [self.config.audio_token] * rows + after

    def embed(self, tokens: Tensor, audio: list[Tensor]) -> Tensor:
        """Token ids (B, T) -> embeddings (B, T, D), audio rows laid on the placeholders in reading order."""
        x = self.decoder.embed(tokens)
        heard = torch.cat(audio).to(x.dtype)
        places = tokens == self.config.audio_token
        if x.device.type != "cuda" and int(places.sum()) != len(heard):
            raise ValueError(f"{int(places.sum())} placeholders for {len(heard)} audio rows")
        return x.masked_scatter(places[..., None], heard)

    def new_cache(self, rows: int, capacity: int) -> Cache:
        return self.decoder.new_cache(rows, capacity)

    def prefill(self, audio: list[Tensor], prompt: list[list[int]], cache: Cache) -> Tensor:
        """Reads the prompts of A recordings with their audio rows; returns the logits (A, V) of the first answer token.

        Prompts of different lengths are padded at the left. Rotary attention sees differences of positions only, so a
        shifted prompt needs nothing more than a mask over the padding.
        """
        longest = max(map(len, prompt))
        padding = [longest - len(ids) for ids in prompt]
        # A padding id must not be the placeholder; what it is otherwise doesn't matter, nobody sees it.
        filler = 0 if self.config.audio_token else 1
        tokens = torch.tensor([[filler] * pad + ids for pad, ids in zip(padding, prompt)], device=self.device)
        if any(padding):
            cache.padding = torch.tensor(padding, device=self.device)
        states = self.decoder(self.embed(tokens, audio), cache, last=True)
        return self.decoder.head(states[:, 0])

    def step(self, tokens: Tensor, cache: Cache) -> Tensor:
        """One token for each row, (B,) -> logits of the next, (B, V)."""
        return self.decoder.head(self.decoder(self.decoder.embed(tokens[:, None]), cache)[:, -1])
