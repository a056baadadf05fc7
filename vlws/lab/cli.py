"""The command line. With --json a command writes one JSON value to stdout and nothing else; progress goes to stderr.

Exit codes: 0 done, 1 a run failed (or a disk did), 2 bad input, 130 interrupted.
"""

import signal
import sys
from typing import Any

from vlws.errors import InputError
from vlws.lab.terminal import as_json_text


class _Interrupted(BaseException):
    """Ctrl-C, or a polite kill; not a KeyboardInterrupt, which typer answers in its own way."""


def _interrupt(*_: object) -> None:
    raise _Interrupted


def main() -> None:
    """The console script `vlws`."""
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    as_json = "--json" in sys.argv[1:]
    try:
        sys.exit(_called())
    except InputError as error:
        _leave(str(error), 2, as_json)
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing.startswith("vlws"):
            raise
        _leave(
            f"{missing} is not installed; the command line needs the extra `lab`: pip install 'vlws[lab]'.", 2, as_json
        )
    except _Interrupted:
        _leave("interrupted; what had finished is kept, the same command goes on from there.", 130, as_json)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        _leave(f"{error.strerror or error}{where}.", 1, as_json)


def _called() -> int:
    """Call the command that is asked for; its exit code. InputError for arguments that it does not take."""
    from typer import BadParameter

    usage: type[Any] = BadParameter.__mro__[1]  # any error of usage, for which typer has no public name
    from vlws.lab.commands import app

    try:
        return app(prog_name="vlws", standalone_mode=False) or 0
    except usage as error:
        if not error.format_message() or type(error).__name__ == "NoArgsIsHelpError":
            error.show()
            return error.exit_code
        command = error.ctx.command_path if error.ctx else "vlws"
        sentence = " ".join(error.format_message().split()).removesuffix(".")
        raise InputError(f"{sentence}; see {command} --help.") from None


def _leave(sentence: str, code: int, as_json: bool) -> None:
    if as_json:
        print(as_json_text({"error": sentence}))
    else:
        print(sentence, file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
