"""Where and with which code figures were measured, and how they are kept."""

import datetime
import hashlib
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch

import vlws_kernels as vk
from vlws_kernels import engine as engines

REPORTS = Path(__file__).resolve().parents[2] / "reports" / "results" / "08_kernels"

PACKAGES = ("torch", "pykeops", "tslearn", "aeon", "dtaidistance", "scikit-learn", "numba", "numpy")


def machine(packages: tuple[str, ...] = PACKAGES) -> dict:
    """What the figures hang on: hardware, versions, compiler flags, the hash of the kernels' code, load, date."""
    cpu = next((line.split(":")[1].strip() for line in lines("/proc/cpuinfo") if line.startswith("model name")), "")
    return {
        "cpu": cpu or platform.processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "cxxflags": engines.CXXFLAGS,
        "kernels": code_hash(),
        "load": os.getloadavg()[0],
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def code_hash() -> str:
    """The hash of the kernels' Python files, which is that of what is timed: a move of a function changes it too."""
    files = sorted(Path(vk.__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


def lines(path: str) -> list[str]:
    """The lines of a text file; none where there is no such file."""
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def write(path: Path, results: dict) -> None:
    """Replace `path` by the JSON of `results` at once: readers never see a partial file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(unfinished, path)
