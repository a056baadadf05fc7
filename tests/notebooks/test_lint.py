"""What every notebook of the registry must be, read from its JSON: no kernel, no minutes.

`lint(path)` returns the problems of one notebook and `lint_folder(folder)` those between files; the tests run both over
the real registry, and hold every rule against a notebook that breaks it.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from vlws import claims, mime, paths
from vlws.errors import InputError
from vlws.lab.page import PROGRESS
from vlws.lab.parameters import PRESETS, Parameter, read_parameters
from vlws.models import hub

REGISTRY = sorted(paths.notebooks().glob("*.ipynb"))
EVERYWHERE = {"preset": "str", "seeds": "int", "backbone": "str", "data": "str", "device": "str"}
WITHOUT_EXPERIMENT = ("00", "08")  # of `EVERYWHERE` they keep only what they use
MAX_BYTES = 1_500_000
MAX_LINES = 40  # of a code cell: it does one thing
MACHINE_PATH = re.compile(
    r"(?<![\w./:~$}-])/(?:home|root|tmp|work|Users|mnt|scratch)/[\w.-]|\b[A-Z]:\\(?:Users|Windows|Program|Temp|data)",
)
OUTSIDE = re.compile(r"!\[[^\]]*\]\(\s*https?://|<(?:img|script|iframe|link)\b[^>]*(?:src|href)\s*=\s*[\"']?https?://")
NOT_COMPARED = {"nbval-skip", "nbval-ignore-output"}


def lint(path: Path) -> list[str]:
    """The problems of one notebook, each in one sentence; an empty list is a clean bill."""
    book = json.loads(path.read_text(encoding="utf-8"))
    cells = book["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    problems = [] if re.fullmatch(r"\d\d_[a-z0-9_]+", path.stem) else [f"the name {path.name!r} is not NN_slug.ipynb"]
    problems += _metadata(book["metadata"]) + _says_what_it_is(path, book["metadata"].get("vlws", {}), cells)
    if not cells or cells[0]["cell_type"] != "markdown" or not _source(cells[0]).startswith("# "):
        problems.append("the first cell is no Markdown title ('# ...')")
    declared, found = _parameters(path, code)
    problems += found + _presets(path, declared)
    problems += _outputs(code) + _claims(path, code)
    for number, cell in enumerate(cells):
        lines = len(_source(cell).splitlines())
        if cell["cell_type"] == "code" and lines > MAX_LINES:
            problems.append(f"cell {number} has {lines} lines; at most {MAX_LINES} are allowed")
    if path.stat().st_size > MAX_BYTES:
        problems.append(f"{path.stat().st_size / 1e6:.1f} MB; at most {MAX_BYTES / 1e6} MB are allowed")
    for number, cell in enumerate(cells):
        texts = [_source(cell), *(text for output in cell.get("outputs", []) for text in _texts(output))]
        problems += [f"cell {number} holds a machine's path: {m[0]}…" for t in texts for m in MACHINE_PATH.finditer(t)]
        problems += [f"cell {number} loads from outside: {m[0]}…" for t in texts for m in OUTSIDE.finditer(t)]
    return problems


def lint_folder(folder: Path) -> list[str]:
    """The problems between files: numbers taken twice, claims or presets of no notebook."""
    stems = [path.stem for path in folder.glob("*.ipynb")]
    numbers = [stem[:2] for stem in stems]
    problems = [f"two notebooks are number {n}" for n in sorted({n for n in numbers if numbers.count(n) > 1})]
    orphans = [path.name for path in (folder / "claims").glob("*") if path.stem not in stems]
    problems += [f"claims/{name} belongs to no notebook" for name in sorted(orphans)]
    return problems + [
        f"presets.yml names chapter {n!r}, which is no notebook" for n in _presets_of(folder) if n not in numbers
    ]


def compared(cell: dict[str, Any]) -> bool:
    """Whether nbval compares something in this cell that can change: printed text, or a value's text (no `<repr>`)."""
    if NOT_COMPARED & set(cell["metadata"].get("tags", [])) or "# NBVAL_IGNORE_OUTPUT" in _source(cell):
        return False
    for output in cell["outputs"]:
        is_stdout = output["output_type"] == "stream" and output["name"] == "stdout"
        text = "".join(output.get("text", "") if is_stdout else output.get("data", {}).get("text/plain", ""))
        if text.strip() and not text.startswith("<"):
            return True
    return False


