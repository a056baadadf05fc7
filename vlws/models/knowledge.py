"""What UniKE makes once of a base model, from questions with their true answers and the model's own wrong ones.

Section 3.3 of Pan et al. 2024 (arXiv:2409.19872): of each edited layer a bank of states, two spaces, and the direction
from what the model says wrongly to what is true. Nothing of it depends on an edit.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from vlws.models import memory
from vlws.models.adapter import Adapter
from vlws.models.added import grouped, load_added, save_added
from vlws.models.editing import Images
from vlws.models.memory import Bank, layer_states
from vlws.models.truthfulness import Encoder, Triplets, direction, fit_encoders, ridge

Direction = Literal["ridge", "mean", "negative", "random", "none", "per edit"]


@dataclass(frozen=True)
class Prepared:
    """Of one layer: the bank, both encoders, the triplets' mean directions, and the scale of the layer's own values.

    >>> from vlws.models.families import load_mllm
    >>> one = without_knowledge(load_mllm("blip2-emoji", "cpu"), layers=[5])[5]
    >>> round(float(one.shift("random").norm()) / one.scale, 3), one.shift("none")
    (1.0, None)
    """

    bank: Bank
    truthful: Encoder
    semantic: Encoder
    zeta: Tensor
    ridge: Tensor
    mean: Tensor
    scale: float

    def shift(self, kind: Direction, seed: int = 0) -> Tensor | None:
        """zeta' "dim", as long as a row of the layer's own W_V.

        "ridge": W zeta, W fitted offline; "mean": the mean difference of the raw states; "negative": minus "ridge";
        "random": a random direction; "none" and "per edit" (learned by each edit): None.
        """
        if kind in ("none", "per edit"):
            return None
        generator = torch.Generator().manual_seed(seed)
        made = {"mean": lambda: self.mean, "random": lambda: torch.randn(len(self.zeta), generator=generator)}
        raw = made.get(kind, lambda: self.ridge @ self.zeta)().to(self.zeta)
        return self.scale * F.normalize(raw, dim=0) * (-1 if kind == "negative" else 1)


@dataclass(frozen=True)
class Answers:
    """Of one layer: the rows of every true answer, and its triplets (states of the last token before the end token).

    >>> from vlws.models.families import load_mllm
    >>> adapter, prompts = load_mllm("blip2-emoji", "cpu"), ["what is this?", "who is it?"]
    >>> one = read_answers(adapter, [5], prompts, [[], []], true=["a lion", "mira"], false=["a cat", "tom"])[5]
    >>> len(one.rows), one.triplets.sem.shape
    (2, torch.Size([2, 96]))
    """

    rows: list[Bank]
    triplets: Triplets


def read_answers(
    adapter: Adapter,
    layers: Sequence[int],
    prompts: Sequence[str],
    images: Images,
    true: Sequence[str],
    false: Sequence[str],
) -> dict[int, Answers]:
    """layer -> states of n questions with their true answers, and with the model's own wrong ones.

    >>> from vlws.models.families import load_mllm
    >>> adapter, prompts = load_mllm("blip2-emoji", "cpu"), ["what is this?", "who is it?"]
    >>> answers = read_answers(adapter, [4, 5], prompts, [[], []], true=["a lion", "mira"], false=["a cat", "tom"])
    >>> list(answers), [len(bank) for bank in answers[5].rows]  # a row for each token of a true answer
    ([4, 5], [7, 5])
    """
    right, wrong = (
        layer_states(adapter, layers, prompts, images, [f" {answer.strip()}" for answer in answers])
        for answers in (true, false)
    )
    asked = list(zip(prompts, true, strict=True))
    facts = {key: i for i, key in enumerate(dict.fromkeys(asked))}
    fact = torch.tensor([facts[key] for key in asked], device=adapter.device)
    found = {}
    for layer in layers:
        sem, pos = (torch.stack([getattr(bank, name)[-2] for bank in right[layer]]) for name in ("sem", "pos"))
        neg = torch.stack([bank.pos[-2] for bank in wrong[layer]])
        found[layer] = Answers(right[layer], Triplets(sem.float(), pos.float(), neg.float(), fact))
    return found


def prepare(
    adapter: Adapter,
    answers: Mapping[int, Answers],
    *,
    final_token: bool = False,
    steps: int = 300,
    seed: int = 0,
    linear: bool = False,
) -> dict[int, Prepared]:
    """All that editing needs of each layer, from what `read_answers` gives.

    final_token: the bank holds the last token of each answer alone, as the paper has it, not every token.

    >>> from vlws.models.families import load_mllm
    >>> adapter, prompts = load_mllm("blip2-emoji", "cpu"), ["what is this?", "who is it?"]
    >>> answers = read_answers(adapter, [5], prompts, [[], []], true=["a lion", "mira"], false=["a cat", "tom"])
    >>> every, last = (prepare(adapter, answers, steps=2, final_token=final)[5] for final in (False, True))
    >>> len(every.bank), len(last.bank), last.zeta.shape
    (12, 2, torch.Size([96]))
    """
    made = {}
    for layer, one in answers.items():
        rows, triplets = one.rows, one.triplets
        truthful, semantic = fit_encoders(triplets, steps=steps, seed=seed, linear=linear)
        with torch.no_grad():
            encoded = truthful(triplets.pos) - truthful(triplets.neg)
        banks = [Bank(bank.sem[-2:-1], bank.pos[-2:-1]) for bank in rows] if final_token else rows
        values = memory.value_matrix(adapter.layers[layer])
        made[layer] = Prepared(
            bank=Bank(torch.cat([b.sem for b in banks]), torch.cat([b.pos for b in banks])),
            truthful=truthful,
            semantic=semantic,
            zeta=direction(truthful, triplets),
            ridge=ridge(encoded, triplets.pos - triplets.neg),
            mean=(triplets.pos - triplets.neg).mean(0),
            scale=float(values.norm(dim=0).mean()),
        )
    return made


def without_knowledge(adapter: Adapter, layers: Sequence[int]) -> dict[int, Prepared]:
    """An empty bank for each layer, and spaces that nothing was learned of: for edits that have their own rows alone.

    A gate "specified" and a direction other than "none" mean nothing with it.

    >>> from vlws.models.families import load_mllm
    >>> prepared = without_knowledge(load_mllm("blip2-emoji", "cpu"), layers=[4, 5])
    >>> list(prepared), len(prepared[5].bank)
    ([4, 5], 0)
    """
    made = {}
    for layer in layers:
        dim = adapter.hidden_size
        zero = torch.zeros(dim, device=adapter.device)
        spaces = [Encoder(dim).to(adapter.device).requires_grad_(False) for _ in range(2)]
        scale = float(memory.value_matrix(adapter.layers[layer]).norm(dim=0).mean())
        made[layer] = Prepared(Bank(zero[None][:0], zero[None][:0]), *spaces, zero, torch.diag(zero), zero, scale)
    return made


def save_prepared(folder: str | Path, adapter: Adapter, prepared: Mapping[int, Prepared]) -> None:
    """Write what was prepared as safetensors and JSON, whole or not at all (`added.save_added`).

    >>> import tempfile
    >>> from vlws.models.families import load_mllm
    >>> adapter, prompts = load_mllm("blip2-emoji", "cpu"), ["what is this?", "who is it?"]
    >>> answers = read_answers(adapter, [5], prompts, [[], []], true=["a lion", "mira"], false=["a cat", "tom"])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_prepared(f"{folder}/prepared", adapter, prepare(adapter, answers, steps=2))
    ...     print(sorted(path.name for path in Path(folder, "prepared").iterdir()))
    ['config.json', 'model.safetensors']
    """
    tensors: dict[str, Tensor] = {}
    for layer, one in prepared.items():
        parts = {"sem": one.bank.sem, "pos": one.bank.pos, "zeta": one.zeta, "ridge": one.ridge, "mean": one.mean}
        for name, encoder in (("truthful", one.truthful), ("semantic", one.semantic)):
            parts |= {f"{name}/{key}": value for key, value in encoder.state_dict().items()}
        tensors |= {f"{layer}.{key}": value for key, value in parts.items()}
    config = {
        "scale": {str(layer): one.scale for layer, one in prepared.items()},
        "linear": next(iter(prepared.values())).truthful.linear,
    }
    save_added(folder, "Prepared", config, adapter.sizes, tensors)


def load_prepared(folder: str | Path, adapter: Adapter) -> dict[int, Prepared]:
    """What `save_prepared` wrote. Raises InputError for another folder, or one of a model of other sizes.

    >>> import tempfile
    >>> from vlws.models.families import load_mllm
    >>> adapter, prompts = load_mllm("blip2-emoji", "cpu"), ["what is this?", "who is it?"]
    >>> answers = read_answers(adapter, [5], prompts, [[], []], true=["a lion", "mira"], false=["a cat", "tom"])
    >>> prepared = prepare(adapter, answers, steps=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_prepared(f"{folder}/prepared", adapter, prepared)
    ...     fingerprint(load_prepared(f"{folder}/prepared", adapter)) == fingerprint(prepared)
    True
    """
    config, tensors = load_added(folder, "Prepared", adapter.sizes)
    made = {}
    for layer, parts in sorted((int(key), value) for key, value in grouped(tensors).items()):
        parts = {name: value.to(adapter.device) for name, value in parts.items()}
        encoders = []
        for kind in ("truthful", "semantic"):
            encoder = Encoder(adapter.hidden_size, config["linear"]).to(adapter.device)
            own = {k.removeprefix(f"{kind}/"): v for k, v in parts.items() if k.startswith(f"{kind}/")}
            encoder.load_state_dict(own)
            encoders.append(encoder.requires_grad_(False))
        bank, scale = Bank(parts["sem"], parts["pos"]), config["scale"][str(layer)]
        made[layer] = Prepared(bank, *encoders, parts["zeta"], parts["ridge"], parts["mean"], scale)
    return made


def fingerprint(prepared: Mapping[int, Prepared]) -> str:
    """What tells preparations apart, 16 letters: a hash of each layer's bank and directions.

    >>> from vlws.models.families import load_mllm
    >>> adapter = load_mllm("blip2-emoji", "cpu")
    >>> one, other = without_knowledge(adapter, layers=[5]), without_knowledge(adapter, layers=[4])
    >>> len(fingerprint(one)), fingerprint(one) == fingerprint(other)
    (16, False)
    """
    digest = hashlib.sha256()
    for layer, one in sorted(prepared.items()):
        digest.update(f"{layer} {one.scale}".encode())
        for part in (one.bank.sem, one.bank.pos, one.zeta, one.ridge, one.mean):
            digest.update(part.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:16]
