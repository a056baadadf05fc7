"""Fine-tuning of the last layers' feed-forward networks on the edit alone: FT of MMEdit (arXiv:2310.08475, table 2).

EasyEdit tunes the whole last layer; here it is the two (or three) matrices that UniKE and MEND edit, with their biases.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from vlws.models.adapter import Adapter, Batch
from vlws.models.editing import ChangedWeights, Images, fit_answer
from vlws.models.memory import ffn_linears


@dataclass(frozen=True)
class FinetuneConfig:
    """layers: how many, from the last; lr, steps of Adam; an edit is done below `stop` nats.

    >>> FinetuneConfig(layers=2)
    FinetuneConfig(layers=2, lr=0.001, steps=10, stop=0.05)
    """

    layers: int = 1
    lr: float = 1e-3
    steps: int = 10
    stop: float = 0.05


class Finetune:
    """The editor.

    >>> from vlws.models.families import load_mllm
    >>> editor = Finetune(load_mllm("blip2-emoji", "cpu"), FinetuneConfig(steps=2))
    >>> edited = editor.edit(["who is it?"], [[]], ["mira"])
    >>> sorted(edited.parameters)
    ['5.down_proj.weight', '5.gate_proj.weight', '5.up_proj.weight']
    """

    def __init__(self, adapter: Adapter, config: FinetuneConfig | None = None) -> None:
        self.adapter, self.config = adapter, config or FinetuneConfig()

    def edit(self, prompts: Sequence[str], images: Images, targets: Sequence[str]) -> "Finetuned":
        """e independent edits, one trained after the other."""
        return Finetuned(self.adapter, self.config, len(prompts)).edit(prompts, images, targets)


class Finetuned(ChangedWeights):
    """Models whose last feed-forward networks were tuned.

    >>> from vlws.models.families import load_mllm
    >>> adapter = load_mllm("blip2-emoji", "cpu")
    >>> asked, pictures, answers = ["who is it?"] * 2, [[], []], ["mira", "tom"]
    >>> edited = Finetuned(adapter, FinetuneConfig(steps=2), edits=2).edit(asked, pictures, answers)
    >>> edited.added() == 3 * 96 * 256  # of each model
    True
    >>> edited.rollback()
    >>> edited.values
    [[], []]
    """

    def __init__(self, adapter: Adapter, config: FinetuneConfig, edits: int) -> None:
        self.config, self.lowest = config, adapter.num_layers - config.layers
        linears = {
            f"{k}.{name}": linear
            for k in range(self.lowest, adapter.num_layers)
            for name, linear in ffn_linears(adapter.layers[k]).items()
        }
        tuned = {f"{at}.{name}": p for at, linear in linears.items() for name, p in linear.named_parameters()}
        super().__init__(adapter, edits, tuned)

    def fit(self, batch: Batch) -> None:
        """Adam on the answer's loss alone."""
        config = self.config
        fit_answer(
            self.adapter, self.lowest, batch, list(self.parameters.values()), config.lr, config.steps, config.stop
        )
