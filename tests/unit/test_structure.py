"""The house stays as it was laid: which way imports point, how long files grow, whose names are private.

The layout and its reasons stand in CONTRIBUTING.md. Each rule is held against a small tree that breaks it.
"""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"vlws": ROOT / "vlws", "vlws_kernels": ROOT / "kernels" / "vlws_kernels", "backbones": ROOT / "backbones"}
MAX_LINES = 350  # without docstrings
LONGER = {  # file -> why it is longer than MAX_LINES
    "backbones.blip2_facts": "an eye, two stages of lessons, gates and a card, read from start to end",
    "backbones.blip2_emoji": "four stages of training, each with its data and its loss, read from start to end",
}

# what the modules of each room may import, beside their own room and BASE; the first room that fits counts
BASE = ("vlws.errors", "vlws.files", "vlws.paths", "vlws.fingerprint", "vlws.stats", "vlws.mime", "vlws.training_log")
ROOMS = {
    "vlws.lab": (
        "vlws.cells",
        "vlws.claims",
        "vlws.experiment",  # which `lab.only` takes the place of
        "vlws.verdicts",
        "vlws.display",
        "vlws.data",
        "vlws.models.hub",
        "vlws.models.kinds",
        "vlws_kernels",
        "vlws.edit",
        "vlws.draw",
        "vlws.prompt",
        "vlws.retrieve",
        "vlws.gram",
    ),
    "vlws.prompt": ("vlws.methods", "vlws.models", "vlws.data"),
    "vlws.retrieve": ("vlws.methods", "vlws.models", "vlws.data", "vlws.search", "vlws.shards", "vlws.streams"),
    "vlws.search": ("vlws.shards",),
    "vlws.streams": ("vlws.data",),
    "vlws.gram": ("vlws.shards", "vlws_kernels"),
    "vlws.draw": ("vlws.methods", "vlws.models", "vlws.data", "vlws_kernels"),
    "vlws.edit": ("vlws.methods", "vlws.models", "vlws.data"),
    "vlws.methods": ("vlws.models", "vlws.data", "vlws.train", "vlws_kernels"),
    "vlws.models": ("vlws.data", "vlws.train", "vlws_kernels"),
    "vlws.data.emoji_world": ("vlws.data",),
    "vlws.data": ("vlws_kernels",),
    "vlws_kernels": (),
    "backbones": ("vlws.models", "vlws.data", "vlws.train", "vlws.plots", "vlws.methods", "vlws.prompt"),
    "vlws.claims": ("vlws.claims_file", "vlws.verdicts", "vlws.display"),
    "vlws.verdicts": ("vlws.display",),
    "vlws.experiment": ("vlws.cells",),
    "vlws.own": ("vlws.display",),
    "vlws": (),  # train, plots, display, ...
}
# a room that keeps its files apart: what two of them share moves down
APART = ("vlws.methods",)
# the generators of toy data, which no library code may know; the lab builds and lists their assets
TOYS = "vlws.data.emoji_world"
KNOWS_TOYS = ("vlws.data.emoji_world", "vlws.lab", "backbones")


def modules(packages: dict[str, Path]) -> dict[str, Path]:
    """Module name -> file, of every module of the packages."""
    found = {}
    for package, folder in packages.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join([package, *(p for p in parts if p != "__init__")])] = path
    return found


def imports(tree: ast.AST, known: set[str]) -> Iterator[tuple[str, str]]:
    """(module, name) of every import of ours, wherever it stands; the name is "" for a whole module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                if f"{node.module}.{alias.name}" in known:
                    yield f"{node.module}.{alias.name}", ""
                elif node.module in known:
                    yield node.module, alias.name


def lines_of(text: str) -> int:
    """Lines of a file without those of its docstrings: an example more is no reason to split a file."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    documented = [
        node.body[0] for node in ast.walk(ast.parse(text)) if isinstance(node, kinds) and ast.get_docstring(node)
    ]
    return text.count("\n") - sum((part.end_lineno or 0) - part.lineno + 1 for part in documented)


