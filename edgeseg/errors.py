"""What a user did or has that edgeseg cannot work with, said in one line."""

import importlib
from types import ModuleType


class EdgesegError(Exception):
    """One line for a person: what is wrong, which file, what to do. The command line exits with `exit_code`."""

    exit_code = 2


class GateFailed(EdgesegError):
    """A measured value missed its limit (exit code 3), as opposed to bad input (exit code 2)."""

    exit_code = 3


class Interrupted(EdgesegError):
    """Stopped by the user; what was finished is kept."""

    exit_code = 130


def need(module: str, extra: str) -> ModuleType:
    """Import `module`, or say which extra of edgeseg brings it.

    Raises:
        EdgesegError: the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.split(".")[0]:
            raise
        raise EdgesegError(f"this needs {error.name}: pip install 'edgeseg[{extra}]'") from None
