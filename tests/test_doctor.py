"""`diti doctor`: what it finds, what it says to do, and when it fails."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner, Result

from diticli.commands.app import app
from diticli.doctor import choices, compile_trial, diagnose, hardware
from diticli.doctor.choices import AttentionShape, preset_attentions
from diticli.doctor.compile_trial import CompileResult, CompileTrial
from diticli.doctor.finding import Finding
from diticli.models import compiled
from diticli.settings import preset_names


def run_doctor(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["doctor", "--device", "cpu", *arguments])


def named(findings: list[Finding], name: str) -> Finding:
    return next(finding for finding in findings if finding.name == name)


class FakeTrial:
    """A compilation that ends at once."""

    outcome = CompileResult(True, "works, a tiny function took 1.0 s")

    def __init__(self, device: str | None, seconds: float) -> None:
        pass

    def result(self) -> CompileResult:
        return self.outcome

    def stop(self) -> None:
        pass


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnose, "CompileTrial", FakeTrial)
    for variable in ("DITI_KERNELS", "DITI_ATTENTION", "DITI_LAYOUT"):
        monkeypatch.delenv(variable, raising=False)


def test_json_holds_every_topic() -> None:
    result = run_doctor("--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["ok"] is True
    topics = [finding["topic"] for finding in report["findings"]]
    assert list(dict.fromkeys(topics)) == ["software", "hardware", "speed", "attention", "compile", "storage"]
    found = {finding["name"]: finding["value"] for finding in report["findings"]}
    assert found["torch"] == torch.__version__
    assert found["kernel masked_linear"].startswith("reference (")
    assert found["precision auto"].split()[0] in ("fp32", "bf16")
    assert found["layout of maps"].split()[0] in ("contiguous", "channels_last")


@pytest.mark.parametrize(("word", "said"), [("", "training steps"), ("0", "none"), ("yes", "is unknown")])
def test_what_runs_as_a_graph_is_named(word: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (choices, compiled):
        monkeypatch.setattr(module, "CAPTURED_DEVICES", ("cpu",))
    monkeypatch.setenv("DITI_CUDA_GRAPH", word)
    (finding,) = choices._graphs(torch.device("cpu"))
    assert finding.name == "CUDA graphs"
    assert said in finding.value


def test_lines_without_a_terminal_carry_status_and_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeTrial, "outcome", CompileResult(False, "InvalidCxxCompiler: none"))
    result = run_doctor()
    assert result.exit_code == 0, "slower is not broken"
    lines = result.stdout.splitlines()
    at = lines.index("note    compile    torch.compile: InvalidCxxCompiler: none")
    assert lines[at + 1].strip().startswith("-> ")
    assert f"ok      software   torch: {torch.__version__}" in lines


def test_tables_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from diticli.commands import doctor as command

    finding = Finding(topic="speed", name="kernel x", value="fails on [3, 4]", status="broken", remedy="Mend it.")
    command._show_tables([finding])
    shown = capsys.readouterr().out
    assert "fails on [3, 4]" in shown, "brackets are not markup"
    assert "-> Mend it." in shown


@pytest.mark.parametrize(
    ("variable", "value"), [("DITI_KERNELS", "fast"), ("DITI_ATTENTION", "xformers"), ("DITI_LAYOUT", "NHWC")]
)
def test_settings_that_commands_refuse_are_broken(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    result = run_doctor("--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["ok"] is False
    broken = [finding for finding in report["findings"] if finding["status"] == "broken"]
    assert broken
    assert all(finding["remedy"] for finding in broken)


def test_broken_pytorch_is_told_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(diagnose.NEEDED, "torch", "torch_that_is_not_there")
    result = run_doctor()
    assert result.exit_code == 1
    assert "broken  software   torch: cannot be imported: No module named 'torch_that_is_not_there'" in result.stdout
    assert "pip install --force-reinstall torch" in result.stdout
    assert "storage" in result.stdout
    assert "attention  " not in result.stdout, "no findings on attention"


def test_a_slow_import_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On a busy machine the command took minutes for diffusers alone."""
    slow = "import time\nfor _ in range(600):\n    try:\n        time.sleep(0.1)\n    except Exception: pass\n"
    (tmp_path / "slow_pipelines.py").write_text(slow)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(diagnose, "IMPORT_SECONDS", 0.05)
    found = diagnose._importable("diffusers", "slow_pipelines")
    assert found.status == "note"
    assert "not tried to the end" in found.value
    assert "less busy" in found.remedy
    assert "slow_pipelines" not in sys.modules
    monkeypatch.setattr(diagnose, "IMPORT_SECONDS", 30.0)
    assert diagnose._importable("numpy", "numpy").status == "ok"


