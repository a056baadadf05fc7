"""Cheetor: a frozen multimodal language model that looks at its pictures a second time, knowing what is asked.

Li, Pan, Ge, Gao, Ji, Zhang, Chua, Tang, Zhang, Zhuang, "Fine-tuning Multimodal LLMs to Follow Zero-shot Demonstrative
Instructions", ICLR 2024, arXiv:2308.04152 (first version: "Empowering Vision-Language Models to Follow Interleaved
Vision-Language Instructions"). The paper calls the module VPG-C; a VPG (visual prompt generator) turns a picture into
tokens, as BLIP-2's Q-Former does.

With K queries of dimension d, a language model of hidden size D and L layers, X_j the patch features of picture j
(section 2.1):

    h       = hidden state of the last prompt token in front of layer L/2           what the model has understood
    g       = W_g h + b_g                                                            guidance, one for all pictures
    V'_j    = Qformer(Q + g, X_j)                                                    the second look, same frozen VPG
    V~_j    = V_j + W_o V'_j + b_o                                                   at the K tokens of picture j

Q, W_g, b_g, W_o and b_o are trained, nothing else. W_o starts at zero, so that the model starts as its backbone.

    cheetor = Cheetor(load_mllm("blip2-emoji"))
    differences = cheetor.states(prompts, pairs, answers)
    fit_cheetor(cheetor, [differences, cheetor.states(...captions...)], steps=500, batch_sizes=[32, 16])
    cheetor.answer(prompts, images)
    cheetor.save_pretrained("second_look")

All in front of layer L/2 is frozen. `states` computes it once for a set of samples; training then runs the second look
and the upper layers alone, with the same loss and gradients.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import CausalLMOutputWithPast

from vlws.errors import InputError
from vlws.models.adapter import IGNORED, Adapter, Batch, ImageInput
from vlws.models.added import fill, load_added, save_added
from vlws.models.attention import attention_map
from vlws.models.families import Blip2Adapter, LlavaAdapter
from vlws.models.upper import check_cut, joined_states, lower_states, upper_logits
from vlws.train import epochs, fit, warmup_cosine

Images = Sequence[Sequence[ImageInput]]  # per sample, the pictures of its placeholders
Instructions = Mapping[str, Tensor] | None  # `Batch.extra`, what InstructBLIP's Q-Former reads of the text

# --- the second look, section 2.1 -----------------------------------------------------------------------------------


class SecondLook(nn.Module):
    """VPG-C: new queries Q, guidance W_g and re-injection W_o around a frozen Q-Former.

    The queries start as a copy of the pretrained ones (the paper says "new"; its code copies them). Both linear maps
    start at zero, weight and bias. `guided=False` is the ablation g = 0.

    >>> from vlws.models.families import load_mllm
    >>> adapter = load_mllm("blip2-emoji", "cpu")
    >>> look = SecondLook(adapter)
    >>> h, features = torch.randn(2, adapter.hidden_size), torch.randn(2, 37, adapter.features_dim)
    >>> look.conditional_queries(h).shape  # "image K d"
    torch.Size([2, 4, 96])
    >>> look(adapter, h, features).shape, bool((look(adapter, h, features) == 0).all())  # untrained, it adds nothing
    (torch.Size([2, 4, 96]), True)
    """

    def __init__(self, adapter: Blip2Adapter, guided: bool = True) -> None:
        super().__init__()
        queries = adapter.query_tokens[0].detach().float()  # "K d"
        self.queries = nn.Parameter(queries.clone())
        self.guide = zeroed(nn.Linear(adapter.hidden_size, queries.shape[1])).requires_grad_(guided)
        self.inject = zeroed(nn.Linear(queries.shape[1], adapter.hidden_size))

    def conditional_queries(self, h: Tensor) -> Tensor:
        """h "image D" -> Q + g, "image K d"."""
        return self.queries + rearrange(self.guide(h.float()), "image d -> image 1 d")

    def forward(self, adapter: Blip2Adapter, h: Tensor, features: Tensor, instructions: Instructions = None) -> Tensor:
        """h "image D", features "image patch width" -> W_o V' + b_o, "image K D"."""
        queries = self.conditional_queries(h)  # "image K d"
        seen = adapter.qformer_outputs(features, queries, instructions)  # V', "image K d"
        return self.inject(cast(Tensor, seen.last_hidden_state).float())


