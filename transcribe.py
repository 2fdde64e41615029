#!/usr/bin/env python3
"""Recordings -> text on standard output: the command line of glmasr.

    python transcribe.py talk.wav --lang zh
    python transcribe.py examples/*.wav --model demo

Progress, warnings and a closing line go to standard error. Exit code: 0 all recognised, 1 some recording or the model could
not be used, or the text can't be written, 2 wrong usage, 130 interrupted.
"""

import argparse
import json
import os
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    def positive(text: str) -> int:
        number = int(text)
        if number < 1:
            raise ValueError
        return number

    positive.__name__ = "positive integer"      # argparse puts it into its message
    parser = argparse.ArgumentParser(description="Recognises speech in Mandarin, Cantonese and English.")
    parser.add_argument("audio", nargs="+", metavar="AUDIO", help="recordings (WAV, FLAC, MP3, OGG, ...; others through ffmpeg); - is standard input")
    parser.add_argument("--model", default="glm-asr-nano-2512", metavar="NAME|DIR", help="demo, demo-article, glm-asr-nano-2512 (default), or a directory")
    parser.add_argument("--lang", default="auto", choices=["auto", "zh", "yue", "en"], help="the language token of an encoder-decoder (auto: it judges by itself); of GLM-ASR, letters that the language is not written in are forbidden (auto: nothing is)")
    parser.add_argument("--task", default="transcribe", choices=["transcribe", "translate"], help="translate: into English, where the model's vocabulary has it")
    parser.add_argument("--timestamps", action="store_true", help="segments with times, from the time tokens of an encoder-decoder")
    parser.add_argument("--beams", type=positive, metavar="N", help="width of the beam search, 1 is greedy (default: 5 for an encoder-decoder, else 1)")
    parser.add_argument("--max-new-tokens", type=positive, metavar="N", help="limit for a text, in tokens (default: by the length of the recording)")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float32"], help="default: bfloat16 where the machine is fast at it")
    parser.add_argument("--json", action="store_true", help="one JSON object a recording, instead of its text")
    parser.add_argument("--explain", action="store_true", help="before the text of a recording, how it came about: stages, shapes, times, prompt, search")
    parser.add_argument("--quiet", action="store_true", help="errors only on standard error")
    args = parser.parse_intermixed_args(argv)   # options may stand between recordings
    if args.explain and (len(args.audio) > 1 or args.json):
        parser.error("--explain takes one recording at a time, and goes without --json")
    return args


def peak_memory() -> str:
    """The most memory that this process held, and the GPU's share where one was used."""
    import torch
    try:
        import resource
    except ImportError:                         # Windows has no such count
        return "unknown"
    unit = 1 if sys.platform == "darwin" else 1024
    text = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20:.0f} MiB"
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        text += f" and {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB on the GPU"
    return text


def clock(seconds: float) -> str:
    """12.34 -> 00:12.34, 3600 -> 1:00:00.00"""
    hundredths = round(100 * seconds)
    minutes, rest = divmod(hundredths, 6000)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}:" if hours else "") + f"{minutes:02d}:{rest / 100:05.2f}"


def line(name: str, transcript, as_json: bool, timestamps: bool = False) -> str:
    """What standard output gets for a recording. Letters that its encoding lacks are escaped: no text is lost, JSON stays JSON."""
    encoding = sys.stdout.encoding or "utf-8"
    record = {"audio": name, **asdict(transcript)}
    plain = transcript.text
    if timestamps:
        plain = "\n".join(f"[{clock(segment.start)} --> {clock(segment.end)}] {segment.text}" for segment in transcript.segments)
    text = json.dumps(record, ensure_ascii=False) if as_json else plain
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = json.dumps(record) if as_json else writable(text)
    return text


def writable(text: str) -> str:
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def run(args: argparse.Namespace) -> int:
    import glmasr                               # takes a second: not before the arguments are known to be right
    from glmasr import explain
    from tqdm import tqdm

    def say(text: str) -> None:
        if not args.quiet:
            tqdm.write(text, file=sys.stderr)

    try:
        recogniser = glmasr.load(args.model, device=args.device, dtype=args.dtype)
    except glmasr.GlmAsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    seconds = spent = failed = 0
    for name in tqdm(args.audio, unit="file", disable=args.quiet or not sys.stderr.isatty(), leave=False):
        start = time.perf_counter()
        try:
            with explain.observed(recogniser) if args.explain else nullcontext() as observation:
                transcript = recogniser.transcribe(name, args.lang, task=args.task, timestamps=args.timestamps, beams=args.beams,
                                                   max_new_tokens=args.max_new_tokens)
        except glmasr.GlmAsrError as error:
            tqdm.write(f"error: {error}", file=sys.stderr)
            failed += 1
            continue
        spent += time.perf_counter() - start
        seconds += transcript.seconds
        if args.lang == "auto" and transcript.language:
            say(f"{name}: language {transcript.language}")
        for warning in transcript.warnings:
            say(f"warning: {name}: {warning.removeprefix(f'{name}: ')}")
        if args.explain:
            tqdm.write(writable(explain.report(observation)), file=sys.stdout)
        tqdm.write(line(name, transcript, args.json, args.timestamps), file=sys.stdout)
        sys.stdout.flush()
    say(f"{seconds:.1f} s of sound in {spent:.2f} s, real-time factor {spent / seconds if seconds else 0:.3f}; peak memory {peak_memory()}"
        + (f"; {failed} of {len(args.audio)} recordings failed" if failed else ""))
    return 1 if failed else 0


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    if sys.stdout is None:
        print("error: standard output is closed", file=sys.stderr)
        return 1
    try:
        return run(args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except OSError as error:                    # the text can't be written
        if not isinstance(error, BrokenPipeError):                      # `| head` has just seen enough
            print(f"error: {error}", file=sys.stderr)
        # TRAP: the interpreter flushes standard output once more when it ends, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
