"""Two executors on this machine: `vlws sweep 04 -p lr=1e-3,3e-3 --parsl examples/local.py`, to try Parsl at all.

On one machine `--jobs` does the same without Parsl.
"""

from pathlib import Path

from parsl import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider


def executor(label: str) -> HighThroughputExecutor:
    return HighThroughputExecutor(
        label=label,
        address="127.0.0.1",
        max_workers_per_node=1,  # runs at once
        provider=LocalProvider(init_blocks=1, max_blocks=1),
    )


config = Config(
    executors=[executor("one"), executor("two")],
    run_dir=str(Path(__file__).resolve().parents[1] / "runs" / "parsl"),  # Parsl's logs
)
