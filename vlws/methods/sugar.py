"""Sugar: one multimodal language model that generates and retrieves, by aligning the structure of interleaved inputs.

Chow, Li, Yu, Pan, Fei, Ge, Yang, Tang, Zhang, Sun, "Unified Generative and Discriminative Training for Multi-modal
Large Language Models", NeurIPS 2024, arXiv:2411.00304. In the order of its section 3:

1. a slice is one picture or one sentence; frozen experts embed it (`vlws.models.experts`);
2. labels: how alike are two prefixes? `vlws.models.alignment` (equations 2 and 4);
3. the model's side: the state at the end of a slice summarises its prefix; a head makes it a unit vector r;
4. the loss: L = L_g + alpha L_d, with L_d = 1/n sum_ij (M^r_ij - M^l_ij)^2 (equations 1 and 3);
5. the same model retrieves by r, generates, and answers with what it retrieved.

It repairs the printed formulation in three places: the kernel is normalised, its values are clamped to [0, 1], and a
prefix is what r summarises. What the paper leaves open (alpha, delta, slice ends, the head) is an argument.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

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
from vlws.models.alignment import DELTA, LabelKind, Labels, alignment_labels, slice_distances
from vlws.models.experts import SliceEmbeddings
from vlws.models.interleave import Reader, Rows
from vlws.models.slice_ends import Collated, Draw, collate

CALIBRATION = 8  # batches

# ---------------------------------------------------------------------------------------------------------------------
# 2. Labels


def step_labels(
    draw: Draw, slices: SliceEmbeddings, *, kind: LabelKind = "gak", triple: bool = True, delta: float = DELTA
) -> Labels:
    """M^l of one step; distances are computed once for each slice that the step's prefixes share.

    >>> from vlws.data.emoji_world import stories
    >>> from vlws.models.clip import load_clip
    >>> from vlws.models.experts import latent_experts
    >>> from vlws.models.families import load_mllm
    >>> from vlws.models.slice_ends import draw_steps
    >>> found = stories.corpus(4, seed=0, mix={"pair": 1.0})
    >>> (draw,) = draw_steps(found, 1, 4, Reader(load_mllm("llava-emoji", "cpu")), ends=1)
    >>> labels = step_labels(draw, latent_experts(found, load_clip("clip-emoji", "cpu"))).matrix
    >>> labels.shape, labels.diagonal().tolist() == [1.0] * 8  # a picture and its caption, of each of 4 documents
    (torch.Size([8, 8]), True)
    """
    used, where = torch.unique(torch.cat(draw.prefixes), return_inverse=True)
    prefixes = where.split([len(p) for p in draw.prefixes])
    return alignment_labels(slice_distances(slices, used, triple), prefixes, draw.sample, kind=kind, delta=delta)


def structure_loss(r: Tensor, labels: Tensor) -> Tensor:
    """L_d = 1/n sum_ij (cos(r_i, r_j) - M^l_ij)^2 of unit rows r "n d" (equations 1 and 3; 1/n as printed).

    >>> structure_loss(torch.eye(2), torch.eye(2)).item()  # cosines and labels agree
    0.0
    >>> structure_loss(torch.eye(2), torch.ones(2, 2)).item()  # two ends that should be alike, and are not
    1.0
    """
    return (r @ r.T - labels.detach()).square().sum() / len(r)


def same_sample_loss(r: Tensor, sample: Tensor, temperature: float = 0.1) -> Tensor:
    """InfoNCE over ends of one sample (the arm after FROMAGe): mean over all pairs of one sample, both ways.

    >>> r = torch.eye(2).repeat(2, 1)  # two ends of each of two samples
    >>> bool(same_sample_loss(r, torch.tensor([0, 1, 0, 1])) < same_sample_loss(r, torch.tensor([0, 0, 1, 1])))
    True
    """
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

    >>> SugarConfig(alpha=0.0)  # the arm with the language loss alone
    SugarConfig(rank=8, embedding_dim=64, pooling='mean', alpha=0.0, generative=True, temperature=None, seed=0)
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
                f"alpha={self.alpha}, generative={self.generative} leaves nothing to learn; give alpha > 0."
            )


class Sugar(nn.Module):
    """A multimodal language model with LoRA on its query and value projections, and the retrieval head F_phi.

    LoRA is put into the adapter's model; all else of it is frozen.

    >>> from vlws.data.documents import Slice
    >>> from vlws.models.families import load_mllm
    >>> sugar = Sugar(load_mllm("llava-emoji", "cpu"), SugarConfig(rank=4))
    >>> sum(p.numel() for p in sugar.trainable_parameters()) < 0.1 * sugar.adapter.model.num_parameters()
    True
    >>> documents = [Document((Slice(image=0), Slice("what is it?")), answer="a cat", choices=("a cat", "a dog"))]
    >>> features = sugar.reader.features(np.zeros((1, 32, 32, 3), np.uint8))
    >>> sugar.embed(documents, features).shape, sugar.pooled(documents, features).shape  # to retrieve by
    (torch.Size([1, 64]), torch.Size([1, 128]))
    >>> sugar.choose(documents, features).shape, len(sugar.answer(documents, features, max_new_tokens=2))
    ((1,), 1)
    >>> sugar.language_loss(documents, features) > 0
    True
    """

    mean: Tensor  # "2 hidden", of sentences and of pictures; set by `calibrate`, as is `scale`
    scale: Tensor

    def __init__(self, adapter: Adapter, config: SugarConfig | None = None) -> None:
        super().__init__()
        self.config, self.reader = config or SugarConfig(), Reader(adapter)
        torch.manual_seed(self.config.seed)
        adapter.model.requires_grad_(False)
        rank, size = self.config.rank, adapter.hidden_size
        lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "v_proj"])  # alpha / r = 2
        inject_adapter_in_model(lora, adapter.decoder)
        self.decoder = adapter.decoder  # registered, so that its LoRA weights are this module's
        head = nn.Sequential(nn.Linear(size, size), nn.GELU(), nn.Linear(size, self.config.embedding_dim))
        self.head = head.to(adapter.device)
        self.register_buffer("mean", torch.zeros(2, size, device=adapter.device))
        self.register_buffer("scale", torch.ones(2, size, device=adapter.device))
        self._first_tokens: dict[str, int] = {}

    @property
    def adapter(self) -> Adapter:
        """The backbone, with LoRA in it."""
        return self.reader.adapter

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Those of LoRA and of the head."""
        return [p for p in self.parameters() if p.requires_grad]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write LoRA, head and calibration (safetensors and JSON). Raises InputError for a folder of other files.

        >>> import tempfile
        >>> from vlws.models.families import load_mllm
        >>> sugar = Sugar(load_mllm("llava-emoji", "cpu"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sugar.save_pretrained(f"{folder}/sugar")
        ...     print(sorted(path.name for path in Path(folder, "sugar").iterdir()))
        ['config.json', 'model.safetensors']
        """
        added = {n: v for n, v in self.state_dict().items() if "lora_" in n or not n.startswith("decoder.")}
        save_added(folder, "Sugar", asdict(self.config), self.adapter.sizes, added)

    @classmethod
    def from_pretrained(cls, folder: str | Path, adapter: Adapter) -> "Sugar":
        """A saved Sugar in a fresh backbone. Raises InputError for a folder that is not one of this backbone's.

        >>> import tempfile
        >>> from vlws.models.families import load_mllm
        >>> sugar = Sugar(load_mllm("llava-emoji", "cpu"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sugar.save_pretrained(f"{folder}/sugar")
        ...     again = Sugar.from_pretrained(f"{folder}/sugar", load_mllm("llava-emoji", "cpu"))
        >>> bool((again.head[0].weight == sugar.head[0].weight).all())
        True
        """
        config, tensors = load_added(folder, "Sugar", adapter.sizes)
        model = cls(adapter, SugarConfig(**config))
        fill(model, tensors, folder)
        return model.eval()

    def merge_lora(self) -> None:
        """Add LoRA to the projections that it stands beside: the same model, faster to read with; it learns no more.

        >>> from vlws.data.documents import Slice
        >>> from vlws.models.families import load_mllm
        >>> sugar = Sugar(load_mllm("llava-emoji", "cpu"))
        >>> before = sugar.embed([Document((Slice("a red cat"),))], torch.zeros(0))
        >>> sugar.merge_lora()
        >>> torch.allclose(sugar.embed([Document((Slice("a red cat"),))], torch.zeros(0)), before, atol=1e-5)
        True
        """
        for module in self.decoder.modules():
            if isinstance(module, LoraLayer):
                module.merge()

    def states(self, hidden: Tensor, at: Tensor, is_image: Tensor) -> Tensor:
        """d "n hidden" at slice ends: mean over a picture's tokens, or the last token of a sentence.

        hidden "batch len hidden" after the final norm; `at` "n 3" (row, start, stop); `is_image` "n" bool.

        >>> from vlws.models.families import load_mllm
        >>> sugar = Sugar(load_mllm("llava-emoji", "cpu"))
        >>> hidden, at = torch.randn(1, 5, 128), torch.tensor([[0, 0, 4], [0, 4, 5]])  # a picture of 4 tokens, a word
        >>> d = sugar.states(hidden, at, torch.tensor([True, False]))
        >>> torch.allclose(d[0], hidden[0, :4].mean(0), atol=1e-6), bool((d[1] == hidden[0, 4]).all())
        (True, True)
        """
        row, start, stop = at.T
        if self.config.pooling == "last":
            return hidden[row, stop - 1]
        start = torch.where(is_image, start, stop - 1)
        token = torch.arange(hidden.shape[1], device=hidden.device)
        inside = (token >= start[:, None]) & (token < stop[:, None])
        return einsum(hidden[row], inside / inside.sum(1, keepdim=True), "n len d, n len -> n d")

    def forward(self, hidden: Tensor, at: Tensor, is_image: Tensor) -> Tensor:
        """r "n embedding_dim", unit rows.

        >>> from vlws.models.families import load_mllm
        >>> sugar = Sugar(load_mllm("llava-emoji", "cpu"), SugarConfig(embedding_dim=32))
        >>> sugar(torch.randn(1, 5, 128), torch.tensor([[0, 0, 4]]), torch.tensor([True])).shape
        torch.Size([1, 32])
        """
        kind = is_image.long()
        d = (self.states(hidden, at, is_image).float() - self.mean[kind]) / self.scale[kind]
        return F.normalize(self.head(d), dim=-1)

    @torch.no_grad()
    def calibrate(self, batches: Sequence["Collated"]) -> None:
        """Set where F_phi starts: states of sentences and of pictures have mean 0 and deviation 1 over these batches.

        All states of a language model have one large component in common; without this all r start out equal, and a
        contrastive loss does not get away from there in a few hundred steps.

        >>> from vlws.data.emoji_world import stories
        >>> from vlws.models.families import load_mllm
        >>> from vlws.models.slice_ends import collate, draw_steps
        >>> found = stories.corpus(4, seed=0, mix={"pair": 1.0})  # pictures with their captions
        >>> sugar = Sugar(load_mllm("llava-emoji", "cpu"))
        >>> (draw,) = draw_steps(found, steps=1, batch_size=4, reader=sugar.reader, ends=1)
        >>> batch = collate(draw, sugar.reader, sugar.reader.features(found.images))
        >>> sugar.calibrate([batch])
        >>> bool((sugar.scale != 1).any())  # of sentences and of pictures
        True
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
            self._first_tokens[word] = self.adapter.tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0]
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
        """(L_g, r "n embedding_dim"): one pass of the model over all groups.

        >>> from vlws.data.emoji_world import stories
        >>> from vlws.models.families import load_mllm
        >>> from vlws.models.slice_ends import collate, draw_steps
        >>> found = stories.corpus(4, seed=0, mix={"pair": 1.0})  # pictures with their captions
        >>> sugar = Sugar(load_mllm("llava-emoji", "cpu"))
        >>> (draw,) = draw_steps(found, steps=1, batch_size=4, reader=sugar.reader, ends=1)
        >>> batch = collate(draw, sugar.reader, sugar.reader.features(found.images))
        >>> language, r = sugar.losses(batch)
        >>> language.shape, r.shape  # one number; an end of each picture and of each caption
        (torch.Size([]), torch.Size([8, 64]))
        """
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
        """L = L_g + alpha L_d (equation 1): documents and slice ends, their documents "n", and M^l "n n" for L_d.

        >>> from vlws.data.emoji_world import stories
        >>> from vlws.models.families import load_mllm
        >>> from vlws.models.slice_ends import collate, draw_steps
        >>> found = stories.corpus(4, seed=0, mix={"pair": 1.0})  # pictures with their captions
        >>> sugar = Sugar(load_mllm("llava-emoji", "cpu"))
        >>> (draw,) = draw_steps(found, steps=1, batch_size=4, reader=sugar.reader, ends=1)
        >>> batch = collate(draw, sugar.reader, sugar.reader.features(found.images))
        >>> loss = sugar.loss(batch, draw.sample, labels=torch.eye(8))  # of `step_labels` in a training
        >>> loss.backward()
        >>> loss.item() > sugar.losses(batch)[0].item()  # by alpha L_d
        True
        """
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

        >>> from vlws.models.families import load_mllm
        >>> sugar = Sugar(load_mllm("llava-emoji", "cpu"))
        >>> total, count = sugar.cross_entropy(torch.zeros(1, 3, 128), torch.tensor([[IGNORED, IGNORED, 7]]))
        >>> count, abs(total.item() - np.log(sugar.adapter.lm_head.out_features)).item() < 1e-3  # chance
        (1, True)
        """
        nexts = labels[:, 1:]
        known = nexts != IGNORED
        logits = self.adapter.lm_head(hidden[:, :-1][known]).float()
        return F.cross_entropy(logits, nexts[known], reduction="sum"), int(known.sum())


# ---------------------------------------------------------------------------------------------------------------------
# 4. Training


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

    >>> from vlws.data.emoji_world import stories
    >>> from vlws.models.families import load_mllm
    >>> from vlws.models.slice_ends import draw_steps
    >>> found = stories.corpus(8, seed=0, mix={"pair": 1.0})  # pictures with their captions
    >>> sugar = Sugar(load_mllm("llava-emoji", "cpu"))
    >>> draws = draw_steps(found, steps=3, batch_size=4, reader=sugar.reader)
    >>> features = sugar.reader.features(found.images)
    >>> labels = [torch.eye(len(draw.ends)) for draw in draws]  # or of `step_labels`
    >>> train_sugar(sugar, draws, features, labels)[-1]["step"]
    3
    """
    if labels is not None and len(labels) != len(draws):
        raise InputError(f"{len(labels)} label matrices came with {len(draws)} steps; each step needs one.")
    if model.config.alpha and labels is None and model.config.temperature is None:
        raise InputError("alpha > 0 needs label matrices (L_d) or a temperature (InfoNCE).")

    def loss(model: Sugar, step: int) -> Tensor:
        batch = collate(draws[step], model.reader, features)
        return model.loss(batch, draws[step].sample, labels[step] if labels else None)

    if model.config.alpha:
        model.calibrate([collate(draw, model.reader, features) for draw in draws[:CALIBRATION]])
    optimizer = torch.optim.AdamW(model.trainable_parameters(), lr=lr, weight_decay=0.01)
    schedule = train.warmup_cosine(optimizer, len(draws), 0.03)
    device = "cpu" if model.adapter.device.type == "cpu" else "auto"
    options: dict[str, Any] = {"out": out, "label": label, "device": device}
    return train.fit(model, loss, lambda step: step, len(draws), optimizer, schedule, clip=1.0, **options)


# ---------------------------------------------------------------------------------------------------------------------
# 5. Answers with what was retrieved (`vlws.models.retrieval`)


def augmented(queries: Sequence[Document], items: Sequence[Document], found: np.ndarray) -> list[Document]:
    """Each query after the item that was retrieved for it ("query" indices): picture, question, answer.

    >>> from vlws.data.documents import Slice
    >>> item = Document((Slice(image=0), Slice("who keeps it?")), answer="anna")
    >>> query = Document((Slice(image=1), Slice("who keeps it?")))
    >>> (found,) = augmented([query], [item], np.array([0]))
    >>> [part.text or "picture" for part in found.slices]
    ['picture', 'who keeps it?', 'anna.', 'picture', 'who keeps it?']
    """
    return [with_reference(query, items[int(k)]) for query, k in zip(queries, found, strict=True)]
