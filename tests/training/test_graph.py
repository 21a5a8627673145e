"""The step that a graph records, on a CPU: a tape records and repeats it as a CUDA graph does, kernel by kernel."""

import contextlib
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.training.tape import Tape
from torch import Tensor, nn

from potstill.batch import Batch
from potstill.data.mixing import Mixing
from potstill.data.order import Plan
from potstill.data.resident import ResidentLoader
from potstill.data.streaming import StreamingLoader
from potstill.data.views import Augmentation
from potstill.errors import RunError
from potstill.methods.base import Known, Method, Needs, Setting
from potstill.methods.objective import PEFD_OBJECTIVE, Objective
from potstill.networks.features import Features
from potstill.networks.tap import tap
from potstill.networks.teacher import Teacher, Teaches
from potstill.training.checkpoints import Checkpoints
from potstill.training.distributed import Processes
from potstill.training.ema import WeightAverage
from potstill.training.graph import CudaCapture
from potstill.training.interrupts import Interrupt
from potstill.training.loop import Loop
from potstill.training.optimizers import make_optimizer
from potstill.training.reporting import Silent
from potstill.training.schedules import Schedule
from potstill.training.settings import Settings, Stopped
from potstill.training.step import TrainingStep

HALF = (0.5, 0.5, 0.5)
CPU = torch.device("cpu")


def test_a_tape_repeats_kernels_and_not_python() -> None:
    x, calls, tape = torch.ones(3), [], Tape()

    def work() -> None:
        calls.append(len(calls))
        x.mul_(2).add_(len(calls))  # 1 when it is recorded

    tape.record(work)
    assert x.tolist() == [1, 1, 1]
    tape.replay(), tape.replay()
    assert (x.tolist(), calls) == ([7, 7, 7], [0])
    with pytest.raises(RuntimeError, match="the host reads a value"):
        tape.record(lambda: print(x.sum().item()))


class Listener(Silent):
    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def logged(self, row: dict[str, Any]) -> None:
        self.rows.append(row)


def small(width: int, seed: int, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(seed)
    layers = nn.Conv2d(3, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
    return nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(4 * width, 10))


class Rows:
    """A store in memory: the teacher's outputs by index and view, as they were computed once."""

    def __init__(self, teacher: Teacher, loader: ResidentLoader, views: int) -> None:
        index = torch.arange(loader.plan.length)
        batches = [loader.made(index, torch.full_like(index, view)) for view in range(views)]
        seen = [teacher.features(batch) for batch in batches]
        self.logits = torch.stack([one.logits for one in seen], 1)
        self.embedding = torch.stack([one.embedding for one in seen], 1)

    def features(self, batch: Batch, **reads: bool) -> Features:
        return Features(self.logits[batch.index, batch.view], self.embedding[batch.index, batch.view])

    def settle(self) -> None:
        pass


def make_loop(
    folder: Path, tape: Tape | None = None, *, objective: dict[str, Any] | None = None, stored: bool = False,
    average: bool = False, dropout: float = 0.3, recorded: bool = True, optimizer: dict[str, Any] | None = None,
    loader: Any = None, step: type[TrainingStep] = TrainingStep, images: int = 86, **settings: Any,
) -> tuple[Loop, Listener]:  # fmt: skip
    """Steps of 16, the last one of an epoch short; on a tape where there is one."""
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (images, 8, 8, 3), dtype=np.uint8), rng.integers(0, 10, images)
    plan = Plan(length=images, batch_size=16, seed=3, shuffle=True)
    own = ResidentLoader(pixels, labels, plan, Augmentation(8, "pad", padding=1, flip=True, seed=3), HALF, HALF)
    student = tap(small(4, 1, dropout), input_size=(3, 8, 8))
    network = tap(small(8, 2), input_size=(3, 8, 8))
    teacher: Teaches = Teacher(network, mean=HALF, std=HALF, student_mean=HALF, student_std=HALF)
    torch.manual_seed(0)
    setting = Setting(student.spec, teacher.spec, samples=images, batch_size=16)
    terms = Objective(setting, objective or PEFD_OBJECTIVE)
    terms.prepare(Known(torch.as_tensor(labels), torch.rand(10, teacher.spec.embedding_dim)))
    if stored:
        teacher = Rows(teacher, own, views=3)
    listener = Listener()
    given = {
        "epochs": 2, "lr": 0.05, "log_every": 1, "shares_every": 0, "seed": 5, "graph": tape is not None,
        "schedule": Schedule("cosine"),
    }  # fmt: skip
    loop = Loop(
        step(student, terms), teacher, loader or own, dict,
        make_optimizer([student, terms], recorded=recorded, **(optimizer or {})), Settings(**(given | settings)),
        Checkpoints(folder), Processes(CPU), listener, Interrupt(), WeightAverage(student, 0.9) if average else None,
        capture=tape,
    )  # fmt: skip
    return loop, listener


