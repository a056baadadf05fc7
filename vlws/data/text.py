"""Read the text files of users' folders: one reader, so that each fault names its file, its line and the remedy."""

import codecs
import json
from pathlib import Path
from typing import Any

from vlws.errors import InputError

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(path: Path) -> str:
    """A UTF-8 file, or a UTF-16 one that begins with its byte order mark; the mark is no part of the text.

    Lines end with "\\n", as which "\\r\\n" is read; nothing else ends one (U+2028 and U+0085 are characters of a text).

    Raises:
        InputError: a file that cannot be read, or is in another encoding; the sentence names file and line.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "caption.txt")
    ...     _ = path.write_text("an owl", encoding="utf-16")
    ...     read_text(path)
    'an owl'
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error
    encoding = "utf-16" if data.startswith(_UTF16) else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = f"byte 0x{data[error.start]:02x}"
        raise InputError(
            f"{path}, line {line}, is not {encoding.removesuffix('-sig').upper()} ({byte}); save the file as UTF-8, "
            "as `iconv -f CP1252 -t UTF-8` does."
        ) from error
    if "\0" in text:  # UTF-16 without its mark decodes as UTF-8 where it is ASCII
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(f"{path}, line {line}, holds a null character, as UTF-16 does; save the file as UTF-8.")
    return text.replace("\r\n", "\n")


def parse_json(text: str, file: Path | str, line: int = 1) -> Any:
    """The value of a JSON text, which begins at `line` of `file`.

    >>> parse_json('{"a": 1}', "a.json")
    {'a': 1}

    Raises InputError for what is not JSON; the sentence names file and line.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = line + error.lineno - 1
        raise InputError(f"{file}, line {at}, is not valid JSON ({error.msg} at column {error.colno}).") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or thousands of brackets
        raise InputError(f"{file}, line {line}, is no JSON that can be read ({str(error).split(';')[0]}).") from error


def read_json(path: Path) -> Any:
    """The value of a user's JSON file. Raises InputError as `read_text` and `parse_json`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "captions.json")
    ...     _ = path.write_text('{"train/good/000.png": "an owl"}')
    ...     read_json(path)
    {'train/good/000.png': 'an owl'}
    """
    return parse_json(read_text(path), path)
