"""Sugar: one multimodal language model that generates and retrieves, by aligning the structure of interleaved inputs.

Chow, Li, Yu, Pan, Fei, Ge, Yang, Tang, Zhang, Sun, "Unified Generative and Discriminative Training for Multi-modal
Large Language Models", NeurIPS 2024, arXiv:2411.00304. In the order of its section 3:

1. a slice is one picture or one sentence; frozen experts embed it (`vlws.models.experts`);
2. labels: how alike are two prefixes? The Global Alignment Kernel over the Triple Kernel (equations 2 and 4);
3. the model's side: the state at the end of a slice summarises its prefix; a head makes it a unit vector r;
4. the loss: L = L_g + alpha L_d, with L_d = 1/n sum_ij (M^r_ij - M^l_ij)^2 (equations 1 and 3);
5. the same model retrieves by r, generates, and answers with what it retrieved.

Read as in the printed formulation save for three repairs, each said where it stands: the kernel is normalised, its
values are clamped to [0, 1], and a prefix is what r summarises. What the paper leaves open (alpha, delta, the number of
slice ends, the head) is an argument.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from einops import einsum
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional as F

from vlws import train
from vlws.data.documents import Document, with_reference
from vlws.errors import InputError
from vlws.models.adapter import IGNORED, Adapter
from vlws.models.added import fill, load_added, save_added
from vlws.models.experts import SliceEmbeddings
from vlws.models.interleave import Reader, Rows
from vlws.models.slice_ends import Collated, Draw, collate
from vlws_kernels import dtw, gak, triple_distance

DELTA = 0.7  # sigma = delta sqrt((n + m) / 2), on slices of unit norm; the paper gives none
LabelKind = Literal["gak", "mean", "dtw", "soft_dtw"]
FAR = 1e4  # a local cost whose kernel is 0
CALIBRATION = 8  # batches
SHORT = 8  # slices; tables of this size or less are the kernels' smallest


# ---------------------------------------------------------------------------------------------------------------------
# 2. Labels


@dataclass(frozen=True)
class Labels:
    """`matrix` "n n" float32, the target of M^r; `clamped`: the share of kernel values outside [0, 1]."""

    matrix: Tensor
    clamped: float


def slice_distances(slices: SliceEmbeddings, rows: Tensor, triple: bool = True) -> Tensor:
    """phi "s s" (equation 4), squared, in [0, 4], between some slices ("s" indices); float32.

    Of one modality: the uni-modal parts; of two: the cross-modal parts. `triple=False` takes the latter throughout.
    """
    vectors, modality = slices.vectors[rows], slices.modality[rows]
    if not triple:
        modality = torch.arange(len(rows))  # no two of one modality
    return triple_distance(vectors, vectors, modality, modality, slices.split)


def alignment_labels(
    distance: Tensor,
    prefixes: Sequence[Tensor],
    sample: Tensor,
    *,
    kind: LabelKind = "gak",
    delta: float = DELTA,
) -> Labels:
    """M^l (section 3.2): how alike n prefixes are.

    Args:
        distance: phi "s s" of all slices that the prefixes use.
        prefixes: n index tensors "length" into them: the slices up to and with the slice end i.
        sample: "n" ids; two ends of one sample are alike, 1.
        kind: "gak"; "mean", the average cosine over all pairs of slices (the paper's ablation without GAK); "dtw",
            the best alignment alone in place of the sum over all; "soft_dtw", the sum without the half-Gaussian kernel.
        delta: of sigma = delta sqrt((n_i + n_j) / 2), one for each pair of lengths.

    The overrides: two prefixes of one slice have the cosine of their slices (Theorem 3 makes GAK a monotone function of
    it); ends of one sample have 1. Raises InputError for an empty prefix and an unknown kind.
    """
    if kind not in get_args(LabelKind):
        raise InputError(f"kind={kind!r}: accepted are {', '.join(get_args(LabelKind))}.")
    if not len(prefixes) or min(map(len, prefixes)) == 0:
        raise InputError("a prefix without slices was given; each slice end has one slice before it or more.")
    length = torch.tensor([len(p) for p in prefixes])
    index = nn.utils.rnn.pad_sequence(list(prefixes), batch_first=True)  # "n l"
    table = distance[index[:, None, :, None], index[None, :, None, :]]  # "n n l l"
    clamped = 0.0
    if kind == "mean":
        inside = (torch.arange(index.shape[1]) < length[:, None]).float()
        total = einsum(1 - table / 2, inside, inside, "a b n m, a n, b m -> a b")
        matrix = total / (length[:, None] * length)
    else:
        kernel = _kernels(table, length, kind, delta)
        clamped = float(((kernel < 0) | (kernel > 1 + 1e-4)).float().mean())
        matrix = kernel.clamp(0, 1)
    single = (length == 1)[:, None] & (length == 1)
    matrix = torch.where(single, 1 - table[:, :, 0, 0] / 2, matrix)
    return Labels(torch.where(sample[:, None] == sample, 1.0, matrix).float(), clamped)


def _kernels(table: Tensor, length: Tensor, kind: str, delta: float) -> Tensor:
    """Normalised kernels "n n" of the tables "n n l l": K_xy / sqrt(K_xx K_yy), all three at the pair's sigma.

    Without the normaliser n equal slices have the central Delannoy number, 1, 3, 13, 63, ... (the paper claims (0, 1]).
    """
    sigma = delta * ((length[:, None] + length) / 2).sqrt()
    if kind == "dtw":
        blank = table.new_zeros(len(table), table.shape[-1], 1)  # the table is all that is read
        return torch.exp(-dtw(blank, blank, length, length, distance=table) / (2 * sigma**2))
    others = torch.unique(length)
    own_sigma = delta * ((length[:, None] + others) / 2).sqrt()
    log_k, own_k = table.new_empty(sigma.shape), table.new_empty(own_sigma.shape)
    sizes = sorted({min(SHORT, table.shape[-1]), table.shape[-1]})
    for low, size in zip([0, *sizes], sizes, strict=False):  # few prefixes are long, and small tables are cheap
        rows, columns = (torch.nonzero(which)[:, 0] for which in ((length > low) & (length <= size), length <= size))
        if not len(rows):
            continue
        part = table[rows[:, None], columns, :size, :size]
        log_k[rows[:, None], columns] = _log_kernel(part, length[rows], length[columns], sigma[rows][:, columns], kind)
        log_k[columns[:, None], rows] = log_k[rows[:, None], columns].T
        # K(x, x) at the sigma of every other length: beyond its end the table goes on along the diagonal at no cost,
        # so that one call reads all of them in the last cell.
        step = torch.arange(size)
        inside = step < length[rows, None]
        inside = inside[:, :, None] & inside[:, None, :]
        own = torch.where(inside, table[rows, rows, :size, :size], FAR * (1 - torch.eye(size)))
        own = own[:, None].expand(-1, len(others), -1, -1).contiguous()
        own_k[rows] = _log_kernel(own, None, None, own_sigma[rows], kind)
    mine = own_k[:, torch.searchsorted(others, length)]  # "n n": K(x_i, x_i) at the sigma of (i, j)
    return torch.exp(log_k - (mine + mine.T) / 2)


def _log_kernel(table: Tensor, len_x: Tensor | None, len_y: Tensor | None, sigma: Tensor, kind: str) -> Tensor:
    """log K "a b" of tables "a b n m", unnormalised."""
    if kind == "soft_dtw":
        table, sigma = _plain(table, sigma)
    x, y = (table.new_zeros(table.shape[k], table.shape[2 + k], 1) for k in (0, 1))  # the table is all that is read
    return gak(x, y, len_x, len_y, sigma, normalize=False, log=True, distance=table)


def _plain(table: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Costs for which the half-Gaussian kernel s/(2-s) at sigma 1 is the plain exp(-phi / (2 sigma^2))."""
    plain = torch.exp(-table / (2 * sigma[..., None, None] ** 2)).clamp_min(1e-30)
    return -2 * torch.log(2 * plain / (1 + plain)), torch.ones_like(sigma)


def structure_loss(r: Tensor, labels: Tensor) -> Tensor:
    """L_d = 1/n sum_ij (cos(r_i, r_j) - M^l_ij)^2 of unit rows r "n d" (equations 1 and 3; 1/n as printed)."""
    return (r @ r.T - labels.detach()).square().sum() / len(r)


def same_sample_loss(r: Tensor, sample: Tensor, temperature: float = 0.1) -> Tensor:
    """InfoNCE over ends of one sample (the arm after FROMAGe): mean over all pairs of one sample, both ways."""
    alike = (sample[:, None] == sample) & ~torch.eye(len(r), dtype=torch.bool, device=r.device)
    if not alike.any():
        return r.sum() * 0
    logits = (r @ r.T / temperature).fill_diagonal_(-torch.inf)
    return -logits.log_softmax(1)[alike].mean()


# ---------------------------------------------------------------------------------------------------------------------
# 3. The model


@dataclass(frozen=True)
class SugarConfig:
    """What determines a Sugar beside its backbone.

    Attributes:
        rank: of LoRA on the query and value projections; its alpha is twice that, as in the paper.
        embedding_dim: of r.
        pooling: of a picture's states: "mean", or "last" (the ablation); a sentence's is always its last token's.
        alpha: weight of L_d; 0 leaves L_g alone.
        generative: False leaves L_d alone.
        temperature: where given, InfoNCE at this temperature takes the place of L_d.
        seed: of the new weights.
    """

    rank: int = 8
    embedding_dim: int = 64
    pooling: Literal["mean", "last"] = "mean"
    alpha: float = 0.3
    generative: bool = True
    temperature: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pooling not in ("mean", "last"):
            raise InputError(f"pooling={self.pooling!r}: accepted are mean and last.")
        if self.alpha < 0 or not math.isfinite(self.alpha) or (self.alpha == 0 and not self.generative):
            raise InputError(
                f"alpha={self.alpha} with generative={self.generative} leaves nothing to learn; give alpha > 0."
            )


class Sugar(nn.Module):
    """A multimodal language model with LoRA on its query and value projections, and the retrieval head F_phi.

    Args:
        adapter: the model (`vlws.models.adapter`); LoRA is put into it, all else of it is frozen.
    """

    mean: Tensor  # "2 hidden", of sentences and of pictures; set by `calibrate`, as is `scale`
    scale: Tensor

    def __init__(self, adapter: Adapter, config: SugarConfig | None = None) -> None:
        super().__init__()
        self.config, self.reader = config or SugarConfig(), Reader(adapter)
        torch.manual_seed(self.config.seed)
        adapter.model.requires_grad_(False)
        rank, size = self.config.rank, adapter.hidden_size
        lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "v_proj"])
        inject_adapter_in_model(lora, adapter.decoder)
        self.decoder = adapter.decoder  # registered, so that its LoRA weights are this module's
        head = nn.Sequential(nn.Linear(size, size), nn.GELU(), nn.Linear(size, self.config.embedding_dim))
        self.head = head.to(adapter.device)
        self.register_buffer("mean", torch.zeros(2, size, device=adapter.device))
        self.register_buffer("scale", torch.ones(2, size, device=adapter.device))
        self._first_tokens: dict[str, int] = {}

    @property
    def adapter(self) -> Adapter:
        return self.reader.adapter

    def trainable_parameters(self) -> list[nn.Parameter]:
        return [p for p in self.parameters() if p.requires_grad]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write LoRA, head and calibration (safetensors and JSON). Raises InputError for a folder of other files."""
        added = {n: v for n, v in self.state_dict().items() if "lora_" in n or not n.startswith("decoder.")}
        save_added(folder, "Sugar", asdict(self.config), self.adapter.sizes, added)

    @classmethod
    def from_pretrained(cls, folder: str | Path, adapter: Adapter) -> "Sugar":
        """A saved Sugar in a fresh backbone. Raises InputError for a folder that is not one of this backbone's."""
        config, tensors = load_added(folder, "Sugar", adapter.sizes)
        model = cls(adapter, SugarConfig(**config))
        fill(model, tensors, folder)
        return model.eval()

    def merge_lora(self) -> None:
        """Add LoRA to the projections that it stands beside: the same model, faster to read with; it learns no more."""
        for module in self.decoder.modules():
            if isinstance(module, LoraLayer):
                module.merge()

    def states(self, hidden: Tensor, at: Tensor, is_image: Tensor) -> Tensor:
        """d "n hidden" at slice ends: mean over a picture's tokens, or the last token of a sentence.

        hidden "batch len hidden" after the final norm; `at` "n 3" (row, start, stop); `is_image` "n" bool.
        """
        row, start, stop = at.T
        if self.config.pooling == "last":
            return hidden[row, stop - 1]
        start = torch.where(is_image, start, stop - 1)
        token = torch.arange(hidden.shape[1], device=hidden.device)
        inside = (token >= start[:, None]) & (token < stop[:, None])
        return einsum(hidden[row], inside / inside.sum(1, keepdim=True), "n len d, n len -> n d")

    def forward(self, hidden: Tensor, at: Tensor, is_image: Tensor) -> Tensor:
        """r "n embedding_dim", unit rows."""
        kind = is_image.long()
        d = (self.states(hidden, at, is_image).float() - self.mean[kind]) / self.scale[kind]
        return F.normalize(self.head(d), dim=-1)

    @torch.no_grad()
    def calibrate(self, batches: Sequence["Collated"]) -> None:
        """Set where F_phi starts: states of sentences and of pictures have mean 0 and deviation 1 over these batches.

        All states of a language model have one large component in common; without this all r start out equal, and a
        contrastive loss does not get away from there in a few hundred steps.
        """
        found: tuple[list[Tensor], list[Tensor]] = ([], [])
        for batch in batches:
            for rows, at, is_image in zip(batch.groups, batch.at, batch.is_image, strict=True):
                if len(at):
                    hidden = self.adapter.hidden(rows.batch.to(self.adapter.device), self.adapter.num_layers)
                    d = self.states(hidden, at.to(hidden.device), is_image.to(hidden.device)).float()
                    for kind in (0, 1):
                        found[kind].append(d[is_image.to(d.device).long() == kind])
        for kind, parts in enumerate(found):
            d = torch.cat(parts) if parts else torch.zeros(0)
            if len(d) > 1:
                self.mean[kind], self.scale[kind] = d.mean(0), d.std(0).clamp_min(1e-3)

    @torch.no_grad()
    def embed(self, documents: Sequence[Document], features: Tensor, batch: int = 32) -> Tensor:
        """r "document embedding_dim" at the last slice of each document; `features` one row per picture."""
        return self._last(documents, features, batch, lambda hidden, at, shown: self(hidden, at, shown))

    @torch.no_grad()
    def pooled(self, documents: Sequence[Document], features: Tensor, batch: int = 32) -> Tensor:
        """d "document hidden" at the last slice, unit rows, without the head: what an untrained model retrieves by."""
        return self._last(documents, features, batch, lambda *a: F.normalize(self.states(*a).float(), dim=-1))

    def _last(self, documents, features, batch, read: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        def last(rows: Rows, part: list[Document]) -> Tensor:
            hidden = self.adapter.hidden(rows.batch, self.adapter.num_layers)
            at = torch.tensor([[k, *spans[-1].tolist()] for k, spans in enumerate(rows.spans)]).to(hidden.device)
            is_image = torch.tensor([document.slices[-1].is_image for document in part]).to(hidden.device)
            return read(hidden, at, is_image).cpu()

        return torch.stack(self._in_order(documents, features, batch, last, answers=False))

    def _chunks(self, documents, features, batch, **options) -> Iterator[tuple[list[int], Rows]]:
        """Indices and rows, on the model's device, of at most `batch` documents of like length."""
        for group in self.reader.groups(documents):
            for start in range(0, len(group), batch):
                part = group[start : start + batch]
                rows = self.reader.rows([documents[i] for i in part], features, **options)
                yield part, replace(rows, batch=rows.batch.to(self.adapter.device))

    def _in_order(self, documents, features, batch, read: Callable[[Rows, list[Document]], Any], **options) -> list:
        """One result per document, in their order, of what `read` gives of the rows of each chunk."""
        found: dict[int, Any] = {}
        for part, rows in self._chunks(documents, features, batch, **options):
            found |= dict(zip(part, read(rows, [documents[i] for i in part]), strict=True))
        return [found[i] for i in range(len(documents))]

    @torch.no_grad()
    def choose(self, documents: Sequence[Document], features: Tensor, batch: int = 32) -> np.ndarray:
        """ "document" int: the index of the choice whose first token the model finds most likely after the question."""

        def best(rows: Rows, part: list[Document]) -> list[int]:
            hidden = self.adapter.hidden(rows.batch, self.adapter.num_layers)
            last = hidden[torch.arange(len(part)), rows.batch.attention_mask.sum(1) - 1]
            logits = self.adapter.lm_head(last).float().cpu()  # "document vocab"
            firsts = [[self._first_token(choice) for choice in document.choices] for document in part]
            return [int(row[choices].argmax()) for row, choices in zip(logits, firsts, strict=True)]

        return np.array(self._in_order(documents, features, batch, best, answers=False))

    def _first_token(self, word: str) -> int:
        if word not in self._first_tokens:
            ids = self.adapter.tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
            self._first_tokens[word] = ids[0]
        return self._first_tokens[word]

    @torch.no_grad()
    def answer(
        self, documents: Sequence[Document], features: Tensor, max_new_tokens: int = 16, batch: int = 64
    ) -> list[str]:
        """What the model says after each document, greedily."""

        def said(rows: Rows, part: list[Document]) -> list[str]:
            return [text.strip() for text in self.adapter.generate(rows.batch, max_new_tokens)]

        return self._in_order(documents, features, batch, said, answers=False, padding_side="left")

    @torch.no_grad()
    def language_loss(self, documents: Sequence[Document], features: Tensor, batch: int = 32) -> float:
        """L_g of documents: mean cross-entropy of the tokens with labels."""
        total = count = 0.0
        for _, rows in self._chunks(documents, features, batch):
            hidden = self.adapter.hidden(rows.batch, self.adapter.num_layers)
            loss, n = self.cross_entropy(hidden, cast(Tensor, rows.batch.labels))
            total, count = total + float(loss), count + n
        return total / count

    def losses(self, batch: Collated) -> tuple[Tensor, Tensor]:
        """(L_g, r "n embedding_dim"): one pass of the model over all groups."""
        total, count = torch.zeros((), device=self.adapter.device), 0
        ends = [torch.zeros(0, self.config.embedding_dim, device=self.adapter.device)]
        for rows, at, is_image in zip(batch.groups, batch.at, batch.is_image, strict=True):
            given = rows.batch.to(self.adapter.device)
            hidden = self.adapter.hidden(given, self.adapter.num_layers)
            loss, n = self.cross_entropy(hidden, cast(Tensor, given.labels))
            total, count = total + loss, count + n
            if len(at):
                ends.append(self(hidden, at.to(hidden.device), is_image.to(hidden.device)))
        return total / max(count, 1), torch.cat(ends)

    def loss(self, batch: Collated, sample: Tensor, labels: Tensor | None = None) -> Tensor:
        """L = L_g + alpha L_d (equation 1): documents and slice ends, their documents "n", and M^l "n n" for L_d."""
        language, r = self.losses(batch)
        structure = torch.zeros(())
        if self.config.alpha and len(r):
            if self.config.temperature is not None:
                structure = same_sample_loss(r, sample.to(r.device), self.config.temperature)
            elif labels is not None:
                structure = structure_loss(r, labels.to(r.device))
        return (language if self.config.generative else 0.0) + self.config.alpha * structure

    def cross_entropy(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, int]:
        """Summed cross-entropy of the tokens with labels, and their number; logits are computed for these alone.

        hidden "batch len hidden" after the final norm; labels "batch len", -100 where none is.
        """
        nexts = labels[:, 1:]
        known = nexts != IGNORED
        logits = self.adapter.lm_head(hidden[:, :-1][known]).float()
        return F.cross_entropy(logits, nexts[known], reduction="sum"), int(known.sum())


# ---------------------------------------------------------------------------------------------------------------------
# 4. Training


def step_labels(
    draw: Draw, slices: SliceEmbeddings, *, kind: LabelKind = "gak", triple: bool = True, delta: float = DELTA
) -> Labels:
    """M^l of one step; distances are computed once for each slice that the step's prefixes share."""
    used, where = torch.unique(torch.cat(draw.prefixes), return_inverse=True)
    prefixes = where.split([len(p) for p in draw.prefixes])
    return alignment_labels(slice_distances(slices, used, triple), prefixes, draw.sample, kind=kind, delta=delta)


def train_sugar(
    model: Sugar,
    draws: Sequence[Draw],
    features: Tensor,
    labels: Sequence[Tensor] | None,
    *,
    lr: float = 2e-3,
    out: Path | None = None,
    label: str = "",
) -> list[dict[str, float]]:
    """L = L_g + alpha L_d over the draws (equation 1); AdamW, cosine, warm-up of 3 %.

    Args:
        features: one row per picture.
        labels: M^l "n n" of each draw; None where `model.config` has alpha 0 or a temperature.
        out, label: of `vlws.train.fit`: where checkpoints go, and the name of the progress bar (empty: none).

    Raises:
        vlws.train.Diverged: a loss that is not finite; the message says at which step.
        InputError: labels that are missing, or of another number than the draws.
    """
    if labels is not None and len(labels) != len(draws):
        raise InputError(f"{len(labels)} label matrices came with {len(draws)} steps; each step needs one.")
    if model.config.alpha and labels is None and model.config.temperature is None:
        raise InputError("alpha > 0 needs label matrices (L_d) or a temperature (InfoNCE).")

    def loss(model: Sugar, step: int) -> Tensor:
        draw = draws[step]
        return model.loss(collate(draw, model.reader, features), draw.sample, labels[step] if labels else None)

    if model.config.alpha:
        model.calibrate([collate(draw, model.reader, features) for draw in draws[:CALIBRATION]])
    optimizer = torch.optim.AdamW(model.trainable_parameters(), lr=lr, weight_decay=0.01)
    schedule = train.warmup_cosine(optimizer, len(draws), 0.03)
    device = "cpu" if model.adapter.device.type == "cpu" else "auto"
    return train.fit(
        model, loss, lambda step: step, len(draws), optimizer, schedule, out=out, clip=1.0, device=device, label=label
    )


# ---------------------------------------------------------------------------------------------------------------------
# 5. Answers with what was retrieved (`vlws.models.retrieval`)


def augmented(queries: Sequence[Document], items: Sequence[Document], found: np.ndarray) -> list[Document]:
    """Each query after the item that was retrieved for it ("query" indices): picture, question, answer."""
    return [with_reference(query, items[int(k)]) for query, k in zip(queries, found, strict=True)]