def state_of(loop: Loop) -> dict[str, Tensor]:
    state = {f"step.{name}": value for name, value in loop.step.state_dict().items()}
    if loop.average is not None:
        state |= {f"average.{name}": value for name, value in loop.average.state_dict()["network"].items()}
    for number, of_parameter in enumerate(loop.optimizer.state.values()):
        state |= {f"optimizer.{number}.{name}": value for name, value in of_parameter.items()}
    return state


def losses(listener: Listener) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in ("ms", "steps_per_second")} for row in listener.rows]


def must_be_equal(one: tuple[Loop, Listener], other: tuple[Loop, Listener]) -> None:
    """Bit for bit."""
    assert losses(one[1]) == losses(other[1])
    expected, found = state_of(one[0]), state_of(other[0])
    assert expected.keys() == found.keys()
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []


WAYS: dict[str, dict[str, Any]] = {
    "pefd": {},
    "kd from stored rows": {"objective": {"ce": 0.1, "kd": {"weight": 0.9, "temperature": 4.0}}, "stored": True},
    "crd with its banks": {"objective": {"ce": 1.0, "crd": {"weight": 0.8, "negatives": 20}}},
    "crd, an image's own negatives": {"objective": {"crd": {"weight": 0.8, "negatives": 20, "draw": "image"}}},
    "nd and kd that warm up": {"objective": {"ce": 1, "kd": {"weight": 3.5, "warmup": 2}, "nd": 2}, "epochs": 4},
    "a warm-up in epochs of full steps": {
        "objective": {"ce": 1, "kd": {"weight": 3.5, "warmup": 2}},
        "epochs": 4,
        "images": 80,
    },
    "cid, whose terms begin with an epoch": {"objective": {"cid": {"weight": 1, "first": 1}}, "epochs": 3},
    "without a teacher": {"objective": {"ce": 1.0}},
    "clipped and averaged": {"clip": 0.5, "average": True},
    "measured": {"shares_every": 3, "log_every": 2},
    "adamw, projectors faster": {"optimizer": {"name": "adamw", "helper_lr": 3.0, "helper_weight_decay": 0.0}},
    "nesterov, norms spared": {"optimizer": {"nesterov": True, "decay_norm_and_bias": False}},
    "no momentum": {"optimizer": {"momentum": 0.0}},
}


@pytest.mark.parametrize("way", WAYS)
def test_recorded_steps_are_the_steps_of_the_loop_bit_for_bit(tmp_path: Path, way: str) -> None:
    plain = make_loop(tmp_path / "plain", **WAYS[way])
    tape = Tape()
    recorded = make_loop(tmp_path / "recorded", tape, **WAYS[way])
    plain[0].run(), recorded[0].run()
    assert tape.history.count("replay") >= 3
    must_be_equal(plain, recorded)


def test_the_first_steps_settle_one_is_recorded_and_the_short_last_one_is_not(tmp_path: Path) -> None:
    tape = Tape()
    make_loop(tmp_path, tape)[0].run()  # six steps an epoch, of which the last has six images
    assert tape.history == ["aside"] * 3 + ["record", "replay", "replay"] + ["replay"] * 5 + ["forget"]


def test_steps_that_measure_are_not_replayed(tmp_path: Path) -> None:
    tape = Tape()
    _, listener = ran = make_loop(tmp_path, tape, shares_every=5)
    ran[0].run()  # steps 0, 5 and 10 of twelve measure, 5 and 11 are short
    assert tape.history.count("replay") == 12 - 4 - 3
    assert [row["step"] for row in listener.rows if "share_pefd" in row] == [1, 6, 11]


