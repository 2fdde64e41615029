"""What came of a run: a report for people, and the same for programs."""

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from .rows import DONE, Row

CAUSE = 80  # characters of a cause at most


@dataclass
class Report:
    """`planned`: recordings of this run; `before`: rows that were there already; `seconds`: of the clock."""

    planned: int = 0
    before: int = 0
    failed_before: int = 0  # of these
    unusable: list[str] = field(default_factory=list)
    seconds: float = 0.0
    workers: int = 0
    done: int = 0
    failed: int = 0
    sound: float = 0.0  # seconds
    flagged: int = 0
    busy: Counter[str] = field(default_factory=Counter)  # worker -> seconds
    causes: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        """A row more."""
        for worker in row["worker"].split():
            self.busy[worker] += row["took"] / len(row["worker"].split())
        if row["status"] == DONE:
            self.done += 1
            self.sound += row["seconds"]
            self.flagged += bool(row["flags"])
        else:
            self.failed += 1
            found = cause(row["error"], row["path"])
            self.causes[found] += 1
            self.examples.setdefault(found, row["id"])

    @property
    def rate(self) -> float:
        """Times as fast as the sound."""
        return self.sound / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        used = sum(self.busy.values()) / (self.workers * self.seconds) if self.workers and self.seconds else 0.0
        return {
            "recordings": self.planned,
            "done": self.done,
            "failed": self.failed,
            "left": self.planned - self.done - self.failed,
            "already_there": self.before,
            "failed_before": self.failed_before,
            "unusable_sources": self.unusable,
            "with_flags": self.flagged,
            "hours_of_sound": round(self.sound / 3600, 4),
            "seconds": round(self.seconds, 1),
            "times_as_fast_as_sound": round(self.rate, 2),
            "workers": self.workers,
            "utilisation": round(used, 3),
            "failures": [
                {"cause": name, "count": count, "example": self.examples[name]}
                for name, count in self.causes.most_common()
            ],
        }

    def to_markdown(self) -> str:
        """The same to read."""
        known = self.to_dict()
        lines = ["# Report", "", "| | |", "|---|---|"]
        lines += [
            f"| {name.replace('_', ' ')} | {len(value) if isinstance(value, list) else value} |"
            for name, value in known.items()
            if name != "failures"
        ]
        if self.causes:
            lines += ["", "| failed | cause | such as |", "|---|---|---|"]
            lines += [
                f"| {one['count']} | {_cell(one['cause'])} | {_cell(one['example'])} |" for one in known["failures"]
            ]
        lines += ["", *(f"- {_cell(text)}" for text in self.unusable)] if self.unusable else []
        return "\n".join(lines) + "\n"


def cause(error: str, path: str) -> str:
    """An error without what is of one recording only: its name, and numbers.

    >>> cause("a/b.wav: is empty (0 bytes); expected sound", "a/b.wav")
    'is empty (N bytes)'
    """
    text = error.replace(path, "").lstrip(": ").split("; ")[0]
    return re.sub(r"\d[\d.,]*", "N", text)[:CAUSE] or "no reason was given"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