def within(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


def problems(packages: dict[str, Path], longer: dict[str, str]) -> list[str]:
    """What breaks the rules, each in one sentence."""
    found, graph = [], {}
    known = modules(packages)
    for module, path in known.items():
        text = path.read_text(encoding="utf-8")
        tree, lines = ast.parse(text), lines_of(text)
        if lines > MAX_LINES and module not in longer:
            found.append(
                f"{module} has {lines} lines without docstrings; {MAX_LINES} are allowed, or a reason in LONGER"
            )
        targets = set(imports(tree, set(known)))
        graph[module] = {target for target, _ in targets if target != module}
        found += [f"{module} imports {target}" for target in graph[module] if not allowed(module, target)]
        found += [f"{module} takes the private {t}.{name}" for t, name in targets if private(name) and t != module]
        found += private_attributes(module, tree, set(known))
    try:
        tuple(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        found.append(f"imports go round: {' -> '.join(error.args[1])}")
    return found


def allowed(module: str, target: str) -> bool:
    if within(target, TOYS) and not any(within(module, room) for room in KNOWS_TOYS):
        return False
    if any(within(target, room) for room in BASE):
        return True
    room = next(room for room in ROOMS if within(module, room))
    same = within(target, room) and room not in APART and room != "vlws"
    return same or target in ("vlws", room) or any(within(target, other) for other in ROOMS[room])


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_attributes(module: str, tree: ast.AST, known: set[str]) -> list[str]:
    """Uses such as `scenes._below` of a module of ours that was imported whole."""
    aliases = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if f"{node.module}.{alias.name}" in known:
                    aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            aliases |= {alias.asname: alias.name for alias in node.names if alias.asname and alias.name in known}
    used = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    return [
        f"{module} takes the private {aliases[node.value.id]}.{node.attr}"
        for node in used
        if node.value.id in aliases and private(node.attr)
    ]


def test_the_house_is_as_it_was_laid():
    assert problems(PACKAGES, LONGER) == []


def test_a_reason_stands_only_where_it_is_needed():
    lines = {module: lines_of(path.read_text(encoding="utf-8")) for module, path in modules(PACKAGES).items()}
    assert [module for module in LONGER if lines.get(module, 0) <= MAX_LINES] == []
    assert all(LONGER.values())


BROKEN = {
    "a model that knows a method": ({"models/a.py": "from vlws.methods import b", "methods/b.py": ""}, "imports"),
    "a method that knows another": ({"methods/a.py": "from vlws.methods.b import x", "methods/b.py": ""}, "imports"),
    "a method that knows the lab": ({"methods/a.py": "import vlws.lab.b", "lab/b.py": ""}, "imports vlws.lab.b"),
    "claims that know the lab": ({"claims.py": "def f():\n    from vlws.lab import b", "lab/b.py": ""}, "imports"),
    "a reader that knows toys": (
        {"data/a.py": "from vlws.data.emoji_world.b import x", "data/emoji_world/b.py": ""},
        "imports vlws.data.emoji_world.b",
    ),
    "a circle": ({"lab/a.py": "from vlws.lab import b", "lab/b.py": "from vlws.lab import a"}, "imports go round"),
    "a private name": ({"lab/a.py": "from vlws.lab.b import _x", "lab/b.py": ""}, "takes the private vlws.lab.b._x"),
    "a private attribute": ({"lab/a.py": "from vlws.lab import b\nb._x()", "lab/b.py": ""}, "takes the private"),
    "a long file": ({"lab/a.py": "x = 1\n" * 351}, "has 351 lines"),
    "a long file behind a docstring": ({"lab/a.py": '"""A short one."""\n' + "x = 1\n" * 351}, "has 351 lines"),
}


@pytest.mark.parametrize(("files", "problem"), BROKEN.values(), ids=BROKEN.keys())
def test_what_breaks_a_rule_is_found(tmp_path, files, problem):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (told,) = problems({"vlws": tmp_path}, {})
    assert problem in told


def test_docstrings_do_not_count(tmp_path):
    told = '"""What it is.\n' + "\n" * 200 + '"""\n'
    function = "def f():\n    " + told + "    return 1\n"
    (tmp_path / "a.py").write_text(told + "x = 1\n" * 340 + function)
    assert problems({"vlws": tmp_path}, {}) == []


def test_a_reason_allows_a_long_file(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n" * 351)
    assert problems({"vlws": tmp_path}, {"vlws.a": "one table"}) == []
