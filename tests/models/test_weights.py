"""Weight files: round trips, and typed errors for everything that is not plain tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mpc_imaging.errors import ModelError
from mpc_imaging.models import load_weights, save_weights, set_weights


def test_round_trip(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    module[1].weight = module[0].weight
    save_weights(module.state_dict(), tmp_path / "w.safetensors")
    loaded = load_weights(tmp_path / "w.safetensors")
    assert set(loaded) == set(module.state_dict())
    assert all(torch.equal(loaded[name], value) for name, value in module.state_dict().items())


def test_views_are_saved_as_what_they_show(tmp_path: Path) -> None:
    x = torch.arange(6.0).reshape(2, 3)
    save_weights({"t": x.T, "row": x[1]}, tmp_path / "w.safetensors")
    loaded = load_weights(tmp_path / "w.safetensors")
    assert torch.equal(loaded["t"], x.T) and torch.equal(loaded["row"], x[1])


@pytest.mark.parametrize("wrap", [False, True])
def test_torch_files_of_tensors(tmp_path: Path, wrap: bool) -> None:
    state = nn.Linear(2, 2).state_dict()
    torch.save({"state_dict": state, "epoch": 3} if wrap else state, tmp_path / "w.pt")
    assert torch.equal(load_weights(tmp_path / "w.pt")["weight"], state["weight"])


class Evil:
    def __reduce__(self):
        return (Path("evil-was-here").touch, ())


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": torch.zeros(1), "evil": Evil()}, "w.pth")
    with pytest.raises(ModelError, match="cannot be read as weights") as raised:
        load_weights("w.pth")
    assert "\n" not in str(raised.value)
    assert not Path("evil-was-here").exists()


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"not safetensors")
    (tmp_path / "w.bin").write_bytes(b"")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    torch.save({"weight": torch.zeros(1), "epoch": 3}, tmp_path / "mixed.pt")
    save_weights({"a": torch.tensor([1.0, float("nan")]), "b": torch.zeros(1)}, tmp_path / "nan.safetensors")
    for name, message in {
        "absent.safetensors": "there is no weights file",
        "w.safetensors": "cannot be read as weights",
        "w.bin": "files of weights end in .safetensors",
        "list.pt": "holds no state dict",
        "mixed.pt": "holds no state dict",
        "nan.safetensors": "a has values that are not finite",
    }.items():
        with pytest.raises(ModelError, match=message):
            load_weights(tmp_path / name)


def test_weights_that_do_not_fit_are_all_named() -> None:
    module = nn.Linear(3, 2)
    state = {"weights": torch.zeros(2, 3), "bias": torch.zeros(3)}
    with pytest.raises(ModelError) as raised:
        set_weights(module, state)
    assert raised.value.problems == [
        "weight is missing: give a tensor of shape (2, 3)",
        "weights is no tensor of this model: did you mean weight?",
        "bias has shape (3,), the model needs (2,)",
    ]
    set_weights(module, {"weight": torch.ones(2, 3), "bias": torch.zeros(2)})
    assert torch.equal(module.weight, torch.ones(2, 3))


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w"])
def test_what_is_advised_is_a_command_of_a_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """It is done here as it is written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(b"junk\n")  # which torch ends on with a KeyError
    with pytest.raises(ModelError) as caught:
        load_weights(tmp_path / name)
    (problem,) = caught.value.problems
    advice = problem.split(": write it with ")[1]
    import safetensors.torch

    model = nn.Linear(2, 2)
    eval(advice, {"safetensors": safetensors, "model": model})
    assert set(load_weights(tmp_path / "FILE.safetensors")) == {"weight", "bias"}
