"""Self-supervised tasks from unlabelled documents, in five formats (SUPMER, Pan et al. 2023, arXiv:2303.12314).

Five formats make clozes (`vlws.data.cloze`) of documents and of clusters of their sentences, found without labels:

    nsp   s1 <blank> s2                                  no, maybe or yes: s2 of another document, of the same, next
    nss   s1 ? A. o1 . B. o2 ... is <blank>              which option is the next sentence
    scsp  s1 <blank> s2                                  yes or no: both are of one cluster
    scss  s1 ? A. o1 . B. o2 ... is <blank>              which option is of the cluster of s1
    scc   s1 ? A. v1 . B. v2 ... is <blank>              which vector is the centroid of the cluster of s1

A meta-task has a support set and a query from the same clusters, and a second query, for mixing, from others. All
randomness comes from the NumPy generator that is given.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch.nn import functional as F

from vlws.data.cloze import VECTOR, Cloze, Wording, as_choice
from vlws.errors import InputError
from vlws_kernels import kmeans

Format = Literal["nsp", "nss", "scsp", "scss", "scc"]
FORMATS: tuple[Format, ...] = get_args(Format)


# --- documents and their clusters -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Corpus:
    """Documents of sentences, the cluster of each sentence, and the centroids.

    Args:
        documents: lists of sentences.
        clusters: of each document, or of each of its sentences.
        centroids: "cluster dim" float32, in the space of the language model's input embeddings.

    Raises:
        InputError: no document, an empty one, a sentence that is empty or holds a sentinel `<extra_id_..>`, labels that
            are not one per document or sentence or not below the number of centroids, centroids that are not finite.

    >>> corpus = Corpus([["a cat .", "it sleeps ."], ["a bus .", "it waits ."]], [0, 1], np.eye(2, dtype=np.float32))
    >>> corpus.clusters, corpus.of_document
    (((0, 0), (1, 1)), (0, 1))
    >>> corpus.sentences[1], corpus.similarity([0], [1])
    (('a bus .', 'it waits .'), 0.5)
    >>> corpus.linked[0], corpus.fewest_links[0]  # no document of three sentences
    ((), 0)
    """

    documents: Sequence[Sequence[str]]
    clusters: Sequence[Any]
    centroids: np.ndarray

    def __post_init__(self) -> None:
        documents = tuple(tuple(document) for document in self.documents)
        if not documents or not all(documents):
            raise InputError(
                f"{len(documents)} documents were given, or an empty one; accepted are lists of sentences."
            )
        for sentence in (sentence for document in documents for sentence in document):
            if not sentence.strip() or "<extra_id_" in sentence:
                raise InputError(f"{sentence!r} is empty or holds a sentinel; accepted are sentences of words.")
        if len(self.clusters) != len(documents):
            raise InputError(
                f"{len(self.clusters)} labels were given for {len(documents)} documents; give one for each."
            )
        labels = tuple(
            tuple(int(c) for c in label) if isinstance(label, Sequence | np.ndarray) else (int(label),) * len(document)
            for label, document in zip(self.clusters, documents, strict=True)
        )
        for label, document in zip(labels, documents, strict=True):
            if len(label) != len(document):
                raise InputError(f"{len(label)} labels were given for a document of {len(document)} sentences.")
        centroids = np.asarray(self.centroids, np.float32)
        if centroids.ndim != 2 or not np.isfinite(centroids).all():
            raise InputError(f"centroids are {list(centroids.shape)}; accepted are finite vectors, 'cluster dim'.")
        seen = {c for label in labels for c in label}
        if min(seen) < 0 or max(seen) >= len(centroids):
            raise InputError(f"labels reach {max(seen)} with {len(centroids)} centroids; accepted are those below.")
        for name, value in (("documents", documents), ("clusters", labels), ("centroids", centroids)):
            object.__setattr__(self, name, value)

    @cached_property
    def of_document(self) -> tuple[int, ...]:
        """Of each document, the cluster of most of its sentences."""
        return tuple(Counter(label).most_common(1)[0][0] for label in self.clusters)

    @cached_property
    def sentences(self) -> dict[int, tuple[str, ...]]:
        """Cluster -> its sentences, each text once in the whole corpus."""
        first: dict[str, int] = {}
        for document, label in zip(self.documents, self.clusters, strict=True):
            for sentence, c in zip(document, label, strict=True):
                first.setdefault(sentence, c)
        found: dict[int, list[str]] = {c: [] for c in range(len(self.centroids))}
        for sentence, c in first.items():
            found[c].append(sentence)
        return {c: tuple(texts) for c, texts in found.items()}

    @cached_property
    def linked(self) -> dict[int, tuple[int, ...]]:
        """Cluster -> its documents of three sentences or more, by index."""
        found: dict[int, list[int]] = {c: [] for c in range(len(self.centroids))}
        for i, c in enumerate(self.of_document):
            if len(self.documents[i]) > 2:
                found[c].append(i)
        return {c: tuple(own) for c, own in found.items()}

    @cached_property
    def fewest_links(self) -> dict[int, int]:
        """Cluster -> the fewest sentences with a next one that any of its `linked` documents has; 0 without."""
        return {c: min((len(self.documents[i]) - 1 for i in own), default=0) for c, own in self.linked.items()}

    def similarity(self, one: Sequence[int], other: Sequence[int]) -> float:
        """(1 + cosine of the mean centroids) / 2, sim_dom of the authors' code."""
        a, b = (self.centroids[list(chosen)].mean(0).astype(np.float64) for chosen in (one, other))
        return float((1 + a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-12)) / 2)


