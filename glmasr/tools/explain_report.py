"""What `explain` observed -> a report that fits on a screen: stages, prompt, first token, search, results."""

import math
from itertools import groupby, pairwise

import torch

from ..errors import GlmAsrError
from ..kernels import prepare
from ..pipeline import Options, Part, Recognizer
from ..transcription.fallback import Limits
from ..transcription.language import AnyTokenizer
from ..writers.line_breaks import width as columns
from .explain import Observation, Search, Stage, observed

WIDTH = 118  # columns of a report
LIKELIEST = 5  # first tokens in it
TOKENS, STEPS = 24, 10  # steps in it of a search without beams and of one with them; the last step is besides
ABREAST = 3  # beams in it


def explained(
    recognizer: Recognizer, recording: str, language: str, options: Options
) -> tuple[Observation | None, list[tuple[int, Part | GlmAsrError]]]:
    """Recognizes one recording: what was observed, None if it can't be used, and what `streams` yields."""
    with observed(recognizer) as run:
        parts = list(recognizer.streams([recording], language, options))
    return None if isinstance(parts[-1][1], GlmAsrError) else run, parts


def report(run: Observation) -> str:
    """What was observed, on a screen."""
    if not run.searches:
        return "\n".join([*_stages(run), "", "all of it is silent: nothing was decoded"])
    search, tokenizer = run.attempts[-1], run.recognizer.tokenizer
    lines = [*_stages(run), "", *_prompt(tokenizer, search)]
    if run.detected:
        likely = sorted(run.detected[0].items(), key=lambda item: -item[1])[:3]
        cells = [f"{name} {value:.3f}" for name, value in likely] + [f"no speech {run.detected[1]:.3f}"]
        lines.append("language: " + ", ".join(cells))
    return "\n".join([*lines, *_first_token(tokenizer, search), *_kept(tokenizer, search), *_results(run)])


# -- the table of stages -----------------------------------------------------------------------------------------------


def _stages(run: Observation) -> list[str]:
    model = run.recognizer.model
    total = prepare.num_parameters(model)
    head = f"{type(model).__name__}: {total:,} parameters in {_dtype(model.dtype)} on {model.device}"
    if run.recognizer.runtime.linears != "plain":
        head += f", linears {run.recognizer.runtime.linears}"
    elif (faster := prepare.choose(model, model.device, model.dtype)) != "plain":
        head += f"; these are the modules as they are to be read, without --explain linears are {faster}, and faster"
    table = [("stage", "shape", "type", "parameters", "ms", "")]
    table += [_row(run, name, stage) for name, stage in run.stages.items()]
    table.append(("together", "", "", f"{total:,}", f"{1000 * sum(run.seconds.values()):.2f}", ""))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for row in table:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        cells[3:5] = [row[place].rjust(widths[place]) for place in (3, 4)]  # numbers
        lines.append("  ".join(cells).rstrip())
    return [head, *lines]


def _row(run: Observation, name: str, stage: Stage) -> tuple[str, str, str, str, str, str]:
    seconds = run.seconds.get(name, 0.0)
    notes = {
        "read": f"{sum(stage.shape or ()) / (run.rate or 1):.2f} s at {run.rate} Hz",
        "windows": f"{run.windows} of {run.recognizer.config.window_seconds} s",
        "step": f"{1000 * seconds / max(1, stage.calls):.2f} ms each",
        "search": "decode.py: rules and choices",
        "everything else": "pipeline.py",
    }
    times, shape = stage.calls // stage.blocks, str(stage.shape or "").replace(",)", ")")
    return (
        name,
        f"{times} x {shape}" if shape and times > 1 else shape,
        _dtype(stage.dtype),
        f"{run.parameters[name]:,}" if run.parameters[name] else "",
        f"{1000 * seconds:.2f}" if stage.calls else "",
        notes.get(name, stage.where),
    )


