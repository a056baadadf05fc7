"""The rows of the methods' bench: our call and its peers' calls, on texts of WordNet or seeded vectors."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import peers
from search import DIM, SEARCHES, K, Search, is_installed, searches, unit_vectors
from torch import Tensor

from vlws.data.cloze import Wording
from vlws.data.meta_tasks import Corpus, Format, MetaTask, meta_task
from vlws.data.wordnet import classification
from vlws.data.wordnet.synsets import synsets
from vlws.errors import InputError
from vlws.methods.baselines.prompts import PPT, PretrainConfig
from vlws.methods.control_retriever import ControlConfig, ControlRetriever
from vlws.methods.summer import Summer, SummerConfig
from vlws.models.hub import ASSETS, shipped
from vlws.models.packaged import packaged
from vlws.models.retriever import Retriever, load_retriever
from vlws.models.seq2seq import load_seq2seq, tiny_seq2seq
from vlws.models.soft_prompts import TuneConfig, tune, vocabulary_prompt

BATCH = 64  # texts that are encoded at once
INSTRUCTION = "Find the definition of the term."
TUNED = 8  # steps of `tune` that are timed together
FORMATS: tuple[Format, ...] = ("nsp", "nss", "scsp", "scss")  # of the tasks of a meta-step, one each
NOT_INSTALLED = "not installed; it comes by: pip install -c constraints.txt -e '.[bench]'"


@dataclass(frozen=True)
class Arm:
    """A call, and how many items it reads in each of its `steps`."""

    call: Callable[[], object]
    items: int
    steps: int = 1


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        group: what `--rows` names.
        name: of our call.
        items: what an arm reads.
        left_out: peer -> why it is not measured.
        error: how far our result is from the peer's; None where both do different things.
        memory: documents and queries of `search.memory`, where memory is measured.
    """

    group: str
    name: str
    sizes: dict[str, int | str]
    items: str
    ours: Arm
    peers: dict[str, Arm]
    left_out: dict[str, str] = field(default_factory=dict)
    error: Callable[[], float] | None = None
    memory: tuple[int, int] | None = None

    @property
    def key(self) -> str:
        return f"{self.name} " + " ".join(f"{name}={value}" for name, value in self.sizes.items())


# --- query latency and encoding ---------------------------------------------------------------------------------------


def checkpoint(quick: bool) -> tuple[str, Path]:
    """Name and folder of the retriever: MiniLM where its package is installed, else the small one that is shipped."""
    if not quick:
        try:
            return "minilm", packaged("minilm")
        except InputError:
            pass
    return "bert-wordnet", ASSETS / "bert-wordnet"


