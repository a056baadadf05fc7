"""The command `vlws prove`."""

import time
from typing import Annotated, Any

import typer

from vlws.display import number
from vlws.errors import InputError
from vlws.lab.options import Json
from vlws.lab.terminal import aligned, answer, say, width, with_interval


def prove_command(
    claims: Annotated[list[str] | None, typer.Argument(help="Claims by id, such as 04.C2.", show_default=False)] = None,
    all_claims: Annotated[bool, typer.Option("--all", help="All undecided claims, the cheapest first.")] = False,
    preset: Annotated[
        str | None, typer.Option(help="That of the result that stands, by default.", show_default=False)
    ] = None,
    seeds: Annotated[int, typer.Option(help="At most; fixed when a proof begins.")] = 24,
    minutes: Annotated[
        float | None, typer.Option(help="At most, of this call; with --all needed.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Add seeds until a claim is decided or the budget is spent, and print the verdict with its evidence.

    Only the arms that the claim reads are computed. However often one looks, at most one claim of twenty whose effect
    is the threshold itself is decided. A later call goes on from where this one ended.

    Examples: vlws prove 04.C3 --minutes 30; vlws prove --all --minutes 60
    """
    from vlws.lab import prove

    if bool(claims) == all_claims:
        raise InputError("prove takes one or more claims, such as 04.C2, or --all: one of the two.")
    if all_claims and minutes is None:
        raise InputError("--all needs --minutes, how long it may take.")
    prove.check_minutes(minutes)
    for id in claims or ():
        prove.begin(id, preset, seeds)  # all that is given is checked before any work
    began = time.monotonic()
    done: list[dict[str, Any]] = []
    for id in claims or prove.open_claims(minutes or 0.0, seeds):
        left = None if minutes is None else minutes - (time.monotonic() - began) / 60
        if left is not None and left <= 0:
            say(f"{id} and what follows: no time is left")
            break
        done.append(prove.prove(id, preset=preset, seeds=seeds, minutes=left, say=say))
    answer(as_json, done, "\n\n".join(map(told, done)) or "No claim is undecided that this budget could decide.")
    if any(proof["ended"] not in ("", prove.SPENT) for proof in done):
        raise typer.Exit(1)


def told(proof: dict[str, Any]) -> str:
    """A proof in words: every look, the verdict, and the chain of its evidence."""
    rows = [
        [str(look["seeds"]), with_interval(look), f"{100 * (1 - look['level']):.2f} %", look["verdict"]]
        for look in proof["looks"]
    ]
    lines = [f"{proof['claim']} {proof['says']}", f"{proof['metric']}; wanted {proof['wanted']}", ""]
    lines += [aligned(["seeds", "measured", "level", "verdict"], rows, width()), ""] if rows else []
    lines.append(
        f"{proof['verdict'] or 'no verdict yet'}: {proof['why']}{'; ' if proof['ended'] else ''}{proof['ended']}"
    )
    if proof["looks"]:
        last = proof["looks"][-1]
        for gate in last["gates"]:
            word = "passed" if gate["passed"] else "failed"
            lines.append(f"gate {gate['name']}: {number(gate['value'])}, {word}")
        for name, cells in last["cells"].items():
            lines.append(
                f"cells {name}: {', '.join(cells['arms'])} x {cells['seeds']} seeds; code {last['code'][name]}"
            )
        env = last["env"]
        lines.append(
            f"code and data {proof['key'][:12]}, pins {env['constraints']}, torch {env['torch']}, {env['cpu']}"
        )
        lines.append(f"run {last['run']}")
    return "\n".join([*lines, f"ledger {proof['ledger']}"])
