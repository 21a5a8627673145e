"""Which feature maps are compared, and what two networks must have in common."""

import pytest
import torch

from potstill.errors import NetworkError, RecipeError
from potstill.methods import Setting
from potstill.methods.pairs import check_shapes, common_classes, map_pairs
from potstill.networks.features import FeatureSpec, MapSpec


def spec(maps: int, classes: int = 5) -> FeatureSpec:
    return FeatureSpec(classes, 8, tuple(MapSpec(f"layer{i}", 8 * (i + 1), 2**i) for i in range(maps)))


def test_all_but_the_stem_in_their_order():
    assert map_pairs(Setting(spec(4), spec(4)), None, "vid") == [(1, 1), (2, 2), (3, 3)]
    assert map_pairs(Setting(spec(2), spec(2)), None, "vid") == [(1, 1)]


def test_named_pairs_are_taken_as_they_are_named():
    assert map_pairs(Setting(spec(3), spec(5)), ((0, 0), (2, 4)), "vid") == [(0, 0), (2, 4)]
    assert map_pairs(Setting(spec(1), spec(1)), [[0, 0]], "vid") == [(0, 0)]  # as YAML brings them


def test_what_is_refused():
    with pytest.raises(NetworkError, match=r"student has 2 maps \(layer0, layer1\) and the teacher 3 maps .*in vid's"):
        map_pairs(Setting(spec(2), spec(3)), None, "vid")
    with pytest.raises(NetworkError, match="student has no maps and the teacher no maps"):
        map_pairs(Setting(spec(0), spec(0)), None, "ab")
    with pytest.raises(NetworkError, match=r"student has 1 maps \(layer0\)"):
        map_pairs(Setting(spec(1), spec(1)), None, "ab")
    for pair in ((2, 0), (0, 3), (-1, 0), (0, -1)):
        with pytest.raises(RecipeError, match=rf"layers of ab has the pair \[{pair[0]}, {pair[1]}\], but the student"):
            map_pairs(Setting(spec(2), spec(3)), ((0, 0), pair), "ab")
    with pytest.raises(RecipeError, match="layers of vid is empty"):
        map_pairs(Setting(spec(2), spec(3)), (), "vid")
    with pytest.raises(RecipeError, match="vid learns from a teacher, and there is none"):
        map_pairs(Setting(spec(2)), None, "vid")


def test_classes_and_shapes():
    assert common_classes(Setting(spec(0, 7), spec(0, 7)), "dkd") == 7
    for student, teacher in ((7, 8), (0, 0)):
        with pytest.raises(NetworkError, match=f"student has {student} classes and the teacher {teacher}"):
            common_classes(Setting(spec(0, student), spec(0, teacher)), "dkd")
    check_shapes(torch.ones(2, 3), torch.ones(2, 3), "dkd")
    with pytest.raises(NetworkError, match=r"ab compares maps of one shape, but the student's are \(2, 3\) and the"):
        check_shapes(torch.ones(2, 3), torch.ones(2, 1), "ab", "maps")
