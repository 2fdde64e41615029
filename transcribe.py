#!/usr/bin/env python3
"""Recordings -> text: the command line of glmasr.

    python transcribe.py talk.wav --lang zh                                     text to standard output
    python transcribe.py talks/ --recursive --format srt,json --output-dir out  files, named after the recordings
    arecord -f S16_LE -r 16000 | python transcribe.py --live -                  what is said, as it is said

Progress, warnings and closing lines go to standard error. Exit code: 0 all recognized, 1 some recording or the model
could not be used, or a text can't be written, 2 wrong usage, 130 interrupted. What was recognized of a recording before
an error or Ctrl-C goes into files with `.incomplete` in their names; with `--resume` the same command continues from
there.
"""

if __name__ == "__main__":  # before all imports: it makes one of this file as well
    import sys

    from glmasr.cli import transcribe

    sys.exit(transcribe())

import argparse
import os
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import glmasr
from glmasr.audio_files.address import is_address, shown
from glmasr.audio_files.limits import HIGHEST_RATE, LOWEST_RATE, MOST_CHANNELS
from glmasr.cli import (
    INTERRUPTED,
    Parser,
    clips,
    device,
    ended_at_once,
    moment,
    number_or_language,
    positive,
    positive_or_auto,
    seconds,
)
from glmasr.errors import GlmAsrError, OptionError, OutputError, printable
from glmasr.tools.console import Messages, Summary, as_line, clock, put, writable
from glmasr.transcription.clips import check as check_clips
from glmasr.writers import output
from glmasr.writers.formats import TIMED, WRITERS, record
from glmasr.writers.line_breaks import Layout

if TYPE_CHECKING:  # they need torch: `Work.load` imports it once the arguments are known to be right
    from glmasr.pipeline import Options, Part, Recognizer, Transcript
    from glmasr.tools.explain import Observation

# -- arguments ---------------------------------------------------------------------------------------------------------


