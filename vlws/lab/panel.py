"""The extension of the Jupyter server behind the panel of JupyterLab: the open chapter, its runs, and its claims.

The panel itself is `labextensions/vlws/static/panel.js`. Runs are ordinary runs of the workspace that end with the
server (`vlws.lab.background`), one at a time, or two from MANY_CORES on; a further one is refused, and the form says
so. Who may ask is decided by the server's own authentication; what is told of runs is cleaned text
(`vlws.lab.guards`). Every refusal is one sentence.
"""

import asyncio
import atexit
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler, JupyterHandler
from jupyter_server.utils import url_path_join
from tornado.web import HTTPError, authenticated

from vlws import verdicts
from vlws.errors import InputError
from vlws.lab import chapters, contents, evidence, executors, guards, records, statuses
from vlws.lab.background import Run, Runs
from vlws.lab.describe import shown

PLAIN = ("·", "#5f6368")  # sign and colour of a claim without a verdict
MANY_CORES = 8  # from which on two runs go on at once
TOLD = {"handle", "run_id", "preset", "status", "skipped", "cells", "elapsed_s"}  # of a run's status
ASKED = {"chapter": str, "preset": str, "parameters": dict, "force": bool}  # of a run


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": __name__}]


def _load_jupyter_server_extension(serverapp: Any) -> None:
    """Add the handlers to a server; its runs end with it."""
    runs = Runs(None, at_once=2 if executors.cores() >= MANY_CORES else 1, allow_hub=True)
    atexit.register(runs.close)
    base = url_path_join(serverapp.web_app.settings["base_url"], "vlws")
    handlers: list[tuple[str, type[JupyterHandler]]] = [
        (r"/chapter", ChapterHandler),
        (r"/claims/(\d\d_\w+)", ClaimsHandler),
        (r"/outputs/(\d\d_\w+)", OutputsHandler),
        (r"/runs", RunsHandler),
        (r"/runs/(run-\d+)", RunHandler),
        (r"/pages/([\w.-]+)", PageHandler),
    ]
    known = [(url_path_join(base, path), handler, {"runs": runs}) for path, handler in handlers]
    serverapp.web_app.add_handlers(".*$", known)


# --- what the panel shows ---------------------------------------------------------------------------------------------


def told_at(file: Path, runs: Runs) -> dict[str, Any]:
    """What the panel is told of a file: the chapter that it is, or why it is none."""
    slug = contents.chapter_at(file)
    going = [_as_told(runs, run) for run in runs.going()]
    if slug is None:
        return {"chapter": None, "said": f"{file.name} is no chapter; the chapters are notebooks/NN_name.ipynb."}
    one = chapters.chapter(slug)
    parameters = [
        {"name": p.name, "type": p.type, "default": p.default, "help": p.help, "accepts": p.accepts}
        for p in one.parameters.values()
        if p.name != "preset"
    ]
    mine = [run for run in list(runs.known.values()) if run.job["slug"] == slug]
    own = contents.own_file(slug)
    return {
        "chapter": chapters.told(one) | {"parameters": parameters, "presets": chapters.presets(one)},
        "written": one.path.stat().st_mtime_ns,
        "run": _as_told(runs, mine[-1]) if mine else None,
        "others": [f"{run['slug']} at preset {run['preset']}" for run in going if run["slug"] != slug],
        "outputs": {"cells": len(contents.read_own(own)), "file": shown(own)},
    }


def claims_of(slug: str) -> list[dict[str, Any]]:
    """The claims of a chapter as `vlws claims --json` tells them, each with the sign and the colour of its verdict."""
    one = chapters.chapter(slug)
    records.forget()
    rows = [row.told() for row in evidence.standing(guards.runs(one.slug), [one]).values()]
    signs = {row["id"]: verdicts.VERDICTS.get(row["verdict"], PLAIN) for row in rows}
    return [row | {"sign": signs[row["id"]][0], "colour": signs[row["id"]][1]} for row in rows]


def _as_told(runs: Runs, run: Run) -> dict[str, Any]:
    """The status of a run as the MCP server tells it; has it a `page`, and `counts` it as evidence?"""
    said = statuses.of_run(runs, run)
    told = said.model_dump(mode="json", include=TOLD)
    told |= {"slug": run.job["slug"], "page": said.report is not None}
    told |= {"counts": evidence.counts({**run.job, "status": said.status})}
    return told | {"progress": said.untrusted.progress, "error": said.untrusted.error}


def _start(runs: Runs, asked: Any) -> dict[str, Any]:
    known = isinstance(asked, dict) and set(asked) <= set(ASKED)
    if not known or not all(isinstance(asked.get(name), kind) for name, kind in ASKED.items()):
        wanted = ", ".join(f"{name} ({kind.__name__})" for name, kind in ASKED.items())
        raise InputError(f"a run is asked for as a JSON object of {wanted}; got {guards.clean(json.dumps(asked), 99)}.")
    return _as_told(runs, runs.start(**asked))


def _forget_outputs(slug: str) -> dict[str, Any]:
    one = chapters.chapter(slug)
    contents.forget(one.slug)
    return {"cells": 0, "file": shown(contents.own_file(one.slug))}


# --- handlers ---------------------------------------------------------------------------------------------------------


class Refused(Exception):
    """What cannot be answered, in one sentence."""


class Handler(APIHandler):
    """A handler that answers by JSON: a value, or a refusal as {"error": sentence}."""

    auth_resource = "vlws"

    def initialize(self, runs: Runs) -> None:
        self.runs = runs

    async def reply(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Answer what a function gives; it is called in a thread, since it may take seconds."""
        try:
            said = await asyncio.to_thread(guards.raising(Refused)(function), *arguments)
        except Refused as error:
            self.set_status(400)
            said = {"error": str(error)}
        await self.finish(json.dumps(guards.cleaned(said)))


class ChapterHandler(Handler):
    @authenticated
    @authorized
    async def get(self) -> None:
        root = self.settings["contents_manager"].root_dir
        await self.reply(told_at, contents.file_at(self.get_query_argument("path"), root), self.runs)


class ClaimsHandler(Handler):
    @authenticated
    @authorized
    async def get(self, slug: str) -> None:
        await self.reply(lambda: {"claims": claims_of(slug)})


class OutputsHandler(Handler):
    @authenticated
    @authorized
    async def delete(self, slug: str) -> None:
        await self.reply(_forget_outputs, slug)


class RunsHandler(Handler):
    @authenticated
    @authorized
    async def post(self) -> None:
        await self.reply(_start, self.runs, self.get_json_body())


class RunHandler(Handler):
    @authenticated
    @authorized
    async def get(self, handle: str) -> None:
        await self.reply(lambda: _as_told(self.runs, self.runs.get(handle)))

    @authenticated
    @authorized
    async def delete(self, handle: str) -> None:
        await self.reply(lambda: _as_told(self.runs, self.runs.cancel(handle)))


class PageHandler(JupyterHandler):
    """The page of a run, kept apart from the server's own pages: its scripts reach neither cookies nor the API."""

    auth_resource = "vlws"

    def initialize(self, runs: Runs) -> None:
        """It needs no runs of this server: a page is that of any run."""

    @property
    def content_security_policy(self) -> str:
        return f"{super().content_security_policy}; sandbox allow-scripts allow-popups"

    @authenticated
    @authorized
    async def get(self, run_id: str) -> None:
        try:
            page = await asyncio.to_thread(guards.raising(Refused)(guards.page), run_id)
        except Refused as error:
            raise HTTPError(404, str(error).replace("%", "%%")) from None
        self.set_header("Content-Type", "text/html; charset=utf-8")
        await self.finish(page)
