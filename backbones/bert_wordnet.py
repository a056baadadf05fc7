"""Train the shipped retriever: `python -m backbones.bert_wordnet [--out FOLDER]`.

bert-wordnet: a BertModel of two layers that learns to find texts alike that MiniLM (sentence-transformers/
all-MiniLM-L6-v2, a package) finds alike, on texts of WordNet. It stands in for MiniLM where a second is all there is.
"""

import json
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from backbones.common import History, check_gates, curve, run_recipe, table, work_folder, write_checkpoint
from vlws.data.wordnet import intents
from vlws.data.wordnet.synsets import synsets
from vlws.data.wordnet.wordings import wordings
from vlws.models.retriever import Retriever, load_retriever
from vlws.train import fit, warmup_cosine

STEPS, BATCH, TAU = 5000, 256, 0.05
LENGTH = 64  # tokens
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
GATES = {"rank correlation with MiniLM": 0.60, "names found from glosses": 0.30}
HELD = 2000  # texts that no step sees


def texts() -> list[str]:
    """Glosses, names and examples of all synsets, and instructions in the wording of training, shuffled."""
    told = [text for one in synsets() for form in intents.FORMS if (text := intents.text(one, form))]
    asked = chain(*(wordings(*intent, "train")[::16] for intent in intents.INTENTS))
    found = sorted({*told, *asked})
    return [found[k] for k in np.random.default_rng(0).permutation(len(found))]


def learn_wordpiece(lines: list[str], vocab_size: int = 8000) -> PreTrainedTokenizerFast:
    """BERT's own: lower case, pieces that begin with ## inside words."""
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.normalizer = normalizers.BertNormalizer(lowercase=True)
    learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=list(SPECIAL), show_progress=False)
    learner.train_from_iterator(lines, trainer)
    ends = [(token, learner.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    learner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    names = dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]")
    return PreTrainedTokenizerFast(tokenizer_object=learner, model_max_length=LENGTH, **names)


def alike(student: Tensor, teacher: Tensor) -> Tensor:
    """KL of whom each text of a batch finds alike, "row dim" each, itself left out."""
    none = torch.full((len(student),), -1e4).diag()
    wanted, found = (F.log_softmax(e @ e.T / TAU + none, -1) for e in (teacher, student))
    return F.kl_div(found, wanted, log_target=True, reduction="batchmean")


def pretrain(out: Path, steps: int = STEPS) -> Path:
    """Train (or go on training), hold against the gates, and write the checkpoint folder with its card."""
    torch.manual_seed(0)
    lines = texts()
    tokenizer = learn_wordpiece(lines)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256,
        max_position_embeddings=LENGTH, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    student = Retriever(
        BertModel(config, add_pooling_layer=False), tokenizer, "mean", normalize=True, max_length=LENGTH
    )
    teacher = load_retriever("minilm", "cpu").encode(lines, label="MiniLM reads")
    seen = lines[HELD:]

    def batch(step: int) -> Tensor:
        return torch.from_numpy(np.random.default_rng(step).choice(len(seen), BATCH, replace=False))

    def loss(model: Retriever, at: Tensor) -> Tensor:
        ids, mask = model.tokens([seen[k] for k in at])
        return alike(model.embed(ids, mask), teacher[HELD + at])

    optimizer = torch.optim.AdamW(student.parameters(), lr=2e-3, weight_decay=0.01)
    folder = work_folder("bert-wordnet", (steps, BATCH, config.to_json_string()), student, [batch(0), teacher[:9]])
    schedule = warmup_cosine(optimizer, steps, 0.05)
    history = fit(
        student, loss, batch, steps, optimizer, schedule, out=folder, clip=1.0, device="cpu", label="bert-wordnet"
    )
    student.half().float()  # what is measured is what is shipped
    results = evaluate(student, teacher[:HELD], lines[:HELD])
    check_gates("bert-wordnet", results, GATES)
    out = write_checkpoint(out, student.model, tokenizer, card(student, history, results), {"bert-wordnet": history})
    parts = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    (out / "1_Pooling").mkdir(exist_ok=True)
    pooling = {"word_embedding_dimension": config.hidden_size, "pooling_mode_mean_tokens": True}
    (out / "modules.json").write_text(json.dumps(parts, indent=1) + "\n")
    (out / "1_Pooling" / "config.json").write_text(json.dumps(pooling, indent=1) + "\n")
    (out / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": LENGTH}) + "\n")
    return out


def evaluate(student: Retriever, teacher: Tensor, lines: list[str]) -> dict[str, float]:
    """How alike both find pairs of `lines`, which no step saw; and whether glosses find the names of their meaning."""
    found = student.encode(lines)
    pairs = np.triu_indices(len(lines), 1)
    ranks = [np.argsort(np.argsort((e @ e.T).numpy()[pairs])) for e in (found, teacher)]
    some = [one for one in synsets()[::40] if len(one.lemmas) > 1]
    glosses, names = (student.encode([intents.text(one, form) for one in some]) for form in ("gloss", "names"))
    hit = (glosses @ names.T).topk(10).indices == torch.arange(len(some))[:, None]
    return {
        "rank correlation with MiniLM": float(np.corrcoef(ranks)[0, 1]),
        "names found from glosses": float(hit.any(1).float().mean()),
    }


def card(student: Retriever, history: History, results: dict[str, float]) -> str:
    """README.md of the checkpoint."""
    size = sum(p.numel() for p in student.parameters()) / 1e6
    return f"""# bert-wordnet

A `BertModel` of {size:.2f} M parameters, half precision, as a folder of sentence-transformers: mean pooling, cosine,
{LENGTH} tokens. It serves tests and machines without MiniLM; no claim rests on it.

```python
from vlws.models.retriever import load_retriever

retriever = load_retriever("bert-wordnet")
```

- Data: glosses, names and examples of the shipped slice of WordNet, and instructions in the wording of training.
- Loss: the KL divergence between the neighbourhoods of {BATCH} texts as MiniLM (all-MiniLM-L6-v2) and this model see
  them, temperature {TAU}.
- Training: {STEPS:,} steps of {BATCH}, AdamW, cosine from 0.002, one CPU thread: `python -m backbones.bert_wordnet`.
- Licence: MIT, as the workspace; WordNet is named in NOTICE, MiniLM is Apache-2.0.

| held out | | gate |
|---|---|---|
{table(results, GATES)}

Names are found where they are among the first 10 of some 500.

| step | loss |
|---|---|
{curve(history)}

![loss curve](loss.png)
"""


if __name__ == "__main__":
    run_recipe("bert-wordnet", pretrain, partial(load_retriever, device="cpu"), STEPS)
