"""Larger data, measured: `python kernels/bench/large.py [--rows ...]`, of which `--rows slots` takes 6 minutes.

Every row runs the commands that a reader types, in processes of their own. Its figures are wall seconds, CPU seconds
(which other work on the machine changes far less) and the largest memory of any process. What is computed and not
measured stands under `computed`, with its formula. Rows are written as they are measured.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from measure import reset_peak, status
from provenance import REPORTS, machine, write
from watch import ended, vlws, watched

from vlws.data.wordnet.synsets import synsets
from vlws.models.retriever import load_retriever
from vlws.search import search
from vlws.shards import Index, write_manifest, write_shard

RESULTS = REPORTS.parent / "benchmarks" / "large.json"
PACKAGES = ("torch", "numpy", "transformers", "tokenizers", "parsl")
SHARD = 50_000  # texts
RUN = ("wall_s", "cpu_s", "driver_mb", "slots_mb")  # of a command, what is kept
SLOTS_COMPUTED = (4, 8, 16, 64)


# --- texts and encoders -----------------------------------------------------------------------------------------------


def texts(n: int) -> Iterator[str]:
    """Distinct short texts, each two terms of WordNet: all pairs (a, 7919 a + q), q from 0."""
    terms = sorted({lemma for synset in synsets() for lemma in synset.lemmas})
    for k in range(n):
        q, a = divmod(k, len(terms))
        yield f"{terms[a]} {terms[(7919 * a + q) % len(terms)]}"


def write_texts(path: Path, n: int) -> Path:
    """A .jsonl file of them."""
    with path.open("w", encoding="utf-8") as file:
        for k, text in enumerate(texts(n)):
            file.write(json.dumps({"_id": f"t{k}", "text": text}, ensure_ascii=False) + "\n")
    return path


def bag_of_words(folder: Path) -> Path:
    """The shipped bert-wordnet without its layers: word embeddings, a norm and the mean. The same class, written by the
    same method; it is what two cores can embed 10^7 texts by in minutes."""
    retriever = load_retriever("bert-wordnet", "cpu")
    retriever.model.encoder.layer = torch.nn.ModuleList()
    retriever.model.config.num_hidden_layers = 0
    retriever.model.save_pretrained(folder)
    retriever.tokenizer.save_pretrained(folder)
    return folder


def encoders(work: Path, sizes: argparse.Namespace) -> dict:
    """Texts a second of one thread by encoders that ship, and by the one of the other rows."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = {}
    for name, n in (("minilm", 512), ("bert-wordnet", 8192), (str(bag_of_words(work / "bag")), 32768)):
        retriever = load_retriever(name, "cpu")
        some = list(texts(n // sizes.divide))
        wall, cpu = time.perf_counter(), time.process_time()
        retriever.encode(some)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        label = name if len(name) < 20 else "bert-wordnet without layers"
        found[label] = {"dim": retriever.dim, "texts": len(some)}
        found[label] |= {"per_second": round(len(some) / wall), "per_cpu_second": round(len(some) / cpu)}
    torch.set_num_threads(threads)
    return found


# --- index ------------------------------------------------------------------------------------------------------------


def indexed(n: int, work: Path, *, kill: bool) -> dict:
    """`vlws index` of n texts in two slots, killed half way where `kill`."""
    source, out, bag = work / f"{n}.jsonl", work / f"index-{n}", work / "bag"
    if not bag.is_dir():
        bag_of_words(bag)
    began = time.perf_counter()
    write_texts(source, n)
    row: dict = {
        "documents": n,
        "text_mb": round(source.stat().st_size / 2**20),
        "generated_s": time.perf_counter() - began,
    }
    size = min(SHARD, max(1, n // 8))
    command = vlws("index", source, "--out", out, "--backbone", bag, "--dtype", "float16", "--shard-size", size)
    command += ["--jobs", "2", "--json"]
    if kill:
        row["killed"] = killed(command, out, half=n // size // 2)
        row["killed"]["shard"] = size
    run = watched(command)
    said = json.loads(run.pop("stdout"))
    row |= {
        "run": run,
        "said": {name: said[name] for name in ("dim", "dtype", "shards", "reused", "serial_s", "cpu_s")},
    }
    row["per_second"] = round((said["shards"] - said["reused"]) * size / run["wall_s"])
    row["index_mb"] = round(sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 2**20)
    row["vectors_mb"] = round(n * said["dim"] * 2 / 2**20)
    shutil.rmtree(out)
    source.unlink()
    return row


def killed(command: list[str], out: Path, half: int) -> dict:
    """What is left of a run whose first process is killed by SIGKILL when half of its shards are there."""
    run = watched(command, kill=lambda: len(list(out.glob("shards/*/shard.json"))) >= half)
    slots_end = ended(run["left"])
    whole = len(list(out.glob("shards/*/shard.json")))
    return {
        "wall_s": run["wall_s"],
        "whole_shards": whole,
        "begun_shards": len([path for path in (out / "shards").iterdir() if path.name.startswith(".")]),
        "slots_ended": slots_end,
        "is_no_index": not (out / "manifest.json").exists(),
        **{name: run[name] for name in ("driver_mb", "slots_mb")},
    }


def index_rows(work: Path, sizes: argparse.Namespace) -> dict:
    """A tenth of the documents, then all of them, killed half way: what a run takes should not grow with them."""
    few, many = max(1000, sizes.documents // 10), sizes.documents
    return {f"{few} documents": indexed(few, work, kill=False), f"{many} documents": indexed(many, work, kill=True)}


# --- search -----------------------------------------------------------------------------------------------------------


def write_vectors(folder: Path, n: int, dim: int) -> Path:
    """An index of n different vectors in float16: a random shard, and the same with other signs of its columns."""
    rng = np.random.default_rng(0)
    base = (rng.standard_normal((min(n, SHARD), dim), np.float32) / dim**0.5).astype(np.float16).view(np.uint16)
    records = []
    for number in range(n // len(base)):
        signs = rng.integers(0, 2, dim, np.uint16) << 15
        ids = [f"{number}-{row}" for row in range(len(base))]
        name = f"{number:05}"
        records.append(write_shard(folder / "shards" / name, (base ^ signs).view(np.float16), ids, ids, "float16"))
    write_manifest(folder, {"dim": dim, "dtype": "float16"}, records)
    return folder


def searched(folder: Path) -> dict:
    """Seconds and memory of exact searches in this process, arms in turns; and whether all arms find the same."""
    index = Index(folder)
    queries = torch.randn(64, index.dim, generator=torch.Generator().manual_seed(1))
    arms = [(n, jobs) for n in (1, 64) for jobs in (1, 2)]
    runs: dict = {arm: [] for arm in arms}
    found = {arm: search(index, queries[: arm[0]], 10, arm[1]) for arm in arms}  # and pages are read where they fit
    reset_peak()
    for turn in range(3):
        for n, jobs in arms if turn % 2 == 0 else arms[::-1]:
            wall, cpu = time.perf_counter(), time.process_time()
            search(index, queries[:n], 10, jobs)
            runs[n, jobs].append((time.perf_counter() - wall, time.process_time() - cpu))
    told: dict = {"vectors": len(index), "dim": index.dim, "vectors_mb": round(len(index) * index.dim * 2 / 2**20)}
    for (n, jobs), pairs in runs.items():
        wall, cpu = (statistics.median(column) for column in zip(*pairs, strict=True))
        told[f"{n} queries, {jobs} threads"] = {
            "wall_s": round(wall, 3),
            "cpu_s": round(cpu, 3),
            "mb_per_second": round(told["vectors_mb"] / wall),
            "mb_per_cpu_second": round(told["vectors_mb"] / cpu),
        }
    told["peak_mb"] = round(status("VmHWM"))
    told["same"] = all(found[n, 1] == found[n, 2] and found[1, 1][0] == found[n, 1][0] for n in (1, 64))
    return told


def searches(work: Path, sizes: argparse.Namespace) -> dict:
    """Exact searches of a tenth of the vectors and of all, of dim 128, and of all of dim 384."""
    rows = {}
    for n, dim in ((sizes.documents // 10, 128), (sizes.documents, 128), (sizes.documents, 384)):
        folder = write_vectors(work / f"{n}-{dim}", n, dim)
        rows[f"{n} vectors of dim {dim}"] = json.loads(
            watched([sys.executable, __file__, "--search", str(folder)])["stdout"]
        )
        shutil.rmtree(folder)
    return rows


# --- gram -------------------------------------------------------------------------------------------------------------


def write_sequences(path: Path, n: int) -> Path:
    """An .npz file of n random walks of 8 to 32 steps of dim 8."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(8, 33, n)
    np.savez(path, values=rng.normal(size=(int(lengths.sum()), 8)).cumsum(0).astype(np.float32) % 3, lengths=lengths)
    return path


def gram_command(source: Path, out: Path, jobs: int, block: int = 256) -> list[str]:
    return vlws("gram", source, "--out", out, "--sigma", "4", "--block", block, "--jobs", jobs, "--json")


def grams(work: Path, sizes: argparse.Namespace) -> dict:
    """`vlws gram` of a quarter of the sequences, then of all of them, killed half way, in two slots."""
    found = {}
    for n in (sizes.sequences // 4, sizes.sequences):
        source, out = write_sequences(work / f"{n}.npz", n), work / f"gram-{n}"
        command = gram_command(source, out, 2, block := 256 if sizes.divide == 1 else 64)
        row: dict = {"sequences": n, "pairs": n * (n + 1) // 2, "matrix_mb": round(n * n * 4 / 2**20)}
        if n == sizes.sequences:
            half = (n // block) ** 2 // 4
            killed = watched(command, kill=lambda out=out, half=half: len(list(out.glob("blocks/*-*.npy"))) >= half)
            row["killed"] = {
                "slots_ended": ended(killed["left"]),
                "whole_blocks": len(list(out.glob("blocks/*-*.npy"))),
            }
            row["killed"]["is_no_matrix"] = not (out / "gram.npy").exists()
        run = watched(command)
        said = json.loads(run["stdout"])
        row["run"] = {name: run[name] for name in RUN}
        row["said"] = {name: said[name] for name in ("blocks", "reused", "serial_s", "cpu_s", "per_second")}
        shutil.rmtree(out)
        found[f"{n} sequences"] = row
    return found


# --- slots ------------------------------------------------------------------------------------------------------------


def slots(work: Path, sizes: argparse.Namespace) -> dict:
    """The same work in one slot and in two, in turns, each slot of one thread."""
    os.environ["OMP_NUM_THREADS"] = "1"
    texts_file = write_texts(work / "texts.jsonl", 800_000 // sizes.divide)
    sequences = write_sequences(work / "sequences.npz", 8_000 // sizes.divide)
    bag, out = bag_of_words(work / "bag"), work / "out"
    indexing = ("index", texts_file, "--out", out, "--backbone", bag, "--shard-size", 20_000 // sizes.divide, "--json")
    made = {
        "index": lambda jobs: vlws(*indexing, "--jobs", jobs),
        "gram": lambda jobs: gram_command(sequences, out, jobs),
    }
    found = {}
    for name, command in made.items():
        arms: dict[int, list[dict]] = {1: [], 2: []}
        for turn in range(1 if sizes.divide > 1 else 3):
            for jobs in (1, 2) if turn % 2 == 0 else (2, 1):
                run = watched(command(jobs))
                said = json.loads(run["stdout"])
                arms[jobs].append(
                    {
                        "wall_s": run["wall_s"],
                        "cpu_s": run["cpu_s"],
                        "serial_s": said["serial_s"],
                        "work_s": said["cpu_s"],
                    }
                )
                shutil.rmtree(out)
        found[name] = scaled(arms)
    vectors = write_vectors(work / "vectors", 1_000_000 // sizes.divide, 128)
    found["search"] = json.loads(watched([sys.executable, __file__, "--search", str(vectors)])["stdout"])
    return found


def scaled(arms: dict[int, list[dict]]) -> dict:
    """Medians of both arms, the ratio that was measured, and what follows for more slots."""
    median = {
        jobs: {name: statistics.median(run[name] for run in runs) for name in runs[0]} for jobs, runs in arms.items()
    }
    one = median[1]
    start = max(0.0, one["wall_s"] - one["serial_s"] - one["work_s"])
    fixed, work, more = one["serial_s"] + start, one["work_s"], (2, *SLOTS_COMPUTED)
    return {
        "runs": arms,
        "median": median,
        "measured": {
            "wall_1_over_wall_2": round(one["wall_s"] / median[2]["wall_s"], 2),
            "cpu_2_over_cpu_1": round(median[2]["cpu_s"] / one["cpu_s"], 2),
        },
        "computed": {
            "formula": "wall(s) = serial + start + work / s; of the runs in one slot: serial is what the driver did "
            "alone, work the CPU seconds of all shards or blocks, start = wall - serial - work (processes start, each "
            "loads the checkpoint). Disk and memory are taken to serve all slots at once.",
            "serial_s": one["serial_s"],
            "start_s": round(start, 2),
            "work_s": one["work_s"],
            "speedup": {s: round((fixed + work) / (fixed + work / s), 2) for s in more},
            "speedup_of_100_times": {s: round((fixed + 100 * work) / (fixed + 100 * work / s), 1) for s in more},
        },
    }


# --- the program ------------------------------------------------------------------------------------------------------

ROWS: dict[str, Callable[[Path, argparse.Namespace], dict]] = {
    "encoders": encoders,
    "index": index_rows,
    "search": searches,
    "gram": grams,
    "slots": slots,
}


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, help="measure these anew; the others stay in the file")
    parser.add_argument("--documents", type=int, default=10_000_000, help="of the larger index")
    parser.add_argument("--sequences", type=int, default=8192, help="of the larger matrix")
    parser.add_argument("--quick", action="store_true", help="small sizes; printed, not kept")
    parser.add_argument("--work", type=Path, help="a folder for data that is deleted afterwards (default: temporary)")
    parser.add_argument("--json", type=Path, help=f"where to keep the rows (default: {RESULTS.name} of the reports)")
    parser.add_argument("--search", type=Path, help=argparse.SUPPRESS)  # of an index, in a process of its own
    return parser


def main() -> None:
    options = arguments().parse_args()
    if options.search:
        print(json.dumps(searched(options.search)))
        return
    options.divide = 16 if options.quick else 1
    options.documents = min(options.documents, 20_000) if options.quick else options.documents
    options.sequences = 1024 if options.quick else options.sequences
    path = options.json or (None if options.quick else RESULTS)
    kept = json.loads(path.read_text()) if path and path.exists() else {"rows": {}}
    results = {"machine": machine(PACKAGES), "rows": kept["rows"]}
    for name in options.rows or ROWS:
        with tempfile.TemporaryDirectory(dir=options.work) as folder:
            load = os.getloadavg()[0]
            made = ROWS[name](Path(folder), options)
            results["rows"][name] = made | {"load": [load, os.getloadavg()[0]], "date": results["machine"]["date"]}
        print(json.dumps({name: results["rows"][name]}, indent=1), flush=True)
        if path:
            write(path, results)


if __name__ == "__main__":
    main()
