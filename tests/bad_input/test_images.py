"""Damaged images are named, or skipped, counted and reported; unusual ones are read."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

LOADERS = {
    "resident": ("data.loader=resident", "data.crop=none"),
    "streaming": ("data.loader=streaming", "data.crop=resized", "data.workers=0"),
}


@pytest.fixture(params=LOADERS)
def loader(request):
    """The values that choose each of the two loaders."""
    return LOADERS[request.param]


@pytest.fixture
def damaged(draw, tmp_path):
    """Twelve images to train on and six to judge by, of which two and one are damaged."""
    for part, count in (("train", 6), ("val", 3)):
        for name in ("cats", "dogs"):
            draw(tmp_path / "data" / part / name, count, suffix=".jpg" if name == "dogs" else ".png")
    bad = [tmp_path / "data" / place for place in ("train/cats/002.png", "train/dogs/004.jpg", "val/cats/001.png")]
    bad[0].write_bytes(b"this is no image")
    bad[1].write_bytes(bad[1].read_bytes()[:-200])  # truncated
    bad[2].write_bytes(b"")
    return bad


def test_a_damaged_image_is_named(refused, trains, quick, draw, damaged, loader, tmp_path):
    run = tmp_path / "run"
    values = [*quick, *loader, f"data.path={tmp_path / 'data'}", f"run={run}"]
    said = refused("train", *values)
    assert f"Cannot read the image {damaged[0]}: it is none of JPEG, PNG" in said or f"{damaged[1]}: " in said
    assert said.rstrip().endswith(". Mend or remove it, or set data.on_error=skip to go on without it.")
    assert said.count("on_error") == 1
    assert not (run / "result.json").exists()
    assert not (run / "checkpoints").exists()
    # It can be mended, and the same command starts, whatever it said in the folder before.
    for path in damaged:
        path.unlink()
    trains("train", *values)


def test_skipped_images_are_counted_and_reported(trains, quick, damaged, loader, tmp_path):
    run = tmp_path / "run"
    values = [*quick, *loader, f"data.path={tmp_path / 'data'}", f"run={run}", "data.on_error=skip", "epochs=2"]
    said = trains("train", *values)
    assert "warning: 3 damaged images were skipped. Cannot read the image " in said
    assert "Mend or remove" not in said  # what to do is for those whose run stopped
    data = json.loads((run / "result.json").read_text())["data"]
    assert (data["train"], data["val"]) == (10, 5)
    assert {name: sorted(images) for name, images in data["skipped"].items()} == {
        "train": sorted(str(path) for path in damaged[:2]),
        "val": [str(damaged[2])],
    }
    assert data["skipped"]["val"][str(damaged[2])] == f"Cannot read the image {damaged[2]}: it is empty (0 bytes)."

    # A run that was interrupted after its last checkpoint tells of them all the same.
    (run / "result.json").unlink()
    trains("train", *values)
    assert json.loads((run / "result.json").read_text())["data"] == data


def test_evaluation_skips_too(potstill, trains, quick, draw, tmp_path):
    for name in ("cats", "dogs"):
        draw(tmp_path / "data" / name, 4)
    run = tmp_path / "run"
    trains("train", *quick, *LOADERS["resident"], f"data.path={tmp_path / 'data'}", f"run={run}")
    draw(tmp_path / "others" / "cats", 5)[3].write_bytes(b"GIF89a")
    judge = ["evaluate", run, f"data.path={tmp_path / 'others'}"]
    draw(tmp_path / "others" / "dogs", 5)
    result = potstill(*judge)
    assert result.exit_code == 2
    assert f"Cannot read the image {tmp_path / 'others' / 'cats' / '003.png'}" in result.stderr
    result = potstill(*judge, "data.on_error=skip", "--json")
    found = json.loads(result.stdout)
    assert (found["images"], found["skipped"]) == (9, 1)
    assert "1 damaged image was skipped." in result.stderr


def test_nothing_but_damaged_images(refused, quick, draw, loader, tmp_path):
    for name in ("cats", "dogs"):
        for path in draw(tmp_path / "data" / name, 2):
            path.write_bytes(b"\x89PNG")
    values = [f"data.path={tmp_path / 'data'}", f"run={tmp_path / 'run'}", "data.on_error=skip", "data.val_fraction=0"]
    said = refused("train", *quick, *loader, *values)
    assert "None of the " in said
    assert "could be read" in said or "can be read" in said
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_every_kind_of_image_trains(trains, quick, loader, tmp_path):
    rng = np.random.default_rng(0)
    kinds = {
        "grey.png": rng.integers(0, 256, (12, 14), dtype=np.uint8),
        "wide.png": rng.integers(0, 65536, (12, 14), dtype=np.uint16),
        "colour.png": rng.integers(0, 256, (12, 14, 3), dtype=np.uint8),
        "clear.png": rng.integers(0, 256, (12, 14, 4), dtype=np.uint8),
    }
    for name in ("cats", "dogs"):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        for file, pixels in kinds.items():
            Image.fromarray(pixels).save(folder / file)
        colour = Image.fromarray(kinds["colour.png"])
        colour.convert("P").save(folder / "palette.gif")
        colour.convert("P").save(folder / "palette.png", transparency=0)
        colour.convert("CMYK").save(folder / "print.jpg")
        colour.convert("1").save(folder / "line.bmp")
        colour.convert("LA").save(folder / "veil.webp")
        Image.fromarray(kinds["wide.png"]).save(folder / "wide.tif")
    run = tmp_path / "run"
    trains("train", *quick, *loader, f"data.path={tmp_path / 'data'}", f"run={run}", "data.val_fraction=0")
    data = json.loads((run / "result.json").read_text())["data"]
    assert (data["train"], data["skipped"]) == (20, {"train": {}, "val": {}})


def test_a_damaged_row_of_parquet(refused, trains, quick, draw, loader, tmp_path):
    content = [file.read_bytes() for file in draw(tmp_path / "pictures", 6)]
    content[4] = content[4][:50]
    table = pa.table({"image": [{"bytes": one} for one in content], "label": [0, 1] * 3})
    pq.write_table(table, tmp_path / "train.parquet")
    values = [*quick, *loader, f"data.path={tmp_path / 'train.parquet'}", "data.val_fraction=0"]
    said = refused("train", *values, f"run={tmp_path / 'run'}")
    assert "Cannot read the image row 4 of " in said
    assert "train.parquet" in said
    trains("train", *values, f"run={tmp_path / 'run'}", "data.on_error=skip")
    data = json.loads((tmp_path / "run" / "result.json").read_text())["data"]
    (place,) = data["skipped"]["train"]
    assert (data["train"], place.startswith("row 4 of ")) == (5, True)
