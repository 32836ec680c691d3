"""Measures everything that needs a GPU, and writes the figures as Markdown tables.

    python bench/gpu.py                          one or several GPUs of this machine, at most ten minutes
    python bench/gpu.py --small --device cpu     tiny networks on a CPU, a minute or two: shows that every part runs
    python bench/gpu.py --parts steps resume     these alone

The document is printed and written to --out part by part; what the parts log goes into a file beside it. Each part runs
in a process of its own. A row that fails has its error in the table, and the exit code is 1; a row for which no time is
left is named as left out.
"""

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from gpu_parts.child import measure_part, tell_machine
from gpu_parts.document import Section, heading
from gpu_parts.part import ROOT, Settings

PARTS = {"steps": 0.38, "compiled": 0.18, "data": 0.08, "gfsam_episodes": 0.1, "several_gpus": 0.12, "resume": 0.14}
"""File in bench/gpu_parts -> its share of the time; what a part leaves goes to those after it."""
AFTER_A_CRASH = "left out: the process ended before"


@dataclass(frozen=True)
class Runner:
    """Runs parts in processes of their own. log: takes their stderr. temporary: their folder, emptied by the caller."""

    settings: Settings
    log: IO[str]
    temporary: str

    def start(self, name: str, seconds: float) -> subprocess.Popen[str]:
        """The process of a part, the leader of a group."""
        words = ["--part", name, "--seconds", str(seconds), "--device", self.settings.device]
        return subprocess.Popen(
            [sys.executable, __file__, *words, *["--small"] * self.settings.small],
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=os.environ | {"TMPDIR": self.temporary} | ({"OMP_NUM_THREADS": "1"} if self.settings.small else {}),
            start_new_session=True,
        )

    def machine(self) -> dict[str, str]:
        """The facts on the machine. Raises SystemExit with the reason if the device is missing."""
        words = ["--part", "machine", "--device", self.settings.device]
        done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr.strip().splitlines()[-1])
        return json.loads(done.stdout)

    def measure(self, name: str, seconds: float) -> Section:
        """The table of a part, after at most so many seconds."""
        process = self.start(name, seconds)
        assert process.stdout
        over = threading.Event()

        def stop() -> None:
            over.set()
            end(process)

        timer = threading.Timer(seconds, stop)
        timer.start()
        section = None
        try:
            for line in process.stdout:
                message = json.loads(line)
                section = take(message, section)
                print(progress(message, section), file=sys.stderr, flush=True)
            process.wait()
        finally:
            timer.cancel()
            end(process)
        if section is None:
            section = Section(name, "", ["part", "result"], [(name,)])
        if process.returncode and not over.is_set() and section.open:
            first, *rest = section.open
            section.reasons[first] = f"failed: the process ended with {process.returncode}, see the log"
            section.reasons |= dict.fromkeys(rest, AFTER_A_CRASH)
        return section


def take(message: dict, section: Section | None) -> Section:
    """The section after a line of `gpu_parts.child.measure_part`."""
    if section is None:
        return Section(message["title"], message["note"], message["columns"], [tuple(row) for row in message["rows"]])
    match message:
        case {"row": index, "values": values}:
            section.values[index] = values
        case {"row": index, "error": text}:
            section.reasons[index] = f"failed: {text}"
        case {"row": index, "skipped": text}:
            section.reasons[index] = f"skipped: {text}"
    return section


def progress(message: dict, section: Section) -> str:
    """A line on what the message has brought."""
    if "row" not in message:
        return f"{section.title}: {len(section.rows)} rows"
    index = message["row"]
    found = section.reasons.get(index) or ", ".join(f"{name} {value}" for name, value in section.values[index].items())
    return f"  {', '.join(section.rows[index])}: {found}"


def end(process: subprocess.Popen[str]) -> None:
    """Kill a part and what it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def measure_all(parts: list[str], minutes: float, out: Path, settings: Settings) -> bool:
    """Print and write the document; returns whether no row failed."""
    deadline = time.monotonic() + 60 * minutes
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        open(out.with_suffix(".log"), "w") as log,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary,
    ):
        runner = Runner(settings, log, temporary)
        now = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="minutes")
        run = "small, not for figures" if settings.small else "full"
        document = heading({"date": now, **runner.machine(), "run": run})
        print(document, end="", flush=True)
        sections = []
        for index, name in enumerate(parts):
            shares = [PARTS[other] for other in parts[index:]]
            section = runner.measure(name, (deadline - time.monotonic()) * shares[0] / sum(shares))
            sections.append(section)
            addition = "\n" + section.markdown()
            document += addition
            print(addition, end="", flush=True)
            out.write_text(document)
    failed = sum(reason.startswith("failed") for section in sections for reason in section.reasons.values())
    print(f"{out}: {failed} rows failed" if failed else out, file=sys.stderr)
    return not failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu.md", help="the Markdown file")
    parser.add_argument("--minutes", type=float, default=10, help="for all of it")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny networks and few steps")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # in a process of its own
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    settings = Settings(args.device, args.small)
    if args.part == "machine":
        tell_machine(settings)
    elif args.part:
        measure_part(args.part, settings, args.seconds)
    elif not measure_all(args.parts, args.minutes, args.out, settings):
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