def _metadata(metadata: dict[str, Any]) -> list[str]:
    about = metadata.get("vlws")
    if not isinstance(about, dict):
        return ["metadata.vlws is missing"]
    problems = [
        f"metadata.vlws.{key} is missing" for key in ("title", "paper", "summary", "backbones") if key not in about
    ]
    problems += [f"metadata.vlws.{key} is empty" for key in ("title", "summary") if about.get(key) == ""]
    if not isinstance(about.get("backbones", []), list):
        problems.append("metadata.vlws.backbones is no list")
    if "widgets" in metadata:
        problems.append("widget state is stored; show progress on stderr")
    return problems


def _says_what_it_is(path: Path, about: dict[str, Any], cells: list[dict]) -> list[str]:
    """What a notebook's metadata, copied from another's, would say wrong: its title, its paper, its shipped models."""
    problems = []
    name, heading = str(about.get("title", "")).split(":")[0], _source(cells[0]) if cells else ""
    if name not in heading.splitlines()[0]:
        problems.append(f"metadata.vlws.title is {name!r}, which its heading does not name")
    file = path.parent / "claims" / f"{path.stem}.yaml"
    paper = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("paper", {}) if file.is_file() else {}
    for number in re.findall(r"arXiv:(\d{4}\.\d{5})", str(about.get("paper", ""))):
        if number not in str(paper.get("url", "")):
            problems.append(f"metadata.vlws.paper is arXiv:{number}, and {file.name} is of {paper.get('url')}")
    code = "\n".join(_source(cell) for cell in cells if cell["cell_type"] == "code")
    used, named = {one for one in hub.shipped() if f'"{one}"' in code}, about.get("backbones", [])
    if isinstance(named, list) and used != set(named):
        problems.append(f"metadata.vlws.backbones are {sorted(named)}, and its code names {sorted(used)}")
    return problems


def _parameters(path: Path, code: list[dict]) -> tuple[dict[str, Parameter], list[str]]:
    """The declared parameters, and what is wrong with their cell."""
    tagged = [cell for cell in code if "parameters" in cell["metadata"].get("tags", [])]
    if len(tagged) != 1:
        return {}, [f"{len(tagged)} cells are tagged 'parameters'; there must be exactly one"]
    problems = [] if tagged[0] is code[0] else ["the parameters cell is not the first code cell"]
    try:
        declared = read_parameters(_source(tagged[0]), path.name)
    except InputError as error:
        return {}, [*problems, str(error)]
    problems += [f"parameter {name} has no comment that explains it" for name, p in declared.items() if not p.help]
    others = "\n".join(_source(cell) for cell in code[1:])
    read = {name for name in declared if re.search(rf"\b{name}\b", others)}
    problems += [f"parameter {name} is read by no cell" for name in declared if name not in read | {"preset"}]
    wanted = {"preset": "str"} if path.stem[:2] in WITHOUT_EXPERIMENT else EVERYWHERE
    problems += [f"parameter {name} is missing" for name in wanted if name not in declared]
    for name in EVERYWHERE.keys() & declared.keys():
        if declared[name].type != EVERYWHERE[name]:
            problems.append(f"parameter {name} must be {EVERYWHERE[name]}")
    return declared, problems


def _presets(path: Path, declared: dict[str, Parameter]) -> list[str]:
    problems = []
    for preset, values in (_presets_of(path.parent).get(path.stem[:2]) or {}).items():
        if preset not in PRESETS or preset == "cpu":
            problems.append(f"presets.yml: {preset!r} is no preset that replaces literals")
        for name, value in (values or {}).items():
            if name not in declared:
                problems.append(f"presets.yml: {preset} sets {name}, which is no parameter")
                continue
            try:
                declared[name].read(value)
            except InputError as error:
                problems.append(f"presets.yml: {preset}: {error}")
    return problems


