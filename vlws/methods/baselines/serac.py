"""SERAC: a classifier of scope sends questions to a counterfactual model, or to the base (Mitchell et al. 2022b).

arXiv:2206.06520. The counterfactual model is the base itself with the edit as its context, not a second language model;
the classifier is a small network on states of the base, trained on cases of other things. EasyEdit trains it without
pictures out of scope (`image_locality=False`), which is a likely cause of its low image locality.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlws.data.mmedit import GENERALITY, EditCase, Question
from vlws.errors import InputError
from vlws.models.adapter import Adapter
from vlws.models.editing import NEW_FACT, EditedModel, Images, fact_text
from vlws.models.memory import question_states


@dataclass(frozen=True)
class SERACConfig:
    """image_locality: whether pictures out of scope are trained on; fact: template of an edit as a text; lr, steps.

    >>> SERACConfig(image_locality=False).steps
    300
    """

    image_locality: bool = True
    fact: str = NEW_FACT
    width: int = 64
    lr: float = 3e-3
    steps: int = 300
    seed: int = 0


class SERAC:
    """The editor; its classifier is trained once by `fit`, on cases of other things than are edited.

    >>> from vlws.data.emoji_world import edit_cases, facts
    >>> from vlws.models.families import load_mllm
    >>> cases = edit_cases.imagined(facts.make_world(seed=0), "training", n=4, seed=0)
    >>> serac = SERAC(load_mllm("blip2-emoji", "cpu"), SERACConfig(steps=20)).fit(cases)
    >>> states = question_states(serac.adapter, ["who is it?", "what is the capital of zorvia?"], [[], []])
    >>> same, other = serac.scope(states[[0, 0]], states).tolist()  # of "who is it?"
    >>> same > other, serac.edit(["who is it?"], [[]], ["mira"]).edits
    (True, 1)
    """

    def __init__(self, adapter: Adapter, config: SERACConfig | None = None) -> None:
        self.adapter, self.config = adapter, config or SERACConfig()
        with torch.random.fork_rng():
            torch.manual_seed(self.config.seed)
            dim, width = adapter.hidden_size, self.config.width
            self.classifier = nn.Sequential(nn.Linear(2 * dim, width), nn.GELU(), nn.Linear(width, 1))
        self.classifier.to(adapter.device)

    def fit(self, cases: Sequence[EditCase]) -> "SERAC":
        """Binary cross-entropy: an edit and its generality are in scope, what must stay is not.

        Raises InputError for no cases.
        """
        if not cases:
            raise InputError("SERAC was given no cases to train its classifier of scope on; one is the least.")
        self.classifier.requires_grad_(True)
        kinds = {kind: [getattr(case, kind) for case in cases] for kind in ("edit", *GENERALITY)}
        out = {"text_locality": [case.text_locality for case in cases]}
        if self.config.image_locality:
            out["image_locality"] = [case.image_locality for case in cases]
        edits = self._states(kinds["edit"])
        pairs = [(edits, self._states(asked), 1.0) for asked in kinds.values()]
        pairs += [(edits, self._states(asked), 0.0) for asked in out.values() if asked]
        near = [i for i, case in enumerate(cases) if case.near and self.config.image_locality]  # MMEdit has none
        pairs.append((edits[near], self._states([cases[i].near[0] for i in near]), 0.0))
        pairs.append((edits, edits.roll(1, 0), 0.0))
        x = torch.cat([features(a, b) for a, b, _ in pairs])
        y = torch.cat([torch.full((len(a),), label) for a, _, label in pairs]).to(x.device)
        optimizer = torch.optim.Adam(self.classifier.parameters(), lr=self.config.lr, weight_decay=1e-3)
        balance = (y == 0).sum() / (y == 1).sum()
        for _ in range(self.config.steps):
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(self.classifier(x)[:, 0], y, pos_weight=balance).backward()
            optimizer.step()
        self.classifier.requires_grad_(False)
        return self

    def _states(self, questions: Sequence[Question]) -> Tensor:
        return question_states(self.adapter, [q.text for q in questions], [q.images for q in questions])

    def scope(self, edits: Tensor, asked: Tensor) -> Tensor:
        """Log-odds that what is asked is in the scope of an edit, "row"; both states "row dim"."""
        return self.classifier(features(edits, asked))[:, 0]

    def edit(self, prompts: Sequence[str], images: Images, targets: Sequence[str]) -> "Scoped":
        """e independent edits: each is stored, nothing is trained."""
        return Scoped(self, len(prompts)).edit(prompts, images, targets)


def features(edit: Tensor, asked: Tensor) -> Tensor:
    """What the classifier reads of two states "row dim": "row 2dim".

    >>> one, other = torch.eye(4)[:1], torch.eye(4)[1:2]
    >>> features(one, one).tolist(), features(one, other).tolist()
    ([[0.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0]], [[1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    """
    return torch.cat([(edit - asked).abs(), edit * asked * edit.shape[-1] ** 0.5], -1)


class Scoped(EditedModel):
    """Models that answer from a stored edit where the question is in its scope.

    >>> from vlws.models.families import load_mllm
    >>> edited = Scoped(SERAC(load_mllm("blip2-emoji", "cpu")), edits=1).edit(["who is it?"], [[]], ["mira"])
    >>> edited.added()
    96
    >>> edited.rollback()
    >>> edited.asked(["who is it?"], [[]], edit=torch.tensor([0]))
    ['who is it?']
    """

    def __init__(self, method: SERAC, edits: int) -> None:
        super().__init__(method.adapter, edits)
        self.method = method
        self.stored: list[Tensor] = []  # of each call of `edit`, states "model dim"

    def teach(self, prompts: Sequence[str], images: Images, targets: Sequence[str]) -> None:
        """Stores the state of each edit's question."""
        self.stored.append(question_states(self.adapter, prompts, images))

    def forget(self, edits: int) -> None:
        """The states of the last edits go."""
        del self.stored[-edits:]

    def added(self) -> int:
        """Numbers of the stored states."""
        return sum(stored.shape[-1] for stored in self.stored)

    def asked(self, prompts: Sequence[str], images: Images, edit: Tensor) -> list[str]:
        """The prompts; where one is in the scope of a stored edit, the likeliest one's fact stands before it."""
        if not self.stored:
            return list(prompts)
        states = question_states(self.adapter, prompts, images)
        odds = torch.stack([self.method.scope(stored[edit.cpu()], states) for stored in self.stored])  # step row
        found = []
        for row, (prompt, i) in enumerate(zip(prompts, edit.tolist(), strict=True)):
            best = int(odds[:, row].argmax())
            in_scope = float(odds[best, row]) > 0
            found.append((fact_text(self.method.config.fact, *self.taught[best][i]) if in_scope else "") + prompt)
        return found
