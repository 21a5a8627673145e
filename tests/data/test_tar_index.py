"""The kept index: found again, made anew where it is not right, and never in the way."""

import os
import pickle
import tarfile
from io import BytesIO

import numpy as np
import pytest

from potstill.data import tar_index as module
from potstill.data.stored import LocalFile
from potstill.data.tar_index import cache_folder, read_index


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tar"


@pytest.fixture
def built(monkeypatch):
    """The shards that were looked through."""
    calls = []
    build = module.build_index
    monkeypatch.setattr(module, "build_index", lambda file, field: calls.append(file.name) or build(file, field))
    return calls


def pack(path, *sizes, field=b'{"label": 0, "kind": 1}'):
    with tarfile.open(path, "w") as archive:
        for number, size in enumerate(sizes):
            for name, content in ((f"{number}.png", b"x" * size), (f"{number}.json", field)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, BytesIO(content))
    return path


def same(one, other):
    return all(np.array_equal(one.__dict__[name], other.__dict__[name]) for name in one.__dict__)


def test_a_shard_is_looked_through_once(tmp_path, cache, built):
    path = pack(tmp_path / "a.tar", 10, 20)
    first, second = read_index(LocalFile(path)), read_index(LocalFile(path))
    assert same(first, second)
    assert second.sizes.tolist() == [10, 20]
    assert built == ["a.tar"]
    assert [file.suffix for file in cache.iterdir()] == [".npz"]


def test_the_same_file_by_another_path(tmp_path, built, monkeypatch):
    pack(tmp_path / "a.tar", 10)
    read_index(LocalFile(tmp_path / "a.tar"))
    monkeypatch.chdir(tmp_path)
    read_index(LocalFile("a.tar"))
    (tmp_path / "link.tar").symlink_to("a.tar")
    read_index(LocalFile("link.tar"))
    assert built == ["a.tar"]


def test_another_size_another_time_another_place_and_another_field(tmp_path, built):
    path = pack(tmp_path / "a.tar", 10)
    assert read_index(LocalFile(path)).labels.tolist() == [0]
    assert read_index(LocalFile(path), "kind").labels.tolist() == [1]
    pack(path, 10, 20)
    assert len(read_index(LocalFile(path))) == 2
    os.utime(path, ns=(1, 1))
    read_index(LocalFile(path))
    (tmp_path / "b.tar").write_bytes(path.read_bytes())
    os.utime(tmp_path / "b.tar", ns=(1, 1))
    read_index(LocalFile(tmp_path / "b.tar"))
    assert built == ["a.tar"] * 4 + ["b.tar"]
    read_index(LocalFile(path))
    assert len(built) == 5


class Evil:
    def __reduce__(self):
        return os.mkdir, (os.environ["POTSTILL_CACHE"] + "/ran",)


def spoil(kind, file, parts):
    """Write what should not be believed."""
    size = file.stat().st_size
    if kind == "empty":
        file.write_bytes(b"")
    elif kind == "cut":
        os.truncate(file, size // 2)
    elif kind == "text":
        file.write_text("no index")
    elif kind == "pickle":
        file.write_bytes(pickle.dumps(Evil()))
    elif kind == "pickled part":
        np.savez(file, **parts | {"sizes": np.array([Evil()], dtype=object)})
    elif kind == "flipped":
        content = bytearray(file.read_bytes())
        place = content.index(parts["offsets"].tobytes())
        content[place] ^= 1
        file.write_bytes(content)
    else:
        np.savez(file, **parts | kind)


@pytest.mark.parametrize(
    "kind",
    [
        "empty", "cut", "text", "pickle", "pickled part", "flipped",
        {"origin": np.array("of another shard")},
        {"offsets": np.array([-1, 0])},
        {"offsets": np.array([512, 1 << 40])},
        {"offsets": np.array([512, np.iinfo(np.int64).max])},
        {"sizes": np.array([10, -5])},
        {"sizes": np.array([10])},
        {"sizes": np.array([[10, 20]])},
        {"sizes": np.array([10.0, 20.0])},
        {"labels": np.array([0, 0, 0])},
        {"ends": np.array([2, 1])},
        {"ends": np.array([1, 700])},
        {"keys": np.array([1.5])},
        {"lonely": np.array("many")},
    ],
    ids=str,
)  # fmt: skip
def test_a_damaged_index_is_made_anew(tmp_path, cache, built, kind):
    path = pack(tmp_path / "a.tar", 10, 20)
    whole = read_index(LocalFile(path))
    (file,) = cache.iterdir()
    with np.load(file) as kept:
        parts = dict(kept)
    spoil(kind, file, parts)
    assert same(read_index(LocalFile(path)), whole)
    assert built == ["a.tar"] * 2
    assert same(read_index(LocalFile(path)), whole)
    assert built == ["a.tar"] * 2
    assert not (cache.parent / "ran").exists()


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch, built):
    (tmp_path / "file").write_text("not a folder")
    for place in ("/proc/nowhere", str(tmp_path / "file")):
        monkeypatch.setenv("POTSTILL_CACHE", place)
        for _ in range(2):
            assert len(read_index(LocalFile(pack(tmp_path / "a.tar", 10)))) == 1
    assert len(built) == 4


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch, cache):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.np, "savez", full)
    assert len(read_index(LocalFile(pack(tmp_path / "a.tar", 10)))) == 1
    assert list(cache.iterdir()) == []


def test_where_it_is_kept(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("POTSTILL_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "potstill"

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(module.Path, "home", homeless)
    assert cache_folder() is None
    assert len(read_index(LocalFile(pack(tmp_path / "a.tar", 10)))) == 1
