"""SQL over the runs, by DuckDB, in memory: the files of the runs are read first, and nothing can be written or read.

What DuckDB is told (`CONFIG`) closes its ways to files: by default it may read, write and attach whatever lies in its
temporary directory, `.tmp` below the working directory, even where external access is off.

For callers who are not trusted, `apart` asks in a process of its own (`python -m vlws.lab.query`), since DuckDB neither
counts all of its memory nor stops at once.
"""

import json
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from vlws.errors import InputError
from vlws.lab import executors, records, tables
from vlws.lab.terminal import as_json_text, finite

SECONDS = 20.0  # after which a query is stopped
MEMORY = 4 * 2**30  # bytes of addresses of the process of `apart`
CONFIG: dict[str, Any] = {"python_enable_replacements": False, "temp_directory": "", "memory_limit": "1GB"}
CLOSED = "SET TimeZone = 'UTC'; SET enable_external_access = false; SET lock_configuration = true"


def query(
    sql: str,
    kept: Sequence[Mapping[str, Any]] | None = None,
    most: int | None = None,
    seconds: float = SECONDS,
) -> tuple[list[str], list[tuple]]:
    """Columns and rows of one SELECT over the tables of `vlws.lab.tables`.

    The names of the columns are unique: of two called run_id the second is run_id_1.

    Args:
        kept: the records that the tables are made from; all by default.
        most: of the rows, so many of the first; all by default.
        seconds: a query that takes longer is stopped.

    Raises:
        InputError: no or more than one statement, one that is no SELECT, or what DuckDB refuses.
    """
    import duckdb

    known = ", ".join(tables.COLUMNS)
    with duckdb.connect(config=CONFIG | {"threads": executors.cores()}) as connection:
        for table, rows in tables.tables(records.records() if kept is None else kept).items():
            _load(connection, table, rows)
        connection.execute(CLOSED)
        stopper = threading.Timer(seconds, connection.interrupt)
        stopper.start()
        try:
            answer = connection.execute(_one_select(connection, sql, known))
            columns = _unique([column[0] for column in answer.description or []])
            return columns, answer.fetchall() if most is None else answer.fetchmany(most)
        except duckdb.InterruptException:
            raise InputError(
                f"the query took longer than {seconds:g} s and was stopped; ask for less of the tables {known}."
            ) from None
        except (duckdb.Error, UnicodeError) as error:
            said = " ".join(str(error).split("\n\n")[0].split()).rstrip(".")
            if "pytz" in said:  # which DuckDB wants for them, and nothing else here
                said = "times with a zone cannot be shown; cast them: now()::timestamp"
            raise InputError(f"DuckDB: {said} (the tables are {known}).") from None
        finally:
            stopper.cancel()


def apart(sql: str, most: int) -> tuple[list[str], list[list[Any]]]:
    """`query` in a process of its own with bounded memory, over the runs that `guards.runs` lets through.

    Values are what JSON has; the rest is text. Raises InputError as `query` does, and where the process was stopped.
    """
    asked = [sys.executable, "-m", "vlws.lab.query"]
    process = subprocess.Popen(
        asked, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        out, _ = process.communicate(json.dumps({"sql": sql, "most": most}), timeout=SECONDS + 10)
        found = json.loads(out)
    except (subprocess.TimeoutExpired, ValueError):
        process.kill()
        process.communicate()
        raise InputError("the query took too long or too much memory and was stopped; ask for less.") from None
    if "refused" in found:
        raise InputError(found["refused"])
    return found["columns"], found["rows"]


def _one_select(connection: Any, sql: str, known: str) -> Any:
    """The one statement of a query, as DuckDB reads it (DESCRIBE, SHOW and SUMMARIZE count as SELECT)."""
    statements = connection.extract_statements(sql)
    if not statements:
        raise InputError(f"the query is empty; write one SELECT over the tables {known}.")
    if len(statements) > 1:
        raise InputError(f"the query has {len(statements)} statements; write one SELECT over the tables {known}.")
    (statement,) = statements
    if statement.type.name != "SELECT":
        raise InputError(f"the query is no SELECT but {statement.type.name}; write one SELECT over the tables {known}.")
    return statement


def _load(connection: Any, table: str, rows: Sequence[tables.Row]) -> None:
    """A table made from rows, which DuckDB gets as one JSON value: what has another type than its column is null."""
    columns = tables.columns(table, rows)
    listed = ", ".join(f"{_quoted(name)} {kind}" for name, kind in columns.items())
    connection.execute(f"CREATE TABLE {table} ({listed})")
    if rows:
        given = {name: kind.replace("TIMESTAMP", "TIMESTAMPTZ") for name, kind in columns.items()}
        text = json.dumps([{name: finite(row.get(name)) for name in columns} for row in rows], default=str)
        connection.execute(
            f"INSERT INTO {table} SELECT r.* FROM (SELECT unnest(from_json(?, ?)) AS r)", [text, json.dumps([given])]
        )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _unique(names: Sequence[str]) -> list[str]:
    found: list[str] = []
    for name in names:
        n, free = 0, name
        while free in found or (n and free in names):
            n += 1
            free = f"{name}_{n}"
        found.append(free)
    return found


def main() -> None:
    """Answer the query on stdin, {"sql": ..., "most": ...}, with one JSON value on stdout."""
    import resource

    from vlws.lab import guards

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    asked = json.load(sys.stdin)
    try:
        columns, rows = query(asked["sql"], guards.runs(), asked["most"])
        answer: dict[str, Any] = {"columns": columns, "rows": rows}
    except InputError as error:
        answer = {"refused": str(error)}
    print(as_json_text(answer))


if __name__ == "__main__":
    main()
