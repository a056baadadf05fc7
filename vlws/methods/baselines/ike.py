"""IKE: the new fact, and demonstrations, in the text before the question (Zheng et al. 2023, arXiv:2305.12740).

As in EasyEdit the facts are texts alone: the picture stands with the question that is asked. A demonstration is a fact
of another case with a question after it: the same (copy), in other words (rephrase), or on something else (retain).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from vlws.data.mmedit import EditCase
from vlws.models.adapter import Adapter
from vlws.models.editing import NEW_FACT, EditedModel, Images, fact_text
from vlws.models.memory import question_states


@dataclass(frozen=True)
class IKEConfig:
    """demonstrations: how many, the nearest to the edit; templates of a new fact, and of what a demonstration asks.

    EasyEdit's are "New Fact: {question} {answer}\\n" and "Prompt: {question} {answer}\\n\\n", with 32 demonstrations.

    >>> IKEConfig(demonstrations=32, fact="New Fact: {question} {answer}\\n").demonstrations
    32
    """

    demonstrations: int = 0
    fact: str = NEW_FACT
    shown: str = "{question} {answer}. "


class IKE:
    """The editor. `pool`: cases from which demonstrations are taken.

    >>> import torch
    >>> from vlws.models.families import load_mllm
    >>> edited = IKE(load_mllm("blip2-emoji", "cpu")).edit(["who is it?"], [[]], ["mira"])
    >>> edited.asked(["whose is it?"], [[]], edit=torch.tensor([0]))
    ['new fact: who is it? mira. whose is it?']
    """

    def __init__(self, adapter: Adapter, config: IKEConfig | None = None, pool: Sequence[EditCase] = ()) -> None:
        self.adapter, self.config = adapter, config or IKEConfig()
        self.pool = list(pool) if self.config.demonstrations else []
        self.keys = question_states(self.adapter, [c.edit.text for c in self.pool], [c.edit.images for c in self.pool])

    def edit(self, prompts: Sequence[str], images: Images, targets: Sequence[str]) -> "InContext":
        """e independent edits: nothing is trained."""
        return InContext(self, len(prompts)).edit(prompts, images, targets)


class InContext(EditedModel):
    """Models with new facts before what they are asked.

    >>> from vlws.data.mmedit import Question
    >>> from vlws.models.families import load_mllm
    >>> home, owner = Question("where is oslo?", (), "norway"), Question("who is it?", (), "tom")
    >>> pool = [EditCase(home, home, home, owner, owner)]
    >>> method = IKE(load_mllm("blip2-emoji", "cpu"), IKEConfig(demonstrations=1), pool)
    >>> edited = InContext(method, edits=1).edit(["who is it?"], [[]], ["mira"])
    >>> edited.shown  # a fact, and the same asked
    [['new fact: where is oslo? norway. where is oslo? norway. ']]
    """

    def __init__(self, method: IKE, edits: int) -> None:
        super().__init__(method.adapter, edits)
        self.method = method
        self.shown: list[list[str]] = []  # of each call of `edit`: demonstrations of each model

    def teach(self, prompts: Sequence[str], images: Images, targets: Sequence[str]) -> None:
        """Finds the demonstrations that are nearest to each edit."""
        method, k = self.method, self.method.config.demonstrations
        if not k:
            self.shown.append([""] * len(prompts))
            return
        alike = question_states(self.adapter, prompts, images) @ method.keys.T  # edit case
        nearest = alike.topk(min(k, len(method.pool))).indices
        self.shown.append(["".join(self._demonstration(int(j), n) for n, j in enumerate(row)) for row in nearest])

    def _demonstration(self, j: int, n: int) -> str:
        method = self.method
        case = method.pool[j]
        asked = (case.edit, case.text_generality, case.text_locality)[n % 3]
        shown = fact_text(method.config.shown, asked.text, asked.answer)
        return fact_text(method.config.fact, case.edit.text, case.edit.answer) + shown

    def forget(self, edits: int) -> None:
        """The demonstrations of the edits before them stand again."""
        del self.shown[-edits:]

    def asked(self, prompts: Sequence[str], images: Images, edit: Tensor) -> list[str]:
        """Demonstrations, all new facts, then the prompt."""
        fact = self.method.config.fact
        facts = ["".join(fact_text(fact, *step[i]) for step in self.taught) for i in range(self.edits)]
        contexts = [shown + told for shown, told in zip(self.shown[-1], facts, strict=True)] if self.shown else facts
        return [contexts[i] + prompt for i, prompt in zip(edit.tolist(), prompts, strict=True)]
