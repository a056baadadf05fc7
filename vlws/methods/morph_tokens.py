"""Morph-tokens (Pan et al., ICML 2024, arXiv:2405.01926): one model that reads pictures and draws them.

    comprehension   picture -> ViT -> deconfounded Q-Former -> codes M;  [M, question] -> LLM -> answer
    generation      [M, request] -> LLM -> M' -> decoder -> tokens of a picture tokenizer -> picture

Pre-MLLM tokens M are abstract, post-MLLM tokens M' are complete: no loss asks that M' be M. The release holds stage 1
and inference alone; what it leaves open is a setting here.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from vlws.errors import InputError
from vlws.models import hub
from vlws.models.morph_encoder import Encoded, EncoderConfig, MorphEncoder
from vlws.models.picture_prompts import IGNORED, Prompts, cut_ids, padded, token_ids
from vlws.models.vq import PictureTokenizer

PICTURE = "<image>"  # in a text: where the tokens of a picture go


# --- 1. The model: an LLM whose vocabulary holds the codes, and a decoder of its tokens ------------------------------

RELAXATIONS = ("soft", "straight-through", "gumbel", "hard", "continuous")


@dataclass(frozen=True)
class MorphConfig:
    """What is trained, and how the picture's loss reaches the LLM.

    Args:
        text, image, equal: weights of L_text, of L_img on M', and of L_AR, which asks that M' be M.
        relax: how M' is made of the LLM's scores of codes: "soft" mixture of code vectors at temperature `tau` (at test
            as in training), "straight-through" (the best code, the mixture's gradient), "gumbel" (a drawn code), "hard"
            (the best code, no gradient), "continuous" (no codes: vectors before the codebook go in, a linear head on
            hidden states comes out).
        forget: in training, the share of pictures whose tokens the decoder tells from M' alone, with none of the
            earlier ones. With all given (0), it tells the ground from its first token, and M' is hardly ever asked.

    >>> MorphConfig(relax="soft", tau=2.0).equal
    0.0
    """

    text: float = 1.0
    image: float = 1.0
    equal: float = 0.0
    relax: str = "soft"
    tau: float = 2.0
    forget: float = 0.7

    def __post_init__(self) -> None:
        if self.relax not in RELAXATIONS:
            raise InputError(f"relax={self.relax!r}: accepted are {', '.join(RELAXATIONS)}.")
        if not 0 <= self.forget <= 1:
            raise InputError(f"forget={self.forget}: a share lies between 0 and 1.")
        if not self.tau > 0:
            raise InputError(f"tau={self.tau}: a temperature is above 0.")
        if min(self.text, self.image, self.equal) < 0 or not max(self.text, self.image, self.equal) > 0:
            raise InputError("Weights of losses are 0 or more, and one of text, image and equal is above 0.")


class Thought(NamedTuple):
    """Post-MLLM tokens: `tokens` M' "row query dim", and the scores of codes that they were made of, "row query code".

    >>> Thought(torch.zeros(1, 4, 96), torch.zeros(1, 4, 64)).tokens.shape
    torch.Size([1, 4, 96])
    """

    tokens: Tensor
    scores: Tensor


class MorphTokens(nn.Module):
    """One model that answers and draws.

    >>> model = MorphTokens.from_pretrained("morph-emoji-stage0", "cpu")
    >>> asked = model.prompts(["draw a blue cat at the top left on teal stripes ."], draw=True)
    >>> M_after = model.think(asked)  # tokens and scores of codes
    >>> M_after.tokens.shape, model.embed(asked).shape[2], model.code_rows().shape, model.queries
    (torch.Size([1, 4, 96]), 96, torch.Size([64, 96]), 4)
    >>> bool((model.relax(M_after.scores[:, 0]) == M_after.tokens[:, 0]).all())
    True
    >>> v = model.draw(M_after.tokens)  # picture tokens; `paint` decodes them
    >>> v.shape, model.paint(asked).shape, model.image_loss(M_after.tokens, v).ndim
    (torch.Size([1, 64]), torch.Size([1, 3, 32, 32]), 0)
    >>> M = model.read(model.paint(asked)).ids
    >>> len(model.answer(model.prompts(["<image> which colour is it ?"], M)))  # its language model is untrained
    1
    >>> told = model.prompts(["<image> which colour is it ?"], M, answers=["blue"])
    >>> model.config = MorphConfig(image=0.0)  # L_text alone
    >>> L = model.loss(told, asked, M, v)
    >>> bool(L == model.text_loss(told)), len(model.learned()) > 10, model.settings()["morph"]["image"], model.device
    (True, True, 0.0, device(type='cpu'))
    >>> model.tie_codes()  # writes the codes into the LLM's table, where they are
    >>> bool(torch.allclose(model.code_rows() * model.code_scale(), model.encoder.codebook.codes, atol=1e-4))
    True

    Args:
        encoder: picture -> M, frozen.
        llm: a causal language model of transformers; its vocabulary gains `<img>`, `</img>` and a token a code, whose
            embeddings are the codes (at a mean length of 1) and stay so where no weight decay is set: they have no
            gradient, but decay would shrink them. `mark`, one learned vector, is added to every code that the LLM
            reads: codes have nothing in common by which attention could find them wherever they stand.
        decoder: a causal language model over the picture tokenizer's tokens, which M' stands before.
        vq: the picture tokenizer, frozen.
    """

    start: int
    end: int
    first: int

    def __init__(
        self,
        encoder: MorphEncoder,
        llm: Any,
        tokenizer: Any,
        decoder: Any,
        vq: PictureTokenizer,
        config: MorphConfig | None = None,
    ) -> None:
        super().__init__()
        self.config = config or MorphConfig()
        self.encoder = encoder.eval().requires_grad_(False)
        self.vq = vq.eval().requires_grad_(False)
        self.llm, self.decoder, self.tokenizer = llm, decoder, tokenizer
        dim, inner = llm.config.get_text_config().hidden_size, decoder.config.hidden_size
        self.prefix = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, inner))  # M' -> the decoder
        self.mark = nn.Parameter(torch.randn(dim) / dim**0.5)
        self.continuous_in = nn.Linear(encoder.config.code_dim, dim)  # used by "continuous" alone
        self.continuous_out = nn.Linear(dim, dim)
        self._name_codes()

    def _name_codes(self) -> None:
        """Give each code a token; its embedding is the code, and has no gradient."""
        codes = len(self.encoder.codebook)
        names = ["<img>", "</img>", *(f"<code{k}>" for k in range(codes))]
        self.tokenizer.add_tokens(names, special_tokens=True)
        if len(self.tokenizer) > self.llm.get_input_embeddings().num_embeddings:
            self.llm.resize_token_embeddings(len(self.tokenizer), mean_resizing=False)
        self.start, self.end, *ids = self.tokenizer.convert_tokens_to_ids(names)
        self.first = ids[0]
        if ids != list(range(self.first, self.first + codes)):
            raise InputError("The tokenizer does not number the tokens of the codes in a row; give it as it was made.")
        fixed = torch.tensor(ids)
        weight = cast(nn.Parameter, self.llm.get_input_embeddings().weight)
        weight.register_hook(lambda grad: grad.index_fill(0, fixed.to(grad.device), 0.0))
        self.tie_codes()

    @torch.no_grad()
    def tie_codes(self) -> None:
        """Write the codes into the LLM's table, at a mean length of 1, turned by a fixed map where dimensions differ.

        At their own length (20) the maps that read them saturate within a few steps of Adam.
        """
        codes, table = self.encoder.codebook.codes, self.llm.get_input_embeddings().weight
        wide = max(codes.shape[1], table.shape[1])
        turn = torch.eye(wide)
        if codes.shape[1] != table.shape[1]:
            turn = torch.linalg.qr(torch.randn(wide, wide, generator=torch.Generator().manual_seed(0))).Q
        turn = turn[: codes.shape[1], : table.shape[1]].to(codes) / self.code_scale()
        table[self._code_ids()] = (codes @ turn).to(table)

    def code_scale(self) -> float:
        """The mean length of the codebook's rows."""
        return float(self.encoder.codebook.codes.norm(dim=1).mean())

    @torch.no_grad()
    def start_scores(self) -> None:
        """Start the output layer's rows of the codes at the codes, so that M' varies with what is asked from the first
        step. Where an LLM's two tables are one, they are there already.

        >>> model = MorphTokens.from_pretrained("morph-emoji-stage0", "cpu")
        >>> model.start_scores()
        >>> bool((model.llm.get_output_embeddings().weight[model.first :][:64] == model.code_rows()).all())
        True
        """
        self.llm.get_output_embeddings().weight[self._code_ids()] = self.code_rows()

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return cast(nn.Linear, self.prefix[0]).weight.device

    @property
    def queries(self) -> int:
        """Tokens of a picture, before the model and after it."""
        return self.encoder.config.queries

    def _code_ids(self) -> slice:
        return slice(self.first, self.first + len(self.encoder.codebook))

    def code_rows(self) -> Tensor:
        """ "code dim": the embeddings of the codes in the LLM's table."""
        return self.llm.get_input_embeddings().weight[self._code_ids()]

    def learned(self) -> list[nn.Parameter]:
        """What training moves: LLM, decoder, and the maps between them."""
        parts: list[nn.Module] = [self.llm, self.decoder, self.prefix, nn.ParameterList([self.mark])]
        parts += [self.continuous_in, self.continuous_out] if self.config.relax == "continuous" else []
        return [p for part in parts for p in part.parameters() if p.requires_grad]

    # --- prompts ---

    def prompts(
        self,
        texts: Sequence[str],
        ids: Tensor | None = None,
        z: Tensor | None = None,
        answers: Sequence[str] | None = None,
        draw: Tensor | bool = False,
    ) -> Prompts:
        """Texts in which every `<image>` stands for a picture, as token ids.

        Args:
            ids: M of the pictures, "picture query", in the order in which the texts name them; z: before the codebook.
            answers: what is to be said after each text; labels are its tokens and the end token alone.
            draw: True ends each text with `<img>`, after which M' comes; codes "row query" stand there and are labels.

        Raises:
            InputError: pictures more or fewer than the texts name, an empty text.
        """
        named = [text.count(PICTURE) for text in texts]
        if sum(named) != (0 if ids is None else len(ids)):
            given = 0 if ids is None else len(ids)
            raise InputError(f"The texts name {sum(named)} pictures by {PICTURE} and {given} were given.")
        if any(not text.strip() for text in texts):
            raise InputError("A text is empty; give a question or a request.")
        parts = iter([] if ids is None else (ids + self.first).tolist())
        rows, answered = [], token_ids(self.tokenizer, answers) if answers is not None else [[]] * len(texts)
        for text in cut_ids(self.tokenizer, texts, PICTURE):
            rows.append(
                [t for piece in text for t in ([self.start, *next(parts), self.end] if piece is None else piece)]
            )
        tails = [[*answer, self.tokenizer.eos_token_id] if answers is not None else [] for answer in answered]
        if draw is not False:
            codes = [[]] * len(rows) if draw is True else (draw + self.first).tolist()
            rows = [[*row, self.start] for row in rows]
            tails = [[*code, self.end] if code else [] for code in codes]
        return padded(rows, tails, self.tokenizer.pad_token_id, z).to(self.device)

    def embed(self, prompts: Prompts) -> Tensor:
        """ "row len dim": embeddings that the LLM reads, codes marked; where `z` is given, it stands for the codes."""
        x = self.llm.get_input_embeddings()(prompts.input_ids)
        is_code = (prompts.input_ids >= self.first) & (prompts.input_ids < self.first + len(self.encoder.codebook))
        if prompts.z is not None and len(prompts.z):
            x = x.masked_scatter(is_code[..., None], self.continuous_in(prompts.z / self.code_scale()).to(x))
        return x + is_code[..., None] * self.mark

    # --- 2. losses ---

    def text_loss(self, prompts: Prompts) -> Tensor:
        """L_text (or, with codes as labels, L_AR): cross-entropy of the labels alone."""
        logits = self._run(self.embed(prompts), prompts.attention_mask).logits
        assert prompts.labels is not None
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), prompts.labels[:, 1:].flatten(), ignore_index=IGNORED)

    def _run(self, x: Tensor, mask: Tensor, cache: Any = None) -> Any:
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -x.shape[1] :]
        return self.llm(
            inputs_embeds=x,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
            output_hidden_states=self.config.relax == "continuous",
        )

    def think(self, prompts: Prompts) -> Thought:
        """Prompts that end with `<img>` -> M', one token after another, each read by the LLM before the next."""
        cache, x, mask = DynamicCache(), self.embed(prompts), prompts.attention_mask
        tokens, scores = [], []
        for _ in range(self.queries):
            out = self._run(x, mask, cache)
            scores.append(out.logits[:, -1, self._code_ids()])
            hidden = out.hidden_states[-1][:, -1] if self.config.relax == "continuous" else None
            tokens.append(self.relax(scores[-1], hidden))
            x, mask = tokens[-1][:, None] + self.mark, F.pad(mask, (0, 1), value=1)
        return Thought(torch.stack(tokens, 1), torch.stack(scores, 1))

    def relax(self, scores: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Scores of codes "row code" -> one token "row dim", by which gradients reach the LLM."""
        how, tau, rows = self.config.relax, self.config.tau, self.code_rows()
        if how == "continuous":
            assert hidden is not None
            return self.continuous_out(hidden)
        soft = (scores / tau).softmax(-1)
        if how == "soft":
            return soft @ rows
        if how == "gumbel" and self.training:
            return F.gumbel_softmax(scores, tau, hard=True) @ rows
        hard = F.one_hot(scores.argmax(-1), scores.shape[-1]).to(soft)
        return (hard + soft - soft.detach()) @ rows if how == "straight-through" else hard @ rows

    def image_loss(self, tokens: Tensor, vq_ids: Tensor) -> Tensor:
        """L_img: cross-entropy of the target's picture tokens "row token" in the decoder, after M' "row query dim"."""
        before = self.decoder.get_input_embeddings()(vq_ids[:, :-1])
        if self.training and self.config.forget:
            before = before * (torch.rand(len(before), 1, 1, device=before.device) >= self.config.forget)
        logits = self.decoder(inputs_embeds=torch.cat([self.before(tokens), before], 1)).logits
        return F.cross_entropy(logits[:, tokens.shape[1] - 1 :].flatten(0, 1), vq_ids.flatten())

    def before(self, tokens: Tensor) -> Tensor:
        """g(M'): "row query dim" -> "row query inner", what the decoder reads before the picture's tokens.

        >>> model = MorphTokens.from_pretrained("morph-emoji-stage0", "cpu")
        >>> model.before(torch.zeros(1, 4, 96)).shape
        torch.Size([1, 4, 64])
        """
        return self.prefix(tokens * tokens.shape[2] ** 0.5)  # elements of order 1

    def loss(self, told: Prompts, asked: Prompts, ids: Tensor, vq_ids: Tensor, forced: Prompts | None = None) -> Tensor:
        """L = text L_text + image L_img + equal L_AR on a batch.

        Args:
            told: prompts with answers. asked: prompts that end with `<img>`.
            ids, vq_ids: M "row query" and picture tokenizer tokens "row token" of the pictures that are asked for.
            forced: `asked` with M of the target as labels; where M' must be M and no L_img needs M', the LLM is taught
                by them, and the decoder by M.
        """
        c, total = self.config, torch.zeros((), device=self.device)
        if c.text:
            total = total + c.text * self.text_loss(told)
        if c.image:
            thought = self.think(asked)
            total = total + c.image * self.image_loss(thought.tokens, vq_ids)
            if c.equal:
                total = total + c.equal * F.cross_entropy(thought.scores.flatten(0, 1), ids.flatten())
        elif c.equal:
            assert forced is not None
            total = total + c.equal * self.text_loss(forced) + self.image_loss(self.code_rows()[ids].detach(), vq_ids)
        return total

    # --- 3. use ---

    @torch.no_grad()
    def read(self, pixels: Tensor, chunk: int = 256) -> Encoded:
        """Pictures "picture 3 side side" in [-1, 1] -> M.

        Raises:
            InputError: pictures of another size.
        """
        side = self.encoder.config.side
        if pixels.shape[-2:] != (side, side):
            raise InputError(
                f"Pictures of {pixels.shape[-1]} x {pixels.shape[-2]} pixels: this model reads {side} x {side}."
            )
        parts = [self.encoder(part.to(self.device)) for part in pixels.split(chunk)]
        return Encoded(*(torch.cat(p) if p[0].ndim else torch.stack(p).mean() for p in zip(*parts, strict=True)))

    @torch.no_grad()
    def answer(self, prompts: Prompts, tokens: int = 12) -> list[str]:
        """What the model says after each prompt, greedily."""
        out = self.llm.generate(
            inputs_embeds=self.embed(prompts),
            attention_mask=prompts.attention_mask,
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
        )
        return [said.strip() for said in self.tokenizer.batch_decode(out, skip_special_tokens=True)]

    @torch.no_grad()
    def draw(self, tokens: Tensor, *, sample: bool = False, cached: bool = True) -> Tensor:
        """M' "row query dim" -> picture tokens "row token": the likeliest one after another; `sample`: T=1, top 250."""
        return self.decoder.generate(
            inputs_embeds=self.before(tokens),
            attention_mask=torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device),
            max_new_tokens=self.vq.config.tokens,
            min_new_tokens=self.vq.config.tokens,
            do_sample=sample,
            top_k=min(250, self.vq.config.codes) if sample else None,
            use_cache=cached,
            pad_token_id=0,
            eos_token_id=None,
        )

    @torch.no_grad()
    def paint(self, prompts: Prompts, *, sample: bool = False) -> Tensor:
        """Prompts that end with `<img>` -> pictures "row 3 side side", about [-1, 1]."""
        return self.vq.decode(self.draw(self.think(prompts).tokens, sample=sample))

    def settings(self) -> dict[str, Any]:
        """Its configuration as JSON can hold it."""
        return {"model_type": "morph_tokens", "encoder": asdict(self.encoder.config), "morph": asdict(self.config)}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the whole model: encoder and maps in one file; LLM, decoder and picture tokenizer in folders.

        >>> import tempfile
        >>> MorphTokens.from_pretrained("morph-emoji-stage0", "cpu").save_pretrained(tempfile.mkdtemp())
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        parts = {"llm": self.llm, "decoder": self.decoder, "vq": self.vq}
        for name, part in parts.items():
            part.save_pretrained(folder / name)
        self.tokenizer.save_pretrained(folder / "llm")
        own = {k: v.contiguous() for k, v in self.state_dict().items() if k.split(".")[0] not in parts}
        save_file(own, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(self.settings(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, name: str | Path, device: str = "auto") -> "MorphTokens":
        """A model that `save_pretrained` wrote: a shipped name or a folder; in eval mode, float32.

        Raises:
            InputError: no such folder, another class, files that are not those of a whole model.

        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> MorphTokens.from_pretrained("morph-emoji-stage0", "cpu").save_pretrained(folder)
        >>> MorphTokens.from_pretrained(folder, "cpu").config.relax
        'soft'
        """
        folder = Path(hub.locate(str(name), hub.MORPH)[0])
        for part in (".", "llm", "decoder", "vq"):
            hub.check_folder(folder / part, str(folder / part))
        try:
            model = cls._loaded(folder)
        except (KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
            said = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            raise InputError(f"{name} is no folder as MorphTokens.save_pretrained writes it ({said}).") from error
        return model.to(hub.resolve_device(device)).eval()

    @classmethod
    def _loaded(cls, folder: Path) -> "MorphTokens":
        told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        sizes = told["encoder"] | {"slot_layers": tuple(told["encoder"]["slot_layers"])}
        model = cls(
            MorphEncoder(EncoderConfig(**sizes)),
            AutoModelForCausalLM.from_pretrained(folder / "llm", dtype=torch.float32),
            AutoTokenizer.from_pretrained(folder / "llm"),
            AutoModelForCausalLM.from_pretrained(folder / "decoder", dtype=torch.float32),
            PictureTokenizer.from_pretrained(folder / "vq"),
            MorphConfig(**told["morph"]),
        )
        missing, unknown = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
        if unknown or any(k.split(".")[0] not in ("llm", "decoder", "vq") for k in missing):
            raise ValueError("model.safetensors lacks weights that config.json tells of, or has others")
        model.tie_codes()
        return model