def test_a_recorded_step_differs_from_an_unrecorded_optimisers_in_the_last_bits_alone(tmp_path: Path) -> None:
    plain = make_loop(tmp_path / "plain", recorded=False)
    recorded = make_loop(tmp_path / "recorded", Tape())
    plain[0].run(), recorded[0].run()
    for one, other in zip(plain[1].rows, recorded[1].rows, strict=True):
        assert other["total"] == pytest.approx(one["total"], rel=1e-6)
        assert other["lr"] == one["lr"]  # the schedule's own number, not its float32
    torch.testing.assert_close(plain[0].step.state_dict(), recorded[0].step.state_dict(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("way", ["pefd", "crd with its banks", "clipped and averaged", "adamw, projectors faster"])
@pytest.mark.parametrize("at", [2, 6, 9])  # while it settles; at an epoch's end; in the second epoch
def test_a_resumed_run_is_the_same_run(tmp_path: Path, way: str, at: int) -> None:
    whole = make_loop(tmp_path / "whole", Tape(), **WAYS[way])
    whole[0].run()
    first = make_loop(tmp_path / "cut", Tape(), **WAYS[way])
    advanced = first[0].reporter.advanced

    def stop(epoch: int, step: int) -> None:
        advanced(epoch, step)
        if epoch * 6 + step == at:
            first[0].interrupt.signal = signal.SIGTERM

    first[0].reporter.advanced = stop
    with pytest.raises(Stopped):
        first[0].run()
    second = make_loop(tmp_path / "cut", Tape(), **WAYS[way])
    second[0].run()
    second[1].rows[:0] = first[1].rows
    must_be_equal(whole, second)


def test_a_state_that_is_loaded_keeps_its_rates_on_the_device(tmp_path: Path) -> None:
    make_loop(tmp_path, Tape(), epochs=1)[0].run()
    loop, _ = make_loop(tmp_path, Tape(), epochs=2)
    held = [group["lr"] for group in loop.optimizer.param_groups]
    assert all(isinstance(lr, Tensor) and lr.dtype == torch.float32 for lr in held)
    loop.run()
    assert all(isinstance(group["lr"], Tensor) for group in loop.optimizer.param_groups)


def test_it_is_recorded_anew_where_a_term_warms_up_and_only_there(tmp_path: Path) -> None:
    tape = Tape()
    make_loop(tmp_path, tape, objective={"ce": 1, "kd": {"weight": 3.5, "warmup": 2}}, epochs=4)[0].run()
    # weights of 0, 1.75, 3.5 and 3.5: three recordings, and the last epoch is replayed from its first step
    assert tape.history.count("record") == 3
    assert tape.history[-6:] == ["replay"] * 5 + ["forget"]


def test_what_is_baked_in_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison itself can fail: without a look at what Python holds the warm-up stays what it was."""
    plain = make_loop(tmp_path / "plain", objective={"ce": 1, "kd": {"weight": 3.5, "warmup": 2}})
    blind = make_loop(tmp_path / "blind", Tape(), objective={"ce": 1, "kd": {"weight": 3.5, "warmup": 2}})
    monkeypatch.setattr("potstill.training.graph._held_in_python", lambda step: {})
    plain[0].run(), blind[0].run()
    with pytest.raises(AssertionError):
        must_be_equal(plain, blind)


class Counts(Method):
    """A method of a user that remembers in Python, and one thing in a buffer that it replaces."""

    needs = Needs(student=frozenset({"logits"}))

    def __init__(self, setting: Setting, *, how: str = "number") -> None:
        super().__init__()
        self.how, self.calls = how, 0
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        loss = student.logits.square().mean()
        if self.how == "number":
            self.calls += 1
            return loss / self.calls
        if self.how == "replaced":
            self.seen = self.seen + 1
        elif self.how == "in place":
            self.seen += 1
        elif self.how == "python":
            return loss * random.random()
        elif self.how == "numpy":
            return loss * np.random.rand()
        elif self.how == "host":
            return loss * (2.0 if loss.item() > 1 else 1.0)
        return loss / (1 + self.seen)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("number", r"it changes objective\.terms\.\S*calls in Python, which a recording does not repeat"),
        ("replaced", r"it changes objective\.terms\.\S*_buffers in Python"),
        ("python", "it draws random numbers on the host, with Python's generator or NumPy's"),
        ("numpy", "it draws random numbers on the host"),
        ("host", "RuntimeError: operation not permitted when stream is capturing: the host reads a value"),
    ],
)
def test_a_method_that_a_recording_cannot_repeat_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, message: str
) -> None:
    loop, _ = own_method(tmp_path, monkeypatch, how)
    with pytest.raises(RunError, match=f"cannot be recorded as a CUDA graph: {message}.*Set graph=false"):
        loop.run()


def test_a_buffer_that_is_written_in_place_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, _ = own_method(tmp_path, monkeypatch, "in place")
    loop.run()
    assert loop.step.objective.methods["counts"].seen.item() == 12


def own_method(folder: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> tuple[Loop, Listener]:
    monkeypatch.setattr(
        "potstill.methods.objective.build_method", lambda name, setting, **hyper: Counts(setting, how=how)
    )
    return make_loop(folder, Tape(), objective={"counts": 1.0})


def test_what_cannot_be_recorded_is_refused_when_the_loop_is_made(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="precision=fp16"):
        make_loop(tmp_path, Tape(), fp16=True)
    with pytest.raises(RunError, match=r"vkd factorises matrices.*take these terms out"):
        make_loop(tmp_path, Tape(), objective={"ce": 1, "vkd": 1})
    with pytest.raises(RunError, match="pefd factorises matrices"):
        make_loop(tmp_path, Tape(), objective={"pefd": {"weight": 25, "constraint": "orthogonal"}})
    for changes, message in (
        ({"mixing": Mixing(10, mixup=0.2)}, "mixup and CutMix draw on the host"),
        ({"plan": Plan(length=40, batch_size=16, seed=0, shuffle=True, accumulate=2)}, "accumulate=2"),
        ({"plan": Plan(length=40, batch_size=16, seed=0, shuffle=True, world=2)}, "2 processes"),
    ):
        given = {"plan": Plan(length=40, batch_size=16, seed=0, shuffle=True)} | changes
        loader = ResidentLoader(
            np.zeros((40, 8, 8, 3), np.uint8), None, augmentation=None, mean=HALF, std=HALF, **given
        )
        with pytest.raises(RunError, match=message):
            make_loop(tmp_path, Tape(), loader=loader)
    with pytest.raises(RunError, match="StreamingLoader makes them elsewhere"):
        make_loop(tmp_path, Tape(), loader=StreamingLoader.__new__(StreamingLoader))


class Cuda:
    """Of ``torch.cuda`` what a capture calls, written down in its order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        calls, current = self.calls, self.Stream(self, "current")
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: self.Stream(self, "own"))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: current)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: self.within(f"on {stream.name}"))
        monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream: self.within(f"capture on {stream.name}"))
        replayed = type("Graph", (), {"replay": lambda self: calls.append("replay")})
        monkeypatch.setattr(torch.cuda, "CUDAGraph", replayed)

    @contextlib.contextmanager
    def within(self, what: str) -> Iterator[None]:
        self.calls.append(f"{what} {{")
        yield
        self.calls.append("}")

    class Stream:
        device = torch.device("cuda", 0)

        def __init__(self, cuda: "Cuda", name: str) -> None:
            self.cuda, self.name = cuda, name

        def wait_stream(self, other: "Cuda.Stream") -> None:
            self.cuda.calls.append(f"{self.name} waits for {other.name}")


