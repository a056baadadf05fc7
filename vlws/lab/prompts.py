"""The prompts of the MCP server: what a program is asked to do with its tools."""

import json
from typing import Annotated

from mcp import MCPError
from mcp.server.mcpserver import MCPServer
from mcp_types import INVALID_PARAMS
from pydantic import Field

from vlws.errors import InputError
from vlws.lab import chapters, evidence, guards


def _invalid(sentence: str) -> MCPError:
    return MCPError(INVALID_PARAMS, sentence)


def add(server: MCPServer) -> None:
    """Add the prompts to a server."""

    @server.prompt()
    @guards.raising(_invalid)
    def reproduce_claim(
        claim: Annotated[str, Field(description="The claim's id, such as 04.C2.")],
        preset: Annotated[str, Field(description="cpu (minutes) or full (far more).")] = "cpu",
    ) -> str:
        """Reproduce a claim of a paper: run its chapter, and report the verdict with its interval."""
        one = chapters.chapter(claim.partition(".")[0])
        known = evidence.known_claims(one)
        if claim not in known:
            raise InputError(f"no claim {claim!r} in chapter {one.id}; its claims are {', '.join(known) or 'none'}.")
        chapters.preset_values(one, preset)
        if preset == "test":
            raise InputError("preset is 'test', whose figures are no evidence; give cpu or a larger one.")
        return (
            f"Reproduce claim {claim} of the paper of chapter {one.slug}: {known[claim].says}\n\n"
            f"1. Call describe_chapter for {one.id}: how the claim is measured, and which gates come before it.\n"
            f"2. Call run_chapter with chapter {one.id} and preset {preset}, then run_status until it has ended. "
            "Change no parameter: a run with changed parameters is no evidence.\n"
            f"3. Call claims with claim {claim} and run, the run_id of that run; then without run, for the published "
            "result beside it. Report of both value, 95 % interval, criterion, number of seeds, the verdict "
            "and the verdict after Holm's correction as they are; a claim that fails is a result.\n"
            "4. Where the published row has a `proof` that is not stale, report it too: seeds were added until the "
            "claim was decided. Where your verdict is undecided and there is none, report the remedy, which "
            "prove_claim carries out within the budget; where it is not at this scale, report why; where the "
            "run failed, its error."
        )

    @server.prompt()
    @guards.raising(_invalid)
    def try_my_data(
        chapter: Annotated[str, Field(description="A chapter by id, slug or name.")],
        data: Annotated[str, Field(description="A path inside the workspace.")],
    ) -> str:
        """Run a chapter's method on the user's own data, and report the figures."""
        one = chapters.chapter(chapter)
        if "data" not in one.parameters:
            raise InputError(f"chapter {one.id} takes no data; its parameters are {', '.join(one.parameters)}.")
        guards.located("data", data, allow_hub=False)
        return (
            f"Run the method of chapter {one.slug} ({one.title}) on the user's data, {data}.\n\n"
            f"1. Call describe_chapter for {one.id}: what the parameter `data` takes "
            f"({one.parameters['data'].help}), and which knobs there are.\n"
            f"2. Call run_chapter with chapter {one.id} and parameters {json.dumps({'data': data})}. Where the data is "
            "refused, report the sentence: it says what is accepted.\n"
            "3. Poll run_status until it has ended, then read the resource that it names as `report`, and query_runs "
            "with SELECT * FROM results for the figures with their intervals.\n"
            "4. Report the figures, what they were measured on, and what the chapter says that this scale cannot show. "
            "Verdicts of the paper's claims say nothing of the user's data."
        )
