"""Simplified Chinese characters, as in mainland China, or traditional ones: the same text, other characters.

The model writes what it has seen most; `converter` makes all of it one or the other. The tables are those of the
package OpenCC, which knows whole words, for one simplified character may stand for several traditional ones.
Traditional is OpenCC's own standard, which is not in all characters that of Taiwan or Hong Kong.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from ..errors import OptionError

TABLES = {"simplified": "t2s", "traditional": "s2t"}


def converter(script: str | None) -> Callable[[str], str]:
    """A function that writes a text in a script, "simplified" or "traditional"; None leaves it as it is. Raises
    OptionError.
    """
    if script is None:
        return str
    if script not in list(TABLES):
        raise OptionError(f"script is {script!r}, expected {' or '.join(map(repr, TABLES))}")
    try:
        convert: Callable[[str], str] = _open(TABLES[script]).convert
        return convert
    except ImportError:
        raise OptionError(
            f"script {script!r} needs the package OpenCC, which is not installed; get it with the extra [zh]:  "
            "pip install -c constraints.txt '.[zh]'"
        ) from None


@cache
def _open(table: str) -> Any:
    import opencc

    return opencc.OpenCC(table)
