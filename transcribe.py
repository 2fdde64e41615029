#!/usr/bin/env python3
"""Recordings -> text: the command line of glmasr.

    python transcribe.py talk.wav --lang zh                                     text to standard output
    python transcribe.py talks/ --recursive --format srt,json --output-dir out  files, named after the recordings

Progress, warnings and closing lines go to standard error. Exit code: 0 all recognised, 1 some recording or the model could
not be used, or a text can't be written, 2 wrong usage, 130 interrupted. What was recognised of a recording before an error or
Ctrl-C goes into files with `.incomplete` in their names; with `--resume` the same command goes on behind it.
"""

if __name__ == "__main__":                      # before all imports: it makes one of this file as well
    import sys

    from glmasr.cli import transcribe
    sys.exit(transcribe())

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass, field

from glmasr.cli import INTERRUPTED, Parser, ended_at_once
from glmasr.errors import printable
from glmasr.writers import output
from glmasr.writers.formats import TIMED, WRITERS, record
from glmasr.writers.line_breaks import Layout

# ---- arguments ------------------------------------------------------------------------------------------------------------

def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def positive_or_auto(text: str) -> int | None:
    return None if text == "auto" else positive(text)


def seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise ValueError
    return number


def number_or_language(text: str) -> int | str:
    if text.isdecimal():
        return positive(text)
    if not (text.isascii() and text.isalpha() and len(text) in (2, 3)):
        raise ValueError
    return text


positive.__name__ = "positive integer"          # argparse puts it into its message
positive_or_auto.__name__ = "positive integer or auto"
seconds.__name__ = "number of seconds"
number_or_language.__name__ = "number from 1 on or language"


