"""The teacher's store through the command: a run that reads it is the run with the live teacher, or is refused."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.procedures.running import call

from potstill.networks.teacher import Teacher
from potstill.store import Store

# 179 of the digits to learn from, three steps an epoch.
TINY = (
    "data.source=digits", "data.val_fraction=0.9", "data.size=16", "student.model=resnet8", "device=cpu",
    "schedule.name=constant", "log.every=1", "epochs=4", "precision=fp32",
)  # fmt: skip
BOTH = "objective={ce: 1, pefd: 5, kd: 1}"


@pytest.fixture(scope="module")
def store(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two views in fp32, the logits and the embedding."""
    folder = tmp_path_factory.mktemp("stores") / "store"
    said = json.loads(build(teacher, folder, "data.views=2", "store.dtype=fp32", "--json"))
    assert said["records"] == said["computed"] == 2 * 179
    return folder


def build(teacher: Path, folder: Path, *values: str, code: int = 0) -> str:
    return call(
        "store", "build", *TINY, f"teacher.weights={teacher}", BOTH, f"teacher.store={folder}", *values, code=code
    )


@pytest.fixture
def distill(teacher: Path) -> Callable[..., str]:
    return lambda *values, code=0: call("distill", *TINY, f"teacher.weights={teacher}", BOTH, *values, code=code)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "student.safetensors")


def assert_close(one: Path, other: Path, atol: float = 1e-5) -> None:
    ours, theirs = weights(one), weights(other)
    assert all(torch.allclose(ours[name].double(), theirs[name].double(), rtol=0, atol=atol) for name in ours)


def test_fixed_views_give_the_weights_of_the_live_teacher(distill, store: Path, tmp_path: Path) -> None:
    distill(f"run={tmp_path / 'live'}", "data.views=2", "data.view_seed=0")
    distill(f"run={tmp_path / 'stored'}", "data.views=2", f"teacher.store={store}")
    assert_close(tmp_path / "live", tmp_path / "stored")


def test_every_epochs_own_views_give_the_weights_of_the_live_teacher(distill, teacher, tmp_path: Path) -> None:
    build(teacher, tmp_path / "store", "store.dtype=fp32")
    assert Store.open(tmp_path / "store").views == 4
    distill(f"run={tmp_path / 'live'}", "data.view_seed=0")
    distill(f"run={tmp_path / 'stored'}", f"teacher.store={tmp_path / 'store'}")
    assert_close(tmp_path / "live", tmp_path / "stored")


def test_one_store_serves_other_seeds_and_methods(distill, store: Path, tmp_path: Path, monkeypatch) -> None:
    """Without one pass of the live teacher but for the rows that are compared at the start."""
    passes: list[int] = []
    features = Teacher.features
    monkeypatch.setattr(
        Teacher, "features", lambda self, batch, **reads: passes.append(len(batch)) or features(self, batch, **reads)
    )
    for seed, objective in ((1, "objective={ce: 1, kd: 1}"), (2, "objective={ce: 1, nd: 1, pefd: 5}")):
        distill(objective, f"seed={seed}", "data.views=2", f"teacher.store={store}", f"run={tmp_path / str(seed)}")
    assert len(passes) == 4
    assert max(passes) <= 16


def test_class_means_come_from_the_store(distill, store: Path, tmp_path: Path) -> None:
    nd = "objective={ce: 1, nd: 2}"
    distill(nd, "data.views=2", "data.view_seed=0", f"run={tmp_path / 'live'}")
    distill(nd, "data.views=2", f"teacher.store={store}", f"run={tmp_path / 'stored'}")
    live, stored = (
        load_file(tmp_path / name / "class_means.safetensors")["class_means"] for name in ("live", "stored")
    )
    torch.testing.assert_close(live, stored, rtol=1e-4, atol=1e-5)
    assert_close(tmp_path / "live", tmp_path / "stored", atol=1e-4)


