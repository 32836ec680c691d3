"""bench/gpu.py: every part runs when small on a CPU; what fails, ends or takes too long is named and stops no other."""

import io
import json
import subprocess
import sys
import time
import warnings
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from tests.support.places import ROOT

sys.path.insert(0, str(ROOT / "bench"))

import gpu
from gpu import PARTS, Runner, take
from gpu_parts import child, several_gpus
from gpu_parts.cases import cases
from gpu_parts.child import measure_part
from gpu_parts.document import LEFT_OUT, Section
from gpu_parts.part import Part, Row, Settings, Skipped
from gpu_parts.peaks import BF16, FLOAT32, PEAKS, TF32, peak
from gpu_parts.resume import same_bits
from gpu_parts.stepping import covered, host_waits, utilization, work_of

SMALL = Settings(device="cpu", small=True)
PLAN = {"title": "Part", "note": "A note.", "columns": ["what", "ms", "GiB"], "rows": [["a"], ["b"], ["c"]]}


def tables(text: str) -> dict[str, list[dict[str, str]]]:
    """Title -> rows by column."""
    found = {}
    for section in text.split("\n## ")[1:]:
        lines = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
        columns, _, *rows = [[cell.strip() for cell in line] for line in lines]
        found[section.splitlines()[0]] = [dict(zip(columns, row, strict=True)) for row in rows]
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_everything_runs_small_on_a_cpu(tmp_path):
    out = tmp_path / "new" / "gpu.md"
    command = [sys.executable, str(ROOT / "bench" / "gpu.py"), "--small", "--device", "cpu", "--out", str(out)]
    done = subprocess.run([*command, "--minutes", "14"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    text = out.read_text()
    assert done.stdout == text
    for name in ("date", "card", "torch", "CUDA", "cuDNN", "code"):
        assert f"| {name} " in text
    assert torch.__version__ in text
    found = tables(text)
    assert list(found) == [
        "Optimizer steps",
        "torch.compile",
        "Data wait",
        "GF-SAM",
        "Several GPUs",
        "Resume, bit for bit",
    ]

    steps = found["Optimizer steps"]
    methods = {case.name for case in cases(small=True)}
    assert len(methods) == 7
    assert {(row["method"], row["precision"]) for row in steps} == {
        (m, p) for m in methods for p in (FLOAT32, TF32, BF16)
    }
    for row in steps:
        assert float(row["ms/step"]) > 0 and float(row["images or episodes/s"]) > 0 and float(row["TFLOP/s"]) > 0
        needs_cuda = ("host waits/step", "kernels/step", "GPU busy", "MFU", "peak GiB")
        assert {row[column] for column in needs_cuda} == {"-"}
    assert [row["run.compile"] for row in found["torch.compile"]] == ["off", "on"]
    (data,) = found["Data wait"]
    assert float(data["images/s"]) > 0 and data["data wait"].endswith("%")
    assert {row["precision"] for row in found["GF-SAM"]} == {FLOAT32, TF32, BF16}
    assert all(float(row["episodes/s"]) > 0 and float(row["SAM decoder ms"]) > 0 for row in found["GF-SAM"])
    several = {(row["what"], row["ranks"]): row for row in found["Several GPUs"]}
    assert float(several["all-reduce of 1 MB", "2"]["bus GB/s"]) > 0
    assert several["QGNet", "1"]["of ideal"] == "100.0%" and several["QGNet", "2"]["of ideal"].endswith("%")
    resumed = found["Resume, bit for bit"]
    assert {row["method"] for row in resumed} == {"prior, patch", "QGNet"}
    assert all(int(row["tensors"]) > 100 and row["different"] == "0" for row in resumed)


def test_batches_and_networks_of_the_papers():
    planned = cases(small=False)
    assert all(len(case.batches) == 2 and case.batches[0] < case.batches[1] for case in planned)
    assert [case.name for case in planned if case.compiles] == ["prior, patch", "prior, region"]


def test_a_row_that_fails_stops_no_other(monkeypatch):
    def fail():
        raise RuntimeError("out of memory | here\nand more")

    def skip():
        raise Skipped("one GPU")

    rows = [Row(("a",), fail), Row(("b",), lambda: {"ms": "1"}), Row(("c",), skip)]
    module = ModuleType("gpu_parts.made_up")
    module.PART = Part("Part", "A note.", ("what",), ("ms", "GiB"), lambda settings: rows)
    monkeypatch.setitem(sys.modules, "gpu_parts.made_up", module)
    out = io.StringIO()
    monkeypatch.setattr(child, "own_stdout", lambda: nullcontext(out))
    measure_part("made_up", SMALL, seconds=60)
    section = None
    for line in out.getvalue().splitlines():
        section = take(json.loads(line), section)
    assert [list(row.values()) for row in tables("\n" + section.markdown())["Part"]] == [
        ["a", "failed: RuntimeError: out of memory / here", ""],
        ["b", "1", "-"],
        ["c", "skipped: one GPU", ""],
    ]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Source of a program that stands for a part, and its seconds -> the section."""

    start = subprocess.Popen

    def measured(source: str, seconds: float) -> Section:
        def popen(command, **options):
            return start([sys.executable, "-c", source], **options)

        monkeypatch.setattr(gpu.subprocess, "Popen", popen)
        with open(tmp_path / "log", "w") as log:
            return Runner(SMALL, log, str(tmp_path)).measure("steps", seconds)

    return measured


def printing(*messages: dict) -> str:
    """A program that prints the messages."""
    return "".join(f"print({json.dumps(message)!r}, flush=True)\n" for message in messages)


def test_a_process_that_ends_early_is_a_failure(run):
    section = run(printing(PLAN, {"row": 0, "values": {"ms": "1"}}) + "import os; os._exit(3)", 60)
    assert section.values == {0: {"ms": "1"}}
    assert section.reasons[1].startswith("failed: the process ended with 3") and section.reasons[2] == gpu.AFTER_A_CRASH
    assert run("raise SystemExit('no such file')", 60).reasons[0].startswith("failed: the process ended with 1")


def test_a_process_that_takes_too_long_is_ended_and_its_rows_are_left_out(run):
    began = time.monotonic()
    section = run(printing(PLAN, {"row": 0, "values": {"ms": "1"}}) + "import time; time.sleep(600)", 3)
    assert time.monotonic() - began < 300
    assert section.values == {0: {"ms": "1"}} and section.open == [1, 2]
    assert section.markdown().count(LEFT_OUT) == 2


def test_no_row_is_begun_that_does_not_fit(monkeypatch):
    rows = [Row(("a",), lambda: time.sleep(0.2) or {"ms": "1"}), Row(("b",), lambda: {"ms": "1"})]
    module = ModuleType("gpu_parts.made_up")
    module.PART = Part("Part", "", ("what",), ("ms",), lambda settings: rows)
    monkeypatch.setitem(sys.modules, "gpu_parts.made_up", module)
    out = io.StringIO()
    monkeypatch.setattr(child, "own_stdout", lambda: nullcontext(out))
    measure_part("made_up", SMALL, seconds=0.1)
    assert [json.loads(line).get("row") for line in out.getvalue().splitlines()] == [None, 0]


def test_without_a_gpu_the_command_says_so(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    command = [sys.executable, str(ROOT / "bench" / "gpu.py"), "--out", str(tmp_path / "gpu.md")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "no CUDA device" in done.stderr and "Traceback" not in done.stderr


def test_shares_are_all_of_the_time():
    assert sum(PARTS.values()) == pytest.approx(1)


@pytest.mark.parametrize("gpus", [0, 1])
def test_one_gpu_has_no_other_to_talk_to(monkeypatch, gpus):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    (row,) = several_gpus.rows(Settings(device="cuda", small=False))
    with pytest.raises(Skipped, match="one GPU"):
        row.measure()


def test_several_gpus_are_two_and_all(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    rows = several_gpus.rows(Settings(device="cuda", small=False))
    assert {row.labels[-1] for row in rows} == {"1", "2", "8"}


def test_peaks_belong_to_whole_names():
    assert peak("NVIDIA A100-SXM4-80GB", BF16) == peak("NVIDIA A100 80GB PCIe", BF16) == 312
    assert peak("NVIDIA H100 PCIe", TF32) < peak("NVIDIA H100 80GB HBM3", TF32)
    assert peak("Tesla V100-SXM2-16GB", FLOAT32) == 15.7 and peak("Tesla V100-SXM2-16GB", BF16) is None
    for other in ("NVIDIA H200 NVL", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 3090 Ti", "NVIDIA T4"):
        assert peak(other, FLOAT32) is None
    assert all(peaks[FLOAT32] <= peaks.get(TF32, 1e9) <= peaks.get(BF16, 1e9) for peaks in PEAKS.values())


def test_kernels_and_busy_time_of_a_profile():
    def event(name, start, end, device=DeviceType.CUDA, annotation=False):
        span = SimpleNamespace(start=start, end=end)
        return SimpleNamespace(name=name, time_range=span, device_type=device, is_user_annotation=annotation)

    work = work_of(
        [
            event("conv", 0, 10),
            event("relu", 5, 12),  # on another stream
            event("Memcpy HtoD (Pinned -> Device)", 20, 25),
            event("aten::conv2d", 0, 100, device=DeviceType.CPU),
            event("Optimizer.step#SGD.step", 0, 50, annotation=True),
        ]
    )
    assert work.kernels == 2
    assert work.busy == pytest.approx(17e-6)
    assert covered([]) == 0


def test_host_waits_are_the_warnings_of_the_debug_mode(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def action():
        for text in (
            "called a synchronizing CUDA operation",
            "something else",
            "called a synchronizing CUDA operation",
        ):
            warnings.warn(text, stacklevel=1)

    assert host_waits(action, torch.device("cuda")) == 2
    assert modes == ["warn", "default"]
    assert host_waits(action, torch.device("cpu")) is None


def test_utilization_of_known_and_unknown_cards(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    assert utilization(156e12, torch.device("cuda"), BF16) == "50.0%"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA T4")
    assert utilization(156e12, torch.device("cuda"), BF16) == "unknown"
    assert utilization(156e12, torch.device("cpu"), BF16) == "-"


def test_bits_are_compared_not_values():
    assert same_bits(torch.tensor([float("nan")]), torch.tensor([float("nan")]))
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert not same_bits(torch.zeros(2), torch.zeros(2, dtype=torch.float64))
    assert same_bits(torch.tensor(3), torch.tensor(3))
