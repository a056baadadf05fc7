"""Dense retrievers: a text encoder whose vectors are compared by inner product or cosine.

Checkpoints of sentence-transformers (`modules.json`: Transformer, Pooling, Dense, Normalize) and of save_pretrained.
"""

import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
import torch.nn.functional as F
import transformers
from einops import rearrange, reduce
from huggingface_hub import snapshot_download
from safetensors.torch import load_file
from tokenizers import normalizers
from torch import Tensor, nn
from transformers import AutoTokenizer

from vlws.data.text import read_json
from vlws.errors import InputError
from vlws.models.hub import ASSETS, locate, resolve_device, shipped
from vlws.models.kinds import PACKAGED, RETRIEVER
from vlws.models.packaged import packaged
from vlws.models.weights import check_differ, check_finite, in_one_sentence, load_checked

POOLED = ("bert", "mpnet", "roberta", "xlm-roberta")  # classes with a pooler on top, which no retriever uses
OFFSET = ("mpnet", "roberta", "xlm-roberta")  # positions begin after the padding's index
POOLING = ("cls", "mean")
T5_LENGTH = 512  # tokens that T5 was trained on; it has no limit
FLAGS = {  # of older sentence-transformers -> pooling mode
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
FETCHED, NOT_FETCHED = ("*.json", "*.txt", "*.model", "*.safetensors", "*.bin"), ("onnx/*", "openvino/*")  # of a hub id


class Retriever(nn.Module):
    """A text encoder, its pooling, and what comes after: dense layers, and a division by the length for cosine.

    embed = finish(pool(model(...))): a method can add a vector between the two.

    Attributes:
        model: the encoder, of one of the classes of RETRIEVER.
        tokenizer: pads on the right.
        pooling: "cls" (the first token) or "mean" (of the tokens that are no padding).
        normalize: whether vectors have length 1, so that inner products are cosines.
        max_length: tokens of a text, both ends included; what is longer is cut.
        positions: tokens that the encoder can read at most; None where it has no limit.
        dense: dense layers after the pooling, often none.
        dim: embedding dimension.

    >>> from transformers import BertConfig, BertModel, BertTokenizer
    >>> words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "owl", "car"]
    >>> sizes = dict(vocab_size=7, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> tokenizer = BertTokenizer(vocab={word: k for k, word in enumerate(words)})
    >>> retriever = Retriever(BertModel(BertConfig(**sizes)), tokenizer, "mean", normalize=True, max_length=6).eval()
    >>> ids, mask = retriever.tokens(["owl", "owl car"])
    >>> ids.tolist(), mask.tolist()
    ([[2, 5, 3, 0], [2, 5, 6, 3]], [[1, 1, 1, 0], [1, 1, 1, 1]])
    >>> vectors = retriever.embed(ids, mask)
    >>> vectors.shape, vectors.requires_grad, retriever.dim, retriever.device.type
    (torch.Size([2, 8]), True, 8, 'cpu')
    >>> hidden_states = retriever.model(ids, mask).last_hidden_state  # the same in steps
    >>> torch.equal(retriever.finish(retriever.pool(hidden_states, mask)), vectors)
    True
    >>> words = retriever.model.get_input_embeddings()(ids)  # or from vectors of tokens
    >>> torch.equal(retriever.embed(attention_mask=mask, inputs_embeds=words), vectors)
    True
    >>> encoded = retriever.encode(["owl", "owl car"])
    >>> torch.allclose(encoded, vectors), encoded.requires_grad
    (True, False)
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        pooling: str = "mean",
        normalize: bool = False,
        max_length: int = 256,
        dense: Iterable[nn.Module] = (),
    ) -> None:
        super().__init__()
        if pooling not in POOLING:
            raise InputError(f"pooling={pooling!r} was given; accepted are {' and '.join(POOLING)}.")
        self.model: Any = model  # one of five classes
        self.tokenizer = tokenizer
        self.pooling, self.normalize = pooling, normalize
        self.dense = nn.Sequential(*dense)
        self.positions = _positions(model.config)
        self.max_length = self._checked(max_length)
        self.tokenizer.padding_side = "right"  # the first token of a row is then the first of its text

    @property
    def dim(self) -> int:
        """Embedding dimension."""
        linear = [layer for layer in self.dense if isinstance(layer, nn.Linear)]
        return linear[-1].out_features if linear else int(self.model.config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def _checked(self, max_length: int) -> int:
        most = self.positions or max_length
        if not 3 <= max_length <= most:
            known = f"3 to {self.positions}, the positions of the model" if self.positions else "3 or more"
            raise InputError(f"max_length={max_length} was given; accepted is {known}.")
        return max_length

    def tokens(self, texts: Sequence[str], max_length: int | None = None) -> tuple[Tensor, Tensor]:
        """Token ids "row len" int64 of texts, and their mask "row len" int64 (0 is padding), on the device.

        Args:
            max_length: cut after so many tokens; None is the retriever's own `max_length`.

        Raises:
            InputError: no text, or more tokens than the model has positions.
        """
        if not len(texts):
            raise InputError("No text was given; accepted is one or more.")
        length = self.max_length if max_length is None else self._checked(max_length)
        found = self.tokenizer(
            [text.strip() for text in texts], padding=True, truncation=True, max_length=length, return_tensors="pt"
        )
        return found["input_ids"].to(self.device), found["attention_mask"].to(self.device)

    def embed(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Vectors "row dim" of token ids "row len", or of token vectors "row len hidden"; differentiable.

        Positions and segments are added by the model, also to `inputs_embeds`. Without `attention_mask` nothing is
        padding.

        Raises:
            InputError: neither `input_ids` nor `inputs_embeds`, or both.
        """
        given = input_ids if inputs_embeds is None else inputs_embeds
        if given is None or (input_ids is not None and inputs_embeds is not None):
            raise InputError("Give either input_ids or inputs_embeds to embed, and not both.")
        if attention_mask is None:
            attention_mask = torch.ones(given.shape[:2], dtype=torch.int64, device=given.device)
        hidden_states = self.model(
            input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds
        ).last_hidden_state
        return self.finish(self.pool(hidden_states, attention_mask))

    def pool(self, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
        """One vector "row hidden" of the hidden states "row len hidden" of each row, without dense layers."""
        if self.pooling == "cls":
            return hidden_states[:, 0]
        mask = rearrange(attention_mask, "row len -> row len 1").to(hidden_states.dtype)
        return reduce(hidden_states * mask, "row len hidden -> row hidden", "sum") / mask.sum(1).clamp(min=1)

    def finish(self, pooled: Tensor) -> Tensor:
        """Vectors "row dim" of pooled ones "row hidden": through the dense layers, then to length 1 for cosine."""
        found = self.dense(pooled)
        return F.normalize(found, dim=-1) if self.normalize else found

    def encode(self, texts: Sequence[str], batch_size: int = 64, label: str = "") -> Tensor:
        """Vectors "row dim" of texts, without gradients and without dropout, on the device.

        Texts are encoded longest first, so that batches hold little padding and too large a batch fails at once. The
        vector of a text does not depend on the order in which the texts are given.

        Args:
            label: name of a progress bar on stderr; none is shown where it is empty.
        """
        order = sorted(range(len(texts)), key=lambda k: (-len(texts[k]), texts[k]))
        vectors = torch.empty(len(texts), self.dim, dtype=next(self.model.parameters()).dtype, device=self.device)
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad():
                for start in _steps(len(texts), batch_size, label):
                    rows = order[start : start + batch_size]
                    vectors[rows] = self.embed(*self.tokens([texts[k] for k in rows]))
        finally:
            self.train(was_training)
        return vectors


def _steps(n: int, batch_size: int, label: str) -> Iterable[int]:
    steps = range(0, n, batch_size)
    if not label:
        return steps
    from tqdm import tqdm

    return tqdm(steps, desc=label, unit="batch")  # tqdm writes to stderr


def _positions(config: Any) -> int | None:
    most = getattr(config, "max_position_embeddings", None)
    if most is None:
        return None  # T5's positions are relative
    return most - config.pad_token_id - 1 if config.model_type in OFFSET else most


# --- loading ----------------------------------------------------------------------------------------------------------


def load_retriever(
    name: str, device: str = "auto", *, pooling: str | None = None, normalize: bool | None = None
) -> Retriever:
    """A retriever, in float32 and eval mode.

    Args:
        name: "minilm" or "mpnet" (all-MiniLM-L6-v2 and all-mpnet-base-v2, each from packages), a shipped name, a folder
            written by sentence-transformers or by save_pretrained, or a hub id.
        device: "auto", "cpu", "cuda", ...
        pooling: "cls" or "mean", instead of what the folder says; a folder of save_pretrained says nothing, and is
            pooled by the mean.
        normalize: whether vectors have length 1, instead of what the folder says; without a word they keep theirs,
            which ranks by inner product.

    A prompt that a checkpoint wants before its texts ("query: ") is not put there.

    Raises:
        InputError: no such checkpoint, packages that are not installed or hold other weights than known, a class that
            is none of RETRIEVER, weights that are missing or do not fit, another pooling than of "cls" or "mean",
            modules other than Transformer, Pooling, Dense and Normalize, in another order.

    >>> try:
    ...     load_retriever("clip-emoji")
    ... except InputError as error:
    ...     print(str(error)[:49])
    clip-emoji is a CLIPModel; accepted here: BertMod
    """
    target = resolve_device(device)
    if pooling not in (None, *POOLING):
        raise InputError(f"pooling={pooling!r} was given; accepted are {' and '.join(POOLING)}.")
    folder = _folder(name)
    modules = _Modules(folder, name)
    source, kind = _locate(modules, folder, name)
    if not folder.is_dir():  # a hub id: all of its files, for those of sentence-transformers stand in folders
        with in_one_sentence(name, "cannot be downloaded"):
            where = source if (Path(source) / "modules.json").is_file() else None
            folder = Path(where or snapshot_download(name, allow_patterns=[*FETCHED], ignore_patterns=[*NOT_FETCHED]))
        modules = _Modules(folder, name)
        source, kind = locate(str(modules.transformer), RETRIEVER)
    whole: Any = getattr(transformers, RETRIEVER.classes[kind])
    # a pooler is left out of the model rather than missed in the checkpoint
    bare = partial(whole.from_pretrained, add_pooling_layer=False) if kind in POOLED else whole.from_pretrained
    model, tokenizer = load_checked(
        cast(Any, SimpleNamespace(from_pretrained=bare)), AutoTokenizer.from_pretrained, source, name
    )
    if modules.lower_case:
        _lower_case(tokenizer)
    most = _positions(model.config)
    length = modules.max_length or min(most or T5_LENGTH, tokenizer.model_max_length)
    found = Retriever(
        model,
        tokenizer,
        pooling or modules.pooling,
        modules.normalize if normalize is None else normalize,
        min(length, most or length),
        modules.dense,
    )
    found = found.to(target).eval()
    one, other = found.encode(["an owl hunts at night", "a red car"])
    check_finite(torch.stack([one, other]), name)
    check_differ(one, other, name)
    return found


def _locate(modules: "_Modules", folder: Path, name: str) -> tuple[str, str]:
    """`locate`, by the name that was given where that leads to the encoder: its sentences then say that name."""
    direct = name not in PACKAGED and modules.transformer == folder
    return locate(name if direct else str(modules.transformer), RETRIEVER)


def _folder(name: str) -> Path:
    """The folder of a packaged or shipped name, or the name as a path, which for a hub id is no folder."""
    if name in PACKAGED:
        return packaged(name)
    folder = ASSETS / name if name in shipped() else Path(name).expanduser()
    if not folder.is_dir() and (name.count("/") != 1 or name.startswith((".", "/", "~"))):
        raise InputError(
            f"There is no retriever {name!r}: accepted are {', '.join(PACKAGED)}, a shipped name, a folder written by "
            f"sentence-transformers or by save_pretrained, or a hub id such as {RETRIEVER.example}."
        )
    return folder


class _Modules:
    """What the files of sentence-transformers say of a folder; without modules.json, what holds where nothing is said.

    Attributes:
        transformer: the folder of the encoder.
        max_length: None where the folder does not say.
        dense: the layers, with their weights.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.transformer, self.pooling, self.normalize = folder, "mean", False
        self.max_length: int | None = None
        self.lower_case = False
        self.dense: list[nn.Module] = []
        if (folder / "modules.json").is_file():
            self._read()

    def _read(self) -> None:
        listed = read_json(self.folder / "modules.json")
        try:
            modules = [(row["type"].rsplit(".", 1)[-1], self.folder / row["path"]) for row in listed]
        except (TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{self.name}: its modules.json is no list of modules with type and path.") from error
        kinds = [kind for kind, _ in modules]
        if not re.fullmatch("Transformer Pooling( Dense)*( Normalize)?", " ".join(kinds)):
            raise InputError(
                f"{self.name} has the modules {', '.join(kinds) or 'none'}; accepted are Transformer, Pooling, any "
                "number of Dense, and Normalize or not, in this order."
            )
        for kind, path in modules:
            if kind == "Transformer":
                self._read_transformer(path)
            elif kind == "Pooling":
                self.pooling = self._pooling(path)
            elif kind == "Dense":
                self.dense += self._dense(path)
        self.normalize = "Normalize" in kinds

    def _config(self, file: Path) -> dict[str, Any]:
        config = read_json(file)
        if not isinstance(config, dict):
            raise InputError(f"{self.name}: {file.relative_to(self.folder)} is no JSON object.")
        return config

    def _read_transformer(self, path: Path) -> None:
        self.transformer = path
        file = path / "sentence_bert_config.json"
        config = self._config(file) if file.is_file() else {}
        length = config.get("max_seq_length")
        if length is not None and type(length) is not int:
            raise InputError(f"{self.name} has the max_seq_length {length!r}; accepted is an integer.")
        self.max_length, self.lower_case = length, bool(config.get("do_lower_case"))

    def _pooling(self, path: Path) -> str:
        config = self._config(path / "config.json")
        mode = config.get("pooling_mode", [pooled for flag, pooled in FLAGS.items() if config.get(flag)] or ["mean"])
        modes = [mode] if isinstance(mode, str) else mode
        if not isinstance(modes, list) or len(modes) != 1 or modes[0] not in POOLING:
            told = ", ".join(map(str, modes)) if isinstance(modes, list) else modes
            raise InputError(f"{self.name} is pooled by {told}; accepted is one of {' and '.join(POOLING)}.")
        return modes[0]

    def _dense(self, path: Path) -> list[nn.Module]:
        config = self._config(path / "config.json")
        module, _, name = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")
        activation = getattr(nn, name, None) if module.split(".")[:2] == ["torch", "nn"] else None
        where = str(path.relative_to(self.folder))
        if activation is None or config.get("use_residual"):
            told = "a residual" if activation else f"the activation {config['activation_function']!r}"
            raise InputError(
                f"{self.name}: {where} has {told}; accepted are layers with an activation of torch.nn alone."
            )
        with in_one_sentence(self.name, f"holds no complete checkpoint: {where} cannot be loaded"):
            layer = nn.Linear(config["in_features"], config["out_features"], config.get("bias", True))
            weights = path / "model.safetensors"
            if weights.is_file():
                tensors = load_file(weights)
            else:
                tensors = torch.load(path / "pytorch_model.bin", map_location="cpu", weights_only=True)
            layer.load_state_dict({key.removeprefix("linear."): value for key, value in tensors.items()})
            made = activation()
        return [layer.float()] if isinstance(made, nn.Identity) else [layer.float(), made]


def _lower_case(tokenizer: Any) -> None:
    """Lower case before all else, as sentence-transformers does where its config says so."""
    own = tokenizer.backend_tokenizer.normalizer
    steps = [normalizers.Lowercase(), *([own] if own is not None else [])]
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(steps)
