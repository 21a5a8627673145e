"""Folders that are no store, or no longer: a sentence, and nothing of what they say is run."""

import json
import pickle
import sys

import numpy as np
import pytest
import torch

from potstill.errors import RunError
from potstill.store import Store, verify
from potstill.store.manifest import MANIFEST_FILE, checksum


def rewrite(folder, seal: bool = True, **changes) -> None:
    """Change what ``store.json`` says; with ``seal`` as somebody would who knows of the checksum."""
    path = folder / MANIFEST_FILE
    content = json.loads(path.read_bytes())
    content.update(changes)
    if seal:
        content.pop("checksum")
        content["checksum"] = checksum(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_what_is_no_store_is_refused(tmp_path):
    for call in (Store.open, verify):
        with pytest.raises(RunError, match=r"is no store of teacher outputs: it has no store.json"):
            call(tmp_path)
        with pytest.raises(RunError, match=r"is no store of teacher outputs"):
            call(tmp_path / "nowhere")


def test_no_store_is_made_among_other_files(cheap, tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(RunError, match=r"files that are no store of teacher outputs \(holiday.jpg\); give another"):
        Store.create(tmp_path, cheap.key(50), cheap.layout(), 3)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]
    with pytest.raises(RunError, match=r"could not be written: (Not a directory|File exists)"):
        Store.create(tmp_path / "holiday.jpg", cheap.key(50), cheap.layout(), 3)


def test_a_file_that_may_not_be_read_is_refused(filled, monkeypatch):
    folder = filled().folder

    def forbidden(path, *arguments, **settings):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(np, "memmap", forbidden)
    with pytest.raises(RunError, match=r"done.bin cannot be read: Permission denied"):
        Store.open(folder)


def test_records_without_a_manifest_are_not_thrown_away(filled, contents):
    store = filled()
    (store.folder / MANIFEST_FILE).unlink()
    before = contents(store.folder)
    with pytest.raises(RunError, match=r"holds records, but its store.json is gone: put that back, or delete the fol"):
        Store.create(store.folder, store.key, store.layout, 3)
    assert contents(store.folder) == before


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is no valid JSON"),
        (b"\xff\xfe", "it is no valid JSON"),
        (b'{"format": 1', "it is no valid JSON"),
        (b"[1, 2]", "it does not say its format"),
        (b"{}", "it does not say its format"),
        (b'{"format": "1"}', "it does not say its format"),
        (b'{"format": 1}', "its checksum does not fit what it says"),
        (pickle.dumps({"format": 1}), "it is no valid JSON"),
    ],
)
def test_a_damaged_manifest_is_refused(filled, content, said):
    folder = filled().folder
    (folder / MANIFEST_FILE).write_bytes(content)
    for call in (Store.open, verify):
        with pytest.raises(RunError, match=rf"store.json is damaged: {said}.*Put it back as it was, or delete the fol"):
            call(folder)


def test_a_manifest_of_another_format_is_refused_with_its_number(filled):
    folder = filled().folder
    rewrite(folder, format=2, a_key_of_the_future=True)
    with pytest.raises(RunError, match=r"is of format 2, newer than the 1 that this Potstill reads: use the Potstill"):
        Store.open(folder)


def test_a_manifest_of_the_other_byte_order_is_refused(filled):
    folder = filled().folder
    rewrite(folder, byte_order="big" if sys.byteorder == "little" else "little")
    with pytest.raises(RunError, match="written on a machine of another byte order"):
        Store.open(folder)


@pytest.mark.parametrize("name", ["samples", "views", "rows_per_shard", "record_bytes", "format"])
def test_any_number_that_was_changed_by_hand_is_refused(filled, name):
    folder = filled().folder
    content = json.loads((folder / MANIFEST_FILE).read_bytes())
    rewrite(folder, seal=False, **{name: content[name] + 1})
    with pytest.raises(RunError, match=r"checksum does not fit|newer than"):
        Store.open(folder)


def test_a_changed_class_name_is_refused(filled):
    folder = filled().folder
    path = folder / MANIFEST_FILE
    path.write_text(path.read_text(encoding="utf-8").replace('"bee"', '"Bee"'), encoding="utf-8")
    with pytest.raises(RunError, match="its checksum does not fit what it says"):
        Store.open(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"samples": 40}, "its samples are not those of its key"),
        ({"record_bytes": 56}, "its fields are not those of its outputs"),
        ({"fields": []}, "its fields are not those of its outputs"),
        ({"outputs": {}}, "a store must keep something"),
        ({"outputs": {"logits": [-5], "embedding": [6]}}, "the teacher's logits has no numbers"),
        ({"outputs": {"../../x": [5]}}, "differ in taps"),
        ({"outputs": [1]}, "has no attribute"),
        ({"outputs": {"logits": ["5"], "embedding": [6]}}, "the teacher's logits has no numbers"),
        ({"outputs": {"logits": [5.0], "embedding": [6]}}, "the teacher's logits has no numbers"),
        ({"views": -1}, "views must be a whole number"),
        ({"rows_per_shard": 0}, "rows_per_shard must be a whole number"),
        ({"key": {"teacher": "x"}}, "a store's key has the fields"),
        ({"key": None}, "a store's key has the fields"),
        ({"views": 10**15}, "cut short|is missing"),
        ({"rows_per_shard": 10**15}, "cut short"),
    ],
)
def test_a_manifest_that_says_what_cannot_be_is_refused(filled, changes, said):
    """Its checksum fits, so somebody meant it."""
    folder = filled().folder
    rewrite(folder, **changes)
    with pytest.raises(RunError, match=said):
        Store.open(folder)


def test_a_manifest_names_no_file(filled):
    assert not [
        value
        for value in json.loads((filled().folder / MANIFEST_FILE).read_bytes())
        if "file" in value or "path" in value
    ]


def test_marks_of_a_store_that_grew_behind_a_reader_are_not_its_own(cheap, filled):
    store = filled(views=1)
    reader = Store.open(store.folder)
    longer = Store.create(store.folder, store.key, store.layout, 2)
    longer.write(torch.arange(50), 1, cheap.features(torch.arange(50), 1))
    longer.commit()
    assert (len(reader), reader.views) == (50, 1)
    assert np.array_equal(reader.read(torch.arange(50), 0).logits, cheap.features(torch.arange(50), 0).logits)
    assert len(Store.open(store.folder)) == 100
