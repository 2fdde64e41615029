"""What the page shows of a recording, as HTML: progress, waveform, table of segments, their words; and the files to
download.

`say` of the functions: name -> text, `page_texts.translator`.
"""

import html
from collections.abc import Callable
from pathlib import Path

from ..transcription.results import FLAGS, Segment
from ..writers.formats import WRITERS
from . import page_words
from .request_queue import Finished

BARS = 400  # columns of the waveform
FORMATS = ("txt", "srt", "vtt", "json")
CSS = """
.gradio-container { width: 100%; max-width: 1100px !important; margin: 0 auto !important; }
.glm-alert { border-left: 4px solid #dc2626; padding: .6em .9em; overflow-wrap: anywhere;
  background: color-mix(in srgb, #dc2626 10%, transparent); }
.glm-note { border-left: 4px solid #d97706; padding: .4em .9em; margin-top: .4em;
  background: color-mix(in srgb, #d97706 10%, transparent); }
.glm-status { padding: .2em 0; } .glm-status progress { width: 100%; height: .6em; accent-color: var(--color-accent); }
.glm-wave { width: 100%; height: 90px; display: block; border-radius: 6px;
  background: var(--background-fill-secondary); }
.glm-ends { display: flex; justify-content: space-between; font-size: .8em; color: var(--body-text-color-subdued); }
.glm-table { max-height: 22em; overflow-y: auto; margin-top: .5em; }
.glm-table table { width: 100%; border-collapse: collapse; }
.glm-table table, .glm-table tr { border-width: 0 !important; }
.glm-table td, .glm-table th { text-align: left; padding: .35em .6em; vertical-align: top;
  border-width: 0 0 1px !important; border-color: var(--border-color-primary) !important; }
.glm-table td.time { white-space: nowrap; font-variant-numeric: tabular-nums; }
.glm-table td:last-child { width: 100%; overflow-wrap: anywhere; }
.glm-table tr.doubt td { background: color-mix(in srgb, #d97706 12%, transparent); }
.glm-files { display: grid !important; grid-template-columns: repeat(4, 1fr); gap: .5em; }
@media (max-width: 640px) { .gradio-container { padding: 8px !important; } }
"""


def result(
    finished: Finished, name: str, say: Callable[[str], str], source: str
) -> tuple[str, str, str, dict[str, bytes]]:
    """Values for status, text and details, and the files to download. `source`: where a player gets the recording."""
    transcript = finished.transcript
    outcome = say("done") if transcript.text else say("silence")
    summary = say("summary").format(seconds=transcript.seconds, language=transcript.language or say("unknown"))
    notes = "".join(f'<div class="glm-note">{html.escape(warning)}</div>' for warning in transcript.warnings)
    status = f'<div class="glm-status" role="status">{html.escape(outcome)} · {html.escape(summary)}</div>{notes}'
    outline = waveform(finished.peaks, transcript.segments, transcript.seconds)
    player = page_words.player(source, say) if any(segment.words for segment in transcript.segments) else ""
    details = outline + player + table(transcript.segments, say)
    files = {f"{Path(name).stem}.{form}": WRITERS[form](transcript, name=name).encode() for form in FORMATS}
    return status, transcript.text, details, files


def alert(text: str) -> str:
    """A message about what went wrong, as HTML that screen readers announce at once."""
    return f'<div class="glm-alert" role="alert">{html.escape(text)}</div>'


def progress(text: str, share: float | None) -> str:
    """A status line with a bar, as HTML. `share`: how much is done, from 0 to 1; None if unknown."""
    value = "" if share is None else f' value="{min(1.0, share):.3f}"'
    return f'<div class="glm-status" role="status">{html.escape(text)}<progress{value}></progress></div>'


def clock(seconds: float) -> str:
    """83.4 -> 1:23.4"""
    tenths = round(10 * seconds)
    return f"{tenths // 600}:{tenths // 10 % 60:02d}.{tenths % 10}"


def waveform(peaks: list[float], segments: list[Segment], seconds: float) -> str:
    """The outline of the sound as SVG, with the segments as colored stretches behind it."""
    if not peaks or not seconds:
        return ""
    step = max(1, -(-len(peaks) // BARS))
    bars = [max(peaks[start : start + step]) for start in range(0, len(peaks), step)]
    loudest = max(bars) or 1.0
    heights = [max(0.5, 46 * bar / loudest) for bar in bars]
    outline = "".join(f"M{index + 0.5} {50 - height:.1f}V{50 + height:.1f}" for index, height in enumerate(heights))
    scale = len(peaks) / step / seconds
    marks = "".join(mark(segment, scale, index) for index, segment in enumerate(segments))
    return (
        f'<svg class="glm-wave" viewBox="0 0 {len(peaks) / step:.2f} 100" preserveAspectRatio="none" role="img">{marks}'
        f'<path d="{outline}" stroke="var(--body-text-color)" stroke-width=".7" fill="none"/></svg>'
        f'<div class="glm-ends"><span>0:00.0</span><span>{clock(seconds)}</span></div>'
    )


def mark(segment: Segment, scale: float, index: int) -> str:
    """The stretch of a segment, with its text as a tooltip. `scale`: columns a second."""
    width = max(0.5, (segment.end - segment.start) * scale)
    color = "#d97706" if segment.flags else "var(--color-accent)"
    return (
        f'<rect class="segment" x="{segment.start * scale:.2f}" width="{width:.2f}" y="0" height="100" fill="{color}" '
        f'opacity="{0.35 if index % 2 else 0.22}"><title>{html.escape(segment.text)}</title></rect>'
    )


def table(segments: list[Segment], say: Callable[[str], str]) -> str:
    """The segments of a recording as an HTML table: start, end, text."""
    rows = "".join(row(segment, say) for segment in segments)
    return (
        f'<div class="glm-table"><table><thead><tr><th>{say("start")}</th><th>{say("end")}</th><th>{say("text")}</th>'
        f"</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def row(segment: Segment, say: Callable[[str], str]) -> str:
    """A segment as a row of the table, with its words if it has any; one with flags is marked, and its tooltip says
    what they mean."""
    doubt = " class=doubt" if segment.flags else ""
    title = html.escape("; ".join(FLAGS[flag] for flag in segment.flags))
    return (
        f'<tr{doubt} title="{title}"><td class="time">{clock(segment.start)}</td>'
        f'<td class="time">{clock(segment.end)}</td><td>{page_words.text(segment, say)}</td></tr>'
    )
