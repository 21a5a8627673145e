"""What a store was made from: every field that differs is named, and forbids what it must."""

import json

import pytest

from potstill.errors import RunError
from potstill.store import Store, StoreKey, differences, shortfalls

CHANGES = {
    "teacher": "b" * 64,
    "teacher_input": {"mean": [0.5, 0.4, 0.25], "std": [0.2] * 3, "size": None, "student_mean": [0.5] * 3},
    "precision": "bf16",
    "taps": ("logits", "embedding", "maps"),
    "data": "c" * 16,
    "classes": ("ape", "bee", "cat", "dog", "elk"),
    "samples": 51,
    "augmentation": {"size": 32, "crop": "pad", "padding": 4, "scale": (0.08, 1.0), "flip": True, "seed": 1},
    "dtype": "fp32",
    "top_k": 2,
    "augmentation_version": 2,
    "version": 2,
}
NAMED = {"teacher_input": "teacher_input.mean", "augmentation": "augmentation.seed"}


def test_every_field_is_tried(cheap):
    assert set(CHANGES) == set(cheap.key(50).plain())


@pytest.mark.parametrize("name", CHANGES)
def test_a_difference_is_one_sentence_that_names_the_field_and_both_values(cheap, name):
    stored, wanted = cheap.key(50), cheap.key(50, **{name: CHANGES[name]})
    (sentence,) = differences(stored, wanted)
    assert sentence.startswith(NAMED.get(name, name) + " ") or (name == "classes" and "'eel'" in sentence)
    assert " in the store and " in sentence
    assert sentence.endswith(" here")


@pytest.mark.parametrize("name", CHANGES)
def test_a_store_of_another_key_is_refused_by_readers_and_writers(cheap, filled, name):
    folder = filled().folder
    wanted = cheap.key(50, **{name: CHANGES[name]})
    named = NAMED.get(name, name)
    with pytest.raises(RunError, match=rf"made from something else: {named}.*only be gone on with as it was begun"):
        Store.create(folder, wanted, cheap.layout(), 3)
    with pytest.raises(RunError, match=rf"made from something else: {named}"):
        Store.open(folder, wanted, write=True)
    if name in ("dtype", "top_k"):
        Store.open(folder, wanted)
        with pytest.raises(RunError, match=rf"made from something else: {named}"):
            Store.open(folder, wanted, asked=(name,))
    else:
        with pytest.raises(RunError, match=rf"made from something else: {named}.*give back what it was made from"):
            Store.open(folder, wanted)


def test_all_differences_are_told_at_once(cheap):
    found = differences(cheap.key(50), cheap.key(50, **CHANGES))
    assert len(found) == len(CHANGES)
    assert found[0] == "version is 1 in the store and 2 here"


def test_a_store_may_keep_more_taps_than_are_read(cheap, filled):
    store = filled()
    wanted = cheap.key(50, taps=("embedding",))
    assert shortfalls(store.key, wanted) == []
    assert differences(store.key, wanted) == ["taps is logits, embedding in the store and embedding here"]
    assert shortfalls(wanted, store.key) == ["taps in the store are embedding, without logits"]
    Store.open(store.folder, wanted)


def test_the_order_of_taps_says_nothing(cheap):
    assert cheap.key(50, taps=("embedding", "logits")) == cheap.key(50)


def test_classes_in_another_order_are_refused_and_the_first_named(cheap, filled):
    wanted = cheap.key(50, classes=("ape", "cat", "bee", "dog", "eel"))
    said = r"classes \(the same names in another order\): number 1 is 'bee' in the store and 'cat' here"
    with pytest.raises(RunError, match=said):
        Store.open(filled().folder, wanted)
    fewer = cheap.key(50, classes=("ape", "bee"))
    assert shortfalls(cheap.key(50), fewer) == ["classes are 5 in the store and 2 here"]


def test_a_name_that_one_key_does_not_say_is_a_difference(cheap):
    stored = cheap.key(50)
    wanted = cheap.key(50, augmentation={**stored.augmentation, "hue": None})
    assert differences(stored, wanted) == ["augmentation.hue is unsaid in the store and none here"]


def test_what_is_asked_for_must_exist(cheap):
    with pytest.raises(RunError, match=r"'topk' cannot be asked of a store; dtype and top_k can. Did you mean 'top_k'"):
        shortfalls(cheap.key(50), cheap.key(50), asked=("topk",))


def test_a_key_is_the_same_after_json(cheap):
    key = cheap.key(50, classes=("Äpfel", "", "x", "y", "z"))
    again = StoreKey.from_plain(json.loads(json.dumps(key.plain())))
    assert again == key
    assert again.digest == key.digest
    assert differences(again, key) == []


def test_every_change_is_another_digest(cheap):
    digests = {cheap.key(50, **{name: value}).digest for name, value in CHANGES.items()}
    assert len(digests | {cheap.key(50).digest}) == len(CHANGES) + 1


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("teacher", "", "teacher is ''; expected a fingerprint"),
        ("teacher_input", [1], "teacher_input is 1; expected values by name"),
        ("precision", "float32", "precision is 'float32'; expected one of fp32, bf16, fp16"),
        ("taps", (), "taps is ; expected some of logits, embedding, maps"),
        ("taps", ("logits", "heads"), "taps is logits, heads; expected some of"),
        ("taps", "logits", "taps is 'logits'; expected some of"),
        ("classes", ("a", 1), "classes is a, 1; expected names"),
        ("samples", 0, "samples is 0; expected a whole number, 1 or more"),
        ("samples", True, "samples is True; expected a whole number"),
        ("augmentation", None, "augmentation is none; expected values by name"),
        ("augmentation", {"scale": (float("nan"), 1)}, "augmentation.scale is nan, which is no plain value"),
        ("augmentation", {1: 2}, "augmentation has names that are no strings"),
        ("teacher_input", {"mean": {0.5}}, "teacher_input.mean is {0.5}, which is no plain value"),
        ("dtype", "int16", "dtype is 'int16'; expected one of"),
        ("top_k", 0, "top_k is 0; expected null, or a whole number"),
        ("version", 1.0, "version is 1.0; expected a whole number"),
    ],
)
def test_values_of_another_kind_are_refused(cheap, name, value, said):
    with pytest.raises(RunError) as caught:
        cheap.key(50, **{name: value})
    assert said in str(caught.value)


def test_the_largest_logits_of_no_logits_are_refused(cheap):
    with pytest.raises(RunError, match="top_k is 3, but no logits are kept"):
        cheap.key(50, taps=("embedding",), top_k=3)
