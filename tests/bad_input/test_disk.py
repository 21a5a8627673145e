"""A full disk: the file that does not fit is not there, all others are as they were, and the same command goes on."""

import contextlib
import json
import os
import resource
import subprocess

import pytest


@contextlib.contextmanager
def files_up_to(size: int):
    """Let no file of this process grow beyond so many bytes; the system then says an error, as of a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own for a run, and a way to make it larger."""
    if os.geteuid() != 0:
        pytest.skip("to mount a small disk one must be root")
    disk = tmp_path / "disk"
    disk.mkdir()
    # One checkpoint of ResNet8 with its momentum is 650 kB, the student 320 kB.
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", disk], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"this system lets nobody mount a disk: {mounted.stderr.decode().strip()}")
    yield disk, lambda: subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_in_a_checkpoint_loses_nothing(refused, trains, contents, quick, digits, small_disk, tmp_path):
    disk, enlarge = small_disk
    run = disk / "run"
    values = [*quick, *digits, "epochs=3"]
    said = refused("train", *values, f"run={run}")
    assert f"{run / 'checkpoints' / 'step-00000006.pt'} could not be written: No space left on device. " in said
    assert "What was there before is whole; when that is mended, the same command goes on." in said
    assert sorted(contents(run)) == [
        "checkpoints/step-00000003.pt", "identity.json", "metrics.csv", "recipe.yaml",
    ]  # fmt: skip
    enlarge()
    trains("train", *values, f"run={run}")
    trains("train", *values, f"run={tmp_path / 'undisturbed'}")
    one, other = (folder / "student.safetensors" for folder in (run, tmp_path / "undisturbed"))
    assert one.read_bytes() == other.read_bytes()


def test_a_file_too_large_in_the_first_checkpoint(refused, trains, contents, quick, digits, tmp_path):
    run = tmp_path / "run"
    with files_up_to(200_000):
        said = refused("train", *quick, *digits, f"run={run}")
    assert f"{run / 'checkpoints' / 'step-00000003.pt'} could not be written: File too large. " in said
    assert sorted(contents(run)) == ["identity.json", "metrics.csv", "recipe.yaml"]
    trains("train", *quick, *digits, f"run={run}")


def test_a_full_disk_in_the_students_file(refused, trains, contents, quick, digits, tmp_path):
    run = tmp_path / "run"
    trains("train", *quick, *digits, f"run={run}")
    (run / "result.json").unlink()  # as if it had been killed just before its end
    before = contents(run)
    with files_up_to(200_000):
        said = refused("train", *quick, *digits, f"run={run}")
    assert f"{run / 'student.safetensors'} could not be written: File too large. " in said
    assert contents(run) == before
    trains("train", *quick, *digits, f"run={run}")
    assert contents(run).keys() == before.keys() | {"result.json"}
    assert contents(run)["student.safetensors"] == before["student.safetensors"]


def test_a_full_disk_in_the_steps(refused, trains, quick, digits, tmp_path):
    run = tmp_path / "run"
    values = [*quick, *digits, "batch_size=2", "log.every=1", f"run={run}"]
    with files_up_to(6000):
        said = refused("train", *values)
    steps = run / "steps.jsonl"
    assert f"{steps} could not be written: File too large. " in said
    rows = [json.loads(line) for line in steps.read_text().splitlines()]  # no half row
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert 20 < len(rows) < 90
    trains("train", *values)
    assert len(steps.read_text().splitlines()) == 90


def test_a_full_disk_at_the_very_beginning(refused, trains, quick, digits, tmp_path):
    run = tmp_path / "run"
    with files_up_to(1000):
        said = refused("train", *quick, *digits, f"run={run}")
    assert f"{run / 'recipe.yaml'} could not be written: File too large. " in said
    assert sorted(path.name for path in run.iterdir()) == [".lock", "identity.json"]
    trains("train", *quick, *digits, f"run={run}")
