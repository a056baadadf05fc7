"""ControlRetriever: a frozen dense retriever whose query side learns to follow instructions; its index never changes.

Pan, Li, Wang, Fei, Song, Ji, Lin, Liu, Chua, Tang, "I3: Intent-Introspective Retrieval Conditioned on Instructions",
SIGIR 2024, arXiv:2308.10025; its first version (2023) is "ControlRetriever: Harnessing the Power of Instructions for
Controllable Retrieval". What the released code computes, with the frozen query encoder f and its
table of token embeddings Emb, an instruction encoder G and a control encoder f_c that start as copies of f, and linear
maps Z1, Z2 that start at zero:

    t       = Z1 pool(G(I))                            an instruction, as one vector
    x_i     = Emb(q)_i + t                             added to every token of the query
    c       = pool(f_c(x_1 ... x_n))
    e(q, I) = pool(f(q)) + Z2 c                        f(q) exactly, before training
    score   = e(q, I) . f(d)                           documents never see the instruction

    control = ControlRetriever(load_retriever("minilm"))
    states = control.states(queries)                   what is frozen, computed once
    e = control(states, control.instruct(instructions))
    loss = contrast(e, document_vectors, positive, negatives)
    control.save_pretrained("control")                 only what was added
    control.encode_queries(["bank"], "Find names for places near the term.")

Departures, each by an argument: `upper=k` copies the last k layers of f alone and adds t to the (frozen, stored)
states that enter them; `train_reader=False` keeps G frozen, so that pool(G(I)) is stored too; `mode="joint"` is a
reading of I3, in which f_c reads instruction and query as one pair of texts and t falls away.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlws.errors import InputError
from vlws.models.added import fill, load_added, save_added
from vlws.models.hub import weights_hash
from vlws.models.retriever import Retriever
from vlws.models.text_layers import layers_of, run_layers, state_before


@dataclass(frozen=True)
class ControlConfig:
    """What is added to a retriever.

    Attributes:
        mode: "additive", as released; "joint": f_c reads "instruction [SEP] query".
        upper: layers that f_c copies, from the last; 0 for all, with t added to token embeddings as released.
        layers: of f_c (and G) that are kept, evenly spaced, the last among them; 0 for all (`pruned`).
        reader_pool: "cls", as released, or "mean", which did better on a mean-pooled retriever.
        train_reader: G is a copy that is trained, as released; else the retriever itself, frozen.
        zero: Z1 and Z2 start at zero; else at random, the ablation.
        max_instruction: tokens that are read of an instruction; a longer one is refused.

    >>> ControlConfig(upper=2, train_reader=False).mode
    'additive'
    """

    mode: Literal["additive", "joint"] = "additive"
    upper: int = 0
    layers: int = 0
    reader_pool: Literal["cls", "mean"] = "mean"
    train_reader: bool = True
    zero: bool = True
    max_instruction: int = 64


class States(NamedTuple):
    """What is frozen of queries: what f_c reads "row len dim", its mask "row len", and pool(f(q)) "row dim".

    >>> States(torch.zeros(2, 3, 8), torch.ones(2, 3), torch.zeros(2, 8)).pick(torch.tensor([1])).pooled.shape
    torch.Size([1, 8])
    """

    hidden: Tensor
    attention_mask: Tensor
    pooled: Tensor

    def pick(self, rows: Tensor) -> "States":
        """Those of some rows, without the padding that only others need."""
        mask = self.attention_mask[rows]
        longest = int(mask.sum(1).max())
        return States(self.hidden[rows, :longest], mask[:, :longest], self.pooled[rows])


class ControlRetriever(nn.Module):
    """A frozen retriever with an instruction encoder, a control encoder, and two connections that start at zero.

    Args:
        retriever: its weights are frozen, here and for good.

    Raises:
        InputError: a number of layers that the encoder has not.

    >>> import tempfile
    >>> from vlws.models.retriever import load_retriever
    >>> retriever = load_retriever("bert-wordnet", "cpu")
    >>> control = ControlRetriever(retriever, ControlConfig(upper=2, train_reader=False))
    >>> states, t = control.states(["bank"]), control.instruct(["Find names for places near the term."])
    >>> states.hidden.shape, t.shape
    (torch.Size([1, 3, 128]), torch.Size([1, 128]))
    >>> torch.equal(control(states, t), retriever.finish(states.pooled))  # untrained, it is the retriever
    True
    >>> sum(p.numel() for p in control.trainable_parameters()) < sum(p.numel() for p in retriever.parameters())
    True
    >>> [group["lr"] for group in control.parameter_groups(lr=1e-3, copies_lr=2e-4)]
    [0.001, 0.0002]
    >>> control.encode_queries(["bank", "river"], "Find names for places near the term.").shape
    torch.Size([2, 128])
    >>> control.remember(["Find names."], control.heard(["Find names."]))  # which another control has read
    >>> len(control.pruned(1).control)  # a student of one layer
    1
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     control.save_pretrained(f"{folder}/control")
    ...     again = ControlRetriever.from_pretrained(f"{folder}/control", retriever)
    >>> again.train().training  # nothing drops out
    False
    """

    def __init__(self, retriever: Retriever, config: ControlConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ControlConfig()
        self.retriever = retriever.eval().requires_grad_(False)
        depth = len(layers_of(retriever.model))
        if not 0 <= config.upper <= depth or (config.upper and config.mode == "joint"):
            raise InputError(f"upper={config.upper}: accepted is 0 to the encoder's {depth} layers, and 0 where joint.")
        if not 0 <= config.layers <= (config.upper or depth):
            raise InputError(f"layers={config.layers}: accepted is 0 to the {config.upper or depth} that are copied.")
        f_c = nn.ModuleList(layers_of(retriever.model)[depth - config.upper :]) if config.upper else retriever.model
        self.control: Any = cast(Any, copy.deepcopy(f_c)).requires_grad_(True)
        additive = config.mode == "additive"
        if additive and not config.upper:
            self.control.set_input_embeddings(nn.Identity())  # it reads vectors
        self.reader = copy.deepcopy(retriever.model).requires_grad_(True) if additive and config.train_reader else None
        dim = retriever.model.config.hidden_size
        self.connect_instruction = nn.Linear(dim, dim) if additive else None  # Z1
        self.connect_control = nn.Linear(dim, dim)  # Z2
        for connection in (self.connect_instruction, self.connect_control):
            if connection is None:
                continue
            if config.zero:
                nn.init.zeros_(connection.weight)
            nn.init.zeros_(connection.bias)
        if config.layers:
            self._keep_layers(config.layers)
        self._read: dict[str, Tensor] = {}
        self.limit = min(config.max_instruction, retriever.positions or config.max_instruction)
        self.to(retriever.device)

    def train(self, mode: bool = True) -> "ControlRetriever":
        """Nothing drops out, neither frozen nor trained: scores before training are the retriever's."""
        return super().train(False)

    # --- t, x, c, e ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def states(self, queries: Sequence[str], instructions: Sequence[str] | None = None) -> States:
        """What is frozen of queries; where f_c reads pairs, of queries with their instructions.

        Raises:
            InputError: an instruction that is missing, empty or too long.
        """
        ids, mask = self.retriever.tokens(queries)
        pooled: Tensor
        if self.config.mode == "joint":
            pooled = self.retriever.pool(self.retriever.model(ids, attention_mask=mask).last_hidden_state, mask)
            self._check(instructions or [""])
            pairs = self.retriever.tokenizer(
                list(instructions or ()), list(queries), padding=True, truncation="only_second", return_tensors="pt",
                max_length=min(self.limit + self.retriever.max_length, self.retriever.positions or 10**6),
            ).to(pooled.device)  # fmt: skip
            hidden = self.retriever.model.get_input_embeddings()(pairs["input_ids"])
            return States(hidden, pairs["attention_mask"], pooled)
        if self.config.upper:
            depth = len(layers_of(self.retriever.model))
            hidden, last = state_before(
                self.retriever.model, depth - self.config.upper, input_ids=ids, attention_mask=mask
            )
        else:
            hidden = self.retriever.model.get_input_embeddings()(ids)
            last = self.retriever.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return States(hidden, mask, self.retriever.pool(last, mask))

    def instruct(self, instructions: Sequence[str]) -> Tensor:
        """t = Z1 pool(G(I)), "row dim". It hangs on the instruction alone: one serves a whole collection.

        Raises:
            InputError: an instruction that is empty or longer than `max_instruction` tokens; mode "joint".
        """
        if self.connect_instruction is None:
            raise InputError('mode="joint" has no vector of an instruction; it reads instruction and query together.')
        if self.reader is not None:
            self._check(instructions)
            return self.connect_instruction(self._pooled(self.reader, instructions))
        new = [text for text in dict.fromkeys(instructions) if text not in self._read]
        if new:
            self._check(new)
            with torch.no_grad():
                self.remember(new, self._pooled(self.retriever.model, new))
        return self.connect_instruction(torch.stack([self._read[text] for text in instructions]))

    def remember(self, instructions: Sequence[str], pooled: Tensor) -> None:
        """Take pool(G(I)) "row dim" of instructions from another control on the same retriever (`heard`).

        Raises:
            InputError: a reader that is trained, whose vectors change.
        """
        if self.reader is not None:
            raise InputError("train_reader=True: vectors of instructions change in training; none are remembered.")
        self._read |= dict(zip(instructions, pooled.detach().to(self.retriever.device), strict=True))

    def heard(self, instructions: Sequence[str]) -> Tensor:
        """pool(G(I)) "row dim" of instructions, without gradient: what `remember` takes."""
        self._check(instructions)
        with torch.no_grad():
            return self._pooled(self.reader or self.retriever.model, instructions)

    def forward(self, states: States, t: Tensor | None = None) -> Tensor:
        """e(q, I) "row dim", of unit length where the retriever's vectors are. Without t (mode "additive"): f(q)."""
        if t is None and self.config.mode == "additive":
            return self.retriever.finish(states.pooled)
        x = states.hidden if t is None else states.hidden + t[:, None]
        if self.config.upper:
            last = run_layers(self.retriever.model, self.control, x, states.attention_mask)
        else:
            last = self.control(inputs_embeds=x, attention_mask=states.attention_mask).last_hidden_state
        c = self.retriever.pool(last, states.attention_mask)
        return self.retriever.finish(states.pooled + self.connect_control(c))

    @torch.no_grad()
    def encode_queries(self, queries: Sequence[str], instruction: str = "", batch_size: int = 64) -> Tensor:
        """ "query dim": e(q, I) of queries under one instruction; without one, f(q) of the retriever alone.

        Raises:
            InputError: an instruction that is longer than `max_instruction` tokens.
        """
        if not instruction:
            return self.retriever.encode(queries, batch_size)
        found = []
        t = self.instruct([instruction]) if self.config.mode == "additive" else None
        for k in range(0, len(queries), batch_size):
            part = list(queries[k : k + batch_size])
            states = self.states(part, [instruction] * len(part))
            found.append(self(states, None if t is None else t.expand(len(part), -1)))
        return torch.cat(found)

    def _pooled(self, encoder: nn.Module, texts: Sequence[str]) -> Tensor:
        ids, mask = self.retriever.tokens(texts, max_length=self.limit)
        last = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        if self.config.reader_pool == "cls":
            return last[:, 0]
        weights = mask[..., None].to(last.dtype)
        return (last * weights).sum(1) / weights.sum(1)

    def _check(self, instructions: Iterable[str]) -> None:
        for text in dict.fromkeys(instructions):
            if not text.strip():
                raise InputError("An instruction is empty; accepted is a text of a word or more.")
            n = len(self.retriever.tokenizer(text, truncation=False, verbose=False)["input_ids"])
            if n > self.limit:
                raise InputError(f"The instruction {text[:40]!r} has {n} tokens; accepted are at most {self.limit}.")

    # --- structure pruning (I3) ---------------------------------------------------------------------------------------

    def pruned(self, layers: int) -> "ControlRetriever":
        """A student with fewer layers in f_c and G, whose weights are this one's; for training on (`distil`).

        Raises:
            InputError: more layers than there are, or none.
        """
        have = len(self.control if self.config.upper else layers_of(self.control))
        if not 1 <= layers <= have:
            raise InputError(f"layers={layers}: accepted is 1 to {have}, those of the control encoder.")
        student = ControlRetriever.__new__(ControlRetriever)
        nn.Module.__init__(student)
        student.config = ControlConfig(**(asdict(self.config) | {"layers": layers}))
        student.retriever, student.limit, student._read = self.retriever, self.limit, dict(self._read)
        for name in ("control", "reader", "connect_instruction", "connect_control"):
            setattr(student, name, copy.deepcopy(getattr(self, name)))
        student._keep_layers(layers)
        return student

    def _keep_layers(self, layers: int) -> None:
        whole = [] if self.config.upper else [layers_of(self.control)]
        for stack in [*whole, *([layers_of(self.reader)] if self.reader is not None else [])]:
            keep = spaced(len(stack), layers)
            for k in reversed(range(len(stack))):
                if k not in keep:
                    del stack[k]
        if self.config.upper:
            self.control = nn.ModuleList(self.control[k] for k in spaced(len(self.control), layers))

    # --- what is trained and kept -------------------------------------------------------------------------------------

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Z1, Z2, f_c and G where it is a copy; never the retriever's."""
        return [p for p in self.parameters() if p.requires_grad]

    def parameter_groups(self, lr: float = 1e-3, copies_lr: float = 2e-4) -> list[dict[str, Any]]:
        """For an optimizer: connections at `lr`, copied layers at `copies_lr`."""
        connections = [
            p for c in (self.connect_instruction, self.connect_control) if c is not None for p in c.parameters()
        ]
        known = set(map(id, connections))
        copies = [p for p in self.trainable_parameters() if id(p) not in known]
        return [{"params": connections, "lr": lr}, {"params": copies, "lr": copies_lr}]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write what was added, and the hash of the retriever that it belongs to (`vlws.models.added.save_added`)."""
        tensors = {
            name: p for name, p in self.named_parameters() if not name.startswith("retriever.")
        }  # tied ones once
        save_added(folder, "ControlRetriever", asdict(self.config), self._base(), tensors)

    @classmethod
    def from_pretrained(cls, folder: str | Path, retriever: Retriever) -> "ControlRetriever":
        """What `save_pretrained` wrote, on its retriever.

        Raises:
            InputError: no such folder, a damaged one, or one that was trained on another retriever.
        """
        probe = cls.__new__(cls)
        nn.Module.__init__(probe)
        probe.retriever = retriever
        config, tensors = load_added(folder, "ControlRetriever", probe._base())
        control = cls(retriever, ControlConfig(**config))
        fill(control, tensors, folder)
        return control

    def _base(self) -> Mapping[str, Any]:
        return {"hidden_size": self.retriever.model.config.hidden_size, "weights": weights_hash(self.retriever.model)}


def spaced(have: int, keep: int) -> list[int]:
    """`keep` of `have` layers, evenly spaced, the last among them.

    >>> spaced(6, 3), spaced(6, 1)
    ([1, 3, 5], [5])
    """
    return [(k + 1) * have // keep - 1 for k in range(keep)]


# --- losses -----------------------------------------------------------------------------------------------------------


def contrast(e: Tensor, documents: Tensor, positive: Tensor, negatives: Tensor, temperature: float = 0.05) -> Tensor:
    """L_nce: the positive of each row against its own negatives and the positives of other rows.

    Args:
        e: "row dim". documents: "document dim", frozen.
        positive: "row" indices of documents; negatives: "row k", such as documents near the same query that answer
            another instruction: without them the instruction can be ignored.

    Another row's positive that is also one's own counts once.

    >>> e = torch.eye(2)
    >>> float(contrast(e, torch.eye(3, 2), torch.tensor([0, 1]), torch.tensor([[2], [2]]), temperature=0.01)) < 1e-3
    True
    """
    own = torch.arange(len(e), device=e.device)
    inside = e @ documents[positive].T  # row row
    inside = inside.masked_fill((positive[:, None] == positive) & (own[:, None] != own), -torch.inf)
    outside = torch.einsum("nd,nkd->nk", e, documents[negatives])
    outside = outside.masked_fill(negatives == positive[:, None], -torch.inf)
    return F.cross_entropy(torch.cat([inside, outside], 1) / temperature, own)


def distil(student: Tensor, teacher: Tensor, documents: Tensor, temperature: float = 0.05) -> Tensor:
    """L_kd = KL(teacher || student) of the softmax of scores over the same documents "document dim"; e's are "row dim".

    >>> e = torch.eye(2)
    >>> float(distil(e, e, torch.eye(3, 2)))
    0.0
    """
    wanted = F.log_softmax(teacher.detach() @ documents.T / temperature, -1)
    found = F.log_softmax(student @ documents.T / temperature, -1)
    return F.kl_div(found, wanted, log_target=True, reduction="batchmean")
