"""Pickles of arrays are read; any other is refused and not run."""

import collections
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from potstill.data.unpickle import read_pickle
from potstill.errors import DataError


def write(tmp_path, data):
    path = tmp_path / "batch"
    path.write_bytes(data)
    return path


class Calls:
    """Pickles as the call of a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_containers_are_read(tmp_path, protocol):
    content = collections.OrderedDict(
        data=np.arange(12, dtype=np.uint8).reshape(3, 4),
        labels=[1, 2, 3],
        names=("a", "b"),
        mean=np.float32(0.5),
        raw=b"\x00\xff",
        flags={True, None},
    )
    read = read_pickle(write(tmp_path, pickle.dumps(content, protocol=protocol)))
    assert list(read) == list(content)
    np.testing.assert_array_equal(read["data"], content["data"])
    assert read["data"].dtype == np.uint8
    assert read["mean"] == np.float32(0.5)
    assert {key: read[key] for key in ("labels", "names", "raw", "flags")} == {
        "labels": [1, 2, 3],
        "names": ("a", "b"),
        "raw": b"\x00\xff",
        "flags": {True, None},
    }


def test_old_module_names_and_text_of_python_2(tmp_path):
    # As Python 2 wrote CIFAR: byte strings for keys, numpy.core for the array's constructor.
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01bt"
        b"R(I1\n(I2\nI2\ntcnumpy\ndtype\n(U\x02u1I0\nI1\ntR(I3\nU\x01|NNNI-1\nI-1\nI0\ntbI00\nU\x04\x01\x02\xc3\xfftb"
    )
    read = read_pickle(write(tmp_path, b"\x80\x02}U\x04data" + array + b"s."))
    assert read[b"data"].tolist() == [[1, 2], [0xC3, 0xFF]]


def test_a_call_of_the_system_is_refused_and_does_not_happen(tmp_path):
    proof = tmp_path / "proof"
    path = write(tmp_path, pickle.dumps({"data": Calls(os.system, f"touch {proof}")}, protocol=2))
    with pytest.raises(DataError, match=rf"Refused to read {path}: the pickle wants to use (posix|nt)\.system"):
        read_pickle(path)
    assert not proof.exists()
    pickle.loads(path.read_bytes())  # the same bytes do harm with the ordinary reader
    assert proof.exists()


@pytest.mark.parametrize(
    "payload",
    [
        Calls(eval, "1"),
        Calls(getattr, "a", "join"),
        Calls(np.load, "x"),
        Calls(subprocess.run, ["true"]),
        Calls(Path, "x"),
        Calls(np.random.default_rng),
        np.ma.masked_array([1], [0]),
        ValueError("x"),
    ],
    ids=lambda payload: payload.call[0].__name__ if isinstance(payload, Calls) else type(payload).__name__,
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_every_other_name_is_refused(tmp_path, payload, protocol):
    with pytest.raises(DataError, match="Nothing of it was run"):
        read_pickle(write(tmp_path, pickle.dumps(payload, protocol=protocol)))


@pytest.mark.parametrize("name", [b"numpy\nload", b"numpy.core.multiarray\nfrombuffer", b"collections\nabc.sys"])
def test_admitted_modules_give_only_the_admitted_names(tmp_path, name):
    with pytest.raises(DataError, match="wants to use"):
        read_pickle(write(tmp_path, b"c" + name + b"\n."))


def test_an_unknown_module_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "harmful_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match=r"harmful_module\.thing"):
        read_pickle(write(tmp_path, b"charmful_module\nthing\n."))
    assert "harmful_module" not in sys.modules


DTYPE = b"cnumpy\ndtype\n(%s\nI0\nI1\ntR"


@pytest.mark.parametrize("code", [b"VO", b"VO8", b"VV8", b"VM8", b"Vu1,O", b"V|O"])
def test_arrays_of_objects_and_structures_are_refused(tmp_path, code):
    with pytest.raises(DataError, match=r"arrays of type .* are not read"):
        read_pickle(write(tmp_path, DTYPE % code + b"."))


def test_a_type_that_is_forged_after_its_making_is_refused(tmp_path):
    # A type's state can give it fields, and with them objects whose addresses the file would choose.
    state = b"(I3\nV|\nN(Va\nt}Va\n" + DTYPE % b"Vu1" + b"I0\n\x86sI8\nI1\nI0\ntb."
    with pytest.raises(DataError, match="structured arrays are not read"):
        read_pickle(write(tmp_path, DTYPE % b"Vu1" + state))


@pytest.mark.parametrize(
    ("shape", "raw", "message"),
    [
        ((-1, -2), b"ab", r"cannot have the shape \(-1, -2\)"),
        ((4,), b"ab", "does not match"),
        ((1,), ["a"], "not plain bytes"),
    ],
)
def test_an_array_that_does_not_add_up(tmp_path, shape, raw, message):
    array = np.zeros(1, np.uint8)
    function, arguments, state = array.__reduce__()
    forged = Calls(function, *arguments)
    forged.call = (function, arguments, (1, shape, state[2], False, raw))
    with pytest.raises(DataError, match=message):
        read_pickle(write(tmp_path, pickle.dumps(forged, protocol=2)))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_orders_of_bytes_and_of_axes_are_kept(tmp_path, protocol):
    arrays = {
        "big": np.arange(6, dtype=">i4").reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "text": np.array(["ab", "c"]),
        "truth": np.array([True, False]),
        "empty": np.zeros((0, 3), np.int16),
    }
    read = read_pickle(write(tmp_path, pickle.dumps(arrays, protocol=protocol)))
    for name, array in arrays.items():
        np.testing.assert_array_equal(np.asarray(read[name]), array)
        assert read[name].dtype.newbyteorder("=") == array.dtype.newbyteorder("=")


def test_no_codec_is_looked_up_by_name(tmp_path):
    with pytest.raises(DataError, match="encoding 'rot13'"):
        read_pickle(write(tmp_path, b"c_codecs\nencode\n(Vabc\nVrot13\ntR."))


def test_persistent_references_are_refused(tmp_path):
    with pytest.raises(DataError, match="persistent"):
        read_pickle(write(tmp_path, b"Psomewhere\n."))


def test_truncated_and_foreign_files_are_named(tmp_path):
    whole = pickle.dumps({"data": np.zeros(100)}, protocol=2)
    for data in (whole[:50], whole[:-1], b"", b"hello", b"\x80\x02]q\x00K\x01b."):
        path = write(tmp_path, data)
        with pytest.raises(DataError, match=f"Cannot read the pickle {path}: .* damaged or truncated"):
            read_pickle(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(DataError, match="There is no file"):
        read_pickle(tmp_path / "gone")