def _outputs(code: list[dict]) -> list[str]:
    problems = []
    counts = [cell["execution_count"] for cell in code]
    if counts != list(range(1, len(code) + 1)):
        problems.append(f"execution counts are {counts}, not 1 to {len(code)} in order: restart and run all")
    if not any(cell["outputs"] for cell in code):
        problems.append("there are no outputs: commit the notebook executed")
    elif not any(compared(cell) for cell in code):
        problems.append("nothing is compared: print a few stable figures (shapes, arms, claim ids)")
    for cell in code:
        where = f"In [{cell['execution_count']}]"
        for output in cell["outputs"]:
            if output["output_type"] == "error":
                problems.append(f"{where} ends in {output['ename']}")
            if compared(cell) and output.get("name") == "stdout" and PROGRESS.search("".join(output["text"])):
                problems.append(f"{where} prints a progress bar or a pace; these go to stderr")
            if output.get("name") == "stdout" and "[KeOps]" in "".join(output["text"]):
                problems.append(f"{where} holds a message of KeOps, which another machine does not print: run it again")
    return problems


def _claims(path: Path, code: list[dict]) -> list[str]:
    """Each claim of the YAML is measured and each measure is in the YAML, as the YAML says it now."""
    measured = {}
    for cell in code:
        for output in cell["outputs"]:
            if measure := output.get("data", {}).get(mime.MEASURE):
                measured[measure["id"]] = measure
    file = path.parent / "claims" / f"{path.stem}.yaml"
    try:
        known = claims.load(file).claims if file.exists() else {}
    except InputError as error:
        return [str(error)]
    problems = [f"claim {id} is never measured" for id in known if id not in measured]
    problems += [f"{id} is measured and stands in no claims file" for id in measured if id not in known]
    for id in known.keys() & measured.keys():
        fields = ("says", "where", "metric", "unit", "paper", "direction", "threshold", "tolerance")
        changed = [name for name in fields if measured[id].get(name) != getattr(known[id], name)]
        problems += [f"claim {id} was measured under another {name}: run the notebook again" for name in changed]
    return problems


def _presets_of(folder: Path) -> dict[str, Any]:
    file = folder / "presets.yml"
    return (yaml.safe_load(file.read_text(encoding="utf-8")) or {}) if file.exists() else {}


def _source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def _texts(output: dict[str, Any]) -> list[str]:
    """All text of an output, pictures left out."""
    data = {mime: value for mime, value in output.get("data", {}).items() if not mime.startswith("image/png")}
    return [
        "".join(output.get("text", "")),
        *(v if isinstance(v, str) else json.dumps(v) for v in map(_joined, data.values())),
    ]


def _joined(value: Any) -> Any:
    return "".join(value) if isinstance(value, list) and all(isinstance(v, str) for v in value) else value


# --- the registry -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", REGISTRY, ids=lambda path: path.stem)
def test_notebook(path):
    assert lint(path) == []


def test_folder():
    assert lint_folder(paths.notebooks()) == []


# --- every rule, broken -----------------------------------------------------------------------------------------------

PARAMETERS = """preset: str = "cpu"  # scale
seeds: int = 3  # seeds of each arm
backbone: str = ""  # a folder or a hub id
data: str = ""  # a folder
device: str = "auto"  # auto, cpu or cuda
lr: float = 1.0e-3  # learning rate"""
CLAIM = {
    "id": "04.C1", "says": "It helps.", "where": "abstract", "metric": "AUROC", "unit": "AUROC", "paper": None,
    "direction": "greater", "threshold": 0.05, "tolerance": None,
}  # fmt: skip
PRESETS_YML = {"04": {"full": {"seeds": 5, "lr": 1e-4}}}


def good() -> nbformat.NotebookNode:
    measure = new_output("display_data", data={mime.MEASURE: CLAIM | {"value": 0.1}, "text/plain": "04.C1: AUROC"})
    book = new_notebook(
        cells=[
            new_markdown_cell("# A chapter"),
            new_code_cell(PARAMETERS, execution_count=1, metadata={"tags": ["parameters"]}),
            new_code_cell("print(seeds)", execution_count=2, outputs=[new_output("stream", name="stdout", text="3\n")]),
            new_code_cell(
                'chapter.measure("04.C1", x(backbone, data, device, lr))', execution_count=3, outputs=[measure]
            ),
        ]
    )
    book.metadata["vlws"] = {"title": "A chapter", "paper": "", "summary": "What it is.", "backbones": []}
    return book


