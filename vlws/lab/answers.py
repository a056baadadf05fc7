"""What the tools of the MCP server answer: the shapes from which their output schemas are made."""

from typing import Any

from pydantic import BaseModel, Field

from vlws.lab.guards import NOTICE


class Untrusted(BaseModel):
    """What runs wrote, cleaned of control characters and bounded."""

    notice: str = NOTICE
    cut: str | None = Field(default=None, description="What was left out, and how to get it.")


class Newest(BaseModel):
    run_id: str
    preset: str
    status: str
    started: str


class Listed(BaseModel):
    id: str
    slug: str
    title: str
    summary: str
    presets: list[str]
    newest: Newest | None = Field(description="The newest run; null where there is none.")


class Chapters(BaseModel):
    chapters: list[Listed]


class Parameter(BaseModel):
    name: str
    type: str
    default: Any
    help: str = Field(description="What it is; in brackets what is accepted.")


class Claimed(BaseModel):
    id: str
    says: str
    where: str
    metric: str
    unit: str
    paper: float | None = Field(description="The paper's own value.")
    criterion: str = Field(description="What the 95 % interval must be for the claim to hold.")
    gates: list[str]


class Gate(BaseModel):
    name: str
    says: str
    metric: str
    direction: str
    threshold: float


class Described(BaseModel):
    id: str
    slug: str
    title: str
    paper: str
    summary: str
    backbones: list[str]
    parameters: list[Parameter]
    presets: dict[str, dict[str, Any]] = Field(description="Preset -> the values that replace the defaults.")
    claims: list[Claimed]
    gates: list[Gate]


class Budget(BaseModel):
    minutes: float = Field(description="For all runs that this server starts, together.")
    left: float
    at_once: int = Field(description="Runs that may go on at the same time.")
    running: list[str] = Field(description="Handles of the runs that go on.")


class Cells(BaseModel):
    done: int
    total: int


class Look(BaseModel):
    seeds: int
    level: float = Field(description="Of error, of this look; those of all looks together are at most 0.05.")
    value: float
    low: float | None
    high: float | None
    verdict: str
    why: str


class Proof(BaseModel):
    """The ledger of a proof: the numbers of seeds at which it looks, and what each look found."""

    claim: str
    says: str
    metric: str
    wanted: str = Field(description="What the interval must be for the claim to hold.")
    at: list[int] = Field(description="The numbers of seeds at which it looks, fixed when it began.")
    looks: list[Look]
    verdict: str | None
    why: str


class Written(Untrusted):
    progress: str = Field(
        default="", description="The newest line that the run wrote to stderr: its experiment's progress."
    )
    error: str = Field(default="", description="What ended a run that failed, or a proof before its end.")
    proof: Proof | None = Field(default=None, description="Of prove_claim: what was found so far.")


class Status(BaseModel):
    handle: str | None = Field(description="Of this server; null for a run that it did not start.")
    run_id: str | None = Field(description="Null for the second until the run's folder is there.")
    chapter: str
    preset: str
    status: str = Field(description="starting, running, ok, failed, dead, timeout or cancelled.")
    skipped: bool = Field(description="Nothing had changed since this finished run; it was not run again.")
    cells: Cells | None = Field(description="Cells of the notebook.")
    elapsed_s: float | None
    limit_s: float | None = Field(description="Seconds after which it is stopped: its share of the budget.")
    report: str | None = Field(description="The resource with the run's page, once it has ended.")
    budget: Budget
    untrusted: Written


class Rows(Untrusted):
    rows: list[dict[str, Any]]


class Claims(BaseModel):
    untrusted: Rows = Field(description="A row per claim: what is claimed, what was measured, and the verdict.")


class Records(BaseModel):
    untrusted: Rows = Field(description="A row per run, the newest first.")


class Table(Untrusted):
    columns: list[str]
    rows: list[list[Any]]


class Queried(BaseModel):
    untrusted: Table


class Difference(Untrusted):
    chapter: str
    runs: list[dict[str, Any]]
    parameters: list[dict[str, Any]] = Field(description="Those that differ: name, and a value per run.")
    code: list[dict[str, Any]]
    environment: list[dict[str, Any]]
    measures: list[dict[str, Any]] = Field(
        description="Side by side: a value, interval and verdict per run; `change`: to the first run, seed by seed."
    )
    gates: list[dict[str, Any]] = Field(description="Side by side: a value per run, and whether it passed.")
    results: list[dict[str, Any]] = Field(description="Figures on the user's own data, side by side.")


class Compared(BaseModel):
    untrusted: Difference