def names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def formats(text: str) -> list[str]:
    names = list(dict.fromkeys(text.split(",")))
    if "all" in names:
        names = list(WRITERS)
    if unknown := [name for name in names if name not in WRITERS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(WRITERS)}, or all")
    return names


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description="Recognises speech in Mandarin, Cantonese and English.")
    parser.add_argument("audio", nargs="+", metavar="AUDIO", help="recordings (WAV, FLAC, MP3, OGG, ...; others through ffmpeg), folders, patterns; - is standard input")
    parser.add_argument("--model", default="glm-asr-nano-2512", metavar="NAME|DIR", help="glm-asr-nano-2512 (default), demo, demo-article, a Whisper by its short name (tiny to large-v3, turbo), a directory, or owner/name of a model of the hub")
    parser.add_argument("--revision", metavar="REV", help="commit, branch or tag of a model of the hub (default: a pinned commit; of other models main)")
    parser.add_argument("--hub", choices=["huggingface", "modelscope"], help="where the model comes from (default: huggingface, or what GLMASR_HUB says)")
    parser.add_argument("--lang", default="auto", metavar="LANGUAGE", help="auto (default), zh, yue, en, or another one that an encoder-decoder has a token for; also zh-CN, zh-HK, English and their like (auto: it judges by itself); of GLM-ASR, letters that the language is not written in are forbidden (auto: nothing is)")
    parser.add_argument("--task", default="transcribe", choices=["transcribe", "translate"], help="translate: into English, where the model's vocabulary has it")
    parser.add_argument("--languages", type=names, metavar="LANGUAGE,...", help="what --lang auto may choose among (default: all that the model knows)")
    parser.add_argument("--timestamps", action=argparse.BooleanOptionalAction, help="segments with times, from the time tokens of an encoder-decoder (default: it writes them, which loses least, and only files of cues show them; --no-timestamps: it writes none)")
    parser.add_argument("--long", default="cut", choices=["cut", "whole", "seek"], help="recordings longer than a window: cut where it is quiet (default); all in one prompt, as GLM-ASR was published; or, of an encoder-decoder, go on where the last sentence ended")
    parser.add_argument("--batch-size", type=positive_or_auto, metavar="N|auto", help="windows that are decoded together (default: auto, what memory allows)")
    parser.add_argument("--vad", default="auto", choices=["auto", "off"], help="auto (default): where the extra [vad] is installed, only what it takes for speech is decoded; off: all that isn't silent")
    parser.add_argument("--pad-to", default="window", choices=["window", "speech"], help="what the encoder hears of a window: all of it, padded with silence, as published (default), or up to a second behind the last sound, which is faster")
    parser.add_argument("--beams", type=positive, metavar="N", help="width of the beam search, 1 is greedy (default: 5 for an encoder-decoder, else 1)")
    parser.add_argument("--max-new-tokens", type=positive, metavar="N", help="limit for the text of a window, in tokens (default: by its length)")
    parser.add_argument("--max-duration", type=seconds, metavar="SECONDS", help="refuse longer recordings (default: 43200, 12 hours)")
    parser.add_argument("--track", type=number_or_language, metavar="N|LANGUAGE", help="of a file with several tracks of sound: its number, from 1, or its language, such as eng (default: the one that the file calls its default, else the first one)")
    parser.add_argument("--script", choices=["simplified", "traditional"], help="write all Chinese characters so (needs the extra [zh])")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float32", "int8"], help="default: bfloat16 where the machine is fast at it, else float32; int8: weights of 8 bits, on a CPU")
    parser.add_argument("--json", action="store_true", help="to standard output one JSON object a recording, instead of its text")
    parser.add_argument("--explain", action="store_true", help="before the text of a recording, how it came about: stages, shapes, times, prompt, search")
    parser.add_argument("--plot", metavar="FILE", help="with --explain, also as a picture (.png, .svg, .pdf): waveform, log-mel, where the text looked in the sound, the search (needs the extra [plot])")
    files = parser.add_argument_group("files", "With --format or --output-dir, results go into files named after the recordings.")
    files.add_argument("--format", type=formats, metavar="NAME,...", help=f"{', '.join(WRITERS)}, several with commas, or all (default: txt)")
    files.add_argument("--output-dir", metavar="DIR", help="where they go (default: beside the recordings)")
    files.add_argument("--recursive", action="store_true", help="of a folder, also what is in its folders")
    files.add_argument("--skip-existing", action="store_true", help="leave out recordings whose files are all there: go on with a batch that was stopped")
    files.add_argument("--resume", action="store_true", help="go on with recordings that were stopped in the middle, by Ctrl-C or a crash, behind what was recognised of them")
    files.add_argument("--max-line-width", type=positive, metavar="N", default=42, help="columns of a line of subtitles; a Chinese character takes two (default: 42)")
    files.add_argument("--max-line-count", type=positive, metavar="N", default=2, help="lines of subtitles at a time (default: 2)")
    parser.add_argument("--verbose", action="store_true", help="also say what it runs on, and how")
    parser.add_argument("--quiet", action="store_true", help="errors only on standard error")
    # Options may stand between recordings. TRAP: with `--`, behind which a name may begin with a dash, that doesn't work.
    args = (parser.parse_args if "--" in (sys.argv[1:] if argv is None else argv) else parser.parse_intermixed_args)(argv)
    args.files = args.format is not None or args.output_dir is not None
    if args.explain and (len(args.audio) > 1 or args.json or args.files):
        parser.error("--explain takes one recording at a time, and goes without --json and without files")
    if args.plot is not None and (not args.explain or args.audio == ["-"]):
        parser.error("--plot goes with --explain, and with a file, which is read twice")
    if args.json and args.files:
        parser.error("--json goes to standard output; for files use --format json")
    if args.skip_existing and not args.files:
        parser.error("--skip-existing goes with files: add --format or --output-dir")
    if args.resume and not args.files:
        parser.error("--resume goes with files: add --format or --output-dir, as in the run that was stopped")
    if args.max_line_width < 2:
        parser.error("--max-line-width has to be 2 or more: a Chinese character takes two columns")
    return args


# ---- what is said ---------------------------------------------------------------------------------------------------------

def peak_memory() -> str:
    """The most memory that this process held, and the GPU's share where one was used."""
    try:
        import resource
    except ImportError:                         # Windows has no such count
        return "unknown"
    unit = 1 if sys.platform == "darwin" else 1024
    text = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20:.0f} MiB"
    torch = sys.modules.get("torch")            # without it nobody has used a GPU
    if torch is not None and torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        text += f" and {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB on the GPU"
    return text


def clock(seconds: float) -> str:
    """12.34 -> 00:12.34, 3600 -> 1:00:00.00"""
    hundredths = round(100 * seconds)
    minutes, rest = divmod(hundredths, 6000)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}:" if hours else "") + f"{minutes:02d}:{rest / 100:05.2f}"


