"""The commands that retrieve: an index of documents, and what fits a query."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vlws.lab.options import Json
from vlws.lab.terminal import aligned, answer, width

Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


def index_command(
    data: Annotated[Path, typer.Argument(help="A folder of .txt and .md files, or of BEIR.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The folder of the index; an index that is there is replaced.")],
    backbone: Annotated[
        str,
        typer.Option(help="minilm, mpnet, bert-wordnet, a folder (sentence-transformers too), or a hub id."),
    ] = "minilm",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Encode documents once, so that `vlws retrieve` finds them.

    Example: vlws index notes --out notes-index
    """
    from vlws.retrieve import index

    done = index(data, backbone, out, device)
    told = f"{done['count']} documents of {done['dim']} numbers: {done['out']}"
    if done["cut"]:
        told += f"\n{done['cut']} are longer than {done['max_length']} tokens; what comes after is not searched."
    answer(as_json, done, told)


def retrieve_command(
    queries: Annotated[list[str], typer.Argument(help="What is looked for.", show_default=False)],
    index: Annotated[Path, typer.Option(help="A folder that `vlws index` wrote.")],
    instruction: Annotated[str, typer.Option(help="What is to be found, in words; needs --plugin.")] = "",
    plugin: Annotated[
        Path | None, typer.Option(help="A folder of ControlRetriever.save_pretrained.", show_default=False)
    ] = None,
    k: Annotated[int, typer.Option("-k", "--k", help="How many documents of each query.")] = 10,
    backbone: Annotated[
        str | None, typer.Option(help="The checkpoint, where it has moved since the index.", show_default=False)
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """The documents of an index that fit each query best.

    Examples: vlws retrieve "how long is the warm-up ?" --index notes-index;
    vlws retrieve "warm-up" --index notes-index --plugin trained --instruction "Find a passage that contradicts this."
    """
    from vlws.retrieve import retrieve

    done = retrieve(queries, index, backbone, instruction=instruction, k=k, plugin=plugin, device=device)
    answer(as_json, done, "\n\n".join(_hits(row) for row in done["results"]))


def _hits(row: dict[str, Any]) -> str:
    lines = [[f"{hit['score']:.3f}", hit["id"], hit["text"]] for hit in row["hits"]]
    return f"{row['query']}\n{aligned(['score', 'document', 'begins'], lines, width())}"
