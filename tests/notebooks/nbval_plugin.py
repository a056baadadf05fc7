"""nbval as this workspace needs it: what it does not compare, and cells that run as they do in JupyterLab."""

from nbval.kernel import RunningKernel
from nbval.plugin import IPyNbFile

# tables, measures and sentences with figures are compared by their plain text, pictures and stderr by nothing
UNCOMPARED = ("text/html", "text/markdown", "image/png", "image/svg+xml", "stderr", "application/vnd.vlws.measure+json")
WIDGETS = ("application/vnd.jupyter.widget-view+json", "application/vnd.jupyter.widget-state+json")


def pytest_collection_modifyitems(items):
    for notebook in {item.parent for item in items if isinstance(item.parent, IPyNbFile)}:
        notebook.skip_compare = (*notebook.skip_compare, *UNCOMPARED, *WIDGETS)


def _execute_as_jupyter_does(self: RunningKernel, source: str, allow_stdin: bool | None = None) -> str:
    """nbval runs cells outside the history; then IPython does not see the `;` that hides a cell's last value."""
    return self.kc.execute(source, store_history=True, allow_stdin=allow_stdin, stop_on_error=False)


RunningKernel.execute_cell_input = _execute_as_jupyter_does