def cluster(documents: Sequence[Sequence[str]], vectors: Any, clusters: int, seed: int = 0) -> Corpus:
    """Documents with the cluster of each text, by k-means on the directions of vectors from their mean; without labels.

    Args:
        vectors: "text dim" float32, of all texts of the documents in order, in the space of the model's embeddings.

    Raises:
        InputError: another number of vectors than of texts, or more clusters than texts.

    >>> import torch
    >>> vectors = torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0], [-1.0, 0.1]])
    >>> corpus = cluster([["a cat .", "a dog ."], ["a bus .", "a car ."]], vectors, 2)
    >>> [len(set(labels)) for labels in corpus.clusters], corpus.centroids.shape
    ([1, 1], (2, 2))
    """
    count = sum(map(len, documents))
    if len(vectors) != count or not 1 <= clusters <= count:
        raise InputError(f"{len(vectors)} vectors and {clusters} clusters were given for {count} texts.")
    directions = F.normalize(vectors - vectors.mean(0), dim=1)
    labels = kmeans(directions, clusters, seed=seed)[1].cpu()
    centroids = torch.stack([vectors[labels == c].mean(0) for c in range(clusters)])
    each = iter(labels.tolist())
    return Corpus(documents, [[next(each) for _ in document] for document in documents], centroids.cpu().numpy())


def split(corpus: Corpus, rng: np.random.Generator, held_out: float = 0.1) -> tuple[Corpus, Corpus]:
    """(train, test): of each cluster, a share of the documents is held out, at least one where it has two or more.

    Whole documents are held out, so that no sentence has its neighbour on the other side.

    >>> corpus = Corpus([[f"sentence {i} ."] for i in range(40)], [i % 2 for i in range(40)], np.eye(2))
    >>> train, test = split(corpus, np.random.default_rng(0))
    >>> len(train.documents), len(test.documents)
    (36, 4)
    """
    if not 0 < held_out < 1:
        raise InputError(f"held_out={held_out} was given; accepted is a share between 0 and 1.")
    kept: list[int] = []
    for c in range(len(corpus.centroids)):
        own = rng.permutation([i for i, of in enumerate(corpus.of_document) if of == c]).astype(int)
        kept += own[: max(1, round(held_out * len(own)))].tolist() if len(own) > 1 else []
    if not kept:
        raise InputError("no cluster has two documents; accepted is a corpus that can be split.")
    held = set(kept)
    sides = [i for i in range(len(corpus.documents)) if i not in held], sorted(held)
    train, test = (
        Corpus([corpus.documents[i] for i in side], [corpus.clusters[i] for i in side], corpus.centroids)
        for side in sides
    )
    return train, test


