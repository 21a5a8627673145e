import os
import pickle
import warnings
import zipfile

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from potstill import files
from potstill.errors import NetworkError, RunError
from potstill.networks import weights as weights_file
from potstill.networks.tap import tap
from potstill.networks.weights import load_weights, read_weights, save_weights


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


class Harmful:
    def __reduce__(self):
        return os.system, ("echo harm",)


def test_a_network_comes_back_from_its_file(tmp_path):
    first, second = network(), network()
    first[1].running_mean.fill_(3.0)
    save_weights(first, tmp_path / "w.safetensors")
    assert not same(first.state_dict(), second.state_dict())
    load_weights(second, tmp_path / "w.safetensors")
    assert same(first.state_dict(), second.state_dict())


def test_a_tapped_network_writes_and_reads_the_plain_one(tmp_path):
    inner = network()[2:]
    tapped = tap(inner, input_size=(1, 2, 2))
    save_weights(tapped, tmp_path / "w.safetensors")
    assert list(load_file(tmp_path / "w.safetensors")) == ["3.bias", "3.weight"]
    load_weights(tapped, tmp_path / "w.safetensors")


def test_the_same_weights_give_the_same_bytes(tmp_path):
    state = network().state_dict()
    save_weights(state, tmp_path / "a.safetensors")
    save_weights(dict(reversed(state.items())), tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_shared_and_strided_tensors_are_written_in_full(tmp_path):
    base = torch.arange(6.0).reshape(2, 3)
    state = {"a": base, "b": base, "row": base[1], "turned": base.t(), "scalar": torch.tensor(7)}
    save_weights(state, tmp_path / "w.safetensors")
    assert same(load_file(tmp_path / "w.safetensors"), state)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    save_weights({"a": torch.zeros(2)}, path)
    old = path.read_bytes()

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(RunError, match=r"w\.safetensors could not be written: No space left on device"):
        save_weights({"a": torch.ones(2)}, path)
    assert path.read_bytes() == old
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(RunError, match=r"w\.safetensors could not be written: No such file or directory"):
        save_weights({"a": torch.ones(2)}, tmp_path / "none" / "w.safetensors")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
@pytest.mark.parametrize("wrap", [None, "state_dict", "model", "model_state_dict", "student"])
def test_state_dicts_are_found_where_trainers_put_them(tmp_path, suffix, wrap):
    state = dict(network().state_dict())
    path = tmp_path / f"w{suffix}"
    torch.save({"epoch": 3, "best": 0.5, wrap: state} if wrap else state, path)
    assert same(read_weights(path), state)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_taken_off(tmp_path, prefix):
    state = dict(network().state_dict())
    torch.save({"model": {"state_dict": {prefix + key: value for key, value in state.items()}}}, tmp_path / "w.pth")
    assert same(read_weights(tmp_path / "w.pth"), state)


def test_a_compiled_part_and_a_part_called_module():
    one = torch.zeros(1)
    strip = weights_file._strip_prefixes
    assert list(strip({"body._orig_mod.weight": one, "module.weight": one}, "w")) == ["body.weight", "module.weight"]
    with pytest.raises(NetworkError, match="w holds both compiled and plain weights under one name"):
        strip({"a._orig_mod.weight": one, "a.weight": one}, "w")


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path, capfd):
    torch.save({"state_dict": {"a": torch.zeros(1)}, "extra": Harmful()}, tmp_path / "w.pth")
    with pytest.raises(
        NetworkError, match=r"w\.pth is refused: to load it would run code \((posix|nt)\.system\)\. Where"
    ):
        read_weights(tmp_path / "w.pth")
    torch.save(network(), tmp_path / "whole.pth")
    with pytest.raises(NetworkError, match=r"refused: to load it would run code \(torch\.nn\.modules\.container\.Seq"):
        read_weights(tmp_path / "whole.pth")
    (tmp_path / "bare.bin").write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(NetworkError, match=r"bare\.bin is refused: to load it would run code \((posix|nt)\.system\)"):
        read_weights(tmp_path / "bare.bin")
    assert "harm" not in capfd.readouterr().out


PICKLED = {
    "plain": (lambda: {"epoch": 1}, "is no file of torch.save; where"),
    "state": (lambda: network().state_dict(), "is no file of torch.save; where"),
    "arrays": (lambda: {"a": network()[0].weight.detach().numpy()}, "is no file of torch.save; where"),
    "code": (Harmful, r"is refused: to load it would run code \((posix|nt)\.system\)\. It is no file of torch"),
    "network": (
        network,
        r"is refused: to load it would run code \(torch\.nn\..*Sequential\)\. It holds a whole .*state_dict\(\)",
    ),
}


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("content", PICKLED)
def test_a_plain_pickle_is_refused_without_pytorchs_advice(tmp_path, capfd, protocol, content):
    make, message = PICKLED[content]
    (tmp_path / "w.pt").write_bytes(pickle.dumps(make(), protocol))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(NetworkError, match=rf"w\.pt {message}") as caught:
            read_weights(tmp_path / "w.pt")
    assert "weights_only" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "harm" not in capfd.readouterr().out