def test_what_a_cuda_capture_asks_of_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order that PyTorch's notes on CUDA graphs ask for; no GPU takes part."""
    cuda = Cuda(monkeypatch)
    capture = CudaCapture(torch.device("cuda", 0))
    with pytest.raises(RuntimeError, match="record comes first"):
        capture.replay()
    capture.aside(lambda: cuda.calls.append("work"))
    assert cuda.calls == ["own waits for current", "on own {", "work", "}", "current waits for own"]
    cuda.calls.clear()
    capture.record(lambda: cuda.calls.append("work"))
    capture.replay()
    assert cuda.calls == ["capture on own {", "work", "}", "replay"]
    with pytest.raises(RunError, match="draws random numbers on the host"):
        capture.record(lambda: torch.rand(1))
    capture.forget()
    with pytest.raises(RuntimeError, match="record comes first"):
        capture.replay()


def test_without_a_gpu_a_graph_is_refused_by_name() -> None:
    with pytest.raises(RunError, match="graph=true is for CUDA devices, and this run is on cpu"):
        CudaCapture(CPU)


def test_an_epoch_too_short_to_record_trains_all_the_same(tmp_path: Path) -> None:
    plain, tape = make_loop(tmp_path / "plain", images=10), Tape()
    recorded = make_loop(tmp_path / "recorded", tape, images=10)
    plain[0].run(), recorded[0].run()
    assert tape.history == ["forget"]
    must_be_equal(plain, recorded)


def test_the_time_of_a_recorded_step_is_one_part(tmp_path: Path) -> None:
    loop, listener = make_loop(tmp_path, Tape())
    loop.run()
    times = loop.clock.totals()
    assert times["graph"] > 0
    # What is not recorded is timed in parts: the short step of each epoch.
    assert all(times[part] > 0 for part in ("teacher", "forward", "backward", "optimizer"))
    assert "backward" not in listener.rows[4]["ms"]
    assert "graph" in listener.rows[4]["ms"]
