"""CIFAR in its official layout, written small."""

import pickle

import numpy as np
import pytest

from potstill.data.cifar import CIFAR, cifar, find_cifar, statistics_of
from potstill.data.open import open_data
from potstill.data.source import IMAGENET
from potstill.errors import DataError

FINE = ["apple", "aquarium_fish", "baby", *(f"thing {number}" for number in range(97))]


def batch(count, seed, **labels):
    data = np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)
    return {b"data": data, **{key.encode(): values for key, values in labels.items()}}


def dump(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))


def write_cifar10(root):
    folder = root / "cifar-10-batches-py"
    for number in range(1, 6):
        dump(folder / f"data_batch_{number}", batch(4, number, labels=[0, 1, 2, number]))
    dump(folder / "test_batch", batch(3, 9, labels=[7, 8, 9]))
    dump(folder / "batches.meta", {b"label_names": [b"airplane", *(b"class %d" % number for number in range(1, 10))]})
    return folder


def write_cifar100(root):
    folder = root / "cifar-100-python"
    dump(folder / "train", batch(5, 1, fine_labels=[0, 99, 3, 3, 4], coarse_labels=[0, 19, 1, 1, 2]))
    dump(folder / "test", batch(2, 2, fine_labels=[5, 6], coarse_labels=[3, 4]))
    coarse = [f"group {number}".encode() for number in range(20)]
    dump(folder / "meta", {b"fine_label_names": [name.encode() for name in FINE], b"coarse_label_names": coarse})
    return folder


def test_cifar10_is_read_whole_and_in_order(tmp_path):
    write_cifar10(tmp_path)
    split = cifar("cifar10", tmp_path)
    assert (len(split.train), len(split.val)) == (20, 3)
    assert split.train.labels.tolist() == [0, 1, 2, 1, 0, 1, 2, 2, 0, 1, 2, 3, 0, 1, 2, 4, 0, 1, 2, 5]
    assert split.val.labels.tolist() == [7, 8, 9]
    assert split.train.classes[:2] == ("airplane", "class 1")
    assert split.train.statistics == CIFAR["cifar10"].statistics
    assert split.note == "Validation is the standard test set of cifar10: 3 images."


def test_a_row_is_three_planes(tmp_path):
    write_cifar10(tmp_path)
    raw = batch(4, 2)[b"data"][1]
    image = cifar("cifar10", tmp_path).train.image(5)  # the second file's second row
    assert image.shape == (32, 32, 3)
    for channel in range(3):
        np.testing.assert_array_equal(image[..., channel], raw[channel * 1024 : (channel + 1) * 1024].reshape(32, 32))


@pytest.mark.parametrize(
    ("column", "labels", "classes"),
    [(None, [0, 99, 3, 3, 4], 100), ("fine_label", [0, 99, 3, 3, 4], 100), ("coarse_label", [0, 19, 1, 1, 2], 20)],
)
def test_cifar100_has_two_kinds_of_labels(tmp_path, column, labels, classes):
    write_cifar100(tmp_path)
    split = open_data("auto", tmp_path, label_column=column)
    assert split.train.labels.tolist() == labels
    assert len(split.train.classes) == classes
    assert split.train.statistics == CIFAR["cifar100"].statistics


def test_the_folder_itself_or_the_one_above(tmp_path):
    folder = write_cifar100(tmp_path)
    assert find_cifar(tmp_path) == find_cifar(folder) == {"cifar100": folder}
    assert cifar("cifar100", tmp_path).train.identity == cifar("cifar100", folder).train.identity
    assert open_data("cifar100", str(folder)).val.labels.tolist() == [5, 6]


def test_two_sets_in_one_folder_must_be_named(tmp_path):
    write_cifar10(tmp_path)
    write_cifar100(tmp_path)
    with pytest.raises(DataError, match=r"holds cifar10 and cifar100\. Name one with data\.source"):
        open_data("auto", tmp_path)
    assert len(open_data("cifar10", tmp_path).train) == 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({b"data": np.zeros((4, 100), np.uint8)}, r"data_batch_3: 'data' .* got \(4, 100\) of uint8"),
        ({b"data": np.zeros((4, 3072), np.float32)}, "data_batch_3: 'data' .* of float32"),
        ({b"data": [1, 2]}, "data_batch_3: 'data' .* got list"),
        ({b"labels": [0, 1]}, "data_batch_3: 'labels' should be a list of 4 labels"),
        ({b"labels": None}, "data_batch_3: 'labels' should be a list of 4 labels"),
        ({b"labels": [0, 1, 2, 10]}, "data_batch_3: 'labels' should be whole numbers from 0 to 9"),
        ({b"labels": [0, 1, 2, -1]}, "data_batch_3: 'labels' should be whole numbers from 0 to 9"),
        ({b"labels": ["a", "b", "c", "d"]}, "data_batch_3: 'labels' should be whole numbers"),
        ({b"labels": [[0], [1, 2], [3], [4]]}, "data_batch_3: 'labels' should be whole numbers"),
    ],
)
def test_files_of_another_shape_are_named(tmp_path, change, message):
    folder = write_cifar10(tmp_path)
    dump(folder / "data_batch_3", batch(4, 3, labels=[0, 1, 2, 3]) | change)
    with pytest.raises(DataError, match=message):
        cifar("cifar10", tmp_path)


def test_an_empty_batch(tmp_path):
    folder = write_cifar10(tmp_path)
    dump(folder / "data_batch_3", batch(0, 3, labels=[]))
    with pytest.raises(DataError, match="data_batch_3 holds no images"):
        cifar("cifar10", tmp_path)


def test_what_is_no_dictionary(tmp_path):
    folder = write_cifar10(tmp_path)
    dump(folder / "test_batch", [1, 2])
    with pytest.raises(DataError, match="test_batch should hold a dictionary, but holds a list"):
        cifar("cifar10", tmp_path)


def test_wrong_names(tmp_path):
    folder = write_cifar10(tmp_path)
    dump(folder / "batches.meta", {b"label_names": [b"one"]})
    with pytest.raises(DataError, match=r"batches\.meta should hold 10 names under 'label_names'"):
        cifar("cifar10", tmp_path)


def test_a_truncated_file_is_named(tmp_path):
    folder = write_cifar10(tmp_path)
    path = folder / "data_batch_5"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=f"Cannot read the pickle {path}"):
        open_data("auto", tmp_path)


def test_a_missing_file_is_named(tmp_path):
    folder = write_cifar10(tmp_path)
    (folder / "data_batch_2").unlink()
    with pytest.raises(DataError, match="lacks data_batch_2 of cifar10"):
        open_data("auto", tmp_path)


def test_an_unknown_label_column(tmp_path):
    write_cifar100(tmp_path)
    with pytest.raises(DataError, match=r"cifar100 has no labels 'label'\. It has: fine_label, coarse_label"):
        open_data("cifar100", tmp_path, label_column="label")


def test_statistics_are_recognised_by_classes_and_size():
    coarse = ("aquatic_mammals", "fish", "flowers", *map(str, range(17)))
    assert statistics_of(tuple(FINE), (32, 32)) == CIFAR["cifar100"].statistics
    assert statistics_of(coarse, (32, 32)) == CIFAR["cifar100"].statistics
    assert statistics_of(tuple(FINE), (64, 64)) == IMAGENET
    assert statistics_of(tuple(FINE[:50]), (32, 32)) == IMAGENET
    assert statistics_of((), None) == IMAGENET