class LinearLook(nn.Module):
    """Linear-VPG (appendix C, equation 1), for models whose VPG is a projection of the patches: V' = (W_1 g) * (W_2 X).

    Guidance filters channels. W_o alone starts at zero: were W_g zero as well, no gradient would ever reach either.

    >>> from vlws.models.families import load_mllm
    >>> adapter = load_mllm("llava-emoji", "cpu")
    >>> LinearLook(adapter)(adapter, torch.randn(2, adapter.hidden_size), torch.randn(2, 16, 96)).shape
    torch.Size([2, 16, 128])
    """

    def __init__(self, adapter: LlavaAdapter, guided: bool = True, dim: int = 64) -> None:
        super().__init__()
        self.guide = nn.Linear(adapter.hidden_size, dim).requires_grad_(guided)
        self.filter = nn.Linear(dim, dim)
        self.read = nn.Linear(adapter.model.model.multi_modal_projector.linear_1.in_features, dim)
        self.inject = zeroed(nn.Linear(dim, adapter.hidden_size))
        self.guided = guided

    def forward(self, adapter: LlavaAdapter, h: Tensor, features: Tensor, instructions: Instructions = None) -> Tensor:
        """h "image D", features "image patch width" -> "image patch D"."""
        g = self.filter(self.guide(h.float() if self.guided else torch.zeros_like(h).float()))  # W_1 g, "image dim"
        return self.inject(rearrange(g, "image dim -> image 1 dim") * self.read(features.float()))


class HeuristicLook(nn.Module):
    """Table 4, second row: a linear map of the K patches to which the VPG attends least.

    >>> from vlws.models.families import load_mllm
    >>> adapter = load_mllm("blip2-emoji", "cpu")
    >>> look = HeuristicLook(adapter)
    >>> look(adapter, torch.randn(2, adapter.hidden_size), torch.randn(2, 37, adapter.features_dim)).shape
    torch.Size([2, 4, 96])
    """

    def __init__(self, adapter: Blip2Adapter, guided: bool = False) -> None:
        super().__init__()
        self.inject = zeroed(nn.Linear(adapter.features_dim, adapter.hidden_size))

    def forward(self, adapter: Blip2Adapter, h: Tensor, features: Tensor, instructions: Instructions = None) -> Tensor:
        """features "image 1+patch width", the class token first -> "image K D"."""
        with torch.no_grad():
            attention = attention_map(adapter, features, instructions=instructions)  # "image patch"
            patches = 1 + attention.argsort(1)[:, : adapter.model.config.num_query_tokens]
        return self.inject(torch.take_along_dim(features, patches[..., None], 1).float())


def zeroed(linear: nn.Linear) -> nn.Linear:
    """The same layer with weight and bias at zero.

    >>> zeroed(nn.Linear(3, 2))(torch.ones(3)).tolist()
    [0.0, 0.0]
    """
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


# --- around a frozen model ----------------------------------------------------------------------------------------

KINDS: dict[str, type[nn.Module]] = {"vpg": SecondLook, "linear": LinearLook, "heuristic": HeuristicLook}


@dataclass(frozen=True)
class CheetorConfig:
    """What determines a Cheetor beside its backbone.

    Attributes:
        kind: of the second look: "vpg" (VPG-C), "linear" (Linear-VPG) or "heuristic" (least-attended patches).
        layer: the second look is added in front of this layer, and h read there; None is L // 2.
        guided: False is the ablation g = 0.

    >>> CheetorConfig(guided=False)
    CheetorConfig(kind='vpg', layer=None, guided=False)
    """

    kind: Literal["vpg", "linear", "heuristic"] = "vpg"
    layer: int | None = None
    guided: bool = True


