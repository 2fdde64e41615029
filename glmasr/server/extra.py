"""The packages of the extra [web]."""

from ..errors import OptionError


def missing(error: ImportError) -> OptionError:
    """What to say where one of them can't be imported."""
    return OptionError(
        f"the server needs the package {error.name or error}, which is not installed; get it with the extra [web]:  "
        "pip install -c constraints.txt '.[web]'"
    )
