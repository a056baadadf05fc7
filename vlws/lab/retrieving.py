"""The commands that retrieve: an index of documents, and what fits a query."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vlws.lab.options import Json, Parsl, Slots
from vlws.lab.terminal import Progress, aligned, answer, width

Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


def index_command(
    data: Annotated[
        Path,
        typer.Argument(
            help="A folder of .txt and .md files or of BEIR; a .jsonl, .csv, .tsv or .txt file, a document a line."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder of the index; an index that is there is replaced.")],
    backbone: Annotated[
        str | None,
        typer.Option(
            help="minilm (the default; with --append that of the index), mpnet, bert-wordnet, a folder "
            "(sentence-transformers too), or a hub id.",
            show_default=False,
        ),
    ] = None,
    device: Device = "auto",
    text: Annotated[str, typer.Option(help="The field or column of texts in a file.")] = "text",
    shard_size: Annotated[
        int, typer.Option(help="Documents of a shard, which is what a kill can lose a slot.")
    ] = 50_000,
    dtype: Annotated[str, typer.Option(help="float32, or float16 for half the disk.")] = "float32",
    append: Annotated[bool, typer.Option("--append", help="Add the documents to the index that is there.")] = False,
    jobs: Slots = None,
    parsl: Parsl = None,
    as_json: Json = False,
) -> None:
    """Encode documents once, so that `vlws retrieve` finds them; started again, it goes on where it was.

    Examples: vlws index notes --out notes-index;
    vlws index corpus.jsonl --out my-index --dtype float16 --jobs 2
    """
    from vlws.lab.slots import over
    from vlws.retrieve import index

    with Progress("documents") as progress:
        done = index(
            data,
            backbone,
            out,
            device,
            text=text,
            shard_size=shard_size,
            dtype=dtype,
            append=append,
            run=over(jobs, parsl),
            progress=progress,
        )
    done["per_second"] = progress.rate()
    shards = f" in {done['shards']} shards" if done["shards"] > 1 else ""
    told = f"{done['count']} documents of {done['dim']} numbers{shards}: {done['out']}"
    if done["reused"]:
        told += f"\n{done['reused']} of the shards were there."
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
    jobs: Annotated[int, typer.Option("-j", "--jobs", help="Threads that search.")] = 1,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """The documents of an index that fit each query best.

    Examples: vlws retrieve "how long is the warm-up ?" --index notes-index;
    vlws retrieve "warm-up" --index notes-index --plugin trained --instruction "Find a passage that contradicts this."
    """
    from vlws.retrieve import retrieve

    done = retrieve(queries, index, backbone, instruction=instruction, k=k, plugin=plugin, device=device, jobs=jobs)
    answer(as_json, done, "\n\n".join(_hits(row) for row in done["results"]))


def _hits(row: dict[str, Any]) -> str:
    lines = [[f"{hit['score']:.3f}", hit["id"], hit["text"]] for hit in row["hits"]]
    return f"{row['query']}\n{aligned(['score', 'document', 'begins'], lines, width())}"
