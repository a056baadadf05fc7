"""Slurm: `vlws sweep 04 -p lr=1e-3,3e-3 --parsl examples/slurm.py`, on a node from which `sbatch` works.

Change PARTITION, ACCOUNT and the sizes. The nodes must see this workspace, and the Python environment that it is
installed in, under the same paths.
"""

import sys
from pathlib import Path

from parsl import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import SlurmProvider

PARTITION = "short"  # `sinfo` lists them
ACCOUNT = None  # what your time is charged to, where your cluster wants one
CORES = 2  # of a node, for each run; more where a node has them
RUNS = 1  # at once on a node
BLOCKS = 4  # jobs of Slurm at most; each is one node
GPUS = None  # on each node, one for each run: then RUNS = GPUS

config = Config(
    executors=[
        HighThroughputExecutor(
            label="slurm",
            max_workers_per_node=RUNS,
            cores_per_worker=CORES,
            available_accelerators=GPUS or [],
            drain_period=3600 - 600,  # seconds: a block takes no further run in its last ten minutes
            heartbeat_period=10,
            heartbeat_threshold=60,  # seconds without a sign of life, after which the runs of a block are done again
            provider=SlurmProvider(
                partition=PARTITION,
                account=ACCOUNT,
                walltime="01:00:00",
                cores_per_node=CORES * RUNS,
                gpus_per_node=GPUS,
                exclusive=False,
                init_blocks=1,
                min_blocks=0,
                max_blocks=BLOCKS,
                worker_init=f"export PATH={Path(sys.prefix, 'bin')}:$PATH",  # this environment
            ),
        )
    ],
    run_dir=str(Path(__file__).resolve().parents[1] / "runs" / "parsl"),  # Parsl's logs, and what it submits
)
