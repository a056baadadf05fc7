"""nbval as this workspace needs it: what it does not compare, figures within a tolerance, cells run as in Lab."""

import os
from collections.abc import Iterator
from typing import Any

from nbval.kernel import RunningKernel
from nbval.plugin import IPyNbCell, IPyNbFile

MEASURE = "application/vnd.vlws.measure+json"
GATE = "application/vnd.vlws.gate+json"
DATA = (MEASURE, GATE, "application/vnd.vlws.arms+json", "application/vnd.vlws.table+json")
# tables and sentences with figures are compared by their plain text, measures and gates by `drift`, pictures by nothing
UNCOMPARED = ("text/html", "text/markdown", "image/png", "image/svg+xml", "stderr", *DATA)
WIDGETS = ("application/vnd.jupyter.widget-view+json", "application/vnd.jupyter.widget-state+json")


def pytest_collection_modifyitems(items):
    for notebook in {item.parent for item in items if isinstance(item.parent, IPyNbFile)}:
        notebook.skip_compare = (*notebook.skip_compare, *UNCOMPARED, *WIDGETS)


def drift(committed: dict[str, Any], computed: dict[str, Any]) -> str:
    """What differs between two measures of one claim by more than the tolerance, in a sentence, or "".

    The tolerance of a value is half the width of its committed interval, or 1e-6 of it where there is none: more than
    that is more than the measure's own noise.
    """
    old, new = committed.get("value"), computed.get("value")
    if old is None or new is None:
        return "" if old == new else f"{committed['id']}: {old} is committed, {new} was computed"
    if committed.get("reported"):  # a time: shown, never judged
        return ""
    low, high = committed.get("low"), committed.get("high")
    tolerance = 1e-6 * max(1.0, abs(old)) if low is None else max((high - low) / 2, 1e-6 * max(1.0, abs(old)))
    if abs(new - old) <= tolerance:
        return ""
    return f"{committed['id']}: {old:.4g} is committed, {new:.4g} was computed; the tolerance is {tolerance:.2g}"


def drifts(committed: list[dict], computed: list[dict]) -> Iterator[str]:
    """What differs between the outputs of a cell: measures by `drift`, gates by whether they are passed."""
    new = {(mime, key): value for mime, key, value in _data(computed)}
    for mime, key, old in _data(committed):
        if (mime, key) not in new:
            yield f"{key}: is committed and was not computed"
        elif mime == MEASURE:
            yield drift(old, new[mime, key])
        elif old["passed"] != new[mime, key]["passed"]:
            yield f"gate {key}: passed was {old['passed']} and is {new[mime, key]['passed']}"


def _data(outputs: list[dict]) -> Iterator[tuple[str, str, dict]]:
    for output in outputs:
        for mime, key in ((MEASURE, "id"), (GATE, "name")):
            if value := output.get("data", {}).get(mime):
                yield mime, value[key], value


_compare_outputs = IPyNbCell.compare_outputs


def _compare(self: IPyNbCell, test: list, ref: list, skip_compare=None) -> bool:
    """nbval's comparison of texts, then, where the scale is the committed one, ours of figures."""
    if not _compare_outputs(self, test, ref, skip_compare):
        return False
    told = [line for line in drifts(ref, test) if line] if os.environ.get("VLWS_COMPARE_FIGURES") else []
    self.comparison_traceback += told
    return not told


def _execute_as_jupyter_does(self: RunningKernel, source: str, allow_stdin: bool | None = None) -> str:
    """nbval runs cells outside the history; then IPython does not see the `;` that hides a cell's last value."""
    return self.kc.execute(source, store_history=True, allow_stdin=allow_stdin, stop_on_error=False)


IPyNbCell.compare_outputs = _compare
RunningKernel.execute_cell_input = _execute_as_jupyter_does
