"""The journals of a command line's recordings: what was recognized of those that are stopped in the middle."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import GlmAsrError, OutputError
from ..pipeline import Options, Part, Recognizer
from ..writers import output
from ..writers.formats import WRITERS
from . import journal
from .console import Messages, clock
from .journal import Journal

Outputs = dict[str, Path]  # format -> the file of a recording


class Journals:
    """`find_model` returns the directory of the checkpoint, `options` are as `Recognizer.check` returns them."""

    def __init__(
        self,
        recognizer: Recognizer,
        find_model: Callable[[], Path],
        language: str,
        options: Options,
        messages: Messages,
        resume: bool,
    ):
        self.recognizer, self.find_model, self.language, self.options = recognizer, find_model, language, options
        self.messages, self.resume = messages, resume
        self._open: dict[str, Journal | None] = {}  # of recordings that are begun; None: it can't be kept

    def begun(self, names: list[str], outputs: dict[str, Outputs], fail: Callable[[Exception, str], None]) -> list[str]:
        """Opens the journals that earlier runs have left. Gives the recordings without those that another process is at
        work on, for which `fail` is called."""
        free = []
        for name in names:
            if not (outputs and output.journal(outputs[name]).exists()):
                free.append(name)
                continue
            try:
                run, left = self._depends(name), Journal(output.journal(outputs[name]))
            except (GlmAsrError, OSError) as error:
                fail(error, name)
                continue
            free.append(name)
            self._take_up(name, run, left)
        return free

    def _take_up(self, name: str, run: journal.Fields, left: Journal) -> None:
        """Goes on with a journal, or says why not."""
        say = self.messages.say
        other = sorted(key for key in run if run[key] != left.run.get(key))
        place = f"at {clock(left.parts[-1].end)}, where it was stopped" if left.parts else ""
        if run["recording"] is None:
            other = ["recording"]
        if self.resume and left.parts and not other:
            self._open[name], left.begun = left, True
            say(f"{name}: goes on {place}")
            return
        if not other and left.parts:
            say(f"{name}: begins anew; with --resume it goes on {place}")
        elif self.resume:
            changed = f"the run that was stopped differs in its {', '.join(other)}"
            if run["recording"] is None:
                changed = "it can't be read a second time"
            little = "too little was recognized of it" if left.run else "nothing was recognized of it"
            say(f"{name}: begins anew, because {changed if other and left.run else little}")
        left.close()

    def _depends(self, name: str) -> dict[str, Any]:
        """What the text of a recording depends on."""
        run = journal.fingerprint(name, self.find_model(), self.recognizer, self.language, self.options)
        return {"glmasr": __version__, **run}

    def parts(self, name: str) -> list[Part]:
        """Those that an earlier run has recognized."""
        left = self._open.get(name)
        return list(left.parts) if left is not None else []

    def keep(self, name: str, parts: list[Part], outputs: Outputs) -> None:
        """What isn't in the journal yet goes there. Where that fails, the work goes on without it."""
        if name in self._open and self._open[name] is None:
            return
        try:
            kept = self._open.get(name)
            if kept is None:
                kept = self._open[name] = Journal(output.journal(outputs))
            if not kept.begun:  # also where Ctrl-C came in between
                kept.begin(self._depends(name), [*dict.fromkeys([*kept.formats, *outputs])])
            for part in parts[kept.count :]:
                kept.add(part)
        except (GlmAsrError, OSError) as error:
            self.close(name)
            self._open[name] = None
            without = f"without it {name} is recognized all the same, but --resume can't go on with it"
            self.messages.complain(f"{error}; {without}")

    def close(self, name: str) -> float | None:
        """The journal stays, and others can have it. Gives the second at which a run goes on, 0.0: it begins anew; None
        without a journal."""
        left = self._open.pop(name, None)
        if left is not None:
            left.close()
        return None if left is None else left.resumes

    def remove(self, name: str, outputs: Outputs) -> None:
        """The whole is written: what was there of a part goes."""
        left, place, formats = self._open.pop(name, None), output.journal(outputs), set(outputs)
        with suppress(OutputError, OSError):  # another process has it, or may do what this one may not
            if left is None and place.exists():
                left = Journal(place)
            if left is not None:
                formats |= set(left.formats) & set(WRITERS)
                left.remove()
            for form in formats:
                output.incomplete(next(iter(outputs.values())).with_suffix(f".{form}")).unlink(missing_ok=True)
