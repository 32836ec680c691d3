"""A part of the measurements in a process of its own: a crash or a lack of memory ends no other part."""

import gc
import importlib
import json
import os
import sys
import time
import traceback
from typing import IO

from gpu_parts.part import Part, Settings, Skipped

ERROR_LENGTH = 160


def measure_part(name: str, settings: Settings, seconds: float) -> None:
    """Measure a part and write lines of JSON to stdout: first the plan, then a line for each row.

    The plan has the fields title, note, columns (labels among them) and rows, the labels of each. A row has its number
    and either values, by column, or error or skipped, a line of text. No row is begun that would not be done within
    `seconds`, if it took as long as the longest before it.
    """
    began = time.monotonic()
    with own_stdout() as out:
        part: Part = importlib.import_module(f"gpu_parts.{name}").PART
        rows = part.rows(settings)
        plan = {"title": part.title, "note": part.note, "columns": [*part.labels, *part.columns]}
        send(out, plan | {"rows": [row.labels for row in rows]})
        longest = 0.0
        for index, row in enumerate(rows):
            start = time.monotonic()
            if start - began + longest > seconds:
                return
            try:
                found = {"values": dict(row.measure())}
            except Skipped as reason:
                found = {"skipped": str(reason)}
            except Exception as error:
                traceback.print_exc()
                found = {"error": one_line(error)}
            send(out, {"row": index} | found)
            release()
            longest = max(longest, time.monotonic() - start)


def tell_machine(settings: Settings) -> None:
    """Write the facts of `gpu_parts.machine` as a line of JSON. Raises SystemExit if the device is missing."""
    from gpu_parts.machine import facts

    try:
        print(json.dumps(facts(settings)))
    except RuntimeError as error:
        sys.exit(str(error))


def own_stdout() -> IO[str]:
    """This process's stdout for the lines alone; what others print goes to stderr."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return out


def send(out: IO[str], message: dict) -> None:
    print(json.dumps(message), file=out, flush=True)


def one_line(error: BaseException) -> str:
    """The kind of an error and the first line of its text, cut to ERROR_LENGTH."""
    text = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {text}"[:ERROR_LENGTH]


def release() -> None:
    """Free the memory of the row before."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