def test_a_torchvision_of_another_build_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """That of PyPI is made for CUDA: beside PyTorch for the CPU, diffusers' pipelines cannot be imported."""
    text = "Failed to import pipelines (look up):\\noperator torchvision::nms does not exist"
    (tmp_path / "pipelines_of_diffusers.py").write_text(f'raise RuntimeError("{text}")')
    monkeypatch.syspath_prepend(tmp_path)
    found = diagnose._importable("diffusers", "pipelines_of_diffusers")
    assert (found.status, found.value) == ("broken", "cannot be imported: operator torchvision::nms does not exist")
    assert "pip install --force-reinstall torch torchvision" in found.remedy


def test_answers_where_pytorch_is_missing() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from diticli.doctor.diagnose import diagnose\n"
        "print([f.name for f in diagnose('cpu') if f.status == 'broken'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "'torch'" in done.stdout


def test_optional_packages_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(diagnose.OPTIONAL, "no-such-package", "Install it.")
    found = named(list(diagnose._software()), "no-such-package")
    assert (found.value, found.status, found.remedy) == ("not installed", "note", "Install it.")


def test_it_says_what_xformers_brings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnose, "version", lambda package: "0.0.35")
    found = {finding.name: finding.value for finding in diagnose._software()}
    assert found["xformers"].startswith("0.0.35: calls PyTorch's own attention kernels")
    assert found["triton"] == "0.0.35"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize(
    ("cuda", "driver", "value", "status"),
    [
        (None, None, "this machine has no NVIDIA driver", "ok"),
        (None, "/usr/bin/nvidia-smi", "PyTorch is a CPU build", "note"),
        ("13.0", "/usr/bin/nvidia-smi", "driver too old", "note"),
    ],
)
def test_why_there_is_no_gpu(
    cuda: str | None, driver: str | None, value: str, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("this machine has a driver")
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(hardware.shutil, "which", lambda name: driver)
    found = hardware._why_no_gpu(["driver too old"])
    assert value in found.value
    assert found.status == status
    assert bool(found.remedy) == (status == "note")


def test_gpus_with_memory_and_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(name="NVIDIA X", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (2**30, 2**32))
    found = named(list(hardware.hardware()), "gpu 0")
    assert found.value == "NVIDIA X, 1.0 of 4.0 GiB free, compute capability 9.0"


def test_a_busy_gpu_is_a_finding_beside_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def memory(index: int) -> tuple[int, int]:
        if index == 0:
            raise RuntimeError("CUDA-capable device(s) is/are busy or unavailable\nmore")
        return 2**30, 2**32

    properties = SimpleNamespace(name="NVIDIA X", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", memory)
    found = list(hardware.hardware())
    busy, free = named(found, "gpu 0"), named(found, "gpu 1")
    assert (busy.status, free.status) == ("note", "ok")
    assert "cannot be used now: CUDA-capable device(s) is/are busy or unavailable" in busy.value
    assert "--device cuda:N" in (busy.remedy or "")


@pytest.mark.parametrize(
    ("cuda", "found", "works", "remedy"),
    [
        (True, None, False, "Install a C compiler and Python's headers (apt install gcc python3-dev), or train with"),
        (True, "/usr/bin/cc", False, "Train with --set compile=false."),
        (True, "/usr/bin/cc", None, "Ask again when the machine is less busy, or train with --set compile=false."),
        (False, None, False, "Install a C++ compiler (apt install g++), or train without --set compile=true."),
    ],
)
def test_the_remedy_names_the_setting_that_changes_something(
    cuda: bool, found: str | None, works: bool | None, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeTrial, "outcome", CompileResult(works, "no"))
    monkeypatch.setattr(diagnose.shutil, "which", lambda name: found)
    trial = FakeTrial(None, 8.0)
    assert (diagnose._compilation(trial, cuda).remedy or "").startswith(remedy)  # type: ignore[arg-type]
    assert getattr(trial, "seconds", None) == (diagnose.CUDA_COMPILE_SECONDS if cuda else None)


@pytest.mark.parametrize(("threads", "status"), [(2, "ok"), (1, "note"), (16, "note")])
def test_threads_against_cores(threads: int, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    found = hardware._threads()
    assert (found.value, found.status) == (f"{threads} for 2 cores", status)
    assert ("OMP_NUM_THREADS=2" in found.remedy) == (status == "note")


def test_little_disk_and_a_read_only_cache_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(diagnose.shutil, "disk_usage", lambda folder: usage(2**40, 2**40, 2**30))
    found = named(list(diagnose._storage()), "disk")
    assert found.status == "note"
    assert "1.0 GiB free" in found.value
    monkeypatch.setattr(diagnose.os, "access", lambda folder, mode: False)
    disk, cache = diagnose._storage()
    assert disk.status == cache.status == "note"
    assert "--out" in disk.remedy
    assert "HF_HOME" in cache.remedy


@pytest.mark.parametrize(
    ("code", "works", "message"),
    [
        ("import sys; assert sys.argv[1] == 'cpu'", True, "works"),
        ("raise RuntimeError('no\\ncompiler')", False, "RuntimeError: no"),
        ("raise SystemExit(3)", False, "status 3"),
    ],
)
def test_compile_trial_tells_how_it_went(code: str, works: bool, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_trial, "_CODE", code)
    result = CompileTrial("cpu", 60).result()
    assert result.works is works
    assert message in result.message


def test_compile_trial_is_ended_with_all_it_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started = tmp_path / "pid"
    code = (
        "import pathlib, subprocess, time\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        f"pathlib.Path({str(started)!r}).write_text(str(child.pid))\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setattr(compile_trial, "_CODE", code)
    trial = CompileTrial("cpu", 0.1)
    while not (started.exists() and started.read_text()):
        time.sleep(0.02)
    result = trial.result()
    assert result.works is None
    assert "undecided" in result.message
    for _ in range(500):
        if not _runs(int(started.read_text())):
            return
        time.sleep(0.02)
    raise AssertionError("its child still runs")


def test_compile_trial_takes_no_module_from_the_working_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text("import pathlib; pathlib.Path(__file__).with_name('ran').touch()")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compile_trial, "_CODE", "import planted")
    result = CompileTrial("cpu", 60).result()
    assert result.works is False
    assert "No module named 'planted'" in result.message
    assert not (tmp_path / "ran").exists()


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_attentions_of_the_presets() -> None:
    assert preset_attentions("celeba64") == [
        AttentionShape("UNet", 256, 1, 256, 128),
        AttentionShape("UNet", 64, 1, 512, 128),
        AttentionShape("encoder", 256, 4, 32, 128),
    ]
    assert preset_attentions("faces32") == [AttentionShape("UNet", 64, 1, 64, 32)]


@pytest.mark.parametrize("preset", preset_names())
def test_attentions_are_those_that_run(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers.models.attention_processor import Attention

    from diticli.models.build import build_unet
    from diticli.models.pipeline import unet_to_diffusers
    from diticli.settings import build_config

    config = build_config(preset)
    seen: set[tuple[int, int, int]] = set()
    with torch.device("meta"):
        unet = unet_to_diffusers(build_unet(config.unet, config.data.resolution))
        x, t = torch.empty(1, 3, *[config.data.resolution] * 2), torch.empty(1, dtype=torch.int64)
    for block in unet.modules():
        if isinstance(block, Attention):
            block.register_forward_pre_hook(
                lambda b, inputs: seen.add((inputs[0].shape[2:].numel(), b.heads, b.inner_dim // b.heads))
            )
    unet(x, t)
    assert seen == {shape[1:4] for shape in preset_attentions(preset) if shape.network == "UNet"}


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from diticli.__main__ import main\n"
        "sys.argv = ['diti', 'doctor', '--help']\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert not {'torch', 'diffusers', 'accelerate'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage: diti doctor" in done.stdout


def test_xformers_does_not_warn_between_the_findings(monkeypatch: pytest.MonkeyPatch) -> None:
    log, seen = logging.getLogger("xformers"), []
    before = log.level
    monkeypatch.setattr(diagnose.importlib, "import_module", lambda _: seen.append(log.level))
    assert diagnose._importable("torch", "torch").status == "ok"
    assert seen == [logging.ERROR]
    assert log.level == before
