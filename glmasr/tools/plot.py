"""What happens to a recording, as a picture: waveform, log-mel, what the text attends to, and the search.

    with explain.observed(recognizer) as run:
        recognizer.transcribe("talk.wav")
    samples, begin = first_window(recognizer, "talk.wav", recognizer.check())
    draw(recognizer, samples, run.attempts, "talk.png", begin=begin)

The first window is drawn, with the last attempt in it. Needs matplotlib, the extra [plot].
"""

import io
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import audio as sound
from ..config import HOP, SAMPLE_RATE
from ..errors import OptionError
from ..writers.output import write_whole
from .attention import Reading, first_window, read_again
from .explain import Search

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["check", "draw", "first_window"]

ENDINGS = (".png", ".svg", ".pdf")
# Fonts with Chinese characters, in the order in which they are looked for.
CHINESE_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "Source Han Sans SC",
    "PingFang SC",
    "Hiragino Sans GB",
    "Microsoft YaHei",
    "SimHei",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "Droid Sans Fallback",
    "Arial Unicode MS",
)
ABREAST = 5  # candidates of a step, or sequences kept in it
STEPS = 36  # steps of a search; a note counts the others
BANDS = 80  # of the log-mel drawn for a model that takes samples

INK, SOFT, FAINT, SOUND, CHOSEN = "#1f2328", "#59636e", "#d1d9e0", "#0969da", "#bc4c00"


def check(path: str, recordings: Sequence[str] = ()) -> None:
    """Raises OptionError for a name that says no format, for several recordings, and where matplotlib is missing."""
    if len(recordings) > 1:
        raise OptionError(
            f"plot is {path!r}, one picture, of {len(recordings)} recordings; expected one recording at a time"
        )
    if Path(path).suffix.lower() not in ENDINGS:
        raise OptionError(f"plot is {path!r}; expected the name of a file that ends in {', '.join(ENDINGS)}")
    if find_spec("matplotlib") is None:
        raise OptionError(
            "--plot needs the package matplotlib, which is not installed; get it with the extra [plot]:  "
            "pip install -c constraints.txt '.[plot]'"
        )


def draw(recognizer: Any, samples: Tensor, searches: Sequence[Search], path: str, *, begin: float = 0.0) -> list[str]:
    """Writes the picture of a window, whole or not at all, in the format that the file's name says; returns warnings.

    recognizer  with its modules as they are to be read (`load(plain=True)`), or with 8-bit linears
    samples     (S,) at 16 kHz of the window; none where all is silent
    searches    the attempts in this window; the last one counts
    begin       second of the recording at which the window begins

    Raises OptionError for a name that says no format and without matplotlib, OutputError where the file can't be
    written.
    """
    check(path)
    from matplotlib import font_manager, rc_context
    from matplotlib.figure import Figure

    search = searches[-1] if searches else None
    reading = read_again(recognizer, samples, search) if search and search.result and len(samples) else None
    known = set(font_manager.get_font_names())
    chinese = next((name for name in CHINESE_FONTS if name in known), None)
    said = "".join(label(recognizer.tokenizer, number) for number in reading.ids) if reading else ""
    lacking = chinese is None and any("\u2e80" <= letter <= "\uffdc" for letter in said)
    style: dict[Any, Any] = {"font.family": ["DejaVu Sans", chinese] if chinese else ["DejaVu Sans"], "font.size": 9}
    style |= {"svg.hashsalt": "glmasr"}  # with this and without the moment, the same recording makes the same file
    with rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the one warning below says it
        tokens = len(reading.ids) if reading else 0
        heights = [1.1, 2.0, min(6.0, max(2.2, 0.19 * tokens)), 2.4]
        figure = Figure(figsize=(10, sum(heights) + 1.6), layout="constrained")
        wave, mel, attended, searched = figure.subplots(4, 1, height_ratios=heights)
        mel.sharex(wave)
        attended.sharex(wave)
        draw_waveform(wave, samples, begin)
        draw_log_mel(mel, recognizer, samples, begin)
        if reading and search:
            draw_attention(attended, recognizer.tokenizer, reading, begin)
            wide = max(map(len, search.steps), default=0) > 1
            (draw_beams if wide else draw_candidates)(searched, recognizer.tokenizer, search, reading)
        else:
            for axes in (attended, searched):
                axes.set_axis_off()
            attended.set_title("all of it is silent: no text was searched for", loc="left")
        for axes in (wave, mel, attended):
            axes.set_xlim(begin, begin + max(1, len(samples)) / SAMPLE_RATE)
            axes.spines[["top", "right"]].set_visible(False)
        kind, picture = Path(path).suffix.lower()[1:], io.BytesIO()
        moment = {"png": "Software", "svg": "Date", "pdf": "CreationDate"}[kind]
        figure.savefig(picture, format=kind, dpi=110, metadata={moment: None})
    write_whole(path, small(picture) if kind == "png" else picture.getvalue())
    missing = (
        "no font with Chinese characters was found, so they are drawn as boxes; install one, such as Noto Sans CJK"
    )
    return [f"{path}: {missing}"] if lacking else []


