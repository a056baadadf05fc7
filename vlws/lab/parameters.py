"""The parameters that a notebook declares: their types, their literals, and what values they accept."""

import ast
import io
import math
import re
import tokenize
from dataclasses import dataclass
from typing import Any

from vlws.errors import InputError

PRESETS = ("test", "cpu", "full", "gpu", "real")  # cpu: the literals of the notebook
TYPES = ("bool", "int", "float", "str")
# what the parameters of every chapter accept; a chapter's own say it at the end of their comment, see `Parameter`
COMMON = {
    "preset": f"[{' or '.join(PRESETS)}]",
    "seeds": "[at least 1]",
    "device": "[auto or cpu or cuda or cuda:N or mps]",
}


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell: `lr: float = 1.0e-3  # learning rate [above 0]`.

    The type is bool, int, float, str, or list[...] of one of them. What a value must be may stand at the end of the
    comment, in brackets: `[at least 1]`, `[at most 9]`, `[above 0]`, `[below 1]`, `[0 to 1]` or `[adam or sgd]`. Words,
    since papermill drops a parameter with a second "=" in its line, and a table in Markdown a cell with "|".
    """

    name: str
    type: str
    default: Any
    help: str

    def read(self, given: Any) -> Any:
        """A value of the declared type, from text ("1e-4", as a command line gives it) or a value (as YAML does).

        Raises InputError where it is none, or not what the comment accepts.
        """
        if self.type.startswith("list["):
            parts = self._split(given) if isinstance(given, str) else given
            if not isinstance(parts, list | tuple):
                raise self._refused(given)
            value: Any = [self._scalar(part, self.type[5:-1], given) for part in parts]
        else:
            value = self._scalar(given, self.type, given)
        self._check_range(value)
        return value

    def _scalar(self, given: Any, kind: str, whole: Any) -> Any:
        text = given.strip() if isinstance(given, str) else None
        if kind == "str" and isinstance(given, str):
            return given
        if kind == "bool":
            if isinstance(given, bool):
                return given
            if text and text.lower() in ("true", "yes", "on", "false", "no", "off"):
                return text.lower() in ("true", "yes", "on")
        try:
            if kind == "int" and (text or type(given) is int):
                return int(text or given)
            if kind == "float" and (text or type(given) in (int, float)):
                value = float(text or given)
                if math.isfinite(value):
                    return value
        except ValueError:
            pass
        raise self._refused(whole)

    def _refused(self, given: Any) -> InputError:
        examples = {
            "bool": "true or false",
            "int": "a whole number",
            "float": "a finite number",
            "str": "text, quoted",
        }
        kind = self.type[5:-1] if self.type.startswith("list[") else self.type
        what = f"a list of {kind}, such as [a, b]" if kind != self.type else examples[kind]
        return InputError(f"{self.name}={given!r} is no {self.type}; {self.name} takes {what} ({self._said()}).")

    def _said(self) -> str:
        return f"{self.help or 'no comment'}; the notebook has {self.default!r}"

    @staticmethod
    def _split(text: str) -> list[str]:
        inner = text.strip()
        inner = inner[1:-1] if inner.startswith("[") and inner.endswith("]") else inner
        return [part.strip().strip("'\"") for part in inner.split(",") if part.strip()]

    @property
    def accepts(self) -> str | None:
        """What a value must be, as the comment says it: "at least 1"; None where nothing is said."""
        rule = re.search(r"\[([^\[\]]+)\]\s*$", self.help) or re.search(r"\[(.+)\]", COMMON.get(self.name, ""))
        return rule[1].strip() if rule else None

    def _check_range(self, value: Any) -> None:
        said = self.accepts
        if said is None:
            return
        for part in value if isinstance(value, list) else [value]:
            if not _accepted(part, said):
                raise InputError(f"{self.name}={part!r} is outside what it accepts: {said}.")


def _accepted(value: Any, rule: str) -> bool:
    """Whether a value meets a rule such as "at least 1", "0 to 1", "adam or sgd"; numbers are no rule for a text."""
    number = r"([-+.\deE]+)"
    if " or " in rule:
        patterns = [re.escape(part.strip()).replace(":N", r":\d+") for part in rule.split(" or ")]
        return any(re.fullmatch(pattern, str(value)) for pattern in patterns)
    if isinstance(value, str):
        return True
    if span := re.fullmatch(f"{number} to {number}", rule):
        return float(span[1]) <= value <= float(span[2])
    if bound := re.fullmatch(rf"(at least|above|at most|below) {number}", rule):
        name, limit = bound[1], float(bound[2])
        return {"at least": value >= limit, "above": value > limit, "at most": value <= limit, "below": value < limit}[
            name
        ]
    return True


def read_parameters(source: str, where: str) -> dict[str, Parameter]:
    """The parameters that a parameters cell declares; InputError for a line that is not `name: type = literal`."""
    comments = {}
    try:
        tree = ast.parse(source)
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT:
                comments[token.start[0]] = token.string.lstrip("# ").strip()
    except (SyntaxError, tokenize.TokenError) as error:
        raise InputError(f"{where}: the parameters cell is not Python: {error}.") from None
    found: dict[str, Parameter] = {}
    for node in tree.body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # a docstring
        line = source.splitlines()[node.lineno - 1].strip()
        wanted = "write `name: type = literal  # help`, with type bool, int, float, str or list[...] of one"
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None):
            raise InputError(f"{where}: {line!r} is no parameter; {wanted}.")
        kind = ast.unparse(node.annotation).strip("'\"")
        if kind not in TYPES and not (kind.startswith("list[") and kind[5:-1] in TYPES):
            raise InputError(f"{where}: {line!r} declares {kind}; {wanted}.")
        try:
            default = ast.literal_eval(node.value)
        except ValueError:
            raise InputError(f"{where}: {line!r} is computed; {wanted} and derive in the next cell.") from None
        parameter = Parameter(node.target.id, kind, default, comments.get(node.end_lineno or node.lineno, ""))
        wrong_kind = isinstance(default, str) and kind not in ("str", "list[str]")
        if wrong_kind or (kind == "float" and isinstance(default, bool)):
            raise InputError(f"{where}: {line!r} declares {kind} but holds {default!r}.")
        parameter.read(default)
        found[parameter.name] = parameter
    return found