def glosses(n: int) -> list[str]:
    """Definitions from all of the slice of WordNet, evenly spaced."""
    return [one.gloss for one in synsets()[:: len(synsets()) // n][:n]]


def query_cases(quick: bool) -> Iterator[Case]:
    """Query latency of a retriever under an instruction, which is read once, and without.

    The control is untrained, so both give the same vectors (`error`: the largest difference); it computes all the same.
    """
    name, folder = checkpoint(quick)
    retriever = load_retriever(str(folder), "cpu")
    for upper in (2, 0):
        control = ControlRetriever(retriever, ControlConfig(upper=upper, train_reader=False))
        control.instruct([INSTRUCTION])
        for n in (1, 4 if quick else 64):
            texts = glosses(n)
            ours = partial(control.encode_queries, texts, INSTRUCTION)
            plain = partial(retriever.encode, texts)
            tokens = int(retriever.tokens(texts)[1].sum())
            yield Case(
                "query",
                f"control upper={upper}",
                {"retriever": name, "queries": n, "tokens": tokens},
                "queries",
                Arm(ours, n),
                {"retriever alone": Arm(plain, n)},
                error=partial(_largest_difference, ours, plain),
            )


def encode_cases(quick: bool) -> Iterator[Case]:
    """Texts a second of `Retriever.encode` and of sentence-transformers, on one folder and in batches of one size."""
    name, folder = checkpoint(quick)
    texts = glosses(64 if quick else 1024)
    retriever = load_retriever(str(folder), "cpu")
    ours = partial(retriever.encode, texts, BATCH)
    others, left_out, error = {}, {}, None
    if is_installed("sentence_transformers"):
        theirs = partial(peers.sentence_transformer(folder, BATCH), texts)
        others["sentence-transformers"] = Arm(theirs, len(texts))
        error = partial(_largest_difference, ours, theirs)
    else:
        left_out["sentence-transformers"] = NOT_INSTALLED
    sizes: dict[str, int | str] = {
        "retriever": name,
        "texts": len(texts),
        "tokens": _tokens(retriever, texts),
        "batch": BATCH,
    }
    yield Case("encode", "Retriever.encode", sizes, "texts", Arm(ours, len(texts)), others, left_out, error)


def _tokens(retriever: Retriever, texts: list[str]) -> int:
    return sum(len(ids) for ids in retriever.tokenizer(texts)["input_ids"])


def _largest_difference(one: Callable[[], Tensor], other: Callable[[], Tensor]) -> float:
    return float((one() - other()).abs().max())


# --- exact search -----------------------------------------------------------------------------------------------------


def search_cases(quick: bool) -> Iterator[Case]:
    """The best 10 of unit vectors by what `vlws retrieve` does, and by others; `vlws_kernels.knn` is our other way.

    `error`: the share of neighbours that are not those of a peer, of which the largest.
    """
    for n in (2_000,) if quick else (10**5, 10**6):
        documents = unit_vectors(n)
        found = searches(documents)
        for m in (4,) if quick else (1, 64):
            queries = unit_vectors(m, seed=1)
            arms = {name: Arm(partial(search, queries, K), m) for name, search in found.items()}
            ours, *others = arms
            yield Case(
                "search",
                ours,
                {"documents": n, "dim": DIM, "queries": m, "k": K},
                "queries",
                arms[ours],
                {other: arms[other] for other in others},
                {name: NOT_INSTALLED for name in SEARCHES if name not in found},
                partial(_wrong, queries, list(found.values())),
                memory=(n, m),
            )


def _wrong(queries: Tensor, found: list[Search]) -> float:
    ours, *others = (search(queries, K)[1] for search in found)
    return max(float((ours != other).double().mean()) for other in others)


# --- a step of meta-training ------------------------------------------------------------------------------------------


def meta_tasks(size: int) -> tuple[Corpus, tuple[MetaTask, ...]]:
    """Documents of WordNet in clusters drawn at random, and a task of each format but the one that reads centroids."""
    rng = np.random.default_rng(0)
    texts = classification.documents()
    corpus = Corpus(texts, rng.integers(0, 12, len(texts)).tolist(), rng.normal(size=(12, 8)))
    return corpus, tuple(meta_task(format, corpus, rng, support=size, query=size) for format in FORMATS)


def step_cases(quick: bool) -> Iterator[Case]:
    """An outer step of Summer on 4 tasks, beside one of PPT on the same clozes and one of prompt tuning on 16."""
    size, length = (4, 4) if quick else (16, 100)
    corpus, tasks = meta_tasks(size)
    if "t5-wordnet" in shipped() and not quick:
        name, (model, tokenizer) = "t5-wordnet", load_seq2seq("t5-wordnet", "cpu")
    else:
        words = re.findall(r"\w+|[^\w\s]", " ".join(text for document in corpus.documents for text in document))
        wording = Wording()
        labels = [*wording.letters, *wording.order, *wording.same]
        name, (model, tokenizer) = "tiny_seq2seq", tiny_seq2seq([*labels, *words], dim=64, layers=3, heads=4)
    summer = Summer(model, tokenizer, SummerConfig(prompt_length=length))
    ppt = PPT(model, tokenizer, PretrainConfig(prompt_length=length))
    prompt = vocabulary_prompt(model, length, np.random.default_rng(0)).requires_grad_()
    train = tasks[-1].support
    tuning = TuneConfig(steps=TUNED, evaluate_every=TUNED, batch_size=len(train))
    clozes = sum(len(part) for task in tasks for part in (task.support, task.query, task.augmentation))
    yield Case(
        "step",
        "Summer.meta_step",
        {"model": name, "tasks": len(tasks), "clozes": clozes, "prompt": length},
        "clozes",
        Arm(partial(summer.meta_step, tasks), clozes),
        {
            "PPT.meta_step": Arm(partial(ppt.meta_step, tasks), clozes),
            # looks at one cloze of dev before its first and after its last step
            "tune": Arm(partial(tune, model, tokenizer, [prompt], prompt, train, train[:1], tuning), len(train), TUNED),
        },
    )


GROUPS: dict[str, Callable[[bool], Iterator[Case]]] = {
    "query": query_cases,
    "search": search_cases,
    "step": step_cases,
    "encode": encode_cases,
}
