"""What the text of an argument may be, for `add_argument(type=...)`: an ArgumentTypeError says what is expected."""

import argparse


def refused(expected: str, text: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"invalid {expected} value: {text!r}")


def positive(text: str, expected: str = "positive integer") -> int:
    try:
        number = int(text)
    except ValueError:
        raise refused(expected, text) from None
    if number < 1:
        raise refused(expected, text)
    return number


def positive_or_auto(text: str) -> int | None:
    return None if text == "auto" else positive(text, "positive integer or auto")


def seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0
    if not 0 < number < float("inf"):
        raise refused("number of seconds", text)
    return number


def number_or_language(text: str) -> int | str:
    expected = "number from 1 on or language"
    if text.isdecimal():
        return positive(text, expected)
    if not (text.isascii() and text.isalpha() and len(text) in (2, 3)):
        raise refused(expected, text)
    return text