class Cheetor:
    """A frozen multimodal language model with a second look.

    Args:
        adapter: of `models.families`; with a Q-Former for the kinds "vpg" and "heuristic", of LLaVA's family for
            "linear". Its weights are frozen.

    Attributes:
        second_look: the module that holds all that is trained.
        layer: in front of which it is added.
        times_added: how often it has been: once per answer, however many tokens that has.

    >>> from vlws.models.families import load_mllm
    >>> mllm = load_mllm("blip2-emoji", "cpu")
    >>> prompts, images = ["<image> what colour is the cat?"], [[np.zeros((48, 48, 3), np.uint8)]]
    >>> batch = mllm.encode(prompts, images, padding_side="left")
    >>> before = mllm.generate(batch, max_new_tokens=3)
    >>> cheetor = Cheetor(mllm)
    >>> cheetor.generate(batch, max_new_tokens=3) == before  # untrained, it changes nothing
    True
    >>> cheetor.times_added, len(cheetor.answer(prompts, images))
    (1, 1)
    >>> len(cheetor.trainable_parameters()) == len(list(cheetor.second_look.parameters()))  # the rest is frozen
    True
    """

    def __init__(self, adapter: Adapter, config: CheetorConfig | None = None) -> None:
        config = config or CheetorConfig()
        if config.kind not in KINDS:
            raise InputError(f"kind={config.kind!r}: accepted are {', '.join(KINDS)}.")
        name, linear = type(adapter.model).__name__, config.kind == "linear"
        if not isinstance(adapter, LlavaAdapter if linear else Blip2Adapter):
            part, example = ("projection of patches", "LLaVA") if linear else ("Q-Former", "BLIP-2")
            raise InputError(f"{name} has no {part}; the second look {config.kind!r} needs one, as {example} has.")
        layer = adapter.num_layers // 2 if config.layer is None else config.layer
        if not 0 <= layer < adapter.num_layers:
            last = adapter.num_layers - 1
            raise InputError(f"layer={layer}: a second look is added in front of one of {name}'s layers 0 to {last}.")
        self.adapter, self.layer, self.config = adapter, layer, replace(config, layer=layer)
        adapter.model.requires_grad_(False).eval()
        self.second_look = KINDS[config.kind](adapter, config.guided).to(adapter.device)
        self.times_added = 0

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Those of the second look, which are all that learns."""
        return [p for p in self.second_look.parameters() if p.requires_grad]

    def state_dict(self) -> dict[str, np.ndarray]:
        """The added weights as arrays, for an experiment's results; `load_state_dict` takes them back.

        >>> from vlws.models.families import load_mllm
        >>> cheetor = Cheetor(load_mllm("blip2-emoji", "cpu"))
        >>> sorted(cheetor.state_dict())
        ['guide.bias', 'guide.weight', 'inject.bias', 'inject.weight', 'queries']
        """
        return {name: value.detach().cpu().numpy() for name, value in self.second_look.state_dict().items()}

    def load_state_dict(self, weights: Mapping[str, np.ndarray | Tensor]) -> None:
        """All added weights, by name. Raises RuntimeError, torch's own, for names or shapes of another Cheetor.

        >>> from vlws.models.families import load_mllm
        >>> cheetor = Cheetor(load_mllm("blip2-emoji", "cpu"))
        >>> other = Cheetor(load_mllm("blip2-emoji", "cpu"))
        >>> other.load_state_dict({name: value + 1 for name, value in cheetor.state_dict().items()})
        >>> float((other.state_dict()["queries"] - cheetor.state_dict()["queries"]).mean().round(3))
        1.0
        """
        self.second_look.load_state_dict({name: torch.as_tensor(value) for name, value in weights.items()})

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the second look alone (safetensors and JSON). Raises InputError for a folder of other files.

        >>> import tempfile
        >>> from vlws.models.families import load_mllm
        >>> cheetor = Cheetor(load_mllm("blip2-emoji", "cpu"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cheetor.save_pretrained(f"{folder}/cheetor")
        ...     print(sorted(path.name for path in Path(folder, "cheetor").iterdir()))
        ['config.json', 'model.safetensors']
        """
        save_added(folder, "Cheetor", asdict(self.config), self.adapter.sizes, self.second_look.state_dict())

    @classmethod
    def from_pretrained(cls, folder: str | Path, adapter: Adapter) -> "Cheetor":
        """A saved second look around a backbone. Raises InputError for a folder that is not one of this backbone's.

        >>> import tempfile
        >>> from vlws.models.families import load_mllm
        >>> cheetor = Cheetor(load_mllm("blip2-emoji", "cpu"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cheetor.save_pretrained(f"{folder}/cheetor")
        ...     again = Cheetor.from_pretrained(f"{folder}/cheetor", load_mllm("blip2-emoji", "cpu"))
        >>> again.layer == cheetor.layer, sorted(again.state_dict()) == sorted(cheetor.state_dict())
        (True, True)
        """
        config, tensors = load_added(folder, "Cheetor", adapter.sizes)
        cheetor = cls(adapter, CheetorConfig(**config))
        fill(cheetor.second_look, tensors, folder)
        return cheetor

    # --- as a hook on the whole model -------------------------------------------------------------------------------

    @contextmanager
    def injecting(self, batch: Batch) -> Iterator[None]:
        """Within, every forward pass of the model that reads the whole prompt of `batch` adds the second look.

        A pass over new tokens alone (the keys of the prompt are cached) adds nothing: the second look is in the cache.

        >>> from vlws.models.families import load_mllm
        >>> cheetor = Cheetor(load_mllm("blip2-emoji", "cpu"))
        >>> prompts, images = ["<image> what colour is the cat?"], [[np.zeros((48, 48, 3), np.uint8)]]
        >>> batch = cheetor.adapter.encode(prompts, images)
        >>> with cheetor.injecting(batch):
        ...     logits = cheetor.adapter.run(batch).logits
        >>> cheetor.times_added, bool((logits == cheetor.run(batch).logits).all())
        (1, True)
        """
        features, position = self._features(batch), guidance_position(batch)
        rows = batch.image_spans[:, 0]  # "image"
        places = batch.image_places  # "image token"

        def add(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            hidden = args[0] if args else kwargs["hidden_states"]  # "batch len D"
            if hidden.shape[1] < batch.input_ids.shape[1]:
                return args, kwargs
            self.times_added += 1
            h = hidden[torch.arange(len(position), device=position.device), position]  # "batch D"
            added = self.second_look(self.adapter, h[rows], features, batch.extra)  # "image token D"
            hidden = hidden.index_put((rows[:, None], places), added.to(hidden.dtype), accumulate=True)
            return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden})

        hook = self.adapter.layers[self.layer].register_forward_pre_hook(add, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()

    def run(self, batch: Batch, **options) -> CausalLMOutputWithPast:
        """`Adapter.run` with the second look: logits, and the loss where the batch has answers.

        >>> from vlws.models.families import load_mllm
        >>> cheetor = Cheetor(load_mllm("blip2-emoji", "cpu"))
        >>> prompts, images = ["<image> what colour is the cat?"], [[np.zeros((48, 48, 3), np.uint8)]]
        >>> batch = cheetor.adapter.encode(prompts, images, answers=["red"])
        >>> bool(cheetor.run(batch).loss == cheetor.adapter.run(batch).loss)  # untrained
        True
        """
        with self.injecting(batch):
            return self.adapter.run(batch, **options)

    def generate(self, batch: Batch, max_new_tokens: int) -> list[str]:
        """Greedy, cached continuations of prompts that are padded on the left."""
        with torch.no_grad(), self.injecting(batch):
            return self.adapter.generate(batch, max_new_tokens)

    def answer(self, prompts: Sequence[str], images: Images, max_new_tokens: int = 10, chunk: int = 256) -> list[str]:
        """Greedy answers, stripped; each prompt has one "<image>" per picture (as `Adapter.encode` takes them)."""
        out: list[str] = []
        for start in range(0, len(prompts), chunk):
            chosen = slice(start, start + chunk)
            batch = self.adapter.encode(prompts[chosen], images[chosen], padding_side="left").to(self.adapter.device)
            out += [text.strip() for text in self.generate(batch, max_new_tokens)]
        return out

    def _features(self, batch: Batch) -> Tensor:
        missing = set(range(len(batch.input_ids))) - set(batch.image_spans[:, 0].tolist())
        if missing:
            raise InputError(f"Sample {min(missing)} has no picture; a second look needs at least one in each.")
        with torch.no_grad():
            return cast(Tensor, self.adapter.vision_features(batch) if batch.features is None else batch.features)

    # --- the upper layers alone, for training -----------------------------------------------------------------------

    @torch.no_grad()
    def states(
        self, prompts: Sequence[str], images: Images, answers: Sequence[str], chunk: int = 256
    ) -> dict[str, Tensor]:
        """All that training needs of samples with equally many pictures each; arguments as of `Adapter.encode`.

        Returns:
            hidden "sample len D" in front of the layer; h "sample D"; features "sample image patch width"; places
            "sample image token", the positions of the pictures' tokens; attention_mask, labels, positions "sample len";
            of InstructBLIP also what its Q-Former reads, "sample image word".

        Raises:
            InputError: a sample without pictures, an empty answer, samples with different numbers of pictures, or a
                model whose upper layers cannot run alone.

        >>> from vlws.models.families import load_mllm
        >>> cheetor = Cheetor(load_mllm("blip2-emoji", "cpu"))
        >>> prompts, images = ["<image> what colour is the cat?"], [[np.zeros((48, 48, 3), np.uint8)]]
        >>> states = cheetor.states(prompts, images, ["red"])
        >>> states["h"].shape, states["features"].shape[:2], states["places"].shape
        (torch.Size([1, 96]), torch.Size([1, 1]), torch.Size([1, 1, 4]))
        """
        counts = {len(row) for row in images}
        if len(counts) != 1:
            raise InputError(f"The samples have {sorted(counts)} pictures; give those of equal number together.")
        parts = []
        for start in range(0, len(prompts), chunk):
            at = slice(start, start + chunk)
            batch = self.adapter.encode(prompts[at], images[at], answers=answers[at]).to(self.adapter.device)
            batch = replace(batch, pixel_values=None, features=self._features(batch))
            if not start:
                check_cut(self.adapter, self.layer, batch)
            part = lower_states(self.adapter, self.layer, batch)
            rows = torch.arange(len(part["hidden"]), device=self.adapter.device)
            part |= {"h": part["hidden"][rows, guidance_position(batch)], "labels": cast(Tensor, batch.labels)}
            per_image = {"features": cast(Tensor, batch.features), "places": batch.image_places} | batch.extra
            part |= {k: rearrange(v, "(row n) ... -> row n ...", row=len(rows)) for k, v in per_image.items()}
            parts.append(part)
        return joined_states(parts)

    def answer_logits(self, states: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits "token vocab" of the answers' tokens from cached states, and these tokens "token", sample by sample.

        >>> from vlws.models.families import load_mllm
        >>> cheetor = Cheetor(load_mllm("blip2-emoji", "cpu"))
        >>> prompts, images = ["<image> what colour is the cat?"], [[np.zeros((48, 48, 3), np.uint8)]]
        >>> logits, tokens = cheetor.answer_logits(cheetor.states(prompts, images, ["red"]))
        >>> len(logits) == len(tokens), int((tokens == IGNORED).sum())
        (True, 0)
        """
        hidden, places = states["hidden"], states["places"]
        h = states["h"].repeat_interleave(places.shape[1], 0)  # "(sample image) D"
        instructions = {name: value.flatten(0, 1) for name, value in states.items() if name.startswith("qformer_")}
        added = self.second_look(self.adapter, h, states["features"].flatten(0, 1), instructions)
        rows = torch.arange(len(hidden), device=hidden.device).repeat_interleave(places.shape[1])
        where = (rows[:, None], places.flatten(0, 1))  # "(sample image) token"
        hidden = hidden.index_put(where, added.to(hidden.dtype), accumulate=True)
        answered = (targets := states["labels"][:, 1:]) != IGNORED
        logits = upper_logits(self.adapter, self.layer, states, hidden, answered)  # "answered vocab"
        return logits, targets[answered]

    def loss(self, states: dict[str, Tensor]) -> Tensor:
        """Mean cross-entropy of the answers' tokens: the loss that `run` gives, from cached states.

        >>> from vlws.models.families import load_mllm
        >>> cheetor = Cheetor(load_mllm("blip2-emoji", "cpu"))
        >>> prompts, images = ["<image> what colour is the cat?"], [[np.zeros((48, 48, 3), np.uint8)]]
        >>> loss = cheetor.loss(cheetor.states(prompts, images, ["red"]))
        >>> batch = cheetor.adapter.encode(prompts, images, answers=["red"])
        >>> torch.isclose(loss, cheetor.run(batch).loss, atol=1e-4).item()
        True
        """
        logits, tokens = self.answer_logits(states)
        return F.cross_entropy(logits.float(), tokens)


def guidance_position(batch: Batch) -> Tensor:
    """ "batch" int64: the last token of each prompt, which is in front of the answer where there is one.

    >>> from vlws.models.families import load_mllm
    >>> batch = load_mllm("blip2-emoji", "cpu").encode(["what colour?", "what?"], [[], []], answers=["red", "red"])
    >>> at = guidance_position(batch)
    >>> at.shape, bool((batch.labels[torch.arange(2), at] == IGNORED).all())
    (torch.Size([2]), True)
    >>> (batch.labels[torch.arange(2), at + 1] != IGNORED).tolist()  # the answer begins behind it
    [True, True]
    """
    answered = torch.tensor(False) if batch.labels is None else batch.labels != IGNORED
    prompt = batch.attention_mask.bool() & ~answered.to(batch.attention_mask.device)
    return prompt.shape[1] - 1 - prompt.int().flip(1).argmax(1)


def fit_cheetor(
    cheetor: Cheetor,
    sets: Sequence[dict[str, Tensor]],
    steps: int,
    batch_sizes: Sequence[int],
    *,
    lr: float = 2e-3,
    guide_lr: float | None = None,
    weight_decay: float = 0.05,
    warmup: float = 0.1,
    seed: int = 0,
    out: Path | None = None,
    label: str = "second look",
) -> list[dict[str, float]]:
    """Train the second look: each step takes a batch of every set (`Cheetor.states`), and adds up their losses.

    AdamW with warm-up and cosine, as the paper. W_g may have its own rate, `guide_lr`: h is not normalised, so that a
    step moves g by up to |h|_1 times the rate, where it moves Q by the rate alone. `out` and `label` as of `train.fit`.

    Raises:
        Diverged: a loss that is not finite, with the step; the last checkpoint in `out` is good.
        InputError: a set with fewer samples than its batch.

    >>> from vlws.models.families import load_mllm
    >>> cheetor = Cheetor(load_mllm("blip2-emoji", "cpu"))
    >>> prompts, images = ["<image> what colour is the cat?"] * 2, [[np.zeros((48, 48, 3), np.uint8)]] * 2
    >>> states = cheetor.states(prompts, images, ["red", "red"])
    >>> before = cheetor.loss(states).item()
    >>> log = fit_cheetor(cheetor, [states], steps=5, batch_sizes=[2], label="")
    >>> log[-1]["step"], cheetor.loss(states).item() < before
    (5, True)
    """
    if len(sets) != len(batch_sizes) or not sets:
        raise InputError(f"{len(sets)} sets of samples and {len(batch_sizes)} batch sizes; give one size per set.")
    order = [epochs(len(s["h"]), size, seed + k) for k, (s, size) in enumerate(zip(sets, batch_sizes, strict=True))]

    def batch(step: int) -> list[dict[str, Tensor]]:
        chosen = [pick(step) for pick in order]
        return [{name: value[at] for name, value in s.items()} for s, at in zip(sets, chosen, strict=True)]

    named = [(name, p) for name, p in cheetor.second_look.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in named if not name.startswith("guide.")], "lr": lr},
        {"params": [p for name, p in named if name.startswith("guide.")], "lr": lr if guide_lr is None else guide_lr},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=weight_decay)

    def loss(second_look: nn.Module, parts: list[dict[str, Tensor]]) -> Tensor:
        return torch.stack([cheetor.loss(part) for part in parts]).sum()

    where = "auto" if cheetor.adapter.device.type == "cuda" else "cpu"
    schedule = warmup_cosine(optimizer, steps, warmup)
    return fit(
        cheetor.second_look, loss, batch, steps, optimizer, schedule, out=out, clip=1.0, device=where, label=label
    )
