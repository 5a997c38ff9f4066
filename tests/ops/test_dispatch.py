"""Which implementation runs, what is said about it, and that Triton stays optional."""

from __future__ import annotations

import logging

import pytest
import torch
from diti_kernels import backend_for, decide, dispatch
from op_sites import run_python


def test_interpreter_was_chosen_in_time() -> None:
    pytest.importorskip("triton")
    if not torch.cuda.is_available():
        assert dispatch.triton_is_interpreted(), (
            "Triton was imported before tests/ops/conftest.py, so its tests are skipped: find the conftest "
            "or plugin that imports diffusers or torch._dynamo at its top."
        )


def test_auto_is_the_reference_until_this_gpu_has_shown_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    assert decide("cpu").backend == decide("cuda").backend == "reference"
    assert "this GPU" in decide("cuda").reason
    assert "GPU" not in decide("cpu").reason


def test_unknown_setting_names_the_three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(dispatch.VARIABLE, "cuda")
    with pytest.raises(ValueError, match=r"'cuda' is unknown.*auto, triton or reference"):
        backend_for(torch.zeros(1))


@pytest.mark.parametrize("setting", ["reference", " Reference ", "REFERENCE"])
def test_reference_is_taken_at_its_word(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(dispatch.VARIABLE, setting)
    assert backend_for(torch.zeros(1)) == "reference"


@pytest.mark.parametrize("device_type", ["cpu", "mps"])
def test_triton_without_a_gpu_says_what_to_do(device_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv(dispatch.VARIABLE, "triton")
    monkeypatch.setattr(dispatch, "triton_is_interpreted", lambda: False)
    with pytest.raises(RuntimeError, match=rf"on a {device_type} tensor.*TRITON_INTERPRET=1"):
        decide(device_type)


def test_says_once_what_runs_and_why(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv(dispatch.VARIABLE, "reference")
    dispatch._log_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="diti_kernels"):
        for _ in range(3):
            backend_for(torch.zeros(1))
    assert [record.getMessage() for record in caplog.records] == [
        "diti_kernels on cpu: reference (DITI_KERNELS=reference)"
    ]


def test_import_is_free_of_triton() -> None:
    code = (
        "import sys, torch\n"
        "from diti_kernels.masked_linear import masked_linear\n"
        "t, visible = torch.tensor([0, 1]), torch.tensor([[0, 1], [1, 3]])\n"
        "masked_linear(torch.ones(2, 3), t, visible, torch.ones(4, 3))\n"
        "print('triton' in sys.modules)\n"
    )
    assert run_python(code).strip() == "False"


def test_works_where_triton_is_not_installed() -> None:
    code = (
        "import os, sys; sys.modules['triton'] = None\n"
        "import torch\n"
        "from diti_kernels.masked_linear import masked_linear\n"
        "t, visible = torch.tensor([0, 1]), torch.tensor([[0, 1], [1, 3]])\n"
        "print(masked_linear(torch.ones(2, 3), t, visible, torch.ones(4, 3))[:, 0].tolist())\n"
        "os.environ['DITI_KERNELS'] = 'triton'\n"
        "try: masked_linear(torch.ones(2, 3), t, visible, torch.ones(4, 3))\n"
        "except RuntimeError as error: print(error)\n"
    )
    values, error = run_python(code).splitlines()
    assert values == "[1.0, 2.0]"
    assert "not installed" in error
    assert "pip install triton" in error


def test_interpreter_set_too_late_is_noticed() -> None:
    pytest.importorskip("triton")
    code = (
        "import triton, os, torch\n"
        "os.environ |= {'TRITON_INTERPRET': '1', 'DITI_KERNELS': 'triton'}\n"
        "from diti_kernels import decide\n"
        "try: decide('cpu')\n"
        "except RuntimeError as error: print(error)\n"
    )
    assert "before Triton is imported" in run_python(code)