def written(folder: Path, book=None, claims_=(CLAIM,), presets=PRESETS_YML, name="04_cmg.ipynb") -> Path:
    (folder / "claims").mkdir(exist_ok=True)
    listed = [{k: v for k, v in c.items() if v is not None} for c in claims_]
    (folder / "claims" / "04_cmg.yaml").write_text(yaml.safe_dump({"chapter": "04", "claims": listed}))
    (folder / "presets.yml").write_text(yaml.safe_dump(presets))
    nbformat.write(book or good(), folder / name)
    return folder / name


@pytest.mark.parametrize("path", REGISTRY, ids=lambda path: path.stem)
def test_papermill_itself_knows_every_parameter(path):
    """`papermill --help-notebook` and `papermill -p`: a second "=" in a line makes papermill drop the parameter."""
    from papermill.inspection import inspect_notebook

    source = next(_source(c) for c in nbformat.read(path, 4).cells if "parameters" in c.metadata.get("tags", []))
    declared = read_parameters(source, path.name)
    found = inspect_notebook(path)
    assert {name: (one["inferred_type_name"], one["help"]) for name, one in found.items()} == {
        name: (one.type, one.help) for name, one in declared.items()
    }


def test_a_good_notebook_passes(tmp_path):
    assert lint(written(tmp_path)) == []
    assert lint_folder(tmp_path) == []


def parameters(source: str) -> Callable:
    return lambda book: book.cells[1].update(source=source)


def output(text: str) -> Callable:
    return lambda book: book.cells[2].outputs[0].update(text=text)


def ignore_both(book):
    book.cells[2].metadata["tags"] = ["nbval-ignore-output"]
    book.cells[3].source = "# NBVAL_IGNORE_OUTPUT\n" + book.cells[3].source