def small(picture: io.BytesIO) -> bytes:
    """A PNG with 256 colors: half the size, and nobody sees the difference."""
    from PIL import Image  # matplotlib can't do without it either

    smaller = io.BytesIO()
    Image.open(picture).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(smaller, "PNG", optimize=True)
    return smaller.getvalue()


def draw_waveform(axes: "Axes", samples: Tensor, begin: float) -> None:
    # The highest and lowest of each stretch: a line through all samples would be the same, and slow.
    step = max(1, len(samples) // 2000)
    parts = samples[: len(samples) // step * step].reshape(-1, step) if len(samples) else torch.zeros(1, 1)
    times = begin + (torch.arange(len(parts)) + 0.5) * step / SAMPLE_RATE
    axes.fill_between(times.numpy(), parts.amin(1).numpy(), parts.amax(1).numpy(), color=SOUND, linewidth=0.4)
    axes.set_title(f"waveform: {len(samples):,} samples at {SAMPLE_RATE // 1000} kHz", loc="left")
    axes.tick_params(labelbottom=False)
    axes.set_ylabel("amplitude")


def draw_log_mel(axes: "Axes", recognizer: Any, samples: Tensor, begin: float) -> None:
    encoder = recognizer.config.encoder
    takes_samples = bool(getattr(encoder, "convolutions", ()))
    bands, frames = BANDS if takes_samples else encoder.bands, max(1, -(-len(samples) // HOP))
    mel = torch.cat([*sound.log_mel(sound.windows(samples, recognizer.config.window), bands)], dim=1)[:, :frames]
    axes.imshow(
        mel.numpy(),
        origin="lower",
        aspect="auto",
        cmap="magma",
        interpolation="nearest",
        extent=(begin, begin + frames * HOP / SAMPLE_RATE, 0, bands),
    )
    note = "; this model takes the samples, the log-mel is only drawn" if takes_samples else ""
    axes.set_title(f"log-mel: {bands} bands, {frames:,} frames of {1000 * HOP // SAMPLE_RATE} ms{note}", loc="left")
    axes.tick_params(labelbottom=False)
    axes.set_ylabel("mel band")


def draw_attention(axes: "Axes", tokenizer: Any, reading: Reading, begin: float) -> None:
    tokens, columns = reading.attention.shape
    shown = reading.attention / reading.attention.amax(-1, keepdim=True).clamp(min=1e-9)
    axes.imshow(
        shown.numpy(),
        aspect="auto",
        cmap="Blues",
        interpolation="nearest",
        extent=(begin, begin + columns * reading.seconds, tokens - 0.5, -0.5),
    )
    every = -(-tokens // 60)
    axes.set_yticks(
        range(0, tokens, every),
        [label(tokenizer, number) for number in reading.ids[::every]],
        fontsize=9 if tokens <= 30 else 7,
    )
    heads = ", ".join(f"{layer}.{head}" for layer, head in reading.heads)
    which = f"mean of the steadiest heads (layer.head {heads})"
    axes.set_title(f"attention of the text over the sound: {which}", loc="left")
    axes.set_xlabel("seconds")
    axes.set_ylabel("token")


def draw_candidates(axes: "Axes", tokenizer: Any, search: Search, reading: Reading) -> None:
    """Of a search that keeps one sequence: the likeliest tokens of each step, a column, with the chosen one framed."""
    from matplotlib.patches import Rectangle

    ids, logprobs = reading.ids[:STEPS], reading.logprobs[:STEPS]
    count = min(ABREAST, logprobs.shape[-1])
    for step, chosen in enumerate(ids):
        likely = logprobs[step].topk(count).indices.tolist()
        # The token that the rules chose instead may rank lower.
        likely = likely if chosen in likely else [*likely[:-1], chosen]
        for rank, number in enumerate(likely):
            value = float(logprobs[step, number].exp())
            edge, width = (CHOSEN, 1.5) if number == chosen else (FAINT, 0.5)
            fill = (0.035, 0.41, 0.85, 0.04 + 0.5 * value)
            corner = (step + 0.55, rank + 0.05)
            axes.add_patch(Rectangle(corner, 0.9, 0.9, facecolor=fill, edgecolor=edge, linewidth=width))
            middle: dict[str, Any] = {"ha": "center", "va": "center"}
            axes.text(step + 1, rank + 0.4, label(tokenizer, number), fontsize=size(len(ids)), color=INK, **middle)
            digits = 3 if len(ids) <= 24 else 2
            axes.text(step + 1, rank + 0.76, f"{value:.{digits}f}", fontsize=6, color=SOFT, **middle)
    columns(axes, len(ids), len(reading.ids), count)
    axes.set_ylim(count, 0)
    axes.set_yticks([rank + 0.5 for rank in range(count)], [str(rank + 1) for rank in range(count)])
    what = "the likeliest tokens of each step and their probabilities, before the rules; framed: what was taken"
    axes.set_title(f"greedy search: {what}", loc="left")


def draw_beams(axes: "Axes", tokenizer: Any, search: Search, reading: Reading) -> None:
    """The sequences that a search kept, in each step the best above; a line leads to what a sequence goes on from."""
    steps, answer = search.steps[:STEPS], reading.ids
    places: dict[tuple[int, ...], int] = {}
    for step, kept in enumerate(steps, 1):
        here: dict[tuple[int, ...], int] = {}
        for rank, sequence in enumerate(kept[: 2 * ABREAST]):
            ids = tuple(sequence.ids)
            won = list(ids) == answer[:step]
            color, width, level = (CHOSEN, 1.8, 2) if won else (FAINT, 0.8, 1)
            if step > 1 and (before := places.get(ids[:-1])) is not None:
                axes.plot([step - 1, step], [before, rank], color=color, linewidth=width, zorder=level)
            frame = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": CHOSEN if won else "none"}
            middle: dict[str, Any] = {"ha": "center", "va": "center", "zorder": 3, "bbox": frame}
            text = label(tokenizer, ids[-1])
            axes.text(step, rank, text, fontsize=size(len(steps)), color=CHOSEN if won else INK, **middle)
            here.setdefault(ids, rank)
        places = here
    most = max(min(len(kept), 2 * ABREAST) for kept in steps)
    columns(axes, len(steps), len(search.steps), most)
    axes.set_ylim(most - 0.4, -0.6)
    axes.set_yticks(range(most), [str(rank + 1) for rank in range(most)])
    axes.set_title("search: what was kept in each step, the best above; in color: the sequence that won", loc="left")


def columns(axes: "Axes", shown: int, steps: int, ranks: int) -> None:
    """The axes of a search: steps to the right, ranks downward."""
    every = 1 if shown <= 24 else 2
    axes.set_xlim(0.4, shown + 0.6)
    axes.set_xticks(range(1, shown + 1, every))
    axes.set_xlabel("step" + (f" (the first {shown} of {steps})" if shown < steps else ""))
    axes.set_ylabel("rank")
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)


def size(steps: int) -> float:
    """Of letters, where so many tokens stand in a row."""
    return max(5.5, min(9.0, 170 / max(1, steps)))


def label(tokenizer: Any, number: int) -> str:
    """A token, short: a special one without its frame, a space as an open box, part of a character as its bytes."""
    special = {id_: name for name, id_ in tokenizer.special.items()}
    if number in special:
        name = str(special[number]).strip("<|>")
        return {"endoftext": "end", "endoftranscript": "end"}.get(name, name)
    text = str(tokenizer.decode([number]))
    if not text or "\ufffd" in text:
        text = "".join(f"x{byte:02X}" for byte in tokenizer.token_bytes(number)) or str(number)
    return text.replace("\n", "⏎").replace(" ", "␣").replace("$", r"\$")