# --- meta-tasks -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MetaTask:
    """tau = (S_A, Q_A, Q_B), and how near the clusters A and B are.

    Attributes:
        support, query: clozes of the clusters A, without a sentence in common.
        augmentation: as many clozes as `query`, of the clusters B.
        anchors, others: A and B.
        similarity: sim_dom of the authors' code, in [0, 1].

    >>> cloze = Cloze("a <extra_id_0> b", "yes", ("yes", "no"))
    >>> MetaTask("scsp", (cloze,), (cloze,), (cloze,), (0, 1), (2, 1), 0.5).overlap
    0.5
    """

    format: Format
    support: tuple[Cloze, ...]
    query: tuple[Cloze, ...]
    augmentation: tuple[Cloze, ...]
    anchors: tuple[int, ...]
    others: tuple[int, ...]
    similarity: float

    @property
    def overlap(self) -> float:
        """Share of B that is in A: 0 unless the two may overlap, as the authors' code lets them."""
        return len(set(self.anchors) & set(self.others)) / len(self.others)


def meta_task(
    format: Format,
    corpus: Corpus,
    rng: np.random.Generator,
    *,
    support: int = 16,
    query: int = 16,
    options: int = 4,
    disjoint: bool = True,
    wording: Wording | None = None,
) -> MetaTask:
    """One task of a format, from clusters drawn at random: one cluster for nsp and nss, two for scsp, else `options`.

    The sentences of each cluster (for nsp and nss, its documents) are cut at random into those of the support and
    those of the query. Answers are balanced: how often each occurs differs by at most one.

    Args:
        support, query: clozes of each.
        options: of a choice.
        disjoint: B shares no cluster with A; False draws B from all clusters, as the authors' code does.

    Raises:
        InputError: an unknown format, numbers below 1, too many options, or too few clusters that are large enough.

    >>> rng = np.random.default_rng(0)
    >>> corpus = Corpus([[f"{c} {i} {j} ." for j in range(4)] for c in range(8) for i in range(12)],
    ...                 [c for c in range(8) for i in range(12)], rng.normal(size=(8, 16)))
    >>> task = meta_task("scc", corpus, rng, support=4, query=4)
    >>> sorted(cloze.label for cloze in task.support), task.support[0].vectors.shape, task.overlap
    (['A', 'B', 'C', 'D'], (4, 16), 0.0)
    >>> task = meta_task("nsp", corpus, rng)
    >>> len(task.support), task.support[0].text.count("<extra_id_0>"), len(task.anchors)
    (16, 1, 1)
    """
    wording = wording or Wording()
    if format not in FORMATS:
        raise InputError(f"format={format!r} was given; accepted are {', '.join(FORMATS)}.")
    if min(support, query) < 1 or not 2 <= options <= len(wording.letters):
        raise InputError(
            f"support={support}, query={query} and options={options} were given; accepted are 1 or more clozes, and "
            f"2 to {len(wording.letters)} options."
        )
    maker = _Maker(format, corpus, rng, options, wording, (support, query))
    many = maker.many
    large = [c for c in range(len(corpus.centroids)) if maker.is_large(c)]
    if len(large) < many * (1 + disjoint):
        raise InputError(
            f"{len(large)} clusters are large enough for {format} with support={support} and query={query}; accepted "
            f"are {many * (1 + disjoint)} or more: give more documents, fewer clusters or smaller sets."
        )
    a = tuple(rng.choice(large, many, replace=False).tolist())
    left = [c for c in large if c not in a] if disjoint else large
    b = tuple(rng.choice(left, many, replace=False).tolist())
    made = (maker.clozes(a, support, 0), maker.clozes(a, query, 1), maker.clozes(b, query, 1))
    return MetaTask(format, *made, a, b, corpus.similarity(a, b))


