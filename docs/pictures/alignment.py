"""Draws how words get their times: python docs/pictures/alignment.py [RECORDING [MODEL [OUT]]]; needs the extra [plot].

Above, what the text attends to in the sound, token by token, with the path through it; below, the loudness, its pauses,
and the words.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import glmasr
from glmasr.alignment import align, times
from glmasr.alignment.words import spell
from glmasr.audio import HOP, SAMPLE_RATE
from glmasr.transcription.chunking import Window, loudness

INK, PATH, PAUSE, WORD = "#555555", "#d4542b", "#bbbbbb", "#3a6ea5"


def reading(recognizer: glmasr.Recognizer, path: str):
    """(window, tokens as text, Spelled words, text, scores) of the first window of a recording."""
    found = []
    read_again = recognizer.family.read_again

    def noted(window: Window, audio, prompt, ids, **more):
        result = read_again(window, audio, prompt, ids, **more)
        found.append((window, ids, result.scores))
        return result

    recognizer.family.read_again = noted
    recognizer.transcribe(path, words=True)
    window, ids, scores = found[0]
    text, words = spell(ids, recognizer.tokenizer.decoder())
    names = [recognizer.tokenizer.decode([number]).strip() or "·" for number in ids]
    return window, [*names, "end"], words, text, scores


def main(path: str = "examples/en.mp3", model: str = "demo", out: str = "docs/pictures/alignment.png") -> None:
    recognizer = glmasr.load(model, device="cpu", dtype="float32")
    window, names, words, text, scores = reading(recognizer, path)
    frame, lead = recognizer.family.samples_per_state / SAMPLE_RATE, recognizer.config.alignment_lead
    levels = loudness(window.samples)
    silent = times.pauses(levels, HOP / SAMPLE_RATE)
    seconds = times.token_seconds(words, scores, frame, lead, silent)
    spans = times.word_times(words, scores, frame, lead, silent, window.seconds).spans
    share = align.shares(scores, times.SMOOTH_WITHIN_LONG if frame > times.LONG else times.SMOOTH_WITHIN)

    with plt.rc_context({"font.size": 9}):
        figure, (above, below) = plt.subplots(
            2, 1, sharex=True, figsize=(9, 4.6), height_ratios=(3, 2), constrained_layout=True
        )
        extent = (0, scores.shape[-1] * frame, len(names) - 0.5, -0.5)
        above.imshow(share, aspect="auto", extent=extent, cmap="Greys", interpolation="nearest")
        ends = [*seconds[1:], window.seconds]
        for token, (begin, end) in enumerate(zip(seconds, ends, strict=True)):
            above.plot((begin, max(begin, end)), (token, token), color=PATH, linewidth=2.5)
            if token:
                above.plot((begin, begin), (token - 1, token), color=PATH, linewidth=1)
        above.set_yticks(range(len(names)), names)
        above.set_title("how the tokens share each frame of sound, and the path", loc="left", fontsize=9)
        moments = torch.arange(len(levels)) * HOP / SAMPLE_RATE
        below.plot(moments, levels, color=INK, linewidth=0.8)
        for begin, end in silent:
            below.axvspan(begin, end, color=PAUSE, alpha=0.3, linewidth=0)
        low, high = float(levels.clamp(min=-90).min()), float(levels.max())
        for word, (begin, end) in zip(words, spans, strict=True):
            below.plot((begin, end), (high + 6, high + 6), color=WORD, linewidth=6, solid_capstyle="butt")
            below.axvline(begin, color=WORD, linewidth=0.6)
            below.axvline(end, color=WORD, linewidth=0.6, linestyle=":")
            below.text((begin + end) / 2, high + 11, text[word.first : word.last], ha="center")
        below.set_ylim(low, high + 20)
        below.set_ylabel("loudness, dB")
        below.set_xlabel("seconds")
        figure.savefig(out, dpi=120)
        print(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
