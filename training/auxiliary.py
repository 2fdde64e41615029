"""Two losses that help a model from scratch, while training only. They are no part of a published model.

CTC         between the encoder's states and the text: it teaches a fresh encoder to listen long before the decoder
            could
guide       a head of the decoder's last layer is shown where CTC finds the next word, and a head of each other
            layer where it finds the last one, for one has to know where one is before one goes on. A decoder that
            has to find its place by itself loses it after six words for thousands of steps
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glmasr.decoder import CrossDecoder, LlamaDecoder
from glmasr.layers import CrossAttention, SelfAttention, rotate


class Labels(nn.Module):
    """The CTC head: encoder states -> the text ids that the training texts use, and a blank (label 0)."""

    def __init__(self, width: int, texts: list[list[int]], vocabulary: int):
        super().__init__()
        used = sorted({token for text in texts for token in text})
        self.register_buffer(
            "label",
            torch.zeros(vocabulary, dtype=torch.long).index_put((torch.tensor(used),), torch.arange(1, len(used) + 1)),
            persistent=False,
        )
        self.head = nn.Linear(width, len(used) + 1)

    def forward(self, states: list[Tensor]) -> Tensor:
        """Log-probabilities (T, B, labels)."""
        return self.head(nn.utils.rnn.pad_sequence(states)).float().log_softmax(-1)

    def loss(self, logprobs: Tensor, lengths: list[int], texts: list[Tensor]) -> Tensor:
        return F.ctc_loss(
            logprobs,
            self.label[torch.cat(texts)],
            torch.tensor(lengths),
            torch.tensor([len(x) for x in texts]),
            zero_infinity=True,
        )

    def places(self, logprobs: Tensor, lengths: list[int], texts: list[Tensor]) -> Tensor:
        """(B, L, T): for each word of each text, how likely CTC finds it in each frame; zeros where it can't be.

        These posteriors are what the gradient of the CTC loss is made of. With a label for each word of a text, instead
        of one for equal words, they can be read from it: gradient = probability - posterior.
        """
        own = nn.utils.rnn.pad_sequence([F.pad(self.label[text], (1, 0)) for text in texts], batch_first=True)
        counts, ends = torch.tensor([len(text) for text in texts]), torch.tensor(lengths)
        with torch.enable_grad():
            logprobs = logprobs.detach().gather(2, own.expand(len(logprobs), *own.shape)).requires_grad_()
            order = torch.arange(1, own.shape[1], device=own.device).expand(len(texts), -1)
            loss = F.ctc_loss(logprobs, order, ends, counts, reduction="none")
            (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
        posterior = (logprobs.detach().exp() - gradient).permute(1, 2, 0)[:, 1:]
        inside = (torch.arange(posterior.shape[1]) < counts[:, None])[:, :, None] & (
            torch.arange(len(logprobs)) < ends[:, None]
        )[:, None]
        return torch.where(inside.to(logprobs.device) & loss.isfinite()[:, None, None], posterior.clamp(min=0), 0.0)


class Guide:
    """Shows the first head of each layer that attends to the sound its place: that of the next word in the last layer,
    else that of the word before.

    `scores` are the logits (B, T, S) of these heads in the last forward pass, one for each layer.
    """

    def __init__(self, decoder: CrossDecoder | LlamaDecoder):
        self.scores: list[Tensor] = []
        for block in decoder.blocks:
            (block.cross if isinstance(decoder, CrossDecoder) else block.attn).register_forward_hook(self.keep)

    def keep(self, attention: CrossAttention | SelfAttention, inputs, _) -> None:
        if not attention.training:
            return
        size, mask = attention.head_size, None
        query = self.first(attention.query, inputs[0], size)
        if isinstance(attention, CrossAttention):
            key = inputs[1][:, :1]
        else:
            _, rope, _, _, mask = inputs
            query, key = rotate(query, rope), rotate(self.first(attention.key, inputs[0], size), rope)
        scores = query @ key.transpose(2, 3) * size**-0.5
        self.scores.append((scores if mask is None else scores.masked_fill(~mask, -1e4))[:, 0])

    @staticmethod
    def first(linear: nn.Linear, x: Tensor, size: int) -> Tensor:
        """x (B, T, D) -> what a projection gives its first head, (B, 1, T, K)."""
        return F.linear(x, linear.weight[:size], None if linear.bias is None else linear.bias[:size])[:, None]

    def loss(self, places: Tensor, words: Tensor) -> Tensor:
        """Cross-entropy between where CTC finds a word, (B, L, S), and where the heads attend; at `words` (B, T) one is
        to be learned."""
        scores, self.scores = self.scores, []
        mass = places.sum(-1)  # at least 1 where there is a word: it may last for frames
        whole = (mass > 0).sum(-1) == words.sum(-1)  # not where CTC can't find it, or the answer has other pieces
        places = (places / mass.clamp(min=1)[..., None])[whole]
        words, first = words[whole], words[whole].cumsum(1) == 1
        losses = []
        for layer, score in enumerate(scores):
            lag = layer < len(scores) - 1
            attended = score[whole][words & ~first if lag else words].float().log_softmax(-1)[:, : places.shape[-1]]
            wanted = places[:, :-1][(mass > 0)[whole][:, 1:]] if lag else places[(mass > 0)[whole]]
            losses.append(-(wanted * attended).sum() / max(1, len(wanted)))
        return torch.stack(losses).mean()