def writable(text: str) -> str:
    """One line. Letters that standard output can't hold are escaped, so no text is lost, and what a terminal would obey."""
    encoding = sys.stdout.encoding or "utf-8"
    return printable(text).encode(encoding, "backslashreplace").decode(encoding)


def as_line(record: dict) -> str:
    """JSON on one line, which stays JSON whatever standard output can hold."""
    text = json.dumps(record, ensure_ascii=False)
    return text if text == writable(text) else json.dumps(record)


@dataclass
class Summary:
    """What became of the recordings."""

    done: int = 0
    skipped: int = 0
    failures: list[str] = field(default_factory=list)           # why, of each that failed
    seconds: float = 0.0
    silent: float = 0.0
    doubtful: int = 0                                           # stretches
    spent: float = 0.0

    def add(self, transcript, spent: float, before: float = 0.0) -> None:
        """`spent`: seconds since the first recording was begun. `before`: those of it that an earlier run recognised."""
        self.done += 1
        self.seconds += transcript.seconds - before
        self.silent += transcript.silent
        self.doubtful += transcript.failed
        self.spent = spent

    def lines(self) -> list[str]:
        found = []
        if self.done + self.skipped + len(self.failures) > 1:
            found = [f"{self.done} done, {self.skipped} skipped, {len(self.failures)} failed"]
            found += [f"  failed: {reason}" for reason in self.failures]
        elif self.skipped:
            found = ["1 skipped: its files are all there"]
        last = (f"{self.seconds:.1f} s of sound in {self.spent:.2f} s, real-time factor {self.spent / self.seconds if self.seconds else 0:.3f}; "
                f"peak memory {peak_memory()}")
        last += f"; {self.silent:.1f} s were silent" if self.silent else ""
        last += f"; {self.doubtful} stretches are doubtful" if self.doubtful else ""
        return [*found, last]


class Progress:
    """A bar for the recording that is being recognised, on a terminal."""

    def __init__(self, names: list[str], quiet: bool, begun: dict[str, float] = {}):
        """`begun`: seconds of recordings that are recognised already."""
        self.names, self.begun, self.number, self.bar = names, begun, -1, None
        self.hidden = quiet or sys.stderr is None or not sys.stderr.isatty()
        self.next()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def next(self) -> None:
        from tqdm import tqdm

        from glmasr.audio_files import sound_files
        self.close()
        self.bar, self.number, self.start = None, self.number + 1, time.perf_counter()
        if self.hidden or self.number == len(self.names):
            return
        name = self.names[self.number]
        length = sound_files.stated_duration(name)
        shape = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f} of {total:.0f} s, {remaining} left{postfix}" if length else "{desc}: {n:.0f} s{postfix}"
        self.bar = tqdm(total=length, initial=self.begun.get(name, 0), desc=f"{self.number + 1}/{len(self.names)} {printable(os.path.basename(name))}", leave=False, bar_format=shape)

    def reach(self, seconds: float) -> None:
        """So much of the recording is recognised."""
        bar = self.bar
        if bar is None:
            return
        if bar.total:                           # TRAP: beyond the end tqdm forgets the total, and the bar can't be made
            bar.total = max(bar.total, seconds)                 # it was only what the header states
        bar.update(seconds - bar.n)
        new = seconds - bar.initial
        bar.set_postfix_str(f"{new / (time.perf_counter() - self.start):.1f} times as fast as sound", refresh=False)


# ---- the work -------------------------------------------------------------------------------------------------------------

