"""Fixtures that every test may use."""

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """One thread a test process: the suite runs one worker a core, and more threads than cores slow it many times."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def quiet_after() -> Iterator[None]:
    """Take away where a command called in this process sent the library's sentences: no other test expects them."""
    yield
    logging.getLogger("potstill").handlers.clear()


@pytest.fixture(autouse=True)
def own_modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Forget the modules that a test wrote and imported: another test's may have the same name."""
    yield
    written = str(tmp_path_factory.getbasetemp())
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(written):
            del sys.modules[name]


@pytest.fixture(autouse=True)
def quick_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A third of the rounds for the maps of reports, which every finished run writes: no test looks at their places."""
    monkeypatch.setattr("potstill.report.maps._ROUNDS", 250)


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """A folder of the real data by name; a test that asks for one that is not there is skipped, with the reason."""
    base = Path(os.environ.get("POTSTILL_TEST_DATA") or ROOT.parent / "shared" / "data")

    def folder(name: str) -> Path:
        path = base / name
        if not path.exists():
            pytest.skip(f"real data {name!r} not found at {path}; set POTSTILL_TEST_DATA to the folder that holds it")
        return path

    return folder


@pytest.fixture(scope="session")
def golden() -> Callable[[str, torch.dtype], "Golden"]:
    """A stored case of ``tests/golden`` by name and dtype, each call with inputs of its own."""
    manifest = json.loads((GOLDEN / "manifest.json").read_text(encoding="utf-8"))
    cases = {case["case"]: case for case in manifest["cases"]}
    return lambda name, dtype: Golden(cases[name], dtype)


class Golden:
    """One stored case, its inputs in the dtype under test, and the comparison its tolerance asks for.

    Attributes:
        case: its row of the manifest.
        tensors: everything stored, as it is stored.
        inputs: ``in.*`` without the prefix, in the dtype under test, floats ready for ``requires_grad_``.
        compared: names that :meth:`check` has seen.
    """

    def __init__(self, case: dict[str, Any], dtype: torch.dtype):
        self.case = case
        self.tensors = load_file(GOLDEN / case["file"])
        self.dtype = dtype
        self.tolerance = self.case["tolerance"]["float64" if dtype == torch.float64 else "float32"]
        self.inputs: dict[str, Tensor] = {
            key.removeprefix("in."): value.to(dtype) if value.is_floating_point() else value.clone()
            for key, value in self.tensors.items()
            if key.startswith("in.")
        }
        self.compared: set[str] = set()

    def parameter(self, name: str) -> Tensor:
        """``param.*`` or ``state.*`` in the dtype under test."""
        value = self.tensors[name]
        return value.to(self.dtype) if value.is_floating_point() else value.clone()

    def projectors(self) -> list[list[tuple[Tensor, Tensor | None]]]:
        """The stored parameters, projector by projector and layer by layer; one layer is called "linear" or "0"."""
        found = []
        while any(key.startswith(f"param.projector{len(found)}.") for key in self.tensors):
            prefix = f"param.projector{len(found)}."
            layers = sorted({key.removeprefix(prefix).split(".")[0] for key in self.tensors if key.startswith(prefix)})
            found.append([(self.tensors[f"{prefix}{x}.weight"], self.tensors.get(f"{prefix}{x}.bias")) for x in layers])
        return found

    def check(self, name: str, value: Tensor) -> None:
        """One value against the stored one, by the manifest's rule."""
        assert value.dtype == self.dtype
        expected = self.tensors[name].double()
        assert value.shape == expected.shape
        off = (value.detach().double() - expected).abs().max().item()
        if ".loss." in name:
            allowed = self.tolerance["loss_rtol"] * expected.abs().item()
        else:
            floor = 1e-3 * self.case["tolerance"]["largest_gradient_entry"] if ".grad" in name else 0.0
            allowed = self.tolerance["tensor_rtol_of_max"] * max(expected.abs().max().item(), floor)
            if ".grad" in name and not expected.any():  # zero by mathematics, like a bias before a batch norm
                allowed = 1e-5 * self.case["tolerance"]["largest_gradient_entry"]
        assert off <= allowed, f"{self.case['case']}: {name} is off by {off:.3g}, allowed is {allowed:.3g}"
        self.compared.add(name)

    def all_compared(self, *but: str) -> bool:
        """Whether every stored result was compared; ``but`` names those that a test leaves out on purpose."""
        return self.compared == {name for name in self.tensors if name.startswith("out.")} - set(but)
