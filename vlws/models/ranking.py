"""Rank documents exactly, by words or by vectors, and measure rankings as trec_eval does.

A run is {query id: {document id: score}}; higher is better. The order of its entries says nothing: trec_eval sorts by
score, and breaks ties by the document id, descending.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from vlws.errors import InputError

Run = Mapping[str, Mapping[str, float]]
BLOCK = 2**24  # scores held at once: 64 MB


def measure(
    run: Run,
    qrels: Mapping[str, Mapping[str, int]],
    names: Sequence[str] = ("nDCG@10",),
    *,
    ignore_identical_ids: bool = True,
) -> dict[str, np.ndarray]:
    """Measures of trec_eval: name -> "query" float64, in the order of `qrels`.

    The gain of nDCG is linear, relevance / log2(rank + 1). A query whose run is empty or missing counts as 0: it is not
    skipped. Queries that `qrels` does not judge are left out.

    Args:
        names: as `ir_measures` writes them: nDCG@10, AP, AP@100, R@100, P@10, RR, Success@5, ...
        ignore_identical_ids: leave out documents whose id is that of the query, as BEIR does (in ArguAna and Quora the
            query is itself a document). Pass False where ids of queries and documents are unrelated.

    Raises:
        InputError: no judgements, a measure that trec_eval has not, a score that is no finite number.

    >>> run = {"q1": {"d1": 0.2, "d2": 0.9}}
    >>> measure(run, {"q1": {"d1": 1}, "q2": {"d1": 1}})["nDCG@10"].round(3).tolist()  # rank 2; no run
    [0.631, 0.0]
    """
    import ir_measures

    if not qrels or not all(qrels.values()):
        raise InputError("No judgements, or a query without any, were given; accepted is one or more of each query.")
    try:
        parsed = {name: ir_measures.parse_measure(name) for name in names}
        unknown = [name for name, one in parsed.items() if not ir_measures.pytrec_eval.supports(one)]
    except (NameError, ValueError, SyntaxError, AssertionError) as error:
        raise InputError(
            f"{', '.join(names)!r} was given; accepted are measures such as nDCG@10, AP, R@100."
        ) from error
    if unknown:
        raise InputError(f"trec_eval has no measure {unknown[0]!r}; it has such as nDCG@10, AP, R@100, P@10, RR.")
    place = {query: k for k, query in enumerate(qrels)}
    kept = {
        query: {doc: float(score) for doc, score in row.items() if doc != query or not ignore_identical_ids}
        for query, row in run.items()
        if query in place
    }
    for query, row in kept.items():
        if not np.isfinite(list(row.values())).all():
            raise InputError(f"A score of the query {query!r} is not finite; accepted are finite numbers.")
    values = {one: np.zeros(len(qrels)) for one in parsed.values()}
    judged = {query: dict(row) for query, row in qrels.items()}
    for found in ir_measures.pytrec_eval.iter_calc(list(values), judged, kept):
        values[found.measure][place[found.query_id]] = found.value
    return {name: values[one] for name, one in parsed.items()}


def bm25(documents: Mapping[str, str], queries: Mapping[str, str], k: int, k1: float = 1.5, b: float = 0.75) -> Run:
    """The `k` best documents of each query by BM25 (Lucene's formula, by bm25s): English stop words, no stemmer.

    Documents that share no word with a query are not in its run, which may be empty.

    Raises:
        InputError: k below 1, or no documents.

    >>> run = bm25({"d1": "an owl at night", "d2": "a red car"}, {"q1": "owls and cars", "q2": "the owl"}, k=2)
    >>> [sorted(row) for row in run.values()]
    [[], ['d1']]
    """
    import bm25s

    if k < 1 or not documents:
        raise InputError(f"k={k} of {len(documents)} documents was given; accepted is 1 or more of both.")
    ids = list(documents)
    words = bm25s.tokenize(list(documents.values()), stopwords="english", show_progress=False)
    if not queries or not any(len(row) for row in words.ids):
        return {query: {} for query in queries}
    model = bm25s.BM25(k1=k1, b=b)
    model.index(words, show_progress=False)
    asked = bm25s.tokenize(list(queries.values()), stopwords="english", return_ids=False, show_progress=False)
    # a word that no document has is no fault of a query
    found, scores = model.retrieve(asked, k=min(k, len(ids)), show_progress=False)
    return {
        query: {ids[j]: float(score) for j, score in zip(row, best, strict=True) if score > 0}
        for query, row, best in zip(queries, found, scores, strict=True)
    }


def top(queries: Tensor, documents: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` largest inner products of "query dim" with "document dim": scores and indices "query k", best first.

    Exact, in blocks of queries. Of 10^5 documents of 384 numbers this takes 11 ms for one query and 70 ms for 64, a
    Euclidean nearest-neighbour search 150 and 280: that one first centres all points, so as to be exact for near ones.

    Raises:
        InputError: k that is not between 1 and the number of documents, or vectors of different dimensions.

    >>> scores, index = top(torch.tensor([[1.0, 0.5]]), torch.eye(2), k=2)
    >>> scores.tolist(), index.tolist()
    ([[1.0, 0.5]], [[0, 1]])
    """
    if not 1 <= k <= len(documents):
        raise InputError(f"k={k} of {len(documents)} documents was given; accepted is 1 to {len(documents)}.")
    if queries.shape[1] != documents.shape[1]:
        raise InputError(f"Queries of {queries.shape[1]} numbers and documents of {documents.shape[1]} were given.")
    step = max(1, BLOCK // len(documents))
    parts = [(block @ documents.T).topk(k) for block in queries.split(step)]
    if not parts or not len(queries):
        return queries.new_zeros(0, k), torch.zeros(0, k, dtype=torch.int64, device=queries.device)
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def as_run(
    queries: Sequence[str], documents: Sequence[str], scores: Tensor, index: Tensor
) -> dict[str, dict[str, float]]:
    """The run of what `top` found, by the ids of queries and documents.

    >>> as_run(["q1"], ["d1", "d2"], torch.tensor([[1.0, 0.5]]), torch.tensor([[1, 0]]))
    {'q1': {'d2': 1.0, 'd1': 0.5}}
    """
    return {
        query: {documents[j]: score for j, score in zip(row, best, strict=True)}
        for query, row, best in zip(queries, index.tolist(), scores.tolist(), strict=True)
    }
