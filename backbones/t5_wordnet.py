"""Train the shipped language model of chapter 07: `python -m backbones.t5_wordnet [--out FOLDER]`.

t5-wordnet: a T5ForConditionalGeneration of three and two layers that restores corrupted texts of WordNet, and answers
clozes as an instruction in words in front of them says. Without the instruction any label word may be right. So there
is something for a soft prompt to do, and the model knows how to be told.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from backbones.common import History, check_gates, curve, run_recipe, work_folder, write_checkpoint
from vlws.data.cloze import BLANK, Wording
from vlws.data.wordnet import classification as tasks
from vlws.data.wordnet.classification import CHOICE, JOIN, LETTERS, NAMED, PAIR, SINGLE, TASKS, YES_NO, Pool
from vlws.data.wordnet.synsets import synsets
from vlws.models.retriever import load_retriever
from vlws.models.seq2seq import END, load_seq2seq, score
from vlws.train import fit, warmup_cosine

STEPS = 4000
FIRST, LISTS = 1500, 128  # steps on lists alone, of so many, before these
SIZES = (16, 24, 32, 32, 8)  # then lists, clozes of one text, of two, of four options, corrupted texts
BARE, NOISE = 0.05, 0.25  # shares without an instruction, and with other words around it
GATE = 0.80  # accuracy with the instruction
PIECES = 6000
SPECIAL = ("<pad>", "</s>", "<unk>", *(f"<extra_id_{k}>" for k in range(4)))


class Skill(NamedTuple):
    """What is asked in several wordings, and the label words; where told, of classes that are named otherwise."""

    task: str
    wordings: tuple[str, ...]
    words: tuple[str, ...]
    classes: tuple[str, ...] = ()


TOPICS = (*NAMED[:4], "act", "idea", "quality")
PART = ("noun", "verb", "adjective")
TRUE_FALSE = ("true", "false")
SKILLS = (
    Skill("category", ("which category ?", "name the category .", "what category is it ?"), TOPICS),
    Skill(
        "category",
        ("what sort ?", "which sort of thing is it ?", "tell the sort ."),
        ("human", "nature", "object", "location", "deed", "thought", "property"),
        TOPICS,
    ),
    Skill("part", ("which part of speech ?", "name the part of speech .", "what part of speech is it ?"), PART),
    Skill("part", ("which kind of word ?", "tell the kind of word ."), ("name", "action", "description"), PART),
    Skill("concrete", ("is it concrete ?", "is it a concrete thing ?"), YES_NO),
    Skill("concrete", ("physical or mental ?", "is it physical or mental ?"), ("physical", "mental"), YES_NO),
    Skill("person", ("is it a {} ?", "does it mean a {} ?"), YES_NO),
    Skill("person", ("it is a {} . true or false ?",), TRUE_FALSE, YES_NO),
    Skill("topic", ("same topic ?", "do both have the same topic ?", "is the topic the same ?"), YES_NO),
    Skill("topic", ("same topic . true or false ?", "the topic is the same . true or false ?"), TRUE_FALSE, YES_NO),
    Skill("kind", ("same kind ?", "are both of the same kind ?", "is the kind the same ?"), YES_NO),
    Skill("kind", ("same kind . true or false ?",), TRUE_FALSE, YES_NO),
    Skill("find", ("which option is {} ?", "which option is about {} ?"), LETTERS),
    Skill("option", ("which option fits ?", "choose the option that fits .", "which option has the topic ?"), LETTERS),
    Skill("named", ("which name fits ?", "choose the name of the topic .", "which name is right ?"), LETTERS),
)
TEMPLATES = {"single": (SINGLE, "{0} " + BLANK, "{0} : " + BLANK + " ."), "pair": (PAIR,), "choice": (CHOICE,)}
FORMATS = {
    **dict.fromkeys(tasks.CLASSES, "single"),
    **dict.fromkeys(("topic", "kind"), "pair"),
    **dict.fromkeys(("option", "named", "find"), "choice"),
}
WORDS = tuple(dict.fromkeys(word for skill in SKILLS for word in skill.words))
INSTRUCTIONS = {name: next(s for s in SKILLS if s.task == name).wordings[0].format("person") for name in TASKS}

# --- tokens -----------------------------------------------------------------------------------------------------------


def texts() -> list[str]:
    """Sentences and examples of the sides that a language model may read: not those of the few-shot tasks.

    Three examples of use ("an easy victory") are glosses of the tasks' side as well; they are read without an answer.
    """
    found = []
    for side in ("language", "documents"):
        for i, said in tasks.sides()[side].items():
            found += [said, *(tasks.sentence(text) for text in synsets()[i].examples)]
    return [text for text in dict.fromkeys(found) if len(text.split()) >= tasks.MIN_WORDS]


def choose_pieces(known: PreTrainedTokenizerFast, lines: Sequence[str]) -> list[str]:
    """Those of MiniLM's word pieces that are read most often; what a skill says; letters, so that any word is read."""
    asked = [*WORDS, *(wording for skill in SKILLS for wording in skill.wordings), PAIR, CHOICE, SINGLE, JOIN]
    asked += [*Wording().order, *Wording().same]
    counts = Counter(piece for text in lines for piece in known.tokenize(text))
    first = [piece for text in asked for piece in known.tokenize(text.replace(BLANK, ""))]
    single = [piece for piece in known.get_vocab() if len(piece.removeprefix("##")) == 1 and piece.isascii()]
    often = [piece for piece, _ in counts.most_common(PIECES)]
    return list(dict.fromkeys([*first, *sorted(single), *often]))[:PIECES]


