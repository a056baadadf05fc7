"""SQL over the runs: DuckDB reads their files in place."""

from vlws import paths
from vlws.errors import InputError
from vlws.lab.records import settle


def query(sql: str) -> tuple[list[str], list[tuple]]:
    """Columns and rows of a query by DuckDB over the files: tables runs, measures and metrics. Raises InputError."""
    import duckdb

    settle()
    connection = duckdb.connect()
    base = paths.runs()
    quoted = str(base).replace("'", "''")
    text, number, flag = "VARCHAR", "DOUBLE", "BIGINT"
    columns = {
        "runs": dict.fromkeys(("run_id", "chapter", "slug", "title", "preset", "status"), text)
        | {"rc": flag, "key": text, "params": "JSON", "overrides": "VARCHAR[]", "git": "JSON", "env": "JSON"}
        | {"started": "TIMESTAMPTZ", "ended": "TIMESTAMPTZ", "wall_s": number, "peak_rss_mb": number}
        | {"first_error": "JSON"},
        "measures": dict.fromkeys(("id", "says", "where", "metric", "unit"), text)
        | {"paper": number, "direction": text, "threshold": number, "tolerance": number, "value": number}
        | {"low": number, "high": number, "p": number, "n_seeds": flag, "n_replicates": flag}
        | dict.fromkeys(("verdict", "why", "preset", "per", "by_construction", "reported"), text)
        | {"values": "DOUBLE[]"},
    }
    run_id = "parse_path(filename)[-2] AS run_id"
    for table, types in columns.items():
        file = "run.json" if table == "runs" else "measures.json"
        listed = ", ".join(f"'{name}': '{kind}'" for name, kind in types.items())
        if any(base.glob(f"*/*/{file}")):
            extra = "" if table == "runs" else f", {run_id}"
            names = ", ".join(f'"{name}"' for name in types)
            source = f"read_json('{quoted}/*/*/{file}', columns={{{listed}}}, filename=true)"
            connection.execute(f"CREATE VIEW {table} AS SELECT {names}{extra} FROM {source}")
        else:
            more = "" if table == "runs" else ", run_id VARCHAR"
            fields = ", ".join(f'"{name}" {kind}' for name, kind in types.items())
            connection.execute(f"CREATE TABLE {table} ({fields}{more})")
    if any(path.stat().st_size for path in base.glob("*/*/metrics.jsonl")):
        options = "format='newline_delimited', union_by_name=true, ignore_errors=true, filename=true"
        source = f"read_json('{quoted}/*/*/metrics.jsonl', {options})"
        connection.execute(f"CREATE VIEW metrics AS SELECT * EXCLUDE (filename), {run_id} FROM {source}")
    else:
        connection.execute("CREATE TABLE metrics (run_id VARCHAR)")
    try:
        answer = connection.execute(sql)
        return [column[0] for column in answer.description or []], answer.fetchall()
    except duckdb.Error as error:
        raise InputError(f"DuckDB: {' '.join(str(error).split())}") from None
