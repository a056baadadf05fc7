"""SQL over the runs, by DuckDB, in memory: the files of the runs are read first, and nothing can be written or read."""

import json
from collections.abc import Sequence
from typing import Any

from vlws.errors import InputError
from vlws.lab import records, tables
from vlws.lab.terminal import finite


def query(sql: str) -> tuple[list[str], list[tuple]]:
    """Columns and rows of a query over the tables of `vlws.lab.tables`; InputError for what DuckDB refuses.

    The names of the columns are unique: of two called run_id the second is run_id_1.
    """
    import duckdb

    with duckdb.connect(config={"python_enable_replacements": False}) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for table, rows in tables.tables(records.records()).items():
            _load(connection, table, rows)
        connection.execute("SET enable_external_access = false; SET lock_configuration = true")
        known = ", ".join(tables.COLUMNS)
        try:
            answer = connection.execute(sql)
            if answer is None:
                raise InputError(f"the query is empty; write SQL over the tables {known}.")
            return _unique([column[0] for column in answer.description or []]), answer.fetchall()
        except (duckdb.Error, UnicodeError) as error:
            said = " ".join(str(error).split("\n\n")[0].split()).rstrip(".")
            if "pytz" in said:  # which DuckDB wants for them, and nothing else here
                said = "times with a zone cannot be shown; cast them: now()::timestamp"
            raise InputError(f"DuckDB: {said} (the tables are {known}).") from None


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