def names(text: str) -> tuple[str, ...]:
    """The type of an argument that lists names between commas: each once, without empty ones."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def formats(text: str) -> list[str]:
    """The type of an argument that lists names of WRITERS between commas, or has `all`. Raises ArgumentTypeError."""
    names = list(dict.fromkeys(text.split(",")))
    if "all" in names:
        names = list(WRITERS)
    if unknown := [name for name in names if name not in WRITERS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(WRITERS)}, or all")
    return names


def make_parser() -> Parser:
    """The options, on a screen; docs/CLI.md says more about each."""
    parser = Parser(description="Recognizes speech in Mandarin, Cantonese and English. docs/CLI.md says more.")
    parser.usage = "%(prog)s AUDIO... [options]"
    parser.formatter_class = partial(argparse.HelpFormatter, max_help_position=33)
    parser.add_argument("audio", nargs="+", metavar="AUDIO", help="files, folders, patterns; - is standard input")

    add = parser.add_argument_group("model")
    default = "glm-asr-nano-2512"
    add.add_argument("--model", default=default, metavar="NAME|DIR", help=f"default: {default}; demo, tiny, ...")
    add.add_argument("--adapter", metavar="DIR", help="a LoRA of PEFT; also --assistant, a student")
    add.add_argument("--assistant", metavar="NAME|DIR", help=argparse.SUPPRESS)
    add.add_argument("--revision", metavar="REV", help="commit, branch or tag of a hub's model")
    hubs = ["huggingface", "modelscope"]
    add.add_argument("--hub", choices=hubs, metavar="HUB", help="huggingface or modelscope (or GLMASR_HUB)")
    add.add_argument("--device", type=device, default="auto", help="auto, cpu, cuda, or cuda:1 and so on")
    types = ["auto", "bfloat16", "float32", "int8"]
    add.add_argument(
        "--dtype", choices=types, default="auto", metavar="TYPE", help="auto, bfloat16, float32 or int8 (CPU)"
    )
    add.add_argument("--threads", type=positive, metavar="N", help="CPU threads (default: what PyTorch takes)")

    add = parser.add_argument_group("recognition")
    add.add_argument("--lang", default="auto", metavar="LANGUAGE", help="zh, yue, en, ... (default: auto)")
    add.add_argument("--language", dest="lang", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    add.add_argument("--languages", type=names, metavar="LANGUAGE,...", help="what auto may choose among")
    add.add_argument(
        "--task", default="transcribe", choices=["transcribe", "translate"], help="translate: into English"
    )
    add.add_argument("--timestamps", action=argparse.BooleanOptionalAction, help="segments with the model's times")
    add.add_argument("--words", action="store_true", help="times of each word")
    kinds, means = ["character", "dictionary"], "words of Chinese: character, or dictionary"
    add.add_argument("--zh-words", choices=kinds, default=kinds[0], metavar="KIND", help=means)
    add.add_argument("--long", default="cut", choices=["cut", "whole", "seek"], help="if it's longer than a window")
    add.add_argument("--vad", default="auto", choices=["auto", "off"], help="auto: only speech, with the extra [vad]")
    add.add_argument(
        "--pad-to", default="window", choices=["window", "speech"], help="speech: faster, not as published"
    )
    add.add_argument("--beams", type=positive, metavar="N", help="1 is greedy (default: the model's)")
    add.add_argument("--batch-size", type=positive_or_auto, metavar="N|auto", help="windows decoded together")
    add.add_argument("--max-new-tokens", type=positive, metavar="N", help="of a window (default: by its length)")
    add.add_argument("--max-duration", type=seconds, metavar="SECONDS", help="refuse what is longer (default: 12 h)")
    add.add_argument("--track", type=number_or_language, metavar="N|LANGUAGE", help="which of several audio tracks")
    add.add_argument("--clip", type=clips, metavar="FROM-TO,...", help="parts: 60-120,5:00-; or --start, --end")
    add.add_argument("--start", type=moment, help=argparse.SUPPRESS)
    add.add_argument("--end", type=moment, help=argparse.SUPPRESS)
    add.add_argument("--live", action="store_true", help="as it is said: AUDIO is -, mic or a file")
    step = "until it grows (1); also --rate, --channels"
    add.add_argument("--live-step", type=seconds, default=1.0, metavar="SECONDS", help=step)
    add.add_argument("--rate", type=positive, default=16_000, metavar="HZ", help=argparse.SUPPRESS)
    add.add_argument("--channels", type=positive, default=1, metavar="N", help=argparse.SUPPRESS)
    add.add_argument("--input-device", metavar="N|NAME", help=argparse.SUPPRESS)
    add.add_argument("--hotwords", metavar="FILE|NAME,...", help="names to be spelled right")
    add.add_argument("--prompt", default="", metavar="TEXT", help="what was said before (Whisper)")
    add.add_argument("--context", action="store_true", help="what was said prompts what follows (Whisper)")
    add.add_argument("--instruction", default="", metavar="TEXT", help=argparse.SUPPRESS)  # an experiment
    scripts = ["simplified", "traditional"]
    add.add_argument("--script", choices=scripts, metavar="SCRIPT", help="simplified or traditional (extra [zh])")

    add = parser.add_argument_group("files, named after the recordings")
    add.add_argument("--format", type=formats, metavar="NAME,...", help=f"{', '.join(WRITERS)}, or all")
    add.add_argument("--output-dir", metavar="DIR", help="default: beside the recordings")
    add.add_argument("--recursive", action="store_true", help="also what is in the folders of a folder")
    add.add_argument("--skip-existing", action="store_true", help="leave out recordings whose files are there")
    add.add_argument("--resume", action="store_true", help="continue recordings that were stopped")
    columns = "columns of subtitles; Chinese takes two (42)"
    add.add_argument("--max-line-width", type=positive, metavar="N", default=42, help=columns)
    add.add_argument("--max-line-count", type=positive, metavar="N", default=2, help="lines of subtitles at a time (2)")

    cue = "with --words: so many in a cue"
    add.add_argument("--words-per-cue", type=positive, metavar="N", help=cue)

    add = parser.add_argument_group("messages")
    add.add_argument("--json", action="store_true", help="JSON instead of text, a line for a recording")
    add.add_argument("--explain", action="store_true", help="also how the text came about")
    add.add_argument("--plot", metavar="FILE", help="with --explain: as a picture, too (.png, ...)")
    add.add_argument("--verbose", action="store_true", help="also what it runs on, and how")
    add.add_argument("--quiet", action="store_true", help="only errors on standard error")
    return parser


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The arguments of the command line, checked against each other. Wrong usage ends the process, with exit code 2."""
    parser = make_parser()
    # Options may stand between recordings. TRAP: with `--`, after which a name may begin with a dash, they may not.
    dashes = "--" in (sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(argv) if dashes else parser.parse_intermixed_args(argv)
    args.files = args.format is not None or args.output_dir is not None
    if args.explain and (len(args.audio) > 1 or args.json or args.files):
        parser.error("--explain takes one recording at a time, and goes without --json and without files")
    once = args.audio[0] == "-" or is_address(args.audio[0]) or Path(args.audio[0]).is_fifo()
    if args.plot is not None and (once or not args.explain):
        parser.error("--plot goes with --explain, and with a file, which is read twice")
    if args.json and args.files:
        parser.error("--json goes to standard output; for files use --format json")
    if args.skip_existing and not args.files:
        parser.error("--skip-existing goes with files: add --format or --output-dir")
    if args.resume and not args.files:
        parser.error("--resume goes with files: add --format or --output-dir, as in the run that was stopped")
    if args.zh_words != "character" and not args.words:
        parser.error("--zh-words goes with --words, which gives each word its time")
    if args.words_per_cue and not args.words:
        parser.error("--words-per-cue goes with --words, which gives each word its time")
    if args.words_per_cue and not {"srt", "vtt", "lrc"}.intersection(args.format or ()):
        parser.error("--words-per-cue is for subtitles: add --format srt, vtt or lrc")
    if args.clip and not (args.start is None and args.end is None):
        parser.error("--clip says where to begin and to end; it goes without --start and --end")
    args.clips = args.clip or () if args.start is None and args.end is None else ((args.start or 0.0, args.end),)
    try:
        check_clips(args.clips)
    except OptionError as error:
        parser.error(str(error))
    check_live(parser, args)
    if args.max_line_width < 2:
        parser.error("--max-line-width has to be 2 or more: a Chinese character takes two columns")
    return args


# What a session hasn't: it can't begin anew, and has neither parts nor several windows at a time.
NOT_LIVE = (
    "resume skip_existing recursive clip start end long explain track batch_size task context max_duration".split()
)
ONLY_LIVE = "live_step rate channels input_device".split()


def check_live(parser: Parser, args: argparse.Namespace) -> None:
    """Wrong usage of `--live`, or of what goes with it, ends the process."""
    wrong = [name for name in (NOT_LIVE if args.live else ONLY_LIVE) if getattr(args, name) != parser.get_default(name)]
    if wrong:
        parser.error(f"--{wrong[0].replace('_', '-')} goes {'without' if args.live else 'with'} --live")
    if args.live and (len(args.audio) > 1 or is_address(args.audio[0])):
        parser.error("--live takes one source: - (standard input), mic, or a file; for an address, what ffmpeg pipes")
    for name, value, least, most in (
        ("rate", args.rate, LOWEST_RATE, HIGHEST_RATE),
        ("channels", args.channels, 1, MOST_CHANNELS),
    ):
        if not least <= value <= most:
            parser.error(f"--{name} is {value}, expected {least} to {most}")
    if args.input_device is not None and args.audio[0] != "mic":
        parser.error("--input-device goes with `--live mic`")


def recognition_options(args: argparse.Namespace, recognizer: "Recognizer") -> "Options":
    """Files of cues show the times that a model writes, even if they weren't asked for."""
    asked = "task timestamps beams max_new_tokens long batch_size pad_to script track vad words clips prompt context"
    options = {name: getattr(args, name) for name in (*asked.split(), "instruction", "zh_words")}
    options["languages"] = args.languages or ()
    if args.hotwords is not None:
        from glmasr.transcription import hotwords

        options["hotwords"] = hotwords.read(args.hotwords)
    if args.live:  # the times that are shown are those of words
        options["timestamps"] = False if args.timestamps is False else None
    elif args.timestamps is None and TIMED.intersection(args.format or ()) and recognizer.timed(glmasr.Options()):
        options["timestamps"] = True
    if args.max_duration:
        options["max_duration"] = args.max_duration
    made: Options = glmasr.Options(**options)
    return made


# -- the work ----------------------------------------------------------------------------------------------------------


class Work:
    """The recordings of a command line."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.messages, self.summary = args, Messages(args.quiet), Summary()
        self.outputs: dict[str, dict[str, Path]] = {}  # of each recording: format -> file; {} without files
        self.start = 0.0

    def run(self) -> int:
        """Everything; returns the exit code: 1 if a recording or the model failed, 2 for an unusable option."""
        names = self.args.audio if self.args.live else self.recordings()
        if self.args.files:
            self.outputs = output.plan_outputs(names, self.args.format or ["txt"], self.args.output_dir)
        if self.args.skip_existing:
            there = [name for name in names if all(os.path.isfile(path) for path in self.outputs[name].values())]
            self.summary.skipped, names = len(there), [name for name in names if name not in there]
        try:
            if names:
                if self.args.output_dir is not None:  # before hours of work
                    output.prepare(self.args.output_dir)
                if self.args.plot is not None:
                    from glmasr.tools import plot

                    plot.check(self.args.plot, names)
                self.load()
        except GlmAsrError as error:
            print(f"error: {printable(str(error))}", file=sys.stderr)
            return 2 if isinstance(error, OptionError) else 1
        if self.args.live:
            return self.listen(names[0])
        try:
            if names:
                self.recognize(self.journals.begun(names, self.outputs, self.fail))
        except KeyboardInterrupt:  # what was finished is written already
            if self.summary.done:
                self.report()
            raise
        self.report()
        return 1 if self.summary.failures else 0

    def recordings(self) -> list[str]:
        """Folders and patterns opened up. One that matches nothing doesn't stop the others."""
        names = []
        for path in self.args.audio:
            names += output.expand([path], self.args.recursive, self.fail)
        return output.expand(names) if self.args.files else names  # each file is written once

    def load(self) -> None:
        """The recognizer, and what needs PyTorch, which takes a second to import. Raises GlmAsrError."""
        args = self.args
        with ended_at_once():  # nothing has to be cleaned up
            with glmasr.uncollected():
                import torch

                from glmasr.checkpoint import hub
                from glmasr.tools import explain_report, journals, progress

            if args.threads:
                torch.set_num_threads(args.threads)
            self.recognizer: Recognizer = glmasr.load(
                args.model,
                device=args.device,
                dtype=args.dtype,
                plain=args.explain,
                adapter=args.adapter,
                assistant=args.assistant,
                revision=args.revision,
                hub=args.hub,
                progress=not args.quiet,
            )
        self.explain, self.progress = explain_report, progress.Progress
        self.options = recognition_options(args, self.recognizer)
        checked = self.recognizer.check(args.lang, self.options)
        self.how = self.recognizer.how(self.options)
        find_model = partial(hub.find, args.model, args.revision, hub=args.hub, progress=False)
        self.journals = journals.Journals(
            self.recognizer, find_model, args.lang, checked, self.messages, resume=args.resume
        )
        if args.model in hub.BUILT_IN:
            self.messages.say(f"{args.model}: {hub.DEMO}")
        if args.verbose:
            self.messages.say(", ".join(f"{name} {value}" for name, value in self.how.items()))

    def listen(self, name: str) -> int:
        """A live session; returns the exit code."""
        from glmasr.audio_files.pcm import Pcm
        from glmasr.tools import live_console, live_screen

        args, outputs = self.args, {}
        if args.files:
            stem = "live" if name in ("-", "mic") else name
            outputs = output.plan_outputs([stem], args.format or ["txt"], args.output_dir)[stem]
        try:
            session = self.recognizer.live(args.lang, step=args.live_step, **vars(self.options))
            raw = Pcm(args.rate, args.channels)
        except OptionError as error:
            self.fail(error)
            return 2
        layout = Layout(args.max_line_width, args.max_line_count, args.words_per_cue)
        files = live_console.Files(outputs, layout, name, self.how, args.words)
        screen = live_screen.Screen(args.json, args.timestamps, args.words)
        console = live_console.Console(self.recognizer, session, screen, files, self.messages)
        return console.run(partial(live_console.sound, name, raw, args.input_device))

    def fail(self, error: Exception, name: str = "") -> None:
        """Prints an error and counts it; the other recordings go on."""
        text, name = printable(str(error)), printable(shown(name))
        if name and not text.startswith(f"{name}: "):  # such as an error of the model: it doesn't know the recording
            text = f"{name}: {text}"
        self.messages.complain(text)
        self.summary.failures.append(text)

    def report(self) -> None:
        """Prints the summary to standard error."""
        for line in self.summary.lines():
            self.messages.say(line)

    def recognize(self, names: list[str]) -> None:
        """Prints each part as soon as it is recognized, and writes files as soon as a recording is complete."""
        self.start = time.perf_counter()
        done = {index: parts for index, name in enumerate(names) if (parts := self.journals.parts(name))}
        before = {names[index]: parts[-1].end for index, parts in done.items()}
        current, parts = 0, list(done.get(0, []))
        if self.args.explain:
            stream = self.explained(names)
        else:
            stream = self.recognizer.streams(names, self.args.lang, self.options, done=done)
        try:
            with self.progress(names, self.args.quiet, before, self.args.clips) as progress:
                for index, part in stream:
                    name = names[index]
                    if isinstance(part, GlmAsrError):
                        self.stop(name, parts)
                        self.fail(part, name)
                    else:
                        parts.append(part)
                        if self.args.files and len(parts) > 1 and not part.last:  # one window needs no journal
                            self.journals.keep(name, parts, self.outputs[name])
                        self.tell(name, part)
                        progress.reach(part.end)
                        if not part.last:
                            continue
                        self.finish(name, parts, before.get(name, 0.0))
                    current = index + 1
                    parts = list(done.get(current, []))
                    progress.next()
        except BaseException as error:  # Ctrl-C, or a defect
            if current < len(names) and (self.args.files or isinstance(error, KeyboardInterrupt)):
                self.stop(names[current], parts)
            raise

    def explained(self, names: list[str]) -> "Iterator[tuple[int, Part | GlmAsrError]]":
        """The parts of recordings, one after the other, and before the text of each how it came about."""
        for index, name in enumerate(names):
            run, parts = self.explain.explained(self.recognizer, name, self.args.lang, self.options)
            if run:
                put("\n".join(map(writable, self.explain.report(run).split("\n"))))
                self.plot(name, run)
            yield from ((index, part) for _, part in parts)

    def plot(self, name: str, run: "Observation") -> None:
        """What was explained, as a picture. If that fails, the text comes all the same."""
        if self.args.plot is None:
            return
        from glmasr.tools import plot

        options = self.recognizer.check(self.args.lang, self.options)
        try:
            samples, begin = plot.first_window(self.recognizer, name, options)
            for warning in plot.draw(self.recognizer, samples, run.attempts, self.args.plot, begin=begin):
                self.messages.say(f"warning: {warning}")
        except GlmAsrError as error:  # such as a recording on the web that is gone
            self.fail(error)

    def tell(self, name: str, part: "Part") -> None:
        """Prints a part: warnings to standard error, text to standard output unless it goes to files or JSON."""
        for warning in part.warnings:
            self.messages.say(f"warning: {name}: {warning.removeprefix(f'{shown(name)}: ')}")
        if self.args.files or self.args.json:
            return
        for segment in part.segments:
            times = f"[{clock(segment.start)} --> {clock(segment.end)}] " if self.args.timestamps else ""
            put(times + writable(segment.text))
        sys.stdout.flush()

    def finish(self, name: str, parts: "list[Part]", before: float) -> None:
        """A transcript goes where it should, if it isn't there already."""
        args, transcript = self.args, glmasr.Transcript.of(parts, self.how, self.args.clips)
        if args.lang.strip().lower() == "auto" and transcript.language:
            self.messages.say(f"{name}: language {transcript.language}")
        if args.json:
            put(as_line(record(transcript, name)))
        elif not (transcript.segments or args.files):
            put("")  # a line for each recording, even without speech
        if not args.files:
            sys.stdout.flush()
        else:
            try:
                self.write(name, transcript, self.outputs[name])
            except OutputError as error:
                self.fail(error, name)
                self.journals.close(name)  # it stays: there is nothing to recognize again
                return
            self.journals.remove(name, self.outputs[name])
        self.summary.add(transcript, time.perf_counter() - self.start, before)

    def stop(self, name: str, parts: "list[Part]") -> None:
        """What was recognized of a recording that isn't finished goes where it should, marked as incomplete."""
        parts = [part for part in parts if not part.last]
        if not parts:
            return
        transcript = glmasr.Transcript.stopped(parts, self.how, self.args.clips)
        if self.args.json:
            put(as_line(record(transcript, name)))
            sys.stdout.flush()
        more = ""
        if self.args.files:
            outputs = self.outputs[name]
            self.journals.keep(name, parts, outputs)
            try:
                self.write(name, transcript, {form: output.incomplete(path) for form, path in outputs.items()})
            except OutputError as error:
                self.messages.complain(str(error))
            place = self.journals.close(name)
            if place is not None and os.path.isfile(name):
                there = "there" if place == parts[-1].end else f"at {clock(place)}"
                more = f"; the same command {f'with --resume goes on {there}' if place else 'begins anew'}"
        self.messages.say(f"{name}: incomplete, recognized up to {clock(transcript.seconds)}{more}")

    def write(self, name: str, transcript: "Transcript", outputs: dict[str, Path]) -> None:
        """Files; one that can't be written doesn't stop the others. Raises OutputError."""
        layout = Layout(self.args.max_line_width, self.args.max_line_count, self.args.words_per_cue)
        written, errors = [], {}
        for form, path in outputs.items():
            try:
                output.write_whole(path, WRITERS[form](transcript, layout, name))
                written.append(str(path))
            except OutputError as error:
                errors[path.name] = error
        if written:
            self.messages.say(f"{name} -> {', '.join(written)}")
        if errors:
            [(_, first), *others] = errors.items()
            raise OutputError(f"{first}" + (f"; nor could {', '.join(file for file, _ in others)}" if others else ""))


def main(argv: list[str] | None = None) -> int:
    """Runs the command line. -> exit code, as said at the top."""
    try:
        args = arguments(argv)
        if sys.stdout is None and not args.files:
            print("error: standard output is closed", file=sys.stderr)
            return 1
        return Work(args).run()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:  # the text can't be written
        if not isinstance(error, BrokenPipeError):  # `| head` has just seen enough
            print(f"error: {printable(str(error))}", file=sys.stderr)
        # TRAP: the interpreter flushes standard output once more when it ends, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
