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
    parser.add_argument("--model", default="glm-asr-nano-2512", metavar="NAME|DIR", help="demo, glm-asr-nano-2512 (default), or a directory")
    parser.add_argument("--lang", default="auto", choices=["auto", "zh", "yue", "en"], help="letters that the language is not written in are forbidden (default: auto, nothing is)")
    parser.add_argument("--beams", type=positive, default=1, metavar="N", help="width of the beam search (default: 1, greedy)")
    parser.add_argument("--max-new-tokens", type=positive, metavar="N", help="limit for a text, in tokens (default: by the length of the recording)")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float32"], help="default: bfloat16 where the machine is fast at it")
    parser.add_argument("--json", action="store_true", help="one JSON object a recording, instead of its text")
    parser.add_argument("--quiet", action="store_true", help="errors only on standard error")
    return parser.parse_intermixed_args(argv)   # options may stand between recordings


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


def line(name: str, transcript, as_json: bool) -> str:
    """What standard output gets for a recording. Letters that its encoding lacks are escaped: no text is lost, JSON stays JSON."""
    encoding = sys.stdout.encoding or "utf-8"
    record = {"audio": name, **asdict(transcript)}
    text = json.dumps(record, ensure_ascii=False) if as_json else transcript.text
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = json.dumps(record) if as_json else text.encode(encoding, "backslashreplace").decode(encoding)
    return text


def run(args: argparse.Namespace) -> int:
    import glmasr                               # takes a second: not before the arguments are known to be right
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
            transcript = recogniser.transcribe(name, args.lang, beams=args.beams, max_new_tokens=args.max_new_tokens)
        except glmasr.GlmAsrError as error:
            tqdm.write(f"error: {error}", file=sys.stderr)
            failed += 1
            continue
        spent += time.perf_counter() - start
        seconds += transcript.seconds
        for warning in transcript.warnings:
            say(f"warning: {name}: {warning.removeprefix(f'{name}: ')}")
        tqdm.write(line(name, transcript, args.json), file=sys.stdout)
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
