"""The resources of the MCP server: pages of runs, claims, and the rules of the workspace."""

import json
from typing import Any

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError

from vlws import paths
from vlws.errors import InputError
from vlws.lab import chapters, compare, evidence, guards, records


def add(server: MCPServer) -> None:
    """Add the resources to a server."""
    untrusted = {"untrusted": True, "notice": guards.NOTICE}

    @server.resource("vlws://AGENTS.md", mime_type="text/markdown")
    @guards.raising(ResourceError)
    def agents() -> str:
        """The rules of the workspace, its commands, and what their answers hold."""
        return (paths.root() / "AGENTS.md").read_text(encoding="utf-8")

    @server.resource("vlws://claims", mime_type="application/json", meta=untrusted)
    @guards.raising(ResourceError)
    def all_claims() -> str:
        """Every claim, what was measured, and the verdict."""
        return _as_json(claims())

    @server.resource("vlws://claims/{chapter}", mime_type="application/json", meta=untrusted)
    @guards.raising(ResourceNotFoundError)
    def claims_of(chapter: str) -> str:
        """The claims of one chapter, what was measured, and the verdicts."""
        return _as_json(claims(chapter))

    @server.resource("vlws://runs/{run_id}/report/{part}", mime_type="text/plain", meta=untrusted)
    @guards.raising(ResourceNotFoundError)
    def report(run_id: str, part: str) -> str:
        """The page of a run as text, in parts from 1."""
        page = guards.page(run_id)
        text, count = guards.part_of(guards.clean(guards.as_text(page), None), part, f"the report of {run_id}")
        _, raw = guards.part_of(page, "1", run_id)
        more = "" if int(part) == count else f" Next: vlws://runs/{run_id}/report/{int(part) + 1}."
        where = f"Report of run {run_id}, part {part} of {count}.{more}"
        return f"{guards.NOTICE} {where} As HTML, parts 1 to {raw}: vlws://runs/{run_id}/html/1.\n\n{text}"

    @server.resource("vlws://runs/{run_id}/html/{part}", mime_type="text/html", meta=untrusted)
    @guards.raising(ResourceNotFoundError)
    def html(run_id: str, part: str) -> str:
        """The page of a run as HTML, in parts from 1 that are put together in order."""
        return guards.part_of(guards.page(run_id), part, f"the page of {run_id}")[0]


def _as_json(rows: list[dict[str, Any]]) -> str:
    kept, cut = guards.fitting(rows, "read vlws://claims/NN of one chapter", 10 * guards.ANSWER)
    return json.dumps({"untrusted": {"notice": guards.NOTICE, "cut": cut, "rows": kept}}, ensure_ascii=False)


def claims(chapter: str | None = None, claim: str | None = None, run: str | None = None) -> list[dict[str, Any]]:
    """What is claimed, what was measured and the verdict: of all claims, of a chapter's, or of one; or by one run."""
    slug = chapters.chapter(chapter).slug if chapter else None
    records.forget()
    if run is not None:
        (record,) = compare.find([run], guards.runs())
        rows = compare.claims_of(record) if slug in (None, record["slug"]) else []
    else:
        rows = [row.told() for row in evidence.standing(guards.runs()).values() if slug in (None, row.slug)]
    known = [row["id"] for row in rows]
    if claim is not None and claim not in known:
        near = [id for id in known if id.startswith(f"{claim.partition('.')[0]}.")]
        chapters_of = ", ".join(dict.fromkeys(id[:2] for id in known))
        there = ", ".join(near) or (f"those of the chapters {chapters_of}" if known else "none")
        raise InputError(f"no claim {claim!r}; there are {there}.")
    return [row for row in rows if claim in (None, row["id"])]
