"""The weights that a method added, in a folder: `config.json` and `model.safetensors`, nothing pickled."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from vlws.errors import InputError

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def save_added(
    folder: str | Path, method: str, config: Mapping[str, Any], sizes: Mapping[str, int], tensors: Mapping[str, Tensor]
) -> None:
    """Write what a method added; the folder is whole or absent, and replaces one that the same method wrote.

    Args:
        folder: absent, empty, or written by this function.
        method: class name, by which `load_added` knows the folder.
        config: of the method, as JSON.
        sizes: of the backbone, which `load_added` compares.
        tensors: name -> weights.

    Raises:
        InputError: a folder that holds anything else.
        OSError: the disk refuses.

    >>> import torch
    >>> with tempfile.TemporaryDirectory() as to:
    ...     folder = Path(to) / "mine"
    ...     save_added(folder, "Mine", {"rank": 8}, {"hidden_size": 96}, {"head.weight": torch.eye(2)})
    ...     print(sorted(os.listdir(folder)))
    ['config.json', 'model.safetensors']
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or set(os.listdir(folder)) - {CONFIG, WEIGHTS}):
        raise InputError(f"{folder} holds other files; accepted is a new or empty folder, or one of a saved {method}.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    about = {"method": method, "config": dict(config), "backbone": dict(sizes)}
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        whole = made / "new"
        whole.mkdir()
        (whole / CONFIG).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        (whole / WEIGHTS).write_bytes(save(contiguous))
        if folder.exists():
            os.replace(folder, made / "old")
        os.replace(whole, folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def load_added(
    folder: str | Path, method: str, sizes: Mapping[str, int] | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config, tensors on the CPU) of a folder that `save_added` wrote.

    Args:
        method: class name that the folder must be of.
        sizes: of the backbone at hand; None compares nothing.

    Raises:
        InputError: no such folder, one of another method, one made for a backbone of other sizes, a damaged one.

    >>> import torch
    >>> with tempfile.TemporaryDirectory() as to:
    ...     save_added(f"{to}/mine", "Mine", {"rank": 8}, {"hidden_size": 96}, {"head.weight": torch.eye(2)})
    ...     config, tensors = load_added(f"{to}/mine", "Mine", {"hidden_size": 96})
    >>> config, tensors["head.weight"].shape
    ({'rank': 8}, torch.Size([2, 2]))
    """
    folder = Path(folder)
    accepted = f"accepted is a folder written by {method}.save_pretrained"
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise InputError(f"{folder} holds no {method}: {CONFIG} or {WEIGHTS} is missing; {accepted}.")
    try:
        about = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
    except (ValueError, SafetensorError) as error:
        raise InputError(f"{folder} cannot be read ({str(error).splitlines()[0]}); {accepted}.") from error
    found = about.get("method") if isinstance(about, dict) else None
    if found != method:
        raise InputError(f"{folder} holds {found or 'no method'}, not {method}; {accepted}.")
    if sizes is not None and about["backbone"] != dict(sizes):
        there, here = (", ".join(f"{k} {v}" for k, v in part.items()) for part in (about["backbone"], sizes))
        raise InputError(f"{folder} was made for a backbone of {there}; the one given has {here}.")
    return about["config"], tensors


def grouped(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Tensors by the first part of their names: {"rid.mlp.0.bias": t} -> {"rid": {"mlp.0.bias": t}}.

    >>> import torch
    >>> grouped({"rid.bias": torch.zeros(1), "head.bias": torch.zeros(1)}).keys()
    dict_keys(['rid', 'head'])
    """
    groups: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        first, _, rest = name.partition(".")
        groups.setdefault(first, {})[rest] = value
    return groups


def fill(module: nn.Module, tensors: Mapping[str, Tensor], folder: str | Path) -> None:
    """Copy tensors into the parameters and buffers of the same names.

    Raises:
        InputError: a name that the module has not, or a tensor of another shape.

    >>> import torch
    >>> module = nn.Linear(2, 1)
    >>> fill(module, {"bias": torch.tensor([3.0])}, "mine")
    >>> module.bias.item()
    3.0
    >>> fill(module, {"bias": torch.zeros(4)}, "mine")
    Traceback (most recent call last):
        ...
    vlws.errors.InputError: mine was made for a backbone of other sizes: bias is [4] in it and [1] here.
    """
    own = module.state_dict(keep_vars=True)
    for name, value in tensors.items():
        if name not in own or own[name].shape != value.shape:
            here = list(own[name].shape) if name in own else "absent"
            raise InputError(
                f"{folder} was made for a backbone of other sizes: {name} is {list(value.shape)} in it and {here} here."
            )
    for name, value in tensors.items():
        own[name].data.copy_(value)
