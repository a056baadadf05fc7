"""A GPU that is not there: tensors that say they lie on it are computed on the CPU, and may not meet those of the CPU.

Each operation is looked at where torch dispatches it. One that would fail on a real GPU, since its tensors lie on two
devices, raises; one for which the CPU would wait is counted.
"""

import collections
import contextlib
import traceback
from collections.abc import Iterator, Sequence

import emulation
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from vlws_kernels import cuda
from vlws_kernels import engine as engines

CARD = torch.device("cuda", 0)
aten = torch.ops.aten
WAITS = {"_local_scalar_dense", "nonzero", "_unique2", "equal", "masked_select", "repeat_interleave", "is_nonzero"}
MOVES = {"_to_copy", "copy_"}
PLACES = {"index", "index_put_", "index_put", "_index_put_impl_"}  # whose indices may lie on the CPU


class OnCard(Tensor):
    """A tensor that says it is on `CARD`; `held` are its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnCard":
        made = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device="meta",  # what torch's C++ is told: a CPU build of it has no guard for "cuda"
        )
        made.held = held
        return made

    device = property(lambda self: CARD)
    is_cuda = property(lambda self: True)

    def __repr__(self) -> str:
        return f"OnCard({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} was called outside `card`")


class Card(TorchDispatchMode):
    """Within, "cuda" is a device. `waits` counts what the CPU waits for, by the line that asks; `launches`, kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: collections.Counter[str] = collections.Counter()
        self.launches = 0

    def launch(self, source: str, name: str, threads: int, block: int, arguments: Sequence) -> None:
        """In place of `cuda.launch`."""
        for _, value in arguments:
            assert not isinstance(value, Tensor) or isinstance(value, OnCard), f"{name} was given a tensor of the CPU"
        self.launches += 1
        bare = [(kind, value.held if isinstance(value, OnCard) else value) for kind, value in arguments]
        emulation.launch(source, name, threads, block, bare)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = func.overloadpacket.__name__
        given, _ = tree_flatten((args, kwargs))
        tensors = [value for value in given if isinstance(value, Tensor)]
        here = any(isinstance(tensor, OnCard) for tensor in tensors)
        if here and name not in MOVES:
            self.refuse_mixed(name, args, tensors)
        wanted = kwargs.get("device")
        if wanted is not None:
            kwargs["device"] = torch.device("cpu")
        to_card = torch.device(wanted).type in ("cuda", "meta") if wanted is not None else here
        if name == "copy_":
            to_card = isinstance(args[0], OnCard)
        if here and (name in WAITS or (name in MOVES and not all(isinstance(t, OnCard) for t in tensors))):
            self.waits[place()] += 1
        if here and name == "_to_copy" and not to_card:
            self.waits[place()] += 1
        bare_args, bare_kwargs = tree_map_only(OnCard, lambda tensor: tensor.held, (args, kwargs))
        if name == "_to_copy" and wanted is not None and here != to_card:
            bare_kwargs.pop("device")
            out = bare_args[0].clone().to(**{k: v for k, v in bare_kwargs.items() if k == "dtype" and v is not None})
        else:
            out = func(*bare_args, **bare_kwargs)
        if func._schema.is_mutable and isinstance(args[0] if args else None, OnCard) and name.endswith("_"):
            return args[0]
        if "out" in kwargs:
            return kwargs["out"]
        return tree_map_only(Tensor, OnCard, out) if to_card and name != "_local_scalar_dense" else out

    @staticmethod
    def refuse_mixed(name: str, args: tuple, tensors: list[Tensor]) -> None:
        """Numbers (0-dimensional) and indices of the CPU may meet tensors of a GPU, others may not."""
        if name in PLACES and isinstance(args[0], OnCard):
            tensors = [args[0], *args[2:3]]
        strange = [t for t in tensors if isinstance(t, Tensor) and not isinstance(t, OnCard) and t.dim() > 0]
        if strange:
            raise RuntimeError(f"Expected all tensors to be on the same device: {name} at {place()}")


def place() -> str:
    """The line of the kernels that is being run."""
    lines = [frame for frame in traceback.extract_stack() if "vlws_kernels" in frame.filename]
    return f"{lines[-1].filename.rpartition('/')[2]}: {lines[-1].line}" if lines else "outside"


@contextlib.contextmanager
def card(free: int = 2**30, capturing: bool = False) -> Iterator[Card]:
    """A GPU with `free` bytes for the code within; tensors come to it by `.to("cuda")`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch.cuda, "mem_get_info", lambda device=None: (free, free))
        patch.setattr(torch.cuda, "memory_reserved", lambda device=None: 0)
        patch.setattr(torch.cuda, "memory_allocated", lambda device=None: 0)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
        patch.setattr(cuda, "missing", lambda: None)
        patch.setattr(engines, "keops_has_cuda", lambda: False)
        torch._C._set_only_lift_cpu_tensors(
            True
        )  # numbers become tensors of the CPU first, then go where they are wanted
        try:
            with Card() as seen:
                patch.setattr(cuda, "launch", seen.launch)
                yield seen
        finally:
            torch._C._set_only_lift_cpu_tensors(False)