class Work:
    """The recordings of a command line."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.summary = args, Summary()
        self.journals: dict[str, object] = {}   # of recordings that are begun; None: it can't be kept

    def say(self, text: str) -> None:
        from tqdm import tqdm
        if not self.args.quiet and sys.stderr is not None:
            tqdm.write(printable(text), file=sys.stderr)

    def fail(self, error: Exception, name: str = "") -> None:
        text, name = printable(str(error)), printable(name)
        if name and not text.startswith(f"{name}: "):           # such as an error of the model: it doesn't know the recording
            text = f"{name}: {text}"
        self.complain(text)
        self.summary.failures.append(text)

    def complain(self, text: str) -> None:
        from tqdm import tqdm
        if sys.stderr is not None:
            tqdm.write(f"error: {printable(text)}", file=sys.stderr)

    def recordings(self) -> list[str]:
        """Folders and patterns opened up. One that gives nothing doesn't stop the others."""
        names = []
        for path in self.args.audio:
            names += output.expand([path], self.args.recursive, self.fail)
        return output.expand(names) if self.args.files else names      # each file is written once

    def run(self) -> int:
        import glmasr  # takes a second: not before the arguments are known to be right
        names = self.recordings()
        outputs = output.plan_outputs(names, self.args.format or ["txt"], self.args.output_dir) if self.args.files else {}
        if self.args.skip_existing:
            there = [name for name in names if all(os.path.isfile(path) for path in outputs[name].values())]
            self.summary.skipped, names = len(there), [name for name in names if name not in there]
        try:
            if self.args.output_dir is not None and names:              # before hours of work
                output.prepare(self.args.output_dir)
            if self.args.plot is not None:
                from glmasr.tools import plot
                plot.check(self.args.plot, names)
            recogniser = self.load() if names else None
            if recogniser is not None:
                from glmasr.checkpoint import hub
                recogniser.check(self.args.lang, self.options(recogniser))
                if self.args.model in hub.BUILT_IN:
                    self.say(f"{self.args.model}: {hub.DEMO}")
                if self.args.verbose:
                    self.say(", ".join(f"{name} {value}" for name, value in recogniser.how(self.options(recogniser)).items()))
        except glmasr.GlmAsrError as error:
            print(f"error: {printable(str(error))}", file=sys.stderr)
            return 2 if isinstance(error, glmasr.OptionError) else 1
        try:
            if recogniser is not None:
                self.recognise(recogniser, self.begun(recogniser, names, outputs), outputs)
        except KeyboardInterrupt:               # what was finished is written already
            if self.summary.done:
                self.report()
            raise
        self.report()
        return 1 if self.summary.failures else 0

    def load(self):
        import glmasr
        args = self.args
        with ended_at_once():                   # it imports torch, and leaves nothing that has to be cleaned up
            return glmasr.load(args.model, device=args.device, dtype=args.dtype, plain=args.explain,
                               revision=args.revision, hub=args.hub, progress=not args.quiet)

    def report(self) -> None:
        for line in self.summary.lines():
            self.say(line)

    def options(self, recogniser):
        """Files of cues show the times that a model writes, also where nobody asked for them."""
        from glmasr.pipeline import Options
        options = {name: getattr(self.args, name) for name in ("task", "timestamps", "beams", "max_new_tokens", "long", "batch_size", "pad_to", "script", "track", "vad")}
        options["languages"] = self.args.languages or ()
        if self.args.timestamps is None and TIMED.intersection(self.args.format or ()) and recogniser.timed(Options()):
            options["timestamps"] = True
        return Options(**options, **({"max_duration": self.args.max_duration} if self.args.max_duration else {}))

    # -- recordings that are stopped in the middle

    def begun(self, recogniser, names: list[str], outputs: dict) -> list[str]:
        """Opens the journals that earlier runs have left. Gives the recordings without those that another process is at work on."""
        from glmasr.errors import GlmAsrError
        from glmasr.writers.journal import Journal
        free = []
        for name in names:
            if not (outputs and output.journal(outputs[name]).exists()):
                free.append(name)
                continue
            try:
                run, journal = self.depends(recogniser, name), Journal(output.journal(outputs[name]))
            except (GlmAsrError, OSError) as error:
                self.fail(error, name)
                continue
            free.append(name)
            other = sorted(key for key in run if run[key] != journal.run.get(key))
            if run["recording"] is None:
                other = ["recording, which can't be read again"]
            if self.args.resume and journal.parts and not other:
                self.journals[name], journal.begun = journal, True
                self.say(f"{name}: goes on at {clock(journal.parts[-1].end)}, where it was stopped")
                continue
            if not other and journal.parts:
                self.say(f"{name}: begins anew; with --resume it goes on at {clock(journal.parts[-1].end)}, where it was stopped")
            elif self.args.resume:
                reason = f"the run that was stopped had another {', '.join(other)}" if other and journal.run else "nothing was recognised of it"
                self.say(f"{name}: begins anew, because {reason}")
            journal.close()
        return free

    def depends(self, recogniser, name: str) -> dict:
        """What the text of a recording depends on."""
        import glmasr
        from glmasr.checkpoint import hub
        from glmasr.writers import journal
        model = hub.find(self.args.model, self.args.revision, progress=False)
        options = recogniser.check(self.args.lang, self.options(recogniser))
        return {"glmasr": glmasr.__version__, **journal.fingerprint(name, model, recogniser, self.args.lang, options)}

    def keep(self, recogniser, name: str, parts: list, outputs: dict) -> None:
        """What isn't in the journal yet goes there. Where that fails, the work goes on without it."""
        from glmasr.errors import GlmAsrError
        from glmasr.writers.journal import Journal
        if self.journals.get(name, ...) is None:
            return
        try:
            if name not in self.journals:
                self.journals[name] = Journal(output.journal(outputs))
            journal = self.journals[name]
            if not journal.begun:               # also where Ctrl-C came in between
                journal.begin(self.depends(recogniser, name), [*dict.fromkeys([*journal.formats, *outputs])])
            for part in parts[journal.count:]:
                journal.add(part)
        except (GlmAsrError, OSError) as error:
            if name in self.journals:
                self.journals[name].close()
            self.journals[name] = None
            self.complain(f"{error}; without it {name} is recognised all the same, but --resume can't go on with it")

    def stop(self, recogniser, name: str, parts: list, outputs: dict | None) -> None:
        """What was recognised of a recording that isn't finished goes where it should, marked as incomplete."""
        from tqdm import tqdm

        from glmasr import GlmAsrError
        from glmasr.pipeline import Transcript
        parts = [part for part in parts if not part.last]
        if not parts:
            return
        transcript = Transcript.stopped(parts, recogniser.how(self.options(recogniser)))
        if self.args.json:
            tqdm.write(as_line(record(transcript, name)), file=sys.stdout)
            sys.stdout.flush()
        more = ""
        if self.args.files:
            self.keep(recogniser, name, parts, outputs)
            try:
                self.write(name, transcript, {form: output.incomplete(path) for form, path in outputs.items()})
            except GlmAsrError as error:
                self.complain(str(error))
            if (journal := self.journals.pop(name)) is not None:
                journal.close()
                more = "; the same command with --resume goes on there"
        self.say(f"{name}: incomplete, recognised up to {clock(transcript.seconds)}{more}")

    def tidy(self, name: str, outputs: dict) -> None:
        """The whole is written: what was there of a part goes."""
        from contextlib import suppress

        from glmasr.errors import OutputError
        from glmasr.writers.journal import Journal
        journal, place, formats = self.journals.pop(name, None), output.journal(outputs), set(outputs)
        with suppress(OutputError, OSError):    # another process has it, or may do what this one may not
            if journal is None and place.exists():
                journal = Journal(place)
            if journal is not None:
                formats |= set(journal.formats) & set(WRITERS)
                journal.remove()
            for form in formats:
                output.incomplete(next(iter(outputs.values())).with_suffix(f".{form}")).unlink(missing_ok=True)

    def recognise(self, recogniser, names: list[str], outputs: dict) -> None:
        """The recordings, told as soon as a part of them is recognised, and written as soon as they are."""
        from glmasr import GlmAsrError
        from glmasr.pipeline import Transcript
        self.start = time.perf_counter()
        done = {index: self.journals[name].parts for index, name in enumerate(names) if name in self.journals}
        before = {names[index]: parts[-1].end for index, parts in done.items()}
        current, parts = 0, list(done.get(0, []))
        found = self.explained(recogniser, names) if self.args.explain else recogniser.streams(names, self.args.lang, self.options(recogniser), done=done)
        try:
            with Progress(names, self.args.quiet, before) as progress:
                for index, part in found:
                    name = names[index]
                    if isinstance(part, GlmAsrError):
                        self.stop(recogniser, name, parts, outputs.get(name))
                        self.fail(part, name)
                    else:
                        parts.append(part)
                        if self.args.files and len(parts) > 1 and not part.last:        # recordings of one window need no journal
                            self.keep(recogniser, name, parts, outputs[name])
                        self.tell(name, part.warnings, part.segments)
                        progress.reach(part.end)
                        if not part.last:
                            continue
                        transcript = Transcript.of(parts, recogniser.how(self.options(recogniser)))
                        try:
                            self.finish(name, transcript, outputs.get(name), before.get(name, 0.0))
                        except GlmAsrError as error:
                            self.fail(error, name)
                            if (journal := self.journals.pop(name, None)) is not None:
                                journal.close()                 # it stays: there is nothing to recognise again
                    current = index + 1
                    parts = list(done.get(current, []))
                    progress.next()
        except BaseException as error:          # Ctrl-C, or a defect
            if current < len(names) and (self.args.files or isinstance(error, KeyboardInterrupt)):
                self.stop(recogniser, names[current], parts, outputs.get(names[current]))
            raise

    def finish(self, name: str, transcript, outputs: dict | None, before: float = 0.0) -> None:
        """A transcript goes where it should, if it isn't there already. Raises OutputError."""
        from tqdm import tqdm
        args = self.args
        if args.lang.strip().lower() == "auto" and transcript.language:
            self.say(f"{name}: language {transcript.language}")
        if args.json:
            tqdm.write(as_line(record(transcript, name)), file=sys.stdout)
        elif not (transcript.segments or args.files):
            tqdm.write("", file=sys.stdout)     # a line for each recording, even if nobody speaks
        if not args.files:
            sys.stdout.flush()
        else:
            self.write(name, transcript, outputs)
            self.tidy(name, outputs)
        self.summary.add(transcript, time.perf_counter() - self.start, before)

    def explained(self, recogniser, names: list[str]):
        """The parts of recordings, one after the other, and in front of the text of each how it came about."""
        from tqdm import tqdm

        from glmasr import GlmAsrError
        from glmasr.tools import explain
        for index, name in enumerate(names):
            with explain.observed(recogniser) as observation:
                found = list(recogniser.streams([name], self.args.lang, self.options(recogniser)))
            if not isinstance(found[-1][1], GlmAsrError):
                tqdm.write("\n".join(map(writable, explain.report(observation).split("\n"))), file=sys.stdout)
                if self.args.plot is not None:
                    self.plot(recogniser, name, observation)
            yield from ((index, part) for _, part in found)

    def plot(self, recogniser, name: str, observation) -> None:
        """What was explained, as a picture. What it can't be written to is complained of, and the text comes all the same."""
        from glmasr.errors import OutputError
        from glmasr.tools import plot
        samples, begin = plot.first_window(recogniser, name, recogniser.check(self.args.lang, self.options(recogniser)))
        try:
            for warning in plot.draw(recogniser, samples, observation.attempts, self.args.plot, begin=begin):
                self.say(f"warning: {warning}")
        except OutputError as error:
            self.fail(error)

    def tell(self, name: str, warnings: list[str], segments: list) -> None:
        for warning in warnings:
            self.say(f"warning: {name}: {warning.removeprefix(f'{name}: ')}")
        if not (self.args.files or self.args.json):
            self.print(segments)

    def print(self, segments) -> None:
        from tqdm import tqdm
        for segment in segments:
            times = f"[{clock(segment.start)} --> {clock(segment.end)}] " if self.args.timestamps else ""
            tqdm.write(times + writable(segment.text), file=sys.stdout)
        sys.stdout.flush()

    def write(self, name: str, transcript, outputs: dict) -> None:
        from glmasr.errors import OutputError
        layout, written, errors = Layout(self.args.max_line_width, self.args.max_line_count), [], {}
        for form, path in outputs.items():      # one that can't be written doesn't stop the others
            try:
                output.write_whole(path, WRITERS[form](transcript, layout, name))
                written.append(str(path))
            except OutputError as error:
                errors[path.name] = error
        if written:
            self.say(f"{name} -> {', '.join(written)}")
        if errors:
            [(_, first), *others] = errors.items()
            raise OutputError(f"{first}" + (f"; nor could {', '.join(file for file, _ in others)}" if others else ""))


def main(argv: list[str] | None = None) -> int:
    try:
        args = arguments(argv)
        if sys.stdout is None and not args.files:
            print("error: standard output is closed", file=sys.stderr)
            return 1
        return Work(args).run()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:                    # the text can't be written
        if not isinstance(error, BrokenPipeError):                      # `| head` has just seen enough
            print(f"error: {printable(str(error))}", file=sys.stderr)
        # TRAP: the interpreter flushes standard output once more when it ends, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
