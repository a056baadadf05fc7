"""What this machine has, and what is slower or missing without the rest."""

import os
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from vlws import paths
from vlws.lab import executors

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PACKAGES = ("torch", "transformers", "pykeops", "papermill", "nbconvert", "duckdb")
ENOUGH_GB = 3.0


def checks(deep: bool = False) -> list[dict[str, Any]]:
    """One dict a check: name, present, found (what), without (what is slower or missing), needed (by every chapter).

    `deep` also compiles a KeOps formula in a fresh folder, which takes up to a minute.
    """
    from vlws.data.emoji_world.build import SOURCES
    from vlws.data.wordnet.build import SOURCE

    found = [
        _check("Python 3.11+", sys.version_info >= (3, 11), sys.version.split()[0], "nothing runs", needed=True),
        _packages(),
        _check("cores", True, str(executors.cores()), "seeds and arms run one after another"),
        _compiler(),
        _openmp(),
        _gpu(),
        _gpu_kernels(),
        _disk(),
        _browser(),
        *(_builder(name, path) for name, path in (SOURCES | {"wordnet-base": SOURCE / "data.noun"}).items()),
    ]
    if deep:
        found.append(_keops())
    return found


def _check(name: str, present: bool, found: str, without: str, needed: bool = False) -> dict[str, Any]:
    without = "" if present else without
    return {"name": name, "present": bool(present), "found": found, "without": without, "needed": needed}


def _packages() -> dict[str, Any]:
    versions, missing = [], []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            missing.append(package)
    without = f"missing {', '.join(missing)}: pip install -c constraints.txt -e '.[lab,test]'"
    return _check("packages", not missing, ", ".join(versions), without, needed=True)


def _compiler_name() -> str | None:
    given = os.environ.get("CXX")
    return next((path for name in (given, "g++", "c++", "clang++") if name and (path := shutil.which(name))), None)


def _compiler() -> dict[str, Any]:
    path = _compiler_name()
    version = _first_line([path, "--version"]) if path else ""
    return _check("C++ compiler", bool(version), version, "kernels run by torch: slower (apt install g++)")


def _openmp() -> dict[str, Any]:
    path = _compiler_name()
    works = False
    if path:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "a.cpp")
            source.write_text("#include <omp.h>\nint main() { return omp_get_max_threads() > 0 ? 0 : 1; }\n")
            built = subprocess.run([path, "-fopenmp", str(source), "-o", f"{folder}/a"], capture_output=True)
            works = built.returncode == 0 and subprocess.run([f"{folder}/a"]).returncode == 0
    return _check("OpenMP", works, "compiles and runs" if works else "", "kernels use one core (libgomp or libomp)")


def _gpu() -> dict[str, Any]:
    names = executors.gpu_names()
    return _check(
        "CUDA GPU", bool(names), ", ".join(names), "presets cpu and full run on the cores; preset gpu is slow"
    )


def _gpu_kernels() -> dict[str, Any]:
    """Whether our CUDA kernels can be compiled and launched, where there is a GPU for them."""
    from vlws_kernels import cuda

    missing = cuda.missing()
    return _check(
        "CUDA kernels", missing is None, "" if missing else "NVRTC compiles", f"a GPU runs torch's: {missing}"
    )


def _disk() -> dict[str, Any]:
    free = shutil.disk_usage(paths.root()).free / 2**30
    writable = os.access(paths.root(), os.W_OK)
    found = f"{free:.0f} GB free{'' if writable else ', but not writable'}"
    return _check(
        "disk", writable and free > ENOUGH_GB, found, f"runs may stop (they want {ENOUGH_GB:.0f} GB, writable)"
    )


def _browser() -> dict[str, Any]:
    path = next((path for name in BROWSERS if (path := shutil.which(name))), "")
    return _check(
        "browser", bool(path), Path(path).name if path else "", "tests of the report skip (apt install chromium)"
    )


def _builder(package: str, path: Path) -> dict[str, Any]:
    there = path.exists()
    return _check(package, there, str(path) if there else "", f"vlws data build cannot run (apt install {package})")


def _keops() -> dict[str, Any]:
    """A kernel of ours, called as chapters call it, compiled anew in a process of its own below the user's folder."""
    code = (
        "import torch, vlws_kernels as vk;"
        "x = torch.arange(24.0).view(2, 6, 2);"
        "print(float(vk.dtw(x).sum()), float(vk.dtw(x, engine='torch').sum()), vk.engine.choose(None, x))"
    )
    with tempfile.TemporaryDirectory(dir=_kernels_folder()) as folder:
        env = os.environ | {"KEOPS_CACHE_FOLDER": folder}
        asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    told, lines = asked.stdout.split(), asked.stderr.strip().splitlines()
    works = asked.returncode == 0 and len(told) == 3 and told[0] == told[1] and told[2] == "keops"
    warned = lines[0].partition("RuntimeWarning: ")[2] if lines else ""
    failed = warned or (lines or [asked.stdout.strip()[-200:]])[-1]
    return _check("KeOps", works, "compiles, and computes rightly" if works else failed, "kernels run by torch: slower")


def _kernels_folder() -> Path:
    """Where kernels are compiled for this user, so that a path that cannot be used shows."""
    code = "import vlws_kernels as vk; print(vk.engine.cache_folder())"
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    folder = Path(asked.stdout.strip() or tempfile.gettempdir())
    return folder if folder.is_dir() and os.access(folder, os.W_OK) else Path(tempfile.gettempdir())


def _first_line(command: list[str]) -> str:
    asked = subprocess.run(command, capture_output=True, text=True)
    return asked.stdout.splitlines()[0] if asked.returncode == 0 and asked.stdout else ""
