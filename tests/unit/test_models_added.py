"""Added weights on disk: they come back bit for bit, and a folder is whole or absent."""

import json

import pytest
import torch
from torch import nn

from vlws.errors import InputError
from vlws.models import added

SIZES = {"hidden_size": 4, "num_layers": 2}


def saved(folder, **changes):
    given = dict(method="Probe", config={"rank": 2}, sizes=SIZES, tensors={"a": torch.arange(6.0).reshape(2, 3).T})
    added.save_added(folder, **(given | changes))
    return folder


def test_what_is_saved_is_loaded(tmp_path):
    config, tensors = added.load_added(saved(tmp_path / "deep" / "probe"), "Probe", SIZES)
    assert config == {"rank": 2}
    assert torch.equal(tensors["a"], torch.arange(6.0).reshape(2, 3).T)
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {"probe"}


def test_saving_again_replaces_and_failing_leaves_the_old_one(tmp_path, monkeypatch):
    folder = saved(tmp_path / "probe")
    saved(folder, config={"rank": 3})
    assert added.load_added(folder, "Probe")[0] == {"rank": 3}

    def full(tensors):
        raise OSError("no space left on device")

    monkeypatch.setattr(added, "save", full)
    with pytest.raises(OSError, match="no space"):
        saved(folder, config={"rank": 4})
    assert added.load_added(folder, "Probe")[0] == {"rank": 3}
    with pytest.raises(OSError, match="no space"):
        saved(tmp_path / "other")
    assert {path.name for path in tmp_path.iterdir()} == {"probe"}


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="holds other files; accepted is a new or empty folder"):
        saved(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: None, "not Other; accepted is a folder written by Other.save_pretrained"),
        (
            lambda folder: (folder / "config.json").unlink(),
            "holds no Other: config.json or model.safetensors is missing",
        ),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "config.json").write_text("[]"), "holds no method, not Other"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"1234"), "cannot be read"),
    ],
)
def test_what_is_no_such_folder_is_refused(tmp_path, spoil, says):
    spoil(saved(tmp_path / "probe"))
    with pytest.raises(InputError, match=says):
        added.load_added(tmp_path / "probe", "Other")
    with pytest.raises(InputError, match="holds no Other"):
        added.load_added(tmp_path / "absent", "Other")


def test_a_backbone_of_other_sizes_is_refused(tmp_path):
    saved(tmp_path / "probe")
    with pytest.raises(
        InputError, match="made for a backbone of hidden_size 4, num_layers 2; the one given has hidden_size 8"
    ):
        added.load_added(tmp_path / "probe", "Probe", SIZES | {"hidden_size": 8})


def test_fill_copies_by_name_and_refuses_another_shape():
    module = nn.Linear(3, 2)
    added.fill(module, {"bias": torch.tensor([1.0, 2.0])}, "probe")
    assert module.bias.tolist() == [1, 2]
    with pytest.raises(InputError, match=r"weight is \[2, 4\] in it and \[2, 3\] here"):
        added.fill(module, {"weight": torch.zeros(2, 4)}, "probe")
    with pytest.raises(InputError, match=r"scale is \[1\] in it and absent here"):
        added.fill(module, {"scale": torch.zeros(1)}, "probe")


def test_nothing_is_pickled(tmp_path):
    folder = saved(tmp_path / "probe")
    assert json.loads((folder / "config.json").read_text())["backbone"] == SIZES
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
