"""Draws a live session: python docs/pictures/live.py [RECORDING [MODEL [OUT]]]; needs the extra [plot].

Above, the sound; below, a row for each decoding: what of the sound it encoded, the committed words that its text began
with, what it committed and what it only showed.
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
from glmasr import audio
from glmasr.transcription import live_decoder
from glmasr.transcription.live_decoder import Request
from glmasr.transcription.live_events import Committed

INK, SOUND, PREFIX, NEW, SHOWN = "#555555", "#dddddd", "#8fa8c4", "#3a6ea5", "#d4542b"
PIECE = 1600  # samples, 0.1 s, that are fed at a time


def decodings(recognizer: glmasr.Recognizer, samples: torch.Tensor) -> list:
    """(request, answer, words committed afterwards, seconds of sound so far) of each decoding."""
    found, decode, fed = [], live_decoder.decode, 0

    def noted(of, requests: list[Request]):
        answers = decode(of, requests)
        found.extend(
            [request, answer, [], fed / audio.SAMPLE_RATE] for request, answer in zip(requests, answers, strict=True)
        )
        return answers

    live_decoder.decode = noted
    try:
        session = recognizer.live(step=0.5, vad="off")
        for start in range(0, len(samples), PIECE):
            fed = min(len(samples), start + PIECE)
            note(found, session.feed(samples[start : start + PIECE]))
        note(found, session.finish())
    finally:
        live_decoder.decode = decode
    return found


def note(found: list, events: list) -> None:
    for event in events:
        if isinstance(event, Committed):
            found[-1][2] += event.words


def main(path: str = "examples/en.mp3", model: str = "demo", out: str = "docs/pictures/live.png") -> None:
    recognizer = glmasr.load(model, device="cpu", dtype="float32")
    samples = torch.nn.functional.pad(audio.load(path), (audio.SAMPLE_RATE // 4, audio.SAMPLE_RATE))
    rows = decodings(recognizer, samples)
    with plt.rc_context({"font.size": 9}):
        figure, (above, below) = plt.subplots(
            2,
            1,
            sharex=True,
            figsize=(9, 1.2 + 0.42 * len(rows)),
            height_ratios=(1, 0.6 * len(rows)),
            constrained_layout=True,
        )
        moments = torch.arange(len(samples)) / audio.SAMPLE_RATE
        above.plot(moments[::8], samples[::8], color=INK, linewidth=0.4)
        above.set_yticks([])
        for row, (request, answer, committed, now) in enumerate(rows):
            begin, end = request.window.begin, request.window.begin + request.window.seconds
            below.barh(row, end - begin, left=begin, height=0.8, color=SOUND)
            below.plot((now, now), (row - 0.45, row + 0.45), color=INK, linewidth=1)
            if not request.final:
                for said in answer.said:
                    for word in said.words:
                        label(
                            below,
                            row,
                            word,
                            NEW if word.text in [one.text for one in committed] and certain(word, committed) else SHOWN,
                        )
            else:
                for word in committed:
                    label(below, row, word, NEW)
            earlier = [word for _, _, words, _ in rows[:row] for word in words if begin <= word.start]
            for word in earlier if request.prefix or request.final else ():
                label(below, row, word, PREFIX)
        below.set_yticks(
            range(len(rows)),
            ["whole segment" if request.final else f"after {now:.1f} s" for request, _, _, now in rows],
        )
        below.invert_yaxis()
        below.set_xlabel(
            "seconds; gray: the sound that is encoded; pale: committed before; blue: committed now; red: shown"
        )
        figure.savefig(out, dpi=120)
        print(out)


def certain(word, committed: list) -> bool:
    return any(abs(word.start - one.start) < 0.05 for one in committed)


def label(axes, row: int, word, color: str) -> None:
    axes.barh(row, word.end - word.start, left=word.start, height=0.6, color=color, edgecolor="white", linewidth=0.5)
    axes.text((word.start + word.end) / 2, row, word.text, ha="center", va="center", color="white", fontsize=7)


if __name__ == "__main__":
    main(*sys.argv[1:])