BROKEN = {
    "a long cell": (lambda b: b.cells[2].update(source="print(3)\n" * 41), "cell 2 has 41 lines; at most 40"),
    "no metadata": (lambda b: b.metadata.pop("vlws"), "metadata.vlws is missing"),
    "no title": (lambda b: b.metadata["vlws"].pop("title"), "metadata.vlws.title is missing"),
    "empty summary": (lambda b: b.metadata["vlws"].update(summary=""), "metadata.vlws.summary is empty"),
    "backbones no list": (lambda b: b.metadata["vlws"].update(backbones="clip"), "backbones is no list"),
    "another's title": (lambda b: b.metadata["vlws"].update(title="UniKE: b"), "title is 'UniKE', which its heading"),
    "another's paper": (lambda b: b.metadata["vlws"].update(paper="A, arXiv:2409.19872"), "paper is arXiv:2409.19872"),
    "another's model": (lambda b: b.metadata["vlws"].update(backbones=["clip-emoji"]), "backbones are ['clip-emoji']"),
    "a model unnamed": (
        lambda b: b.cells[2].update(source='load("clip-emoji")'),
        "its code names ['clip-emoji']",
    ),
    "widgets": (lambda b: b.metadata.update(widgets={}), "widget state"),
    "no heading": (lambda b: b.cells[0].update(source="A chapter"), "no Markdown title"),
    "no parameters": (lambda b: b.cells[1].metadata.clear(), "0 cells are tagged"),
    "two parameters": (lambda b: b.cells[2].metadata.update(tags=["parameters"]), "2 cells are tagged"),
    "parameters late": (lambda b: b.cells.insert(1, new_code_cell("1", execution_count=1)), "not the first code cell"),
    "derived": (parameters(PARAMETERS + "\nsteps: int = 2 * 3  # steps"), "is computed"),
    "statement": (parameters("import os\n" + PARAMETERS), "is no parameter; write `name: type = literal"),
    "unannotated": (parameters(PARAMETERS + "\nsteps = 3  # steps"), "is no parameter; write `name: type = literal"),
    "no comment": (parameters(PARAMETERS + "\nsteps: int = 3"), "parameter steps has no comment"),
    "foreign type": (parameters(PARAMETERS + "\nroot: Path = 'a'  # folder"), "declares Path"),
    "wrong type": (parameters(PARAMETERS + "\nsteps: int = 3.0  # steps"), "steps=3.0 is no int"),
    "an idle parameter": (
        parameters(PARAMETERS + "\nidle: int = 3  # of nothing"),
        "parameter idle is read by no cell",
    ),
    "no seeds": (parameters(PARAMETERS.replace("seeds: int", "seed: int")), "parameter seeds is missing"),
    "seeds of text": (
        parameters(PARAMETERS.replace("seeds: int = 3", "seeds: float = 3.0")),
        "parameter seeds must be int",
    ),
    "counts": (lambda b: b.cells[2].update(execution_count=7), "execution counts are [1, 7, 3]"),
    "not run": (lambda b: b.cells[2].update(execution_count=None), "execution counts are [1, None, 3]"),
    "stripped": (lambda b: [c.update(outputs=[]) for c in b.cells[1:]], "there are no outputs"),
    "nothing compared": (ignore_both, "nothing is compared"),
    "error": (
        lambda b: b.cells[2].outputs.append(new_output("error", ename="E", evalue="", traceback=[])),
        "ends in E",
    ),
    "KeOps": (output("[KeOps] Warning : CUDA libraries not found\n"), "In [2] holds a message of KeOps"),
    "progress": (output("100%|#####| 3/3 [00:01<00:00, 2.1it/s]\n"), "In [2] prints a progress bar"),
    "path in code": (
        lambda b: b.cells[2].update(source='open("/home/me/x")'),
        "cell 2 holds a machine's path: /home/m",
    ),
    "path in output": (output("saved to /tmp/x.png\n"), "cell 2 holds a machine's path: /tmp/x"),
    "path in html": (
        lambda b: b.cells[2].outputs.append(new_output("display_data", data={"text/html": "<b>/root/x</b>"})),
        "cell 2 holds a machine's path: /root/x",
    ),
    "Windows path": (output("C:\\Users\\me\n"), "cell 2 holds a machine's path"),
    "picture from outside": (lambda b: b.cells[0].update(source="# A\n![x](https://a.b/c.png)"), "loads from outside"),
    "script from outside": (
        lambda b: b.cells[0].update(source='# A\n<script src="https://a.b">'),
        "loads from outside",
    ),
    "too large": (output("x" * 1_600_000), "1.6 MB"),
    "not measured": (lambda b: b.cells[3].update(outputs=[]), "claim 04.C1 is never measured"),
    "unknown claim": (
        lambda b: b.cells[3].outputs[0].data[mime.MEASURE].update(id="04.C7"),
        "04.C7 is measured and stands in no claims file",
    ),
    "claim changed": (
        lambda b: b.cells[3].outputs[0].data[mime.MEASURE].update(threshold=0.01),
        "04.C1 was measured under another threshold",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_each_fault_is_found(tmp_path, fault):
    breaks, sentence = BROKEN[fault]
    book = good()
    breaks(book)
    assert any(sentence in problem for problem in lint(written(tmp_path, book)))


@pytest.mark.parametrize(
    ("presets", "sentence"),
    [
        ({"04": {"full": {"sedes": 5}}}, "full sets sedes, which is no parameter"),
        ({"04": {"full": {"lr": "fast"}}}, "lr='fast' is no float"),
        ({"04": {"gpu": {"seeds": True}}}, "seeds=True is no int"),
        ({"04": {"huge": {}}}, "'huge' is no preset"),
    ],
)
def test_each_fault_of_presets_is_found(tmp_path, presets, sentence):
    assert any(sentence in problem for problem in lint(written(tmp_path, presets=presets)))


def test_faults_between_files_are_found(tmp_path):
    written(tmp_path, presets={"09": {"full": {}}})
    written(tmp_path, name="04_other.ipynb", presets={"09": {"full": {}}})
    (tmp_path / "claims" / "05_gone.yaml").write_text("")
    assert lint_folder(tmp_path) == [
        "two notebooks are number 04",
        "claims/05_gone.yaml belongs to no notebook",
        "presets.yml names chapter '09', which is no notebook",
    ]


def test_a_name_and_a_broken_claims_file_are_found(tmp_path):
    assert any("is not NN_slug" in problem for problem in lint(written(tmp_path, name="chapter.ipynb")))
    path = written(tmp_path)
    (tmp_path / "claims" / "04_cmg.yaml").write_text("chapter: 4\nclaims: []")
    assert any("chapter is 4" in problem for problem in lint(path))


def test_addresses_and_formulas_are_no_machine_paths(tmp_path):
    book = good()
    book.cells[
        0
    ].source = "# A chapter\nhttps://a.org/home/x, $N:\\mathbb{R}$, `runs/04/tmp/x`, [paper](https://arxiv.org/abs/1)"
    assert lint(written(tmp_path, book)) == []
