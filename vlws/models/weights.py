"""Load the weights and the processor of a checkpoint that `hub.locate` found: all of them fit, or one sentence."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from textwrap import shorten
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging

from vlws.errors import InputError

M = TypeVar("M", bound=PreTrainedModel)
P = TypeVar("P")


@contextmanager
def in_one_sentence(name: str, fault: str) -> Iterator[None]:
    """Whatever the block raises, as one InputError: `name`, the `fault`, the reason, and the remedy where one is known.

    >>> with in_one_sentence("my-clip", "cannot be loaded"):
    ...     raise ImportError("This needs accelerate.")
    Traceback (most recent call last):
    vlws.errors.InputError: my-clip cannot be loaded (ImportError: This needs accelerate): install what it names.
    """
    try:
        yield
    except InputError as error:
        raise InputError(str(error) if str(error).startswith(name) else f"{name}: {error}") from error
    except Exception as error:  # configs, weights and processors of users fail in transformers, torch and tokenizers
        remedy = ""
        if isinstance(error, ImportError):
            remedy = ": install what it names"
        elif isinstance(error, SafetensorError | EOFError):
            remedy = ": the file is damaged, download it anew"
        reason = shorten(str(error), 200, placeholder=" ...").rstrip(".") or "no reason given"
        raise InputError(f"{name} {fault} ({type(error).__name__}: {reason}){remedy}.") from error


def load_checked(
    kind: type[M], processor: Callable[[str], P], source: str, name: str, dtype: torch.dtype = torch.float32
) -> tuple[M, P]:
    """The model (on the CPU, eval mode) and its processor, quietly, with every weight from the checkpoint.

    Args:
        kind: class of the model.
        processor: source -> processor.
        source: folder or hub id, as `hub.locate` gives it.
        name: what the user gave, for the sentence.

    Raises:
        InputError: a model or a processor that cannot be made, weights that are missing, that have another shape, or
            that belong to a part which the config does not describe.

    >>> from transformers import CLIPModel, CLIPProcessor
    >>> from vlws.models.hub import locate
    >>> source, _ = locate("clip-emoji")
    >>> model, processor = load_checked(CLIPModel, CLIPProcessor.from_pretrained, source, "clip-emoji")
    >>> model.training, model.dtype
    (False, torch.float32)
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # torchvision is not needed: the PIL processors do the same
    try:
        with in_one_sentence(name, "holds no complete checkpoint"):
            model, report = kind.from_pretrained(
                source, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
            )
        check_report(model, report, name)
        with in_one_sentence(name, "holds no complete checkpoint: its processor cannot be made"):
            return model.eval(), processor(source)
    finally:
        logging.set_verbosity(verbosity)


def check_report(model: PreTrainedModel, report: dict[str, Any], name: str) -> None:
    """InputError unless all weights of `model` came from the checkpoint, by the loading info of `from_pretrained`.

    transformers leaves tied weights and buffers that are not saved out of it. Weights of another part, such as a
    classifier, are no fault; one layer more than the config says, or a bias that it leaves out, is.

    >>> from vlws.models.clip import load_clip
    >>> model = load_clip("clip-emoji", "cpu").model
    >>> report = {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": []}
    >>> check_report(model, report, "my-clip")
    >>> try:
    ...     check_report(model, report | {"missing_keys": ["logit_scale"]}, "my-clip")
    ... except InputError as error:
    ...     print(str(error).split(";")[0])
    my-clip holds no complete checkpoint: its weights lack logit_scale
    """
    missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    total = len(model.state_dict())
    if missing and (prefix := _wrapper_prefix(model, unexpected)):
        raise InputError(
            f"{name}: {len(unexpected)} weights stand under the prefix {prefix!r}, as a wrapper such as DataParallel "
            "saves them; unwrap the model (model.module) and call its save_pretrained."
        )
    if missing:
        saved = (getattr(model.config, "architectures", None) or [None])[0]
        other = f" (it was saved as a {saved})" if saved not in (None, type(model).__name__) else ""
        what = f"{missing[0]}" if len(missing) == 1 else f"{len(missing)} of {total}, such as {missing[0]}"
        raise InputError(
            f"{name} holds no complete checkpoint: its weights lack {what}{other}; give a whole "
            f"{type(model).__name__}, written by save_pretrained."
        )
    if report["mismatched_keys"]:
        key, there, here = min(report["mismatched_keys"])
        raise InputError(
            f"{name} holds no complete checkpoint: {key} is {list(there)} in its weights and {list(here)} by its "
            "config.json; give the config.json that was saved with the weights."
        )
    if left := [key for key in unexpected if _is_inside(model, key)]:
        raise InputError(
            f"{name}: its config.json leaves out {len(left)} of the weights, such as {left[0]}; give the config.json "
            "that was saved with the weights."
        )


def _wrapper_prefix(model: nn.Module, unexpected: list[str]) -> str:
    """What stands before the names of most of a checkpoint's weights, and names no part of the model; else empty."""
    if 2 * len(unexpected) < len(model.state_dict()):
        return ""
    own = {name for name, _ in model.named_children()}
    columns = zip(*(key.split(".")[:-1] for key in unexpected), strict=False)  # first parts of all names, then second
    return "".join(f"{c[0]}." for c in takewhile(lambda c: len(set(c)) == 1 and c[0] not in own, columns))


def _is_inside(model: nn.Module, key: str) -> bool:
    """Whether an unexpected weight is one layer more in a stack of the model, or belongs to one of its layers."""
    found: nn.Module = model
    for part in key.split("."):
        children = dict(found.named_children())
        if part not in children:
            break
        found = children[part]
    return isinstance(found, nn.ModuleList) or not children


def check_finite(values: Tensor, name: str) -> None:
    """InputError unless all values that a model gave are finite.

    >>> check_finite(torch.zeros(3), "my-clip")
    >>> try:
    ...     check_finite(torch.tensor([0.0, torch.inf]), "my-clip")
    ... except InputError as error:
    ...     print(str(error).split(":")[0])
    my-clip gives values that are not finite for a blank picture or a short text
    """
    if not values.isfinite().all():
        raise InputError(
            f"{name} gives values that are not finite for a blank picture or a short text: its weights hold NaN, or "
            f"overflow in {values.dtype}; give intact weights, or another dtype."
        )


def check_differ(one: Tensor, other: Tensor, name: str) -> None:
    """InputError where what a model gives for two texts is the same but for rounding.

    >>> check_differ(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), "my-clip")
    >>> try:
    ...     check_differ(torch.ones(2), torch.ones(2), "my-clip")
    ... except InputError as error:
    ...     print(str(error).split(";")[0])
    my-clip gives the same for two different texts
    """
    if (one - other).abs().max() <= 1e-6 * one.abs().max():
        raise InputError(
            f"{name} gives the same for two different texts; check that its tokenizer was saved with the model, and "
            "that its weights are trained."
        )
