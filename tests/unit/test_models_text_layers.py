"""Layers of text encoders run alone, for each family."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    MPNetConfig,
    MPNetModel,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5EncoderModel,
)

from vlws.errors import InputError
from vlws.models.text_layers import layers_of, run_layers, state_before

SIZES = dict(vocab_size=30, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32)
MODELS = {
    "bert": lambda: BertModel(BertConfig(**SIZES)),
    "mpnet": lambda: MPNetModel(MPNetConfig(**SIZES)),
    "roberta": lambda: RobertaModel(RobertaConfig(**SIZES)),
    "t5": lambda: T5EncoderModel(T5Config(vocab_size=30, d_model=16, d_kv=8, num_layers=4, num_heads=2, d_ff=32)),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("layer", [0, 2, 3])
def test_the_layers_behind_a_state_end_where_the_model_does(make, layer):
    torch.manual_seed(0)
    model = make().eval()
    ids = torch.randint(3, 30, (3, 7))
    mask = (torch.arange(7) < torch.tensor([[7], [4], [2]])).long()
    with torch.no_grad():
        entering, last = state_before(model, layer, input_ids=ids, attention_mask=mask)
        assert torch.equal(last, model(input_ids=ids, attention_mask=mask).last_hidden_state)
        found = run_layers(model, layers_of(model)[layer:], entering, mask)
    assert torch.allclose(found[mask.bool()], last[mask.bool()], atol=1e-5)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_padding_is_not_read(make):
    torch.manual_seed(0)
    model = make().eval()
    hidden, mask = torch.randn(1, 5, 16), torch.tensor([[1, 1, 1, 0, 0]])
    other = hidden.clone()
    other[:, 3:] = 7.0
    layers = layers_of(model)[2:]
    with torch.no_grad():
        one, two = (run_layers(model, layers, x, mask)[:, :3] for x in (hidden, other))
    assert torch.allclose(one, two, atol=1e-5)


def test_another_kind_of_encoder_is_refused():
    config = DistilBertConfig(vocab_size=30, dim=16, n_layers=2, n_heads=2, hidden_dim=16)
    with pytest.raises(InputError, match=r"The encoder is a DistilBertModel; accepted are encoders of BERT's, MPNet's"):
        layers_of(DistilBertModel(config))
