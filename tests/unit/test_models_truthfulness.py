"""The two spaces of hidden states: losses against sums written out, and what the encoders learn."""

import pytest
import torch
from torch.nn import functional as F

from vlws.errors import InputError
from vlws.models.truthfulness import (
    Triplets,
    direction,
    fit_encoders,
    probe,
    ridge,
    semantic_loss,
    truthfulness_loss,
)


def made(n: int = 160, dim: int = 24, seed: int = 0) -> Triplets:
    """Facts as random vectors; a true answer moves along one direction, a false one against it."""
    torch.manual_seed(seed)
    fact = torch.arange(n) // 2
    content, way = torch.randn(n, dim)[fact], F.normalize(torch.randn(dim), dim=0)
    noise = 0.1 * torch.randn(3, n, dim)
    return Triplets(content + noise[0], content + 0.8 * way + noise[1], content - 0.8 * way + noise[2], fact)


def test_the_truthfulness_loss_is_its_sums():
    torch.manual_seed(0)
    pos, neg, fact, tau = torch.randn(5, 4).double(), torch.randn(5, 4).double(), torch.tensor([0, 0, 1, 2, 3]), 0.3
    states, truth, facts = torch.cat([pos, neg]), [True] * 5 + [False] * 5, [*fact.tolist(), *fact.tolist()]
    losses = []
    for i in range(10):
        e = [float((F.cosine_similarity(states[i], states[j], dim=0) / tau).exp()) for j in range(10)]
        others = [j for j in range(10) if facts[j] != facts[i]]
        losses.append(
            torch.tensor(sum(e[j] for j in others)).log()
            - torch.tensor(sum(e[j] for j in others if truth[j] == truth[i])).log()
        )
    torch.testing.assert_close(truthfulness_loss(pos, neg, fact, tau).float(), torch.stack(losses).mean().float())


def test_the_semantic_loss_is_its_sums():
    torch.manual_seed(0)
    sem, pos, neg, tau = *(torch.randn(4, 3).double() for _ in range(3)), 0.3
    losses = []
    for i in range(4):
        e = [float((F.cosine_similarity(sem[i], s, dim=0) / tau).exp()) for s in (*pos, *neg)]
        losses.append(-torch.tensor((e[i] + e[4 + i]) / sum(e)).log())
    torch.testing.assert_close(semantic_loss(sem, pos, neg, tau).float(), torch.stack(losses).mean().float())


def test_encoders_part_truth_from_content():
    whole = made(320)
    learn = whole[torch.arange(160)]
    truthful, semantic = fit_encoders(learn, steps=200, batch_size=64, lr=1e-3)
    labels = torch.arange(2 * len(whole)) < len(whole)
    back = torch.cat([whole.fact > learn.fact.max()] * 2)
    found = {
        name: probe(torch.cat([e(whole.pos), e(whole.neg)]), labels, back)
        for name, e in (("tru", truthful), ("sem", semantic))
    }
    assert found["tru"] >= found["sem"]
    own = F.cosine_similarity(semantic(learn.pos), learn.sem, dim=-1)
    other = F.cosine_similarity(semantic(learn.pos), learn.sem.roll(2, 0), dim=-1)
    assert (own > other).float().mean() > 0.95
    assert not any(p.requires_grad for p in (*truthful.parameters(), *semantic.parameters()))


def test_a_ridge_recovers_a_linear_map():
    torch.manual_seed(0)
    encoded, true = torch.randn(500, 6), torch.randn(6, 6)
    torch.testing.assert_close(ridge(encoded, encoded @ true.T, 1e-6), true, atol=1e-3, rtol=1e-3)


def test_the_direction_is_the_mean_difference():
    triplets = made(10)
    torch.testing.assert_close(direction(torch.nn.Identity(), triplets), (triplets.pos - triplets.neg).mean(0))


def test_one_fact_is_refused():
    t = made(4)
    with pytest.raises(InputError, match="two facts or more"):
        fit_encoders(Triplets(t.sem, t.pos, t.neg, torch.zeros(4, dtype=torch.long)))
