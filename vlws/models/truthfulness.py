"""Two spaces of hidden states: one that tells what is spoken of, one that tells whether the answer is true.

Pan et al. 2024 (UniKE, arXiv:2409.19872), section 3.3, equations 4 to 6. A triplet is three states of one layer: h_sem
at the last token of a question, h_pos after its true answer, h_neg after the wrong answer that the model itself gives.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlws.errors import InputError


@dataclass(frozen=True)
class Triplets:
    """States "n dim" of n questions; `fact` "n" int64 names the fact that each asks for.

    >>> triplets = Triplets(torch.zeros(4, 8), torch.ones(4, 8), torch.zeros(4, 8), fact=torch.arange(4))
    >>> len(triplets), triplets[torch.tensor([0, 2])].fact.tolist()
    (4, [0, 2])
    """

    sem: Tensor
    pos: Tensor
    neg: Tensor
    fact: Tensor

    def __len__(self) -> int:
        return len(self.sem)

    def __getitem__(self, at: Tensor) -> "Triplets":
        return Triplets(self.sem[at], self.pos[at], self.neg[at], self.fact[at])


class Encoder(nn.Module):
    """h + W_2 GELU(W_1 h): "... dim" -> "... dim". `linear=True`: two linear maps, as the released code has them.

    >>> Encoder(8)(torch.randn(2, 5, 8)).shape
    torch.Size([2, 5, 8])
    >>> encoder = Encoder(8, linear=True)
    >>> h = torch.randn(8)
    >>> torch.equal(encoder(h), encoder.second(encoder.first(h)))
    True
    """

    def __init__(self, dim: int, linear: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.linear = nn.Linear(dim, dim), nn.Linear(dim, dim), linear

    def forward(self, h: Tensor) -> Tensor:
        return self.second(self.first(h)) if self.linear else h + self.second(F.gelu(self.first(h)))


def truthfulness_loss(pos: Tensor, neg: Tensor, fact: Tensor, tau: float = 0.1) -> Tensor:
    """L_1, equation 4: encoded states of like truth attract each other, across questions; those of unlike repel.

    pos, neg: "n dim", encoded. fact: "n"; states of one fact are left out of each other's sums, where they would tell
    truth by the answer's own words (the printed sums hold even the anchor itself). Mean over the 2n anchors.

    >>> true, false = torch.eye(2).repeat_interleave(3, 0).split(3)  # states of three facts
    >>> round(truthfulness_loss(true, false, torch.arange(3)).item(), 3)  # told apart
    0.0
    >>> round(truthfulness_loss(true, true, torch.arange(3)).item(), 3)  # not told apart: log 2
    0.693
    """
    states = F.normalize(torch.cat([pos, neg]), dim=-1)
    truth = torch.arange(len(states), device=states.device) < len(pos)
    facts = fact.repeat(2)
    similarity = states @ states.T / tau
    other = facts[:, None] != facts
    alike = other & (truth[:, None] == truth)
    return (_logsumexp(similarity, other) - _logsumexp(similarity, alike))[alike.any(1)].mean()


def semantic_loss(sem: Tensor, pos: Tensor, neg: Tensor, tau: float = 0.1) -> Tensor:
    """L_2, equation 5: an answer's state, encoded, is found by its question's, which is not encoded.

    sem: "n dim", raw. pos, neg: "n dim", encoded: of all 2n, the question's two are its positives. Mean over n.

    >>> sem = torch.eye(3)  # three questions
    >>> round(semantic_loss(sem, sem, sem).item(), 2)  # every answer is by its own question
    0.0
    >>> round(semantic_loss(sem, sem.roll(1, 0), sem.roll(1, 0)).item(), 2)  # by another one's
    10.0
    """
    question = F.normalize(sem, dim=-1)
    similarity = question @ F.normalize(torch.cat([pos, neg]), dim=-1).T / tau
    own = torch.eye(len(sem), dtype=torch.bool, device=sem.device).repeat(1, 2)
    return (similarity.logsumexp(1) - _logsumexp(similarity, own)).mean()


def _logsumexp(values: Tensor, where: Tensor) -> Tensor:
    return values.masked_fill(~where, -torch.inf).logsumexp(1)


def fit_encoders(
    triplets: Triplets,
    *,
    steps: int = 300,
    batch_size: int = 256,
    lr: float = 1e-3,
    seed: int = 0,
    linear: bool = False,
) -> tuple[Encoder, Encoder]:
    """(Enc_Tru, Enc_Sem) of one layer, trained apart by L_1 and L_2. Raises InputError for fewer than two facts.

    >>> states = torch.randn(3, 16, 8, generator=torch.Generator().manual_seed(0))
    >>> fact = torch.arange(16)
    >>> truthful, semantic = fit_encoders(Triplets(*states, fact), steps=20)
    >>> _, pos, neg = states
    >>> bool(truthfulness_loss(truthful(pos), truthful(neg), fact) < truthfulness_loss(pos, neg, fact))
    True
    """
    if len(triplets.fact.unique()) < 2:
        raise InputError(f"{len(triplets)} triplets of one fact were given; contrast needs two facts or more.")
    dim = triplets.sem.shape[1]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        truthful, semantic = Encoder(dim, linear), Encoder(dim, linear)
    truthful, semantic = truthful.to(triplets.sem.device), semantic.to(triplets.sem.device)
    generator = torch.Generator().manual_seed(seed)

    def loss(at: Tensor) -> Tensor:
        batch = triplets[at]
        truth = truthfulness_loss(truthful(batch.pos), truthful(batch.neg), batch.fact)
        return truth + semantic_loss(batch.sem, semantic(batch.pos), semantic(batch.neg))

    parameters = [*truthful.parameters(), *semantic.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=lr)
    for _ in range(steps):
        at = torch.randperm(len(triplets), generator=generator)[:batch_size].to(triplets.sem.device)
        optimizer.zero_grad()
        loss(at).backward()
        optimizer.step()
    return truthful.requires_grad_(False), semantic.requires_grad_(False)


def direction(encoder: nn.Module, triplets: Triplets) -> Tensor:
    """zeta "dim", equation 6: the mean of encoded true states minus that of false ones.

    >>> triplets = Triplets(torch.zeros(2, 3), torch.ones(2, 3), torch.zeros(2, 3), fact=torch.arange(2))
    >>> direction(nn.Identity(), triplets).tolist()
    [1.0, 1.0, 1.0]
    """
    with torch.no_grad():
        return (encoder(triplets.pos) - encoder(triplets.neg)).mean(0)


def ridge(encoded: Tensor, states: Tensor, weight: float = 1.0) -> Tensor:
    """W "dim dim" that carries differences in the encoder's space to differences of states: least squares with a ridge.

    encoded, states: "n dim"; W minimises |encoded W^T - states|^2 + weight * n * |W|^2 / dim.

    >>> encoded = torch.eye(2)
    >>> ridge(encoded, 3 * encoded, weight=0.0).tolist(), ridge(encoded, 3 * encoded, weight=1.0).tolist()
    ([[3.0, 0.0], [0.0, 3.0]], [[1.5, 0.0], [0.0, 1.5]])
    """
    n, dim = encoded.shape
    gram = encoded.T @ encoded + weight * n / dim * torch.eye(dim, device=encoded.device, dtype=encoded.dtype)
    return torch.linalg.solve(gram, encoded.T @ states).T


def probe(states: Tensor, labels: Tensor, held: Tensor) -> float:
    """Accuracy of a logistic regression on the held-out rows (`held` "n" bool), trained on the others.

    >>> labels = torch.tensor([0, 1] * 4)
    >>> states = labels[:, None] + torch.zeros(8, 3)  # which tell the label
    >>> probe(states, labels, held=torch.arange(8) >= 6)
    1.0
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y, back = states.cpu().numpy(), labels.cpu().numpy(), held.cpu().numpy()
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x[~back], y[~back])
    return float(model.score(x[back], y[back]))
