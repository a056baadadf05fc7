"""IKE: the new fact, and demonstrations, in the text before the question (Zheng et al. 2023, arXiv:2305.12740).

As in EasyEdit the facts are texts alone: the picture stands with the question that is asked. A demonstration is a fact
of another case with a question after it: the same (copy), in other words (rephrase), or on something else (retain).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vlws.data.mmedit import EditCase
from vlws.models.adapter import Adapter
from vlws.models.editing import EditedModel, Images
from vlws.models.memory import layer_states


@dataclass(frozen=True)
class IKEConfig:
    """demonstrations: how many, the nearest to the edit; templates of a new fact, and of what a demonstration asks.

    EasyEdit's are "New Fact: {question} {answer}\\n" and "Prompt: {question} {answer}\\n\\n", with 32 demonstrations.
    """

    demonstrations: int = 0
    fact: str = "new fact: {question} {answer}. "
    shown: str = "{question} {answer}. "


class IKE:
    """The editor. `pool`: cases from which demonstrations are taken."""

    def __init__(self, adapter: Adapter, config: IKEConfig | None = None, pool: Sequence[EditCase] = ()) -> None:
        self.adapter, self.config = adapter, config or IKEConfig()
        self.pool = list(pool) if self.config.demonstrations else []
        self.keys = self.states([c.edit.text for c in self.pool], [c.edit.images for c in self.pool])

    def states(self, prompts: Sequence[str], images: Images) -> Tensor:
        """By what a question is found, "question dim": the state of its last token half way up, of unit length."""
        half = self.adapter.num_layers // 2
        if not prompts:
            return torch.zeros(0, self.adapter.hidden_size)
        found = layer_states(self.adapter, [half], prompts, images, [" ?"] * len(prompts))[half]
        return F.normalize(torch.stack([bank.sem[0] for bank in found]).float(), dim=-1)

    def context(self, question: str, answer: str) -> str:
        """A new fact as a text."""
        return self.config.fact.format(question=plain(question), answer=answer.strip())

    def edit(self, prompts: Sequence[str], images: Images, targets: Sequence[str]) -> "InContext":
        """e independent edits: nothing is trained."""
        return InContext(self, len(prompts)).edit(prompts, images, targets)


class InContext(EditedModel):
    """Models with new facts before what they are asked."""

    def __init__(self, method: IKE, edits: int) -> None:
        super().__init__(method.adapter, edits)
        self.method = method
        self.shown: list[list[str]] = []  # of each call of `edit`: demonstrations of each model

    def teach(self, prompts: Sequence[str], images: Images, targets: Sequence[str]) -> None:
        method, k = self.method, self.method.config.demonstrations
        if not k:
            self.shown.append([""] * len(prompts))
            return
        nearest = (method.states(prompts, images) @ method.keys.T).topk(min(k, len(method.pool))).indices
        self.shown.append(["".join(self._demonstration(int(j), n) for n, j in enumerate(row)) for row in nearest])

    def _demonstration(self, j: int, n: int) -> str:
        case = self.method.pool[j]
        asked = (case.edit, case.text_generality, case.text_locality)[n % 3]
        shown = self.method.config.shown.format(question=plain(asked.text), answer=asked.answer)
        return self.method.context(case.edit.text, case.edit.answer) + shown

    def forget(self, edits: int) -> None:
        del self.shown[-edits:]

    def asked(self, prompts: Sequence[str], images: Images, edit: Tensor) -> list[str]:
        contexts = [
            (self.shown[-1][i] if self.shown else "") + "".join(self.method.context(*step[i]) for step in self.taught)
            for i in range(self.edits)
        ]
        return [contexts[i] + prompt for i, prompt in zip(edit.tolist(), prompts, strict=True)]


def plain(question: str) -> str:
    """A question without its picture."""
    return question.replace("<image>", "").strip()