def _dtype(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.") if dtype else ""


# -- prompt, search and results ----------------------------------------------------------------------------------------


def _prompt(tokenizer: AnyTokenizer, search: Search) -> list[str]:
    cells = []
    for token, run in groupby(search.prompt):
        cell, count = f"{token} {token_text(tokenizer, token)}", len(list(run))
        cells += [f"{cell} x {count}"] if count > 2 else [cell] * count
    return [f"prompt of {len(search.prompt)} tokens", *_flowed(cells)]


def _first_token(tokenizer: AnyTokenizer, search: Search) -> list[str]:
    forbidden = int(search.after.isneginf().sum() - search.before.isneginf().sum())
    values, ids = search.after.topk(min(LIKELIEST, len(search.after)))
    head = f"first token, the likeliest of {len(search.after)}"
    head += f", of which the rules forbid {forbidden}" if forbidden else ""
    wish = int(search.before.argmax())
    if search.after[wish].isneginf():
        head += f", such as {_chance(tokenizer, wish, float(search.before[wish]))}"
    likely = zip(ids.tolist(), values.tolist(), strict=True)
    return [head, *_flowed([_chance(tokenizer, token, value) for token, value in likely if value > -math.inf])]


def _chance(tokenizer: AnyTokenizer, token: int, logprob: float) -> str:
    return f"{token} {token_text(tokenizer, token)} {math.exp(logprob):.4f}"


def _kept(tokenizer: AnyTokenizer, search: Search) -> list[str]:
    if max(map(len, search.steps)) == 1:
        return ["greedy search: the token of each step, and its probability", *_chosen(tokenizer, search)]
    lines = []
    for number, step in enumerate(search.steps, 1):
        cells = [f"{kept.score:8.3f} {_tail(f'{spelled(tokenizer, kept.ids)!r}', 24)}" for kept in step[:ABREAST]]
        lines.append(f"{number:>3}:" + "".join(_filled(cell, 35) for cell in cells).rstrip())
    way = (
        f"search with {search.beams} beams"
        if not search.temperature
        else f"sampling at temperature {search.temperature}"
    )
    head = f"{way}: the best {ABREAST} of what was kept in each step, with sums of log-probabilities"
    return [head, *_folded(lines, STEPS)]


def _chosen(tokenizer: AnyTokenizer, search: Search) -> list[str]:
    """The one token of each step."""
    tokens = [kept.ids[-1] for [kept] in search.steps]
    # A score is a sum; what the step added to it is the token's own.
    sums = [0.0, *(kept.score for [kept] in search.steps)]
    chances = [
        _chance(tokenizer, token, now - before) for token, (before, now) in zip(tokens, pairwise(sums), strict=True)
    ]
    cells = _folded([f"{number:>3}: {chance}" for number, chance in enumerate(chances, 1)], TOKENS)
    width = max(map(columns, cells))
    return _flowed([_filled(cell, width) for cell in cells])


def _results(run: Observation) -> list[str]:
    lines = []
    for search in run.attempts:
        result = search.result
        at = f"at temperature {search.temperature}: " if len(run.attempts) > 1 else ""
        end = "a stop token" if result.stopped else "the limit"
        lines.append(f"{at}{len(result.ids)} tokens, mean log-probability {result.mean_logprob:.3f}, ended by {end}")
    if run.detected and Limits().silent(run.attempts[-1].result, run.detected[1]):
        lines.append("taken for silence, so it is left out")
    if others := len(run.searches) - len(run.attempts):
        more = f"{others} more {'search' if others == 1 else 'searches'}"
        lines.append(f"not shown: {more}, in other windows or in the halves of this one")
    return lines


# -- ids and columns ---------------------------------------------------------------------------------------------------


def spelled(tokenizer: AnyTokenizer, ids: list[int]) -> str:
    """The text of ids with special tokens; bytes that are only part of a character as <0xE4>."""
    names = {token: name for name, token in tokenizer.special.items()}
    code = b"".join(names[token].encode() if token in names else tokenizer.token_bytes(token) for token in ids)
    return "".join(
        f"<0x{ord(letter) - 0xDC00:02X}>" if 0xDC80 <= ord(letter) <= 0xDCFF else letter
        for letter in code.decode("utf-8", "surrogateescape")
    )


def token_text(tokenizer: AnyTokenizer, token: int) -> str:
    """A special token as it is, any other in quotes."""
    text = spelled(tokenizer, [token])
    return text if token in tokenizer.special.values() else repr(text)


def _filled(text: str, width: int) -> str:
    return text + " " * (width - columns(text))


def _tail(text: str, width: int) -> str:
    """The end of a text that is too wide."""
    if columns(text) <= width:
        return text
    while columns(text) > width - 3:
        text = text[1:]
    return "..." + text


def _flowed(cells: list[str]) -> list[str]:
    """Cells one after the other, as many on a line as fit."""
    lines = [" "]
    for cell in cells:
        if columns(lines[-1]) + 2 + columns(cell) > WIDTH and lines[-1].strip():
            lines.append(" ")
        lines[-1] += "  " + cell
    return [line.rstrip() for line in lines]


def _folded(lines: list[str], limit: int) -> list[str]:
    """The first ones and the last, where that makes it shorter."""
    left_out = len(lines) - limit - 1
    return lines if left_out < 2 else [*lines[:limit], f"... {left_out} more steps", lines[-1]]
