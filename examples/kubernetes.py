"""Kubernetes: `vlws sweep 04 -p lr=1e-3,3e-3 --parsl examples/kubernetes.py`, run in a pod of the same cluster.

Besides Parsl it needs the client: `pip install kubernetes`. The workspace lies on a volume that many pods may write
(ReadWriteMany), mounted at the same path here and in every worker; the image has the Python environment of this one.
Change IMAGE, CLAIM and the sizes.
"""

import os
from pathlib import Path

from parsl import Config
from parsl.addresses import address_by_hostname
from parsl.executors import HighThroughputExecutor
from parsl.providers import KubernetesProvider

IMAGE = "registry.example.org/vlws:latest"  # has vlws installed, as here
CLAIM = "vlws-workspace"  # the PersistentVolumeClaim of the workspace
NAMESPACE = "default"
CORES = 2  # of each pod, which makes one run at a time
PODS = 4  # at most
WORKSPACE = Path(os.environ.get("VLWS_ROOT") or Path(__file__).resolve().parents[1])

config = Config(
    executors=[
        HighThroughputExecutor(
            label="kubernetes",
            address=address_by_hostname(),  # of this pod, as the workers reach it
            max_workers_per_node=1,
            cores_per_worker=CORES,
            worker_logdir_root=str(WORKSPACE / "runs" / "parsl"),
            provider=KubernetesProvider(
                image=IMAGE,
                namespace=NAMESPACE,
                persistent_volumes=[(CLAIM, str(WORKSPACE))],
                init_cpu=CORES,
                max_cpu=CORES,
                init_mem="4Gi",
                max_mem="8Gi",
                init_blocks=1,
                min_blocks=0,
                max_blocks=PODS,
            ),
        )
    ],
    run_dir=str(WORKSPACE / "runs" / "parsl"),
)