@pytest.mark.parametrize("zipped", [True, False])
def test_a_whole_network_is_told_from_its_weights(tmp_path, zipped):
    torch.save({"model": network()}, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(NetworkError, match=r"holds a whole network; .* torch\.save\(network\.state_dict\(\), path\)"):
        read_weights(tmp_path / "w.pt")


def test_damage_inside_an_archive_is_no_refusal(tmp_path):
    """The names in it (here ``torch.float16``) are harmless, and it is not they that fail."""
    torch.save({"a": torch.zeros(99), "kind": torch.float16}, tmp_path / "w.pt")
    with zipfile.ZipFile(tmp_path / "w.pt") as whole, zipfile.ZipFile(tmp_path / "cut.pt", "w") as cut:
        for name in whole.namelist():
            if "/data/" not in name:
                cut.writestr(name, whole.read(name))
    with pytest.raises(NetworkError, match=r"cut\.pt is no readable checkpoint \(.*; it may be cut short"):
        read_weights(tmp_path / "cut.pt")


def test_another_protocol_is_no_damage(tmp_path):
    torch.save(network().state_dict(), tmp_path / "w.pt", pickle_protocol=5)
    with pytest.raises(NetworkError, match=r"w\.pt is no checkpoint that PyTorch reads without running code; where"):
        read_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("damage", ["cut", "noise", "empty"])
def test_a_broken_file_is_named(tmp_path, suffix, damage):
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save(network().state_dict(), path)
    else:
        save_weights(network(), path)
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[: len(whole) // 2], "noise": b"\xff\x00noise" * 99, "empty": b""}[damage])
    with pytest.raises(NetworkError, match=r"w\.\w+ is no readable (checkpoint|safetensors file)"):
        read_weights(path)


def saved(value):
    return lambda path: torch.save(value, path)


REFUSED = {
    "w.pth": (None, "no weights at .*: there is no such file"),
    "w.h5": (lambda path: path.write_bytes(b"x"), r"end in '\.h5'; expected \.safetensors or one of"),
    "list.pt": (saved([torch.zeros(1)]), "holds a list; expected a state dict"),
    "other.pt": (saved({"epoch": 3, "net": {"a": torch.zeros(1)}}), "holds no state dict: .* got keys epoch, net"),
    "two.pt": (
        saved({"model": {"a": torch.zeros(1)}, "student": {"a": torch.ones(1)}}),
        r"holds several state dicts \(model, student\); save the one that is meant",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_files_without_one_state_dict(tmp_path, name):
    write, message = REFUSED[name]
    if write:
        write(tmp_path / name)
    with pytest.raises(NetworkError, match=message):
        read_weights(tmp_path / name)


def test_all_that_does_not_fit_is_listed_and_nothing_is_loaded():
    target = network()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    state = {key: torch.full_like(value, 9) for key, value in target.state_dict().items()}
    del state["0.bias"], state["3.bias"]
    state["3.weight"] = torch.zeros(7, 4)
    state |= {f"head.{i}": torch.zeros(1) for i in range(6)}
    with pytest.raises(NetworkError) as caught:
        load_weights(target, state)
    assert str(caught.value) == (
        "the weights do not fit Sequential, which has 9 keys: 2 missing (0.bias, 3.bias); "
        "6 unexpected (head.0, head.1, head.2, head.3, head.4, ...); 1 of another shape (3.weight (7, 4) for (2, 4))"
    )
    assert same(target.state_dict(), before)


def test_old_files_lack_batchnorms_counter():
    target = network()
    state = {key: value + 1 for key, value in network().state_dict().items() if not key.endswith("tracked")}
    load_weights(target, state)
    assert torch.equal(target[1].running_mean, state["1.running_mean"])
    assert target[1].num_batches_tracked.item() == 0


def test_torchvisions_old_densenet_names():
    class DenseLayer(nn.Module):
        def __init__(self):
            super().__init__()
            self.denselayer1 = nn.ModuleDict({"norm1": nn.LayerNorm(2), "conv2": nn.Conv2d(1, 1, 1)})

    target = DenseLayer()
    old = {
        "denselayer1.norm.1.weight": torch.full((2,), 5.0),
        "denselayer1.norm.1.bias": torch.zeros(2),
        "denselayer1.conv.2.weight": torch.zeros(1, 1, 1, 1),
        "denselayer1.conv.2.bias": torch.zeros(1),
    }
    load_weights(target, old)
    assert target.denselayer1["norm1"].weight.tolist() == [5.0, 5.0]
