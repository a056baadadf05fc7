"""The command that computes matrices of alignment kernels of many sequences."""

from pathlib import Path
from typing import Annotated

import typer

from vlws.lab.options import Json, Parsl, Slots
from vlws.lab.terminal import Progress, answer


def gram_command(
    sequences: Annotated[
        Path,
        typer.Argument(help="A folder of .npy files, each 'length dim' or 'length'; or an .npz of values and lengths."),
    ],
    out: Annotated[Path, typer.Option(help="The folder of the matrix, gram.npy.")],
    kernel: Annotated[str, typer.Option(help="gak, soft_dtw or dtw.")] = "gak",
    sigma: Annotated[
        float | None, typer.Option(help="Of gak, in the unit of the elements.", show_default=False)
    ] = None,
    gamma: Annotated[float | None, typer.Option(help="Of soft_dtw, in its square.", show_default=False)] = None,
    other: Annotated[
        Path | None,
        typer.Option("--with", help="The sequences of the columns; else those of the rows.", show_default=False),
    ] = None,
    block: Annotated[int, typer.Option(help="Sequences of a block's side; a block is a job.")] = 256,
    jobs: Slots = None,
    parsl: Parsl = None,
    as_json: Json = False,
) -> None:
    """The matrix of an alignment kernel of all pairs of sequences; started again, it goes on where it was.

    Examples: vlws gram sequences --out matrix --sigma 2 --jobs 2;
    vlws gram test.npz --with train.npz --out matrix --kernel dtw --parsl cluster.py
    """
    from vlws.gram import gram
    from vlws.lab.slots import over

    with Progress("pairs") as progress:
        done = gram(
            sequences,
            out,
            kernel=kernel,
            sigma=sigma,
            gamma=gamma,
            other=other,
            block=block,
            run=over(jobs, parsl),
            progress=progress,
        )
    done["per_second"] = progress.rate()
    told = f"{done['kernel']} of {done['n']} x {done['m']} sequences in {done['blocks']} blocks: {done['out']}/gram.npy"
    if done["reused"]:
        told += f"\n{done['reused']} of the blocks were there."
    answer(as_json, done, told)
