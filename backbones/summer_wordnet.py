"""Meta-learn the shipped start of t5-wordnet's prompts: `python -m backbones.summer_wordnet [--out FOLDER]`.

A prompt and a map of gradients as chapter 07 learns them (`vlws.methods.summer`), on unlabelled documents of WordNet,
with the chapter's settings and seed 0. They lie in the folder of t5-wordnet, which is to be made first, and `vlws
prompt` begins from them. No few-shot task is read.
"""

from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from backbones.common import run_recipe
from vlws.data.cloze import Wording
from vlws.data.meta_tasks import cluster, meta_batches
from vlws.data.wordnet.classification import documents
from vlws.methods.summer import Summer, SummerConfig
from vlws.models.seq2seq import load_seq2seq, mean_embeddings
from vlws.prompt import START

STEPS, CLUSTERS, OPTION = 200, 16, 12
CONFIG = partial(SummerConfig, prompt_length=16, inner_lr=0.5, outer_lr=0.1, psi_lr=1e-3)


def pretrain(out: Path, steps: int = STEPS) -> Path:
    """Meta-train, and write the folder."""
    model, tokenizer = load_seq2seq("t5-wordnet", "cpu")
    made = documents()
    corpus = cluster(made, mean_embeddings(model, tokenizer, [text for one in made for text in one]), CLUSTERS)
    batches = meta_batches(corpus, np.random.default_rng(0), support=8, query=8, wording=Wording(option=OPTION))
    summer = Summer(model, tokenizer, CONFIG(steps=steps))
    for step, batch in enumerate(islice(batches, steps), 1):
        told = summer.meta_step(batch)
        if step % 20 == 0:
            print(f"{step}/{steps}: loss {told['loss']:.3f}, s {told['s']:.3f}", flush=True)
    summer.save_pretrained(out)
    return out


def load(folder: str) -> Summer:
    """What was written, around its model."""
    return Summer.from_pretrained(folder, *load_seq2seq("t5-wordnet", "cpu"))


if __name__ == "__main__":
    run_recipe(f"t5-wordnet/{START}", pretrain, load, STEPS)
