"""Reads an offline wandb run back: LevelDB's log format around protobuf records."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEADER = 32768, 7  # a record is cut at block boundaries; each piece has checksum, length and kind
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path: Path, timeout: float = 30) -> list[Record]:
    """The records of a finished run's .wandb file: wandb's service writes the last ones after `finish` has returned."""
    end = time.monotonic() + timeout
    while True:
        found = list(_written(path))
        if any(record.HasField("exit") for record in found):
            return found
        assert time.monotonic() < end, f"{path} has no end"
        time.sleep(0.05)


def _written(path: Path) -> Iterator[Record]:
    """The records that are whole by now."""
    data = path.read_bytes()
    assert data[:4] in (b":W&B", b"")
    at, parts = HEADER, []
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:  # the rest of a block that has no room for a header is padding
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + HEADER])
        if kind == 0:
            break
        assert kind in (WHOLE, FIRST, MIDDLE, LAST)
        if at + HEADER + length > len(data):
            break
        parts.append(data[at + HEADER : at + HEADER + length])
        at += HEADER + length
        if kind in (WHOLE, LAST):
            record = Record()
            record.ParseFromString(b"".join(parts))
            parts = []
            yield record


def history(path: Path) -> list[dict]:
    """The logged rows, as wandb would show them."""
    return [
        {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item}
        for record in records(path)
        if record.HasField("history")
    ]


def kinds(path: Path) -> dict[str, str]:
    """Everything that was logged, name -> 'number' or wandb's type: histogram, image-file, table-file."""
    found = {}
    for row in history(path):
        for name, value in row.items():
            owner, _, leaf = name.rpartition("/")
            if leaf == "_type":
                found[owner] = value
            elif isinstance(value, int | float) and not name.startswith("_"):
                found[name] = "number"
    typed = tuple(f"{name}/" for name, kind in found.items() if kind != "number")  # which have numbers of their own
    return {name: kind for name, kind in found.items() if not name.startswith(typed)}


def tables(path: Path, name: str) -> list[list[dict]]:
    """Every logging of the table `name`: its rows by column; a picture is a dict with its '_type'."""
    staged = [
        Path(entry.local_path)
        for record in records(path)
        if record.HasField("artifact")
        for entry in record.artifact.manifest.contents
        if entry.path == f"{name}.table.json"
    ]
    contents = [json.loads(file.read_text()) for file in staged]
    return [[dict(zip(table["columns"], row, strict=True)) for row in table["data"]] for table in contents]


def artifacts(path: Path, *, used: bool) -> dict[str, list[str]]:
    """Artifacts of weights and results that the run used or logged: name -> aliases."""
    found = [record.artifact for record in records(path) if record.HasField("artifact")]
    chosen = [one for one in found if one.use_after_commit == used and one.type != "run_table"]
    return {one.name: sorted(one.aliases) for one in chosen}


def run(path: Path) -> dict[str, str | list[str]]:
    """How the run is filed: group, job_type, name, tags."""
    record = next(record.run for record in records(path) if record.HasField("run"))
    return {
        "group": record.run_group,
        "job_type": record.job_type,
        "name": record.display_name,
        "tags": list(record.tags),
    }


def config(path: Path) -> dict:
    """The configuration that was sent with the run."""
    return {
        item.key: json.loads(item.value_json)
        for record in records(path)
        if record.HasField("run")
        for item in record.run.config.update
    }
