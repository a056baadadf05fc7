import json
import math
from decimal import Decimal

import pytest

from vlws import mime
from vlws.errors import InputError
from vlws.lab import query, records, run_pages, tables, terminal

RECORD = {
    "schema": 1,
    "chapter": "04",
    "slug": "04_cmg",
    "title": "t",
    "preset": "cpu",
    "status": "ok",
    "rc": 0,
    "key": "k",
    "params": {"lr": 0.1},
    "overrides": ["lr"],
    "git": None,
    "env": {"python": "3.12"},
    "started": "2026-01-01T02:00:00.500+02:00",
    "ended": None,
    "wall_s": 1.0,
    "peak_rss_mb": 1,
    "first_error": None,
}
ARMS = [{"name": "main", "seeds": [0, 7], "arms": {"CMER": {"auroc": [0.5, math.nan]}}, "seconds": 1.0, "code": "c"}]
RESULT = {
    "name": "mine",
    "metric": "auroc",
    "unit": "AUROC",
    "value": 0.9,
    "low": None,
    "high": None,
    "n": 8,
    "of": "x",
}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A folder whose name is a pattern, and what writes a run into it."""
    base = tmp_path / "it's {a,b} [2026] *?"
    monkeypatch.setenv("VLWS_RUNS", str(base))

    def write(run_id="20260101T000000-aaaaaaaa", **files):
        folder = base / "04_cmg" / run_id
        folder.mkdir(parents=True)
        for name, value in ({"run": RECORD | {"run_id": run_id}} | files).items():
            text = value if isinstance(value, str) else json.dumps(value)
            (folder / f"{name}.json").write_text(text)
        return folder

    return write


def test_every_table_is_filled(runs):
    measure = {"id": "04.C1", "value": 0.5, "preset": "cpu", "values": [0.4, 0.6]}
    gate = {"name": "sees", "says": "It sees.", "value": 0.9, "passed": True}
    folder = runs(measures=[measure], arms=ARMS, results=[RESULT], gates=[gate])
    (folder / "metrics.jsonl").write_text(
        '{"arm": "CMER", "seed": 7, "step": 1, "loss": 0.5, "grad_norm": 2}\n{"step": 2, "lo'
    )
    run = folder.name
    assert query.query("select run_id, values, low from measures")[1] == [(run, [0.4, 0.6], None)]
    assert query.query("select * from arms")[1] == [
        (run, "04", "main", "CMER", 0, "auroc", 0.5),
        (run, "04", "main", "CMER", 7, "auroc", None),
    ]
    assert query.query("select arm, seed, step, loss, grad_norm from metrics")[1] == [("CMER", 7, 1, 0.5, 2.0)]
    assert query.query("select * from results")[1] == [(run, "04", "mine", "auroc", "AUROC", 0.9, None, None, 8, "x")]
    assert query.query("select name, passed from gates")[1] == [("sees", True)]
    assert query.query("select params->>'lr', overrides, started::varchar, folder from runs")[1] == [
        ("0.1", ["lr"], "2026-01-01 00:00:00.5", str(folder))
    ]


def test_all_columns_of_runs_can_be_asked_for(runs):
    runs()
    columns, rows = query.query("select * from runs")
    assert columns == list(tables.COLUMNS["runs"])
    assert len(rows) == 1


def test_equal_names_of_columns_are_told_apart(runs):
    runs(measures=[{"id": "04.C1", "preset": "shown"}])
    columns, rows = query.query("select r.preset, m.preset, 1 as preset_1 from runs r join measures m using (run_id)")
    assert columns == ["preset", "preset_2", "preset_1"]
    assert rows == [("cpu", "shown", 1)]


@pytest.mark.parametrize(
    "text",
    ["", '{"run_id": "x", "stat', "null", "[]", '{"status": "ok"}', "\x00\x01", json.dumps(RECORD | {"run_id": 3})],
)
def test_a_broken_record_is_left_out_with_a_word(runs, capsys, text):
    runs()
    broken = runs("20260102T000000-bbbbbbbb", run=text)
    assert query.query("select count(*) from runs")[1] == [(1,)]
    assert len(records.records()) == 1
    assert capsys.readouterr().err == f"{broken / 'run.json'} is left out: it is no record of a run.\n"


@pytest.mark.parametrize("text", ["", "[", "{}", "3", '[null, {"says": "no id"}]'])
def test_broken_measures_are_none(runs, text):
    runs(measures=text)
    assert query.query("select count(*) from measures")[1] == [(0,)]


def test_a_very_large_record_is_read(runs):
    params = {"text": "x" * 20_000_000}  # above the largest object that DuckDB takes from a file
    runs(run=RECORD | {"run_id": "r", "params": params})
    assert query.query("select length(params->>'text') from runs")[1] == [(20_000_000,)]


def test_a_value_of_another_type_is_null(runs):
    runs(measures=[{"id": "04.C1", "value": "high", "values": 3}])
    assert query.query("select id, value, values from measures")[1] == [("04.C1", None, None)]


@pytest.mark.parametrize(
    "sql",
    [
        "select * from read_text('{path}')",
        "select * from read_text('.tmp/there')",
        "select * from read_csv('.tmp/there')",
        "select * from glob('.tmp/*')",
        "from '.tmp/there'",
        "from read_duckdb('.tmp/there')",
        "from sniff_csv('.tmp/there')",
        "from parquet_metadata('.tmp/there')",
        "from query('copy (select 1) to ''.tmp/new''')",
        "from enable_logging(storage='file', storage_path='.tmp/new')",
        "from enable_profiling(save_location='.tmp/new')",
        "from json_execute_serialized_sql(json_serialize_sql('from read_text(''.tmp/there'')'))",
        "select * from records",  # a variable of the Python that asks
        "select getenv('HOME')",
        "selec",
        "select now()",
    ],
)
def test_what_reads_or_writes_files_is_refused_in_a_line(runs, tmp_path, monkeypatch, sql):
    runs()
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".tmp").mkdir()
    (tmp_path / ".tmp" / "there").write_text("secret")
    with pytest.raises(InputError, match=r"^DuckDB: .*the tables") as refused:
        query.query(sql.format(path=tmp_path / ".tmp" / "there"))
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300
    assert [path.name for path in (tmp_path / ".tmp").iterdir()] == ["there"]


@pytest.mark.parametrize(
    ("sql", "kind"),
    [
        ("copy (select 1) to '.tmp/new'", "COPY"),
        ("copy runs from '.tmp/there'", "COPY"),
        ("attach '.tmp/new'", "ATTACH"),
        ("detach memory", "DETACH"),
        ("export database '.tmp/new'", "EXPORT"),
        ("import database '.tmp/there'", "PRAGMA"),
        ("set enable_external_access = true", "SET"),
        ("reset temp_directory", "SET"),
        ("pragma database_list", "PRAGMA"),
        ("install httpfs", "LOAD"),
        ("load json", "LOAD"),
        ("create table t as select 1", "CREATE"),
        ("create secret s (type s3)", "CREATE"),
        ("drop table runs", "DROP"),
        ("insert into runs (run_id) values ('x') returning run_id", "INSERT"),
        ("delete from runs", "DELETE"),
        ("update runs set status = 'ok'", "UPDATE"),
        ("explain analyze select 1", "EXPLAIN"),
        ("prepare v as select 1", "PREPARE"),
        ("call pragma_version()", "CALL"),
        ("checkpoint", "CALL"),
        ("begin", "TRANSACTION"),
        ("vacuum", "VACUUM"),
        ("use memory", "SET"),
    ],
)
def test_what_is_no_select_is_refused(runs, tmp_path, monkeypatch, sql, kind):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"^the query is no SELECT but {kind}; write one SELECT over the tables "):
        query.query(sql)
    assert not (tmp_path / ".tmp").exists()


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("", "the query is empty"),
        (" -- nothing", "the query is empty"),
        ("select 1; select 2", "the query has 2 statements"),
        ("select 1; drop table runs", "the query has 2 statements"),
    ],
)
def test_one_statement_is_taken(runs, sql, message):
    with pytest.raises(InputError, match=f"^{message}; write one SELECT over the tables runs, "):
        query.query(sql)
    assert query.query("select 'a;b' -- ; drop table runs\n;")[1] == [("a;b",)]
    assert query.query("describe gates")[1][0][:2] == ("run_id", "VARCHAR")


def test_a_query_that_does_not_end_is_stopped_and_of_many_rows_some_are_given(runs):
    with pytest.raises(InputError, match=r"^the query took longer than 0\.2 s and was stopped; ask for less"):
        query.query("with recursive t(n) as (select 1 union all select n + 1 from t) select max(n) from t", seconds=0.2)
    assert query.query("from range(100000) a, range(100000) b", most=2)[1] == [(0, 0), (1, 0)]


def test_what_does_not_fit_into_memory_writes_no_file(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(query.CONFIG, "memory_limit", "40MB")
    with pytest.raises(InputError, match=r"^DuckDB: Out of Memory Error"):
        query.query("select count(*) from (select distinct a.range + b.range * 1000 from range(1000) a, range(9000) b)")
    assert not (tmp_path / ".tmp").exists()


def test_csv_stands_beside_the_run(runs):
    folder = runs(arms=ARMS)
    (record,) = records.records()
    tables.write_csv(record)
    assert (folder / "arms.csv").read_text().splitlines() == [
        "run_id,chapter,experiment,arm,seed,metric,value",
        f"{folder.name},04,main,CMER,0,auroc,0.5",
        f"{folder.name},04,main,CMER,7,auroc,",
    ]
    assert not (folder / "results.csv").exists()


def test_json_is_json_whatever_is_in_it(capsys):
    value = {"a": [math.nan, math.inf, (1, Decimal("0.5"))], 3: {"b": -math.inf}, "c": {"d": "é"}}
    terminal.answer(True, value, "")
    assert json.loads(capsys.readouterr().out) == {"a": [None, None, [1, 0.5]], "3": {"b": None}, "c": {"d": "é"}}


def test_what_jupyter_carries_as_text_is_missing(runs):
    """A number that JSON lacks arrives as "nan": it must reach neither a table nor a mean."""
    from jupyter_client.jsonutil import json_clean

    sent = ARMS[0] | {"arms": {"CMER": {"auroc": [0.5, math.nan], "loss": [math.inf, -math.inf], "f1": [0.5, 0.7]}}}
    [grid] = records.collect({"cells": [{"outputs": [{"data": {mime.ARMS: json_clean(sent)}}]}]}, mime.ARMS, "name")
    assert grid["arms"]["CMER"] == {"auroc": [0.5, None], "loss": [None, None], "f1": [0.5, 0.7]}
    runs(arms=[grid])
    _, rows = query.query("select metric, value from arms where value is not null order by metric, value")
    assert rows == [("auroc", 0.5), ("f1", 0.5), ("f1", 0.7)]
    shown = run_pages.arms_table(grid)
    assert (shown["metrics"], shown["rows"]) == (["f1"], [("CMER", ["0.600"])])