class _Maker:
    """The clozes of one task: pools of each cluster, cut into two sides as they are met."""

    def __init__(
        self,
        format: Format,
        corpus: Corpus,
        rng: np.random.Generator,
        options: int,
        wording: Wording,
        sizes: tuple[int, int],
    ) -> None:
        self.format, self.corpus, self.rng = format, corpus, rng
        self.options, self.wording, self.sizes = options, wording, sizes
        self.is_linked = format in ("nsp", "nss")
        self.many = {"nsp": 1, "nss": 1, "scsp": 2}.get(format, options)  # clusters of a set
        self.sides: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def is_large(self, c: int) -> bool:
        """Whether a cluster's pool serves both sides."""
        if not self.is_linked:
            return len(self.corpus.sentences[c]) >= sum(-(-size // self.many) + 1 for size in self.sizes)
        own, links = len(self.corpus.linked[c]), self.corpus.fewest_links[c]
        at = self._cut(own) if own > 3 else 0
        return at > 1 and own - at > 1 and at * links >= self.sizes[0] and (own - at) * links >= self.sizes[1]

    def _cut(self, pool: int, many: int = 1) -> int:
        """How many of a pool serve the support: its share of the clozes, and at least what each side needs."""
        least = [2, 2] if self.is_linked else [-(-size // many) + 1 for size in self.sizes]
        return min(max(least[0], round(pool * self.sizes[0] / sum(self.sizes))), pool - least[1])

    def pool(self, c: int, side: int) -> np.ndarray:
        """Texts of a cluster, or indices of its documents, that serve the support (0) or the queries (1)."""
        if c not in self.sides:
            everything = self.corpus.linked[c] if self.is_linked else self.corpus.sentences[c]
            mixed = self.rng.permutation(np.array(everything, int if self.is_linked else object))
            at = self._cut(len(mixed), self.many)
            self.sides[c] = mixed[:at], mixed[at:]
        return self.sides[c][side]

    def clozes(self, clusters: tuple[int, ...], n: int, side: int) -> tuple[Cloze, ...]:
        make = {"nsp": self.nsp, "nss": self.nss, "scsp": self.scsp, "scss": self.scss, "scc": self.scc}[self.format]
        made = make(clusters, n, side)
        return tuple(made[i] for i in self.rng.permutation(n))

    def balanced(self, n: int, answers: int) -> list[int]:
        return self.rng.permutation((np.arange(n) + self.rng.integers(answers)) % answers).tolist()

    def one(self, texts: Sequence[str] | np.ndarray, but: set[str]) -> str:
        left = [text for text in texts if text not in but]
        if not left:
            raise InputError(
                f"a cluster has {len(set(texts))} distinct sentences for a set of {self.format}, which are too few for "
                f"{self.options} options; accepted are documents whose sentences differ."
            )
        return left[self.rng.integers(len(left))]

    def choice(self, anchor: str, options: list[str], at: int, vectors: np.ndarray | None = None) -> Cloze:
        letters = tuple(self.wording.letters[: self.options])
        return Cloze(self.wording.choice(anchor, options), letters[at], letters, vectors)

    # each: clusters of the set, number of clozes, side of the pools

    def links(self, clusters: tuple[int, ...], n: int, side: int) -> tuple[list[tuple[int, int]], np.ndarray]:
        """(document, place of a sentence that has a next one), n of them, each once; and the pool of documents."""
        (c,) = clusters
        documents = self.pool(c, side)
        places = [(i, j) for i in documents.tolist() for j in range(len(self.corpus.documents[i]) - 1)]
        return [places[k] for k in self.rng.permutation(len(places))[:n]], documents

    def nsp(self, clusters: tuple[int, ...], n: int, side: int) -> list[Cloze]:
        places, documents = self.links(clusters, n, side)
        made = []
        for (i, j), kind in zip(places, self.balanced(n, 3), strict=True):
            own = self.corpus.documents[i]
            if kind == 2:
                second = own[j + 1]
            elif kind == 1:
                second = own[self.rng.choice([k for k in range(len(own)) if k not in (j, j + 1)])]
            else:
                others = [s for d in documents if d != i for s in self.corpus.documents[d]]
                second = self.one(others, {own[j + 1]})
            words = self.wording.order
            made.append(Cloze(self.wording.pair(own[j], second), words[kind], words))
        return made

    def nss(self, clusters: tuple[int, ...], n: int, side: int) -> list[Cloze]:
        places, documents = self.links(clusters, n, side)
        texts = list(dict.fromkeys(s for i in documents for s in self.corpus.documents[i]))
        made = []
        for (i, j), at in zip(places, self.balanced(n, self.options), strict=True):
            anchor, following = self.corpus.documents[i][j : j + 2]
            options = [anchor, following]  # which no wrong option repeats
            while len(options) < self.options + 1:
                options.append(self.one(texts, set(options)))
            wrong = options[2:]
            made.append(self.choice(anchor, [*wrong[:at], following, *wrong[at:]], at))
        return made

    def spread(self, clusters: tuple[int, ...], n: int, side: int) -> list[tuple[int, str]]:
        """(cluster, sentence), n of them, each once, spread evenly over the clusters."""
        at = {c: iter(self.pool(c, side)[self.rng.permutation(len(self.pool(c, side)))]) for c in clusters}
        return [(c, next(at[c])) for c in (clusters[k % len(clusters)] for k in range(n))]

    def scsp(self, clusters: tuple[int, ...], n: int, side: int) -> list[Cloze]:
        made = []
        for (c, anchor), kind in zip(self.spread(clusters, n, side), self.balanced(n, 2), strict=True):
            other = c if kind == 0 else next(d for d in clusters if d != c)
            words = self.wording.same
            second = self.one(self.pool(other, side), {anchor})
            made.append(Cloze(self.wording.pair(anchor, second), words[kind], words))
        return made

    def scss(self, clusters: tuple[int, ...], n: int, side: int) -> list[Cloze]:
        made = []
        for (c, anchor), at in zip(self.spread(clusters, n, side), self.balanced(n, self.options), strict=True):
            right = self.one(self.pool(c, side), {anchor})
            wrong = [self.one(self.pool(d, side), {anchor}) for d in self.rng.permutation(clusters).tolist() if d != c]
            made.append(self.choice(anchor, [*wrong[:at], right, *wrong[at:]], at))
        return made

    def scc(self, clusters: tuple[int, ...], n: int, side: int) -> list[Cloze]:
        made = []
        for (c, anchor), at in zip(self.spread(clusters, n, side), self.balanced(n, self.options), strict=True):
            wrong = [d for d in self.rng.permutation(clusters).tolist() if d != c]
            vectors = self.corpus.centroids[[*wrong[:at], c, *wrong[at:]]]
            made.append(self.choice(anchor, [VECTOR] * self.options, at, vectors))
        return made


def meta_batches(
    corpus: Corpus,
    rng: np.random.Generator,
    *,
    tasks: int = 4,
    steps_per_format: int = 2,
    formats: Sequence[Format] = FORMATS,
    **options: Any,
) -> Iterator[tuple[MetaTask, ...]]:
    """Endlessly, the tasks of one outer step; a format is drawn for every two steps, as in the authors' code.

    Args:
        options: of `meta_task`.

    >>> rng = np.random.default_rng(0)
    >>> corpus = Corpus([[f"{c} {i} {j} ." for j in range(4)] for c in range(8) for i in range(12)],
    ...                 [c for c in range(8) for i in range(12)], rng.normal(size=(8, 16)))
    >>> batches = meta_batches(corpus, rng, formats=["scsp", "nss"])
    >>> len(next(batches)), {task.format for task in next(batches)} <= {"scsp", "nss"}
    (4, True)
    """
    if not formats or tasks < 1 or steps_per_format < 1:
        raise InputError(
            f"tasks={tasks}, steps_per_format={steps_per_format} and {len(formats)} formats; accepted is 1 or more."
        )
    while True:
        format = formats[int(rng.integers(len(formats)))]
        for _ in range(steps_per_format):
            yield tuple(meta_task(format, corpus, rng, **options) for _ in range(tasks))


def as_choices(task: MetaTask, wording: Wording | None = None) -> MetaTask:
    """A task with every cloze as a multiple choice (`as_choice`).

    >>> cloze = Cloze("a <extra_id_0> b", "yes", ("yes", "no"))
    >>> as_choices(MetaTask("scsp", (cloze,), (cloze,), (cloze,), (0, 1), (2, 3), 0.5)).query[0].label
    'A'
    """
    support, query, augmentation = (
        tuple(as_choice(cloze, wording) for cloze in clozes) for clozes in (task.support, task.query, task.augmentation)
    )
    return replace(task, support=support, query=query, augmentation=augmentation)
