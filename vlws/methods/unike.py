"""UniKE: edit what a multimodal language model knows, by two memories beside its last layers.

Pan, Fan, Li, Yu, Fei, Tang, Hong, Zhang, Sun, "Towards Unified Multimodal Editing with Enhanced Knowledge
Collaboration", NeurIPS 2024, arXiv:2409.19872.

In each of the last layers, with x the residual stream, t_q the last token of the question and r = x[t_q]:

    h_in   = SelfAttn(LN(x))                                                        the layer's own
    h_know = Attn(LN(x), LN(pos_I)),   I = the K rows of the bank nearest to r      latent in-context knowledge
    h      = (1 - g) h_in + g h_know   for t >= t_q                                 equation 7
    FFN'(q)= FFN(q) + Act(q W_K + b_K) (W_V + beta zeta')                           equations 3 and 6

W_K, b_K, W_V (n pairs a layer) are trained by the likelihood of the new answer, nothing else. The bank holds states of
other questions with their true answers, and the edit's own. zeta' points from what the model says wrongly to what is
true. g is the weight of the knowledge: equation 7 as printed puts it on h_in, against the paper's text and its code.

    prepared = prepare(mllm, read_answers(mllm, layers, prompts, images, true, false))
    unike = UniKE(mllm, prepared, UniKEConfig())
    edited = unike.edit(["<image> who made this?"], [[picture]], ["mira"])
    edited.answer(["<image> whose work is this?"], [[picture]])
    edited.rollback()

Nothing of the model is changed: hooks stand only while an edited model runs.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlws.errors import InputError
from vlws.models import memory
from vlws.models.adapter import Adapter, Batch
from vlws.models.added import grouped, load_added, save_added
from vlws.models.editing import EditedModel, Images, encode, fact_text, step_loss
from vlws.models.knowledge import Direction, Prepared, fingerprint
from vlws.models.memory import AddedPairs, Bank, attend, layer_states, question_ends
from vlws.models.upper import lower_states, upper_logits

Gate = Literal["specified", "similarity", "fixed", "printed"]


@dataclass(frozen=True)
class UniKEConfig:
    """What an edit adds and how it is trained.

    Args:
        pairs: key-value pairs a layer (10 in the paper's appendix D.3); 0 leaves out the intrinsic memory.
        retrieved: K, rows of the bank that a question reads (40); 0 leaves out the latent memory.
        gate: "specified" by Enc_Sem (section 3.3, g on the knowledge); "similarity": sigmoid((cosine of r to
            the nearest row of the edits themselves - threshold) / width), in the first edited layer, whose r no edit
            has moved, and the same in those above; "fixed": `alpha`;
            "printed": equation 7 to the letter, weight on h_in, last token.
        sharpness: cosine / sharpness is added to the latent attention's logits; None adds nothing, as in the paper.
        own_row: whether the edit's own states are in the bank (the paper does not say).
        direction, beta: of zeta', and its weight; see `Prepared.shift`.
        context: a template of the new fact as a text, put before every question ("new fact: {question} {answer}. "),
            as IKE does, in place of the latent memory (table 4, third row); None puts nothing.
        alternate: leaves the latent memory out in every second step of training, so that the pairs learn too.
        lr, steps, stop: Adam; an edit is done where its mean loss is below `stop` nats.

    >>> config = UniKEConfig(gate="similarity", threshold=0.8)
    >>> config.pairs, config.retrieved
    (10, 40)
    """

    pairs: int = 10
    retrieved: int = 40
    gate: Gate = "specified"
    alpha: float = 0.5
    threshold: float = 0.9
    width: float = 0.02
    sharpness: float | None = None
    own_row: bool = True
    direction: Direction = "ridge"
    beta: float = 0.3
    context: str | None = None
    alternate: bool = False
    lr: float = 4e-3
    steps: int = 10
    stop: float = 0.05
    seed: int = 0


# --- editing ----------------------------------------------------------------------------------------------------------


class UniKE:
    """Edits of one base model; each `edit` gives an `Edited`, and the base model stays as it is.

    >>> from vlws.models.editing import Unedited
    >>> from vlws.models.families import load_mllm
    >>> from vlws.models.knowledge import without_knowledge
    >>> adapter = load_mllm("blip2-emoji", "cpu")
    >>> config = UniKEConfig(gate="similarity", direction="none", steps=2)
    >>> edited = UniKE(adapter, without_knowledge(adapter, [4, 5]), config).edit(["who is it?"], [[]], ["mira"])
    >>> edited.losses[1] < edited.losses[0]
    True
    >>> edited.rollback()
    >>> after, base = (model.logits(["who?"], [[]], ["mira"]).logits for model in (edited, Unedited(adapter, 1)))
    >>> torch.equal(after, base)
    True
    """

    def __init__(self, adapter: Adapter, prepared: Mapping[int, Prepared], config: UniKEConfig | None = None) -> None:
        self.adapter, self.config = adapter, config or UniKEConfig()
        self.prepared = dict(sorted(prepared.items()))
        if not prepared or not all(0 <= layer < adapter.num_layers for layer in prepared):
            raise InputError(f"layers are {list(prepared)}; accepted are some of 0 to {adapter.num_layers - 1}.")
        self.parts = {layer: memory.layer_parts(adapter.layers[layer]) for layer in prepared}

    def edit(self, prompts: Sequence[str], images: Images, targets: Sequence[str]) -> "Edited":
        """e independent edits, trained in one batch and each as if alone: question, pictures, new answer.

        Raises InputError for lists of unequal length, an empty target, a text longer than the context.
        """
        return Edited(self, len(prompts)).edit(prompts, images, targets)

    def load(self, folder: str | Path) -> "Edited":
        """The edited models that `Edited.save_pretrained` wrote, with the configuration of their edits.

        Raises:
            InputError: a folder of another method, damaged, of a model of other sizes, or of edits beside other
                preparations than `prepared`.

        >>> import tempfile
        >>> from vlws.models.families import load_mllm
        >>> from vlws.models.knowledge import without_knowledge
        >>> adapter = load_mllm("blip2-emoji", "cpu")
        >>> config = UniKEConfig(gate="fixed", direction="none", steps=2)
        >>> unike = UniKE(adapter, without_knowledge(adapter, [5]), config)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     unike.edit(["who is it?"], [[]], ["mira"]).save_pretrained(f"{folder}/edits")
        ...     unike.load(f"{folder}/edits").taught
        [[('who is it?', 'mira')]]
        """
        about, tensors = load_added(folder, "UniKE", self.adapter.sizes)
        if about["prepared"] != fingerprint(self.prepared):
            raise InputError(
                f"{folder} holds edits made beside other preparations, of layers {about['layers']}; accepted are those "
                f"that this UniKE was made with, of layers {list(self.prepared)}."
            )
        edited = Edited(UniKE(self.adapter, self.prepared, UniKEConfig(**about["config"])), about["edits"])
        for step, facts in enumerate(about["taught"]):
            edited.restore({name: value.to(self.adapter.device) for name, value in grouped(tensors)[str(step)].items()})
            edited.taught.append([(question, answer) for question, answer in facts])
        return edited


class Edited(EditedModel):
    """Models edited by UniKE: what was added, in the order of the edits; earlier pairs stay as they are.

    >>> from vlws.models.families import load_mllm
    >>> from vlws.models.knowledge import without_knowledge
    >>> adapter = load_mllm("blip2-emoji", "cpu")
    >>> config = UniKEConfig(gate="similarity", direction="none", steps=2)
    >>> unike = UniKE(adapter, without_knowledge(adapter, [5]), config)
    >>> edited = unike.edit(["who is it?"], [[]], ["mira"])
    >>> gates = edited.gates(["who is it?"], [[]])  # "layer row"
    >>> gates.shape, bool(gates > 0.99)  # the edit's own row is found
    (torch.Size([1, 1]), True)
    >>> edited.added() == sum(p.numel() for p in edited.trainable_parameters()) + 6 * adapter.hidden_size  # its rows
    True
    """

    def __init__(self, method: UniKE, edits: int) -> None:
        super().__init__(method.adapter, edits)
        self.method = method
        self.blocks: list[dict[int, AddedPairs]] = []
        self.maps: list[dict[int, nn.Parameter]] = []  # W_zeta where each edit learns its own
        self.rows: list[dict[int, list[Bank]]] = []
        self.losses: list[float] = []  # mean over the edits, of every step of the last edit

    def teach(self, prompts: Sequence[str], images: Images, targets: Sequence[str]) -> None:
        """One edit more: pairs trained on its answer, and its own rows of a bank, which no other model finds."""
        adapter, config = self.adapter, self.method.config
        everyone = torch.arange(self.edits)
        told = [*self.taught, list(zip(prompts, targets, strict=True))]
        batch = encode(adapter, self._with_facts(prompts, everyone, told), images, targets)
        answers = [f" {target.strip()}" for target in targets]
        self.rows.append(layer_states(adapter, list(self.method.prepared), prompts, images, answers))
        self._append()
        if config.pairs:
            self._fit(batch)

    def _append(self) -> None:
        """Pairs, and W_zeta, of one edit more, untrained."""
        adapter, config = self.adapter, self.method.config
        generator = torch.Generator().manual_seed(config.seed + len(self.blocks))
        self.blocks.append({})
        self.maps.append({})
        for layer, parts in self.method.parts.items():
            size = (self.edits, adapter.hidden_size, config.pairs)
            pairs = AddedPairs(*size, parts.activation, parts.gated, generator)
            self.blocks[-1][layer] = pairs.to(adapter.device)
            if config.direction == "per edit":
                zeros = torch.zeros(self.edits, adapter.hidden_size, adapter.hidden_size, device=adapter.device)
                self.maps[-1][layer] = nn.Parameter(zeros)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Those of the last edit: keys, biases and values of every edited layer (and W_zeta, where learned)."""
        return [*(p for pairs in self.blocks[-1].values() for p in pairs.parameters()), *self.maps[-1].values()]

    def _fit(self, batch: Batch) -> None:
        """Adam on the mean loss of each edit's answer; what is done stays as it is."""
        adapter, config = self.method.adapter, self.method.config
        parameters = self.trainable_parameters()
        optimizer = torch.optim.Adam(parameters, lr=config.lr)
        lowest = min(self.method.prepared)
        with torch.no_grad():
            states = lower_states(adapter, lowest, batch)
        labels = cast(Tensor, batch.labels)
        everyone = torch.arange(self.edits, device=adapter.device)
        self.losses = []
        for step in range(config.steps):
            latent = config.retrieved > 0 and not (config.alternate and step % 2)
            with self._running(question_ends(batch), everyone, latent):
                logits = upper_logits(adapter, lowest, states, states["hidden"])
            loss = step_loss(logits, labels)  # edit
            self.losses.append(float(loss.detach().mean()))
            done = loss.detach() < config.stop
            if done.all():
                break
            before = [p.detach()[done].clone() for p in parameters]
            for p, gradient in zip(parameters, torch.autograd.grad(loss.sum(), parameters), strict=True):
                p.grad = gradient  # and none for the base model's weights
            optimizer.step()
            with torch.no_grad():
                for p, kept in zip(parameters, before, strict=True):
                    p[done] = kept

    def forget(self, edits: int) -> None:
        """Pairs, maps and rows of the last edits go."""
        for added in (self.blocks, self.maps, self.rows):
            del added[-edits:]

    def added(self) -> int:
        """Numbers of the pairs, and of the edits' own rows where they are in the bank."""
        pairs = sum(p.numel() for block in self.blocks for pairs in block.values() for p in pairs.parameters())
        rows = sum(bank.pos.numel() + bank.sem[:1].numel() for row in self.rows for b in row.values() for bank in b)
        return (pairs + rows * self.method.config.own_row) // self.edits

    def save_pretrained(self, folder: str | Path) -> None:
        """Write what the edits added, as safetensors and JSON; `UniKE.load` reads it beside the same preparations.

        Raises InputError for a folder that holds anything else, OSError where the disk refuses.

        >>> import tempfile
        >>> from vlws.models.families import load_mllm
        >>> from vlws.models.knowledge import without_knowledge
        >>> adapter = load_mllm("blip2-emoji", "cpu")
        >>> config = UniKEConfig(gate="fixed", direction="none", steps=2)
        >>> unike = UniKE(adapter, without_knowledge(adapter, [5]), config)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     unike.edit(["who is it?"], [[]], ["mira"]).save_pretrained(f"{folder}/edits")
        ...     print(sorted(path.name for path in Path(folder, "edits").iterdir()))
        ['config.json', 'model.safetensors']
        """
        tensors: dict[str, Tensor] = {}
        for step, (block, maps, rows) in enumerate(zip(self.blocks, self.maps, self.rows, strict=True)):
            for layer, pairs in block.items():
                parts: dict[str, Tensor] = {f"pairs/{name}": p for name, p in pairs.named_parameters()}
                parts |= {"map": maps[layer]} if layer in maps else {}
                parts |= {f"sem/{i}": bank.sem[:1] for i, bank in enumerate(rows[layer])}  # once for all its rows
                parts |= {f"pos/{i}": bank.pos for i, bank in enumerate(rows[layer])}
                tensors |= {f"{step}.{layer}.{name}": value for name, value in parts.items()}
        about = {"config": asdict(self.method.config), "edits": self.edits, "taught": self.taught}
        about |= {"layers": list(self.method.prepared), "prepared": fingerprint(self.method.prepared)}
        save_added(folder, "UniKE", about, self.adapter.sizes, tensors)

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """One edit more, as it was saved: "layer.part" -> values.

        >>> import tempfile
        >>> from vlws.models.families import load_mllm
        >>> from vlws.models.knowledge import without_knowledge
        >>> adapter = load_mllm("blip2-emoji", "cpu")
        >>> config = UniKEConfig(gate="fixed", direction="none", steps=2)
        >>> unike = UniKE(adapter, without_knowledge(adapter, [5]), config)
        >>> edited = unike.edit(["who is it?"], [[]], ["mira"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     edited.save_pretrained(f"{folder}/edits")
        ...     about, tensors = load_added(f"{folder}/edits", "UniKE", adapter.sizes)
        >>> again = Edited(unike, 1)
        >>> again.restore(grouped(tensors)["0"])
        >>> again.added() == edited.added()
        True
        """
        self._append()
        self.rows.append({})
        for layer, parts in ((int(key), value) for key, value in grouped(tensors).items()):
            for name, p in self.blocks[-1][layer].named_parameters():
                p.data = parts[f"pairs/{name}"]
            if layer in self.maps[-1]:
                self.maps[-1][layer].data = parts["map"]
            pos = [parts[f"pos/{i}"] for i in range(self.edits)]
            self.rows[-1][layer] = [Bank(parts[f"sem/{i}"].expand_as(p), p) for i, p in enumerate(pos)]

    def asked(self, prompts: Sequence[str], images: Images, edit: Tensor) -> Sequence[str]:
        """The prompts; with a context, the facts that each row's model was taught stand before them."""
        return self._with_facts(prompts, edit, self.taught)

    def _with_facts(
        self, prompts: Sequence[str], edit: Tensor, told: Sequence[Sequence[tuple[str, str]]]
    ) -> Sequence[str]:
        """Prompts with the facts that their models were told before them, where the configuration has a context."""
        if (template := self.method.config.context) is None or not told:
            return prompts
        facts = ["".join(fact_text(template, *step[i]) for step in told) for i in range(self.edits)]
        return [facts[i] + prompt for i, prompt in zip(edit.tolist(), prompts, strict=True)]

    def running(self, batch: Batch, edit: Tensor) -> AbstractContextManager:
        """Hooks on the edited layers for the rows of this batch: attention to the bank, and the pairs."""
        return self._running(question_ends(batch), edit, self.method.config.retrieved > 0)

    @torch.no_grad()
    def gates(self, prompts: Sequence[str], images: Images, edit: Tensor | None = None) -> Tensor:
        """g of each edited layer for each question, "layer row"; of every gate but "printed"."""
        edit = self._of(prompts, edit)
        batch = self.adapter.encode(self.asked(prompts, images, edit), images).to(self.adapter.device)
        with self.running(batch, edit) as layers:
            self.adapter.run(batch)
        return torch.stack([layer.retrieved[2] for layer in layers])

    @contextmanager
    def _running(self, t_q: Tensor, edit: Tensor, latent: bool) -> Iterator[list["RunningLayer"]]:
        """Hooks on the edited layers, gone afterwards; none where nothing is left of the edits."""
        hooks = []
        layers: list[RunningLayer] = []
        for layer in self.method.parts if self.blocks else ():
            layers.append(RunningLayer(self, layer, t_q, edit, layers[0] if layers else None))
        for at in layers:
            module, parts = self.method.adapter.layers[at.layer], at.parts
            if latent:
                hooks.append(module.register_forward_pre_hook(at.entering, with_kwargs=True))
                hooks.append(parts.attention.register_forward_hook(at.attended))
            if self.method.config.pairs:
                hooks.append(parts.ffn_in.register_forward_pre_hook(at.asked))
                hooks.append(parts.ffn_out.register_forward_hook(at.recalled))
        try:
            yield layers
        finally:
            for hook in hooks:
                hook.remove()


class RunningLayer:
    """One layer of an edited model while a batch runs; in decoding, what was retrieved for the question stays.

    >>> from vlws.models.families import load_mllm
    >>> from vlws.models.knowledge import without_knowledge
    >>> adapter = load_mllm("blip2-emoji", "cpu")
    >>> config = UniKEConfig(gate="fixed", direction="none", steps=2)
    >>> unike = UniKE(adapter, without_knowledge(adapter, [5]), config)
    >>> edited = unike.edit(["who is it?"], [[]], ["mira"])
    >>> layer = RunningLayer(edited, 5, t_q=torch.tensor([2]), edit=torch.tensor([0]))
    >>> x = torch.randn(1, 4, adapter.hidden_size)  # "row len dim", what enters the layer
    >>> layer.entering(None, (x,), {})
    >>> (h,) = layer.attended(None, (), (x,))
    >>> (h != x).any(-1).tolist()  # knowledge is read from t_q on
    [[False, False, True, True]]
    >>> layer.asked(None, (x,))
    >>> layer.recalled(None, (x,), x).shape == x.shape, layer.own_rows().pos.shape, layer.retrieve(x[:, 2])[2].tolist()
    (True, torch.Size([1, 5, 96]), [0.5])
    """

    def __init__(
        self, edited: Edited, layer: int, t_q: Tensor, edit: Tensor, first: "RunningLayer | None" = None
    ) -> None:
        self.edited, self.layer, self.t_q, self.edit, self.first = edited, layer, t_q, edit, first
        self.parts, self.prepared = edited.method.parts[layer], edited.method.prepared[layer]
        self.config = edited.method.config
        self.retrieved: tuple[Tensor, Tensor | None, Tensor | None] | None = None

    def entering(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Keeps x, the residual stream in front of the layer."""
        self.x = args[0] if args else kwargs["hidden_states"]

    def attended(self, module: nn.Module, args: tuple, output: tuple) -> tuple:
        """(1 - g) h_in + g h_know from t_q on."""
        h_in = output[0]
        if self.retrieved is None:
            self.retrieved = self.retrieve(self.x[torch.arange(len(self.x)), self.t_q])
            after = torch.arange(self.x.shape[1], device=self.x.device)[None] >= self.t_q[:, None]  # row len
        else:  # a token that is decoded
            after = torch.ones(self.x.shape[:2], dtype=torch.bool, device=self.x.device)
        states, bias, g = self.retrieved
        h_know = attend(self.parts, self.x, states, bias)
        if g is None:  # equation 7 to the letter: alpha on h_in, from the last token of the whole sequence
            alike = F.cosine_similarity(self.prepared.semantic(h_know[:, -1].float()), h_in[:, -1].float(), dim=-1)
            g = 1 - alike.clamp(0, 1)
        weight = (g[:, None] * after)[..., None].to(h_in.dtype)
        return ((1 - weight) * h_in + weight * h_know, *output[1:])

    def retrieve(self, r: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """pos of the K nearest rows "row K dim", their bias in the attention "row K", g "row" (None: as printed)."""
        own = self.own_rows() if self.config.own_row else None
        states, cosine = self.prepared.bank.search(r, self.config.retrieved, own)
        none = torch.where(cosine.isinf(), cosine, 0.0)
        bias = none if self.config.sharpness is None else none + cosine.nan_to_num(neginf=0) / self.config.sharpness
        if self.config.gate == "printed":
            return states, bias, None
        if self.config.gate == "fixed":
            return states, bias, torch.full_like(cosine[:, 0], self.config.alpha)
        if self.config.gate == "similarity" and self.first and self.first.retrieved:
            return states, bias, self.first.retrieved[2]
        if self.config.gate == "similarity":
            nearest = cosine[:, 0] if own is None else own.nearest(r)
            return states, bias, torch.sigmoid((nearest - self.config.threshold) / self.config.width)
        c = ((cosine / 0.1).softmax(1)[..., None] * states.float()).sum(1)  # row dim
        g = F.cosine_similarity(self.prepared.semantic(c), r.float(), dim=-1).clamp(0, 1)
        return states, bias, g

    def own_rows(self) -> memory.Own:
        """The rows of every edit of each row's model, for `Bank.search`."""
        of_edit = [[rows[self.layer][i] for rows in self.edited.rows] for i in range(self.edited.edits)]
        return memory.own_rows([sum(banks[1:], banks[0]) for banks in of_edit]).of(self.edit)

    def asked(self, module: nn.Module, args: tuple) -> None:
        """Keeps q, what enters the feed-forward network."""
        self.q = args[0].reshape(len(self.edit), -1, args[0].shape[-1])  # OPT flattens rows and tokens

    def recalled(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        """FFN(q) + o_x (W_V + beta zeta')."""
        shift = self.prepared.shift(self.config.direction, self.config.seed)
        for pairs, maps in zip(self.edited.blocks, self.edited.maps, strict=True):
            if self.layer in maps:  # W_zeta of each edit
                shift = maps[self.layer] @ self.prepared.zeta
            scaled = None if shift is None else self.config.beta * shift
            output = output + pairs[self.layer](self.q, self.edit, scaled).reshape(output.shape).to(output.dtype)
        return output
