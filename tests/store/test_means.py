"""Class means beside a store: of this store and this policy, or none."""

import json

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from potstill.errors import RunError
from potstill.store import Store

MEANS = torch.arange(30, dtype=torch.float64).view(5, 6) / 7


def test_means_are_kept_with_their_policy(filled):
    store = filled()
    assert store.class_means("augmented") is None
    store.write_class_means(MEANS, "augmented")
    reader = Store.open(store.folder)
    assert torch.equal(reader.class_means("augmented"), MEANS.float())
    assert reader.class_means("clean") is None
    with safe_open(store.folder / "class_means.safetensors", framework="pt") as file:
        assert file.metadata()["policy"] == "augmented"
    store.write_class_means(MEANS + 1, "clean")  # in the place of those before
    assert torch.equal(reader.class_means("clean"), (MEANS + 1).float())
    assert reader.class_means("augmented") is None


def test_means_of_another_store_are_refused(filled):
    store, other = filled(), filled("other", data="0" * 16)
    other.write_class_means(MEANS, "clean")
    name = "class_means.safetensors"
    (store.folder / name).write_bytes((other.folder / name).read_bytes())
    with pytest.raises(RunError, match=r"belongs to another store. Delete that file, and the means are collected aga"):
        store.class_means("clean")


@pytest.mark.parametrize("content", [b"", b"\x00" * 8, b"no such file", safetensors.torch.save({"x": MEANS})])
def test_a_damaged_file_is_refused(filled, content):
    store = filled()
    (store.folder / "class_means.safetensors").write_bytes(content)
    with pytest.raises(RunError, match=r"class_means.safetensors (is damaged|belongs to another store)"):
        store.class_means("clean")


@pytest.mark.parametrize("means", [torch.zeros(5), torch.full((5, 6), float("nan"))])
def test_means_that_are_none_are_refused(filled, means):
    with pytest.raises(RunError, match="a finite number for each class and dimension"):
        filled().write_class_means(means, "clean")


def test_the_manifest_does_not_change_with_them(filled):
    store = filled()
    before = json.loads((store.folder / "store.json").read_bytes())
    store.write_class_means(MEANS, "clean")
    assert json.loads((store.folder / "store.json").read_bytes()) == before
