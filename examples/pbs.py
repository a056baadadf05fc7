"""PBS: `vlws sweep 04 -p lr=1e-3,3e-3 --parsl examples/pbs.py`, on a node from which `qsub` works.

Change QUEUE, ACCOUNT and the sizes. The nodes must see this workspace, and the Python environment that it is installed
in, under the same paths. PBS Pro and OpenPBS; for Torque take `TorqueProvider`.
"""

import sys
from pathlib import Path

from parsl import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import PBSProProvider

QUEUE = "workq"  # `qstat -Q` lists them
ACCOUNT = None  # what your time is charged to, where your cluster wants one
CORES = 2  # of a node, for each run
RUNS = 1  # at once on a node
BLOCKS = 4  # jobs of PBS at most; each is one node
SELECT = ""  # further resources of a node, such as "ngpus=1"

config = Config(
    executors=[
        HighThroughputExecutor(
            label="pbs",
            max_workers_per_node=RUNS,
            cores_per_worker=CORES,
            drain_period=3600 - 600,  # seconds: a block takes no further run in its last ten minutes
            heartbeat_period=10,
            heartbeat_threshold=60,  # seconds without a sign of life, after which the runs of a block are done again
            provider=PBSProProvider(
                queue=QUEUE,
                account=ACCOUNT,
                walltime="01:00:00",
                cpus_per_node=CORES * RUNS,
                select_options=SELECT,
                init_blocks=1,
                min_blocks=0,
                max_blocks=BLOCKS,
                # this environment, and the variables that PBS does not pass on
                worker_init=f"export PATH={Path(sys.prefix, 'bin')}:$PATH",
            ),
        )
    ],
    run_dir=str(Path(__file__).resolve().parents[1] / "runs" / "parsl"),  # Parsl's logs, and what it submits
)
