"""From a data section to what a run does: what auto becomes, and which values nothing would read."""

import numpy as np
import pytest

from potstill.config import DataConfig, Recipe
from potstill.data.source import ArraySource, Source, Split, subset
from potstill.errors import DataError
from potstill.procedures.data import describe_data, prepare_data
from potstill.procedures.opening import open_split, resolve_data
from potstill.training.distributed import Processes


class Many(Source):
    """So many images of one size that none is there."""

    def __init__(self, count: int, side: int | None = 32) -> None:
        self.count, self.name, self.fixed_size = count, "many", (side, side) if side else None

    identity = "0" * 16

    def __len__(self) -> int:
        return self.count

    def image(self, index: int) -> np.ndarray:
        raise AssertionError(f"image {index} was decoded")

    def describe(self, index: int) -> str:
        return f"image {index}"


def small(count: int = 6) -> ArraySource:
    return ArraySource(np.zeros((count, 8, 8, 3), np.uint8), [0, 1] * (count // 2), name="small", classes=("a", "b"))


@pytest.mark.parametrize(
    ("source", "loader"),
    [
        (Many(299_593), "resident"),  # x 32 x 32 x 7 bytes is the last count below 2 GiB
        (Many(299_594), "streaming"),
        (Many(10, None), "streaming"),
    ],
)
def test_the_resident_loader_is_chosen_where_the_images_are_small_and_fit(source: Source, loader: str) -> None:
    assert resolve_data(Recipe(data=DataConfig()), source).loader == loader
    assert resolve_data(Recipe(data=DataConfig(loader="resident")), source).loader == "resident"


@pytest.mark.parametrize(
    ("config", "sentences"),
    [
        ({"crop": "none", "padding": 2}, ["data.padding=2 does nothing with data.crop=none, only with pad."]),
        (
            {"scale": (0.5, 1.0), "ratio": (1.0, 1.0)},
            [
                "data.scale=[0.5, 1.0] does nothing with data.crop=pad, only with resized.",
                "data.ratio=[1.0, 1.0] does nothing with data.crop=pad, only with resized.",
            ],
        ),
        (
            {"workers": 2, "split_seed": 3},
            [
                "data.workers=2 does nothing with data.loader=resident, only with streaming.",
                "data.split_seed=3 does nothing: small is used whole, so there is no split to choose.",
            ],
        ),
    ],
)
def test_values_that_nothing_reads_are_named_all_at_once(config: dict, sentences: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        resolve_data(Recipe(data=DataConfig(**config)), small())
    assert all(sentence in str(caught.value) for sentence in sentences)
    assert str(caught.value).count("does nothing") == len(sentences)


def test_values_that_are_read_stay_and_resolve_again_to_the_same() -> None:
    config = DataConfig(crop="resized", scale=(0.5, 1.0), loader="streaming", workers=0, split_seed=3)
    resolved = resolve_data(Recipe(data=config), subset(small(), [0, 1]))
    assert (resolved.scale, resolved.workers, resolved.split_seed, resolved.size) == ((0.5, 1.0), 0, 3, 8)
    assert resolve_data(Recipe(data=resolved), subset(small(), [0, 1])) == resolved


def test_the_facts_are_known_before_an_image_is_decoded() -> None:
    split = Split(Many(1000), Many(10), "A note.")
    recipe = Recipe(data=resolve_data(Recipe(data=DataConfig(mean=(0.1, 0.2, 0.3))), split.train))
    facts = describe_data(recipe, split)
    assert (facts.size, facts.mean, facts.found, facts.labelled) == (32, (0.1, 0.2, 0.3), (1000, 10), False)
    assert facts.notes == ("A note.", "The resident loader decodes the 1,010 images once and holds them on the device.")


def test_the_prepared_data_have_the_facts_of_their_split() -> None:
    split = Split(small(6), small(2), "A note.")
    streaming = Recipe(data=DataConfig(loader="streaming", workers=0))
    recipe = Recipe(batch_size=4, data=resolve_data(streaming, split.train))
    data = prepare_data(recipe, split, Processes("cpu"))
    assert (data.classes, data.found, data.train.steps, data.skipped) == (
        ("a", "b"),
        (6, 2),
        2,
        {"train": {}, "val": {}},
    )
    assert data.notes[1] == "The streaming loader decodes the 8 images anew in each epoch."


def test_images_are_mirrored_by_what_they_are_and_not_by_their_name() -> None:
    """A folder may be called digits-of-plants."""
    photographs = Many(10)
    photographs.name = "digits-of-plants/train"
    assert resolve_data(Recipe(data=DataConfig()), photographs).flip is True
    for val_fraction in (0, 0.5):
        digits = open_split(Recipe(data=DataConfig(source="digits", val_fraction=val_fraction))).train
        assert resolve_data(Recipe(data=DataConfig()), digits).flip is False
    assert resolve_data(Recipe(data=DataConfig(flip=True)), digits).flip is True