def make_tokenizer(pieces: Sequence[str]) -> PreTrainedTokenizerFast:
    """WordPiece in lower case; the letters of options are tokens of their own, apart from the article."""
    vocabulary = {piece: k for k, piece in enumerate((*SPECIAL, *pieces))}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.add_tokens([AddedToken(letter, single_word=True, normalized=False) for letter in Wording().letters])
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = dict(pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    return PreTrainedTokenizerFast(
        tokenizer_object=made, model_max_length=512, extra_special_tokens=list(SPECIAL[3:]), **names
    )


# --- lessons ----------------------------------------------------------------------------------------------------------


class Batches:
    """Step -> groups of (input_ids, attention_mask, labels): lists, one text, pairs, choices, corrupted texts.

    A list is "A. word . B. word . ? word is <extra_id_0> . A is <extra_id_1> ." and asks three times what stands where.
    A choice among four options is never learned by a model that has not learned to look things up in lists first.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.ids = tokenizer(texts(), add_special_tokens=False)["input_ids"]
        self.pool = Pool(tasks.sides()["language"])
        self.noise = sorted(
            word for word in tokenizer.get_vocab() if word.isalpha() and word.islower() and len(word) > 1
        )
        self.skills = {f: [s for s in SKILLS if FORMATS[s.task] == f] for f in TEMPLATES}
        self.vocabulary = {f: sorted({w for s in some for w in s.words}) for f, some in self.skills.items()}

    def __call__(self, step: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        rng = np.random.default_rng([1, step])
        lists, *sizes, spans = SIZES
        kinds = zip(TEMPLATES, sizes, strict=True)
        answers = [self.answers([self.cloze(rng, kind) for _ in range(n)]) for kind, n in kinds]
        return [self.lists(rng, lists), *answers, self.spans(rng, spans)]

    def only_lists(self, step: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """What the first steps read."""
        return [self.lists(np.random.default_rng([0, step]), LISTS)]

    def lists(self, rng: np.random.Generator, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Lists of two to four words of any kind, or names of topics, and three questions about each."""
        read, told = [], []
        for _ in range(size):
            n = int(rng.integers(2, 5))
            shown = rng.permutation(TOPICS if rng.random() < 0.5 else self.noise)[:n].tolist()
            pairs = list(zip(LETTERS, shown, strict=False))
            text, answer = " ".join(f"{letter}. {word} ." for letter, word in pairs) + " ?", ""
            for k, at in enumerate(rng.permutation(n)[:3].tolist()):
                known, asked = pairs[at] if rng.random() < 0.3 else pairs[at][::-1]
                text, answer = f"{text} {known} is <extra_id_{k}> .", f"{answer} <extra_id_{k}> {asked}"
            read.append(text)
            told.append(f"{answer} <extra_id_{min(n, 3)}>")
        x, y = (self.tokenizer(some, padding=True, return_tensors="pt") for some in (read, told))
        labels = y.input_ids.masked_fill(y.input_ids <= self.tokenizer.eos_token_id, -100)  # neither pad nor end
        return x.input_ids, x.attention_mask, labels

    def spans(self, rng: np.random.Generator, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Texts with two spans of one to three tokens each replaced by sentinels."""
        pad, end, first = 0, 1, SPECIAL.index(BLANK)
        read, told = [], []
        for k in rng.integers(len(self.ids), size=size):
            ids = self.ids[k][:24]
            a, b = sorted(rng.choice(np.arange(0, max(2, len(ids) - 1)), 2, replace=False).tolist())
            n = int(rng.integers(1, 4))
            a_end = min(a + n, b)
            b_end = min(b + n, len(ids))
            read.append([*ids[:a], first, *ids[a_end:b], first + 1, *ids[b_end:], end])
            told.append([first, *ids[a:a_end], first + 1, *ids[b:b_end], first + 2])
        (x, mask), (y, known) = (_padded(rows, pad) for rows in (read, told))
        return x, mask, y.masked_fill(known == 0, -100)

    def cloze(self, rng: np.random.Generator, kind: str) -> tuple[str, str]:
        """(instruction and cloze, label word) of a skill of a format, drawn."""
        skill = _pick(rng, self.skills[kind])
        at = int(rng.integers(len(skill.words)))
        answer = (skill.classes or skill.words)[at]
        wording = _pick(rng, skill.wordings)
        if skill.task == "person":
            name = _pick(rng, TOPICS)
            wording, filled = wording.format(name), (self.about(rng, name, answer),)
        elif skill.task == "find":
            names = rng.permutation(TOPICS)[:4].tolist()
            shown = names if rng.random() < 0.6 else [self.pool.sentences[self.of(rng, name)] for name in names]
            wording, filled = wording.format(names[at]), ("", *shown)
        elif skill.task == "named":
            filled = self.pool.named(rng, answer, TOPICS).texts
        else:
            filled = tasks.draw(skill.task, self.pool, rng, answer).texts
        text, label = _pick(rng, TEMPLATES[kind]).format(*filled), skill.words[at]
        if rng.random() < BARE:
            return text, _pick(rng, self.vocabulary[kind])
        if rng.random() < NOISE:
            before, after = rng.integers(0, 5, 2)
            words = [_pick(rng, self.noise) for _ in range(before + after)]
            wording = " ".join([*words[:before], wording, *words[before:]])
        return f"{wording} {text}", label

    def of(self, rng: np.random.Generator, name: str) -> int:
        """A synset of a topic."""
        return _pick(rng, self.pool.by_topic[name])

    def about(self, rng: np.random.Generator, name: str, answer: str = "yes") -> str:
        """A text of a topic ("yes"), or of another."""
        others = [topic for topic in self.pool.by_topic if topic != name]
        return self.pool.text(rng, self.of(rng, name if answer == "yes" else _pick(rng, others)))

    def answers(self, clozes: Sequence[tuple[str, str]]) -> tuple[Tensor, Tensor, Tensor]:
        """Clozes as tensors; targets <extra_id_0> label <extra_id_1>."""
        read = self.tokenizer([text for text, _ in clozes], padding=True, return_tensors="pt")
        first, end, *labels = self.tokenizer.convert_tokens_to_ids([BLANK, END, *(label for _, label in clozes)])
        told = torch.tensor([[first, label, end] for label in labels])
        return read["input_ids"], read["attention_mask"], told


def _pick(rng: np.random.Generator, some: Sequence):
    return some[rng.integers(len(some))]


def _padded(rows: Sequence[Sequence[int]], pad: int) -> Iterator[Tensor]:
    """Rows padded to the longest, and their mask."""
    longest = max(map(len, rows))
    yield torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])
    yield torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])


# --- training ---------------------------------------------------------------------------------------------------------


def make_model(size: int) -> T5ForConditionalGeneration:
    """A T5 of three and two layers, "dim" 64, of random weights; two heads begin with what stands one or two before."""
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=size, d_model=64, d_kv=16, num_heads=4, d_ff=192, num_layers=3, num_decoder_layers=2,
        relative_attention_num_buckets=32, relative_attention_max_distance=64, dropout_rate=0.0,
        feed_forward_proj="relu", pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)
    bias = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.data  # "distance head"
    bias[1, 0] += 8.0
    bias[2, 1] += 8.0
    return model


def start_embeddings(model: T5ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> None:
    """Embeddings begin as the principal components of MiniLM's for the same pieces.

    From random embeddings the model learns several times more slowly, and never to compare two texts: half of the
    pieces occur fewer than 20 times.
    """
    retriever = load_retriever("minilm", "cpu")
    known, pieces = retriever.tokenizer.get_vocab(), tokenizer.get_vocab()
    shared = [
        piece
        for piece in sorted(pieces, key=pieces.__getitem__)
        if piece in known and piece not in SPECIAL and piece not in LETTERS
    ]
    wide = retriever.model.get_input_embeddings().weight.detach()[[known[piece] for piece in shared]]
    table = model.get_input_embeddings().weight.data
    u, sizes, _ = torch.linalg.svd(wide - wide.mean(0), full_matrices=False)
    found = (u * sizes)[:, : table.shape[1]]
    table[[pieces[piece] for piece in shared]] = found / found.std()


def loss(model: T5ForConditionalGeneration, groups: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Sum over the groups of the mean cross-entropy of their targets; of corrupted texts, which are last, a tenth."""
    losses = [model(input_ids=x, attention_mask=mask, labels=y).loss for x, mask, y in groups]
    return sum(losses[:4]) + 0.1 * sum(losses[4:])


def make_optimizer(model: T5ForConditionalGeneration) -> torch.optim.Optimizer:
    """AdamW; embeddings, of which a step meets few, three times as fast."""
    table = model.get_input_embeddings().weight
    rest = [p for p in model.parameters() if p is not table]
    groups = [{"params": [table], "lr": 6e-3}, {"params": rest, "lr": 2e-3}]
    return torch.optim.AdamW(groups, weight_decay=0.01, betas=(0.9, 0.98))


def pretrain(out: Path, steps: int = STEPS) -> Path:
    """Train (or go on training), hold against the gates, and write the checkpoint folder with its card."""
    tokenizer = make_tokenizer(choose_pieces(load_retriever("minilm", "cpu").tokenizer, texts()))
    model = make_model(len(tokenizer))
    start_embeddings(model, tokenizer)
    batch = Batches(tokenizer)
    seen = [batch.only_lists(0)[0][0], batch(0)[-1][0]]
    folder = work_folder("t5-wordnet", (steps, FIRST, SIZES, BARE, NOISE, SKILLS), model, seen)
    histories = {}
    for name, lessons, n in (("lists", batch.only_lists, FIRST), ("skills", batch, steps)):
        optimizer = make_optimizer(model)
        histories[name] = fit(
            model, loss, lessons, n, optimizer, warmup_cosine(optimizer, n, 0.05),
            out=folder / name, clip=1.0, device="cpu", label=name,
        )  # fmt: skip
    model.half().float()  # what is measured is what is shipped
    results = evaluate(model, tokenizer)
    check_gates("t5-wordnet", {name: value for name, (value, *_) in results.items()}, dict.fromkeys(results, GATE))
    return write_checkpoint(out, model, tokenizer, card(model, histories["skills"], results), histories)


def evaluate(model, tokenizer) -> dict[str, tuple[float, float, float]]:
    """Task -> accuracy among its label words with the instruction and without, and chance; tests of both domains."""
    found = {}
    for name in TASKS:
        task = tasks.few_shot(name, test=400, seed=1000)
        told, bare = (
            score(model, tokenizer, [*task.clozes("test", said), *task.clozes("shifted", said)]).accuracy
            for said in (INSTRUCTIONS[name], "")
        )
        found[name] = (told, bare, 1 / len(task.words))
    return found


def card(model, history: History, results: Mapping[str, tuple[float, float, float]]) -> str:
    """README.md of the checkpoint."""
    size = sum(p.numel() for p in model.parameters()) / 1e6
    rows = "\n".join(
        f"| {name} | {INSTRUCTIONS[name]} | {told:.3f} | {bare:.3f} | {chance:.3f} |"
        for name, (told, bare, chance) in results.items()
    )
    lists, *sizes, spans = SIZES
    return f"""# t5-wordnet

A `T5ForConditionalGeneration` of {size:.2f} M parameters, half precision, that answers clozes as an instruction in
front of them says. A soft prompt in place of the instruction can call the same skills.

```python
from vlws.models.seq2seq import load_seq2seq

model, tokenizer = load_seq2seq("t5-wordnet")
```

- Data: first clauses of glosses, and examples, of the shipped slice of WordNet. Skills are learnt from the side
  "language" of `vlws.data.wordnet.classification`, corrupted texts also from the side "documents"; no sentence of the
  few-shot tasks is read with an answer, nor one of their synsets' sisters.
- Tokens: {PIECES:,} of the word pieces of MiniLM (all-MiniLM-L6-v2, a package); embeddings begin as the principal
  components of MiniLM's.
- First {FIRST:,} steps of {LISTS} lists ("A. dog . B. river . ? river is <extra_id_0> ."); then each step: {lists}
  lists, {sizes[0]} clozes of one text, {sizes[1]} of two, {sizes[2]} of four options, {spans} texts with two corrupted
  spans. Clozes have one of {len(SKILLS)} instructions in several wordings; {BARE:.0%} have none, and a label word of
  their format drawn at random; {NOISE:.0%} have other words around the instruction. Targets are `<extra_id_0>`, the
  label word, `<extra_id_1>`.
- Training: {FIRST:,} and {history[-1]["step"]:,} steps, AdamW, cosine from 0.002, one CPU thread:
  `python -m backbones.t5_wordnet`, then `python -m backbones.summer_wordnet`.
- Licence: Apache-2.0, as MiniLM, of which its tokens and the start of its embeddings are; WordNet is named in NOTICE.

Accuracy among the label words on the few-shot tests, of the trained and of the shifted domain alike, 800 clozes a task:

| task | instruction | with it | without | chance |
|---|---|---|---|---|
{rows}

The gate: at least {GATE} with the instruction.

| step | loss |
|---|---|
{curve(history)}

![loss curve](loss.png)
"""


if __name__ == "__main__":
    run_recipe("t5-wordnet", pretrain, partial(load_seq2seq, device="cpu"), STEPS)