def test_a_run_fills_a_store_and_the_next_reads_it(distill, tmp_path: Path, monkeypatch) -> None:
    values = ("data.views=2", f"teacher.store={tmp_path / 'store'}")
    distill(*values, "store.fill=true", f"run={tmp_path / 'first'}")
    assert not len(Store.open(tmp_path / "store").missing()[0])
    distill(*values, f"run={tmp_path / 'second'}")
    distill(*values, "store.fill=true", f"run={tmp_path / 'third'}")
    first = (tmp_path / "first" / "student.safetensors").read_bytes()
    assert (tmp_path / "second" / "student.safetensors").read_bytes() == first
    assert (tmp_path / "third" / "student.safetensors").read_bytes() == first


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (["data.views=2", "data.padding=2"], "augmentation.padding is 4 in the store and 2 here"),
        (["data.views=2", "data.flip=true"], "augmentation.flip"),
        (["data.views=2", "data.view_seed=1"], "augmentation.seed is 0 in the store and 1 here"),
        (["data.views=2", "data.split_seed=1"], "data is"),
        (["data.views=2", "store.dtype=fp16"], "dtype is 'fp32' in the store and 'fp16' here"),
        (["data.views=2", "teacher.precision=bf16"], "precision is 'fp32' in the store and 'bf16' here"),
        (["data.views=3"], "has 2 views of each image, and this run sees 3"),
        ([], "Set data.views=2"),
        (["data.views=2", "data.mixup=0.2"], "shows it mixtures"),
        (["data.views=2", "objective={ce: 1, fitnets: 1}"], "the objective reads maps too. Set store.live=true"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_another_store_than_the_run_needs_is_refused_with_the_field(
    distill, store: Path, tmp_path: Path, values: list[str], sentence: str
) -> None:
    said = distill(f"teacher.store={store}", f"run={tmp_path / 'run'}", *values, code=2)
    assert sentence in " ".join(said.split())


def test_a_changed_byte_of_the_teacher_is_refused(teacher: Path, store: Path, tmp_path: Path) -> None:
    other = shutil.copytree(teacher, tmp_path / "other")
    state = load_file(other / "student.safetensors")
    name = next(name for name in state if name.endswith("conv1.weight"))
    state[name].view(torch.uint8).view(-1)[0] ^= 1
    save_file(state, other / "student.safetensors")
    values = (
        *TINY,
        f"teacher.weights={other}",
        BOTH,
        "data.views=2",
        f"teacher.store={store}",
        f"run={tmp_path / 'r'}",
    )
    assert "; teacher is" in call("distill", *values, code=2).replace("else: ", "; ")


def test_a_store_of_other_classes_is_refused(teacher: Path, tmp_path: Path) -> None:
    """The same images, of which one class has another name, and so another number."""
    from PIL import Image

    for number, name in enumerate(("cat", "dog")):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for k in range(8):
            pixels = torch.randint(
                256, (20, 20, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(k + number)
            )
            Image.fromarray(pixels.numpy()).save(tmp_path / "pictures" / name / f"{k}.png")
    common = (f"data.path={tmp_path / 'pictures'}", "data.size=16", "data.loader=resident", "student.model=resnet8",
              "epochs=1", "batch_size=8", "device=cpu", "precision=fp32")  # fmt: skip
    call("train", *common, f"run={tmp_path / 'teacher'}")
    values = (
        *common,
        f"teacher.weights={tmp_path / 'teacher'}",
        f"teacher.store={tmp_path / 'store'}",
        "objective={ce: 1, pefd: 1}",
    )
    call("store", "build", *values)
    (tmp_path / "pictures" / "cat").rename(tmp_path / "pictures" / "zebra")
    said = call("distill", *values, f"run={tmp_path / 'run'}", code=2)
    assert "data is" in said
    assert "classes" in said


def test_maps_come_from_the_live_teacher_where_that_is_allowed(distill, store: Path, tmp_path: Path) -> None:
    objective = "objective={ce: 1, fitnets: 1, pefd: 5}"
    distill(objective, "data.views=2", "data.view_seed=0", f"run={tmp_path / 'live'}")
    values = ("store.live=true", "data.views=2", f"teacher.store={store}", f"run={tmp_path / 'stored'}")
    distill(objective, *values)
    assert_close(tmp_path / "live", tmp_path / "stored", atol=0)


def test_maps_are_kept_when_they_are_asked_for(distill, teacher: Path, tmp_path: Path) -> None:
    objective = "objective={ce: 1, fitnets: 1}"
    values = ("data.views=1", "store.dtype=fp32", f"teacher.store={tmp_path / 'store'}", objective)
    said = call("store", "build", *TINY, f"teacher.weights={teacher}", *values, code=2)
    assert "feature maps are large" in said
    said = call("store", "build", *TINY, f"teacher.weights={teacher}", *values, "store.keep=[maps]")
    assert "Feature maps are" in said
    distill(objective, "data.views=1", "data.view_seed=0", f"run={tmp_path / 'live'}")
    distill(*values, f"run={tmp_path / 'stored'}")
    assert_close(tmp_path / "live", tmp_path / "stored", atol=1e-4)


def test_a_part_of_the_logits_is_enough_where_it_is_asked_for(distill, teacher: Path, tmp_path: Path) -> None:
    build(teacher, tmp_path / "store", "data.views=2", "store.top=3")
    distill("data.views=2", f"teacher.store={tmp_path / 'store'}", f"run={tmp_path / 'run'}")
    found = json.loads(call("store", "info", str(tmp_path / "store"), "--json"))
    assert (found["key"]["top_k"], found["key"]["dtype"], found["records"]) == (3, "fp16", 358)
    # Three values of two bytes and three places of two, filled up to four each; the rest; the embedding; the check.
    assert found["record_bytes"] == 8 + 8 + 4 + 2 * 64 + 4


def test_a_row_that_is_not_the_teachers_is_found_at_the_start(distill, store: Path, tmp_path: Path) -> None:
    """The key is right, and the numbers are of other images: what no key can show."""
    copy = shutil.copytree(store, tmp_path / "store")
    with Store.open(copy, write=True) as opened:
        index = torch.arange(179)
        found = opened.read(index, 0)
        opened.write(index.flip(0), 0, found)
        opened.write(index.flip(0), 1, found)
    said = distill("data.views=2", f"teacher.store={copy}", f"run={tmp_path / 'run'}", code=2)
    assert "does not hold what the teacher says now" in said


def test_a_flipped_bit_is_found_named_and_mended(teacher: Path, store: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(store, tmp_path / "store")
    shard = copy / "rows-00000.bin"
    content = bytearray(shard.read_bytes())
    record = Store.open(copy).layout.record_bytes
    content[(179 + 5) * record + 17] ^= 4
    shard.write_bytes(content)
    said = call("store", "verify", str(copy), code=1)
    assert "1 of 358 records are damaged" in said
    assert "sample 5" in said
    assert "view 1" in said
    assert "forgotten" in call("store", "verify", str(copy), "--mend")
    build(teacher, copy, "data.views=2")
    assert shard.read_bytes() == (store / "rows-00000.bin").read_bytes()
    found = call("store", "verify", str(copy), *TINY, f"teacher.weights={teacher}", BOTH, "data.views=2")
    assert "all 358 records are there and whole" in found
    assert "rows computed anew are the same" in found


@pytest.mark.parametrize("command", ["info", "verify"])
def test_what_is_no_store_is_told(tmp_path: Path, command: str) -> None:
    assert str(tmp_path) in call("store", command, str(tmp_path), code=2)


def test_building_says_what_is_missing(teacher: Path, distill, tmp_path: Path) -> None:
    assert "There is no store in" in distill(f"teacher.store={tmp_path / 'none'}", f"run={tmp_path / 'r'}", code=2)
    assert "There is no store to build" in call("store", "build", *TINY, f"teacher.weights={teacher}", code=2)
    assert "store.fill" in call("distill", *TINY, f"teacher.weights={teacher}", "store.fill=true", code=2)


def test_a_store_without_what_the_objective_reads_is_not_built(teacher: Path, tmp_path: Path) -> None:
    said = build(teacher, tmp_path / "store", "store.keep=[maps]", code=2)
    assert "store.keep=[maps] leaves out logits and embedding, which the objective reads" in " ".join(said.split())
    assert not (tmp_path / "store").exists()


def test_a_file_in_a_stores_place_is_told(teacher: Path, distill, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert "is a file; a store is a folder" in build(teacher, tmp_path / "file", code=2)
    assert "is a file" in distill(f"teacher.store={tmp_path / 'file'}", f"run={tmp_path / 'run'}", code=2)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_wrong_store_is_told_before_anything_trains(distill, store: Path, tmp_path: Path) -> None:
    values = ("control=true", f"run={tmp_path / 'run'}")
    distill("data.views=3", f"teacher.store={store}", *values, code=2)
    distill(f"teacher.store={tmp_path / 'none'}", *values, code=2)
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_a_builder_killed_five_times_loses_nothing(teacher: Path, tmp_path: Path) -> None:
    """SIGKILL at random instants of real processes; the store ends byte for byte as an undisturbed one."""

    def start(folder: Path) -> subprocess.Popen:
        words = ["store", "build", *TINY, f"teacher.weights={teacher}", BOTH, f"teacher.store={folder}", "epochs=40"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, "-m", "potstill", *words], env=environment, stdout=subprocess.DEVNULL)

    whole = start(tmp_path / "whole")
    began = time.monotonic()
    assert whole.wait(120) == 0
    takes = time.monotonic() - began
    dice = random.Random(0)
    for _ in range(5):
        cut = start(tmp_path / "cut")
        time.sleep(dice.uniform(0.3, 0.9) * takes)
        cut.send_signal(signal.SIGKILL)
        cut.wait()
        if (tmp_path / "cut" / "store.json").exists():
            found = json.loads(call("store", "verify", str(tmp_path / "cut"), "--json"))
            assert found["sound"]
    assert start(tmp_path / "cut").wait(120) == 0
    for name in ("rows-00000.bin", "done.bin"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    means = [load_file(tmp_path / name / "class_means.safetensors")["class_means"] for name in ("cut", "whole")]
    assert torch.equal(*means)


@pytest.mark.long
def test_two_processes_build_the_store_of_one(teacher: Path, store: Path, tmp_path: Path) -> None:
    words = [*TINY, f"teacher.weights={teacher}", BOTH, f"teacher.store={tmp_path / 'two'}", "data.views=2"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "potstill"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*command, "store", "build", *words, "store.dtype=fp32"], env=environment, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "two" / "rows-00000.bin").read_bytes() == (store / "rows-00000.bin").read_bytes()
