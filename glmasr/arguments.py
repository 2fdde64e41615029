"""A parser of command lines, for all commands."""

import argparse

from .errors import printable


class Parser(argparse.ArgumentParser):
    """Quotes what it doesn't know, which a pattern of the shell may have made of the name of a file, so that no terminal obeys it."""

    def error(self, message: str):
        super().error(printable(message))
