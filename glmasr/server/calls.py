"""What a call of Gradio's may say: it is made anew of checked values.

    {"data": ["data:audio/wav;base64,...", "auto"], "fn_index": 0, "session_hash": "..."}

What is unusual here: Gradio takes objects that name files, streams and addresses anywhere in a call. It never gets one:
a recording becomes the path of a file that was uploaded for it, everything else has to be a text, a number or a truth
value, and what isn't known is refused by name.
"""

import re
from collections.abc import Callable
from typing import Any

from ..transcription.language import canonical
from .call_body import CallBody
from .problems import InvalidValue, UnsupportedParameter
from .uploads import Uploads

NAME = r"[\w.-]{1,64}"  # a pattern for what names a session or an event
KEY = "[0-9a-f]{32}"
NUMBERS = ("fn_index", "trigger_id")  # fields with a number; all others have a NAME
MOST_BEAMS = 10  # of the page
LONGEST_LIST = 20_000  # characters of its hotwords


def is_truth(value: Any) -> bool:
    """Whether it is True or False."""
    return isinstance(value, bool)


def is_beams(value: Any) -> bool:
    """Whether it is a number of 0 to MOST_BEAMS; the page's slider sends 0 for the model's own choice."""
    return type(value) in (int, float) and 0 <= value <= MOST_BEAMS


def is_script(value: Any) -> bool:
    """Whether it is a Chinese script, "simplified" or "traditional", or "" for what the model writes."""
    return value in ("", "simplified", "traditional")


def is_list(value: Any) -> bool:
    """Whether it is a text with hotwords that is short enough; what is wrong with one of them is told by the page."""
    return isinstance(value, str) and len(value) <= LONGEST_LIST


def is_key(value: Any) -> bool:
    """Whether it is a name for sound that somebody speaks: 32 random digits, of 16."""
    return isinstance(value, str) and bool(re.fullmatch(KEY, value, re.ASCII))


def is_rate(value: Any) -> bool:
    """Whether it is a rate of sound that microphones have, in Hz."""
    return type(value) is int and 8000 <= value <= 192_000


LISTEN, FRESH = 5, 6  # the functions of the tab "Live"
# What each function takes, by its number. What has no check here is one of the choices that a model leaves; the task is
# none of them where it does not translate, and isn't sent then.
CALLS: dict[int, tuple[str, ...]] = {
    0: ("recording", "language", "task"),
    1: ("recording", "language", "timestamps", "words", "beams", "fast", "script", "hotwords", "task"),
    LISTEN: ("key", "rate", "language"),
    FRESH: (),
}
CHECKS: dict[str, Callable[[Any], bool]] = {
    "timestamps": is_truth,
    "words": is_truth,
    "beams": is_beams,
    "fast": is_truth,
    "script": is_script,
    "hotwords": is_list,
    "key": is_key,
    "rate": is_rate,
}


def checked_call(
    call: dict[str, Any], joins: bool, body: CallBody, uploads: Uploads, choices: dict[str, list[str]]
) -> dict[str, Any]:
    """The call as Gradio gets it: what is known, and is what it should be. Raises Problem.

    joins     it says which function and session
    choices   name of a field -> what may be asked for, its default first
    """
    checked = checked_fields(call, ("data", "session_hash", *(NUMBERS if joins else ())))
    number = checked.setdefault("fn_index", 0) if joins else 0
    if number not in CALLS:
        raise InvalidValue(f"fn_index is {number}, expected 0, which recognizes a recording", "fn_index")
    if joins and "session_hash" not in checked:
        raise InvalidValue(
            "session_hash is missing; expected a random text of your own, by which the events are asked for",
            "session_hash",
        )
    values = checked_values(call.get("data"), number, choices)
    if "recording" not in CALLS[number]:
        return checked | {"data": values}
    recording = checked_recording(values[0], body, uploads)
    if number == 1 and recording:
        uploads.show(recording, checked["session_hash"])
    return checked | {"data": [recording, *values[1:]]}


def checked_fields(call: dict[str, Any], known: tuple[str, ...]) -> dict[str, Any]:
    """What is known of them, but for `data`. Gradio's clients send all their fields, and none and false say nothing.
    Raises Problem."""
    checked = {}
    for name, value in call.items():
        if name == "data" or value is None or value is False:
            continue
        if name not in known:
            raise UnsupportedParameter(f"{name[:100]} is not supported by this server; leave it out", name[:100])
        if name in NUMBERS:
            right = type(value) is int and 0 <= value < 2**31
        else:
            right = isinstance(value, str) and bool(re.fullmatch(NAME, value, re.ASCII))
        if not right:
            raise InvalidValue(
                f"{name} is {str(value)[:100]!r}; expected a number of Gradio's, or a text of letters, digits, dashes "
                "and dots",
                name,
            )
        checked[name] = value
    return checked


def checked_values(values: Any, number: int, choices: dict[str, list[str]]) -> list[Any]:
    """`data` of a call of the function with this number, defaults filled in; the recording as it came. Raises
    Problem."""
    names = [name for name in CALLS[number] if name == "recording" or name in CHECKS or name in choices]
    count = len(names)
    if not isinstance(values, list) or len(values) != count and not (number == 0 and len(values) < count):
        raise InvalidValue(f"data is no list of {count} values; expected {', '.join(names) or 'an empty list'}", "data")
    defaults = [choices.get(name, [None])[0] for name in names]
    checked: list[Any] = [*values, *defaults[len(values) :]]
    for place, name in enumerate(names):
        if name == "recording":
            continue
        value = checked[place] = canonical(checked[place]) if name == "language" else checked[place]
        if name in CHECKS:
            if not CHECKS[name](value):
                raise InvalidValue(f"data[{place}] is {str(value)[:100]!r}, which the page doesn't send", "data")
        elif not isinstance(value, str) or value not in choices[name]:
            raise InvalidValue(f"{name} is {str(value)[:40]!r}, expected one of {', '.join(choices[name])}", name)
    return checked


def checked_recording(value: Any, body: CallBody, uploads: Uploads) -> str | None:
    """The path of what was uploaded: by this call as a data URI, or before it. Raises Problem, with the same words
    whether or not there is such a file on this machine."""
    if isinstance(value, dict) and "data" in value:  # as Gradio 3 sent it
        value = value["data"]
    if value is None:
        return None
    if body.path and value == body.token:
        return body.path
    if not isinstance(value, dict) or not isinstance(place := value.get("path"), str):
        raise InvalidValue(
            f"the recording is {str(value)[:20]!r}...; expected a data URI, data:audio/wav;base64,..., or an uploaded "
            "file",
            "data",
        )
    if value.get("is_stream"):
        raise InvalidValue(
            "the recording is a stream, which this server doesn't take; expected an uploaded file or a data URI", "data"
        )
    if found := uploads.find(place):
        return found
    if re.match(r"https?://", place[:10], re.IGNORECASE):
        raise InvalidValue(
            "the recording is an address, and this server fetches nothing; expected an uploaded file or a data URI",
            "data",
        )
    raise InvalidValue(
        "the recording is no file that was uploaded here, or it is no longer kept; upload it, or send a data URI",
        "data",
    )
