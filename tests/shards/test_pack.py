"""launch/pack.py: from the command line to the report."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from launch.pack import main
from shards.format import Manifest
from shards.sources.voc import CLASSES
from tests.support.native_layouts import change_json
from tests.support.places import ROOT


def run(capsys, *argv) -> tuple[int, str, str]:
    try:
        code = main([str(word) for word in argv])
    except SystemExit as end:
        code = end.code
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_voc_reports_counts_classes_bad_files_and_what_to_do_next(voc_root, tmp_path, capsys):
    (voc_root / "JPEGImages/2007_000004.jpg").write_bytes(b"\xff\xd8\xff cut")
    command = "voc", "--root", voc_root, "--ids", voc_root / "list.txt", "--out", tmp_path / "out", "--processes", 1
    code, out, _ = run(capsys, *command, "--allow-bad", 0.1)
    assert code == 0
    assert "11 of 12 images in 1 shards" in out and "superpixels slic" in out
    assert "aeroplane:1" in out and "tvmonitor:11" in out and "12 of 20 classes" in out
    assert "1 bad files" in out and "JPEGImages/2007_000004.jpg" in out and "cannot be decoded" in out
    assert f"python -m shards.check {tmp_path / 'out'}" in out


def test_more_bad_samples_than_allowed_end_with_2(voc_root, tmp_path, capsys):
    for number in range(4):
        (voc_root / f"JPEGImages/2007_{number:06d}.jpg").unlink()
    command = "voc", "--root", voc_root, "--ids", voc_root / "list.txt", "--out", tmp_path / "out", "--processes", 1
    code, out, err = run(capsys, *command, "--superpixels")
    assert code == 2 and "8 of 12 images" in out
    assert "error: 4 of 12 samples are bad, more than --allow-bad 0.01 (" in err
    assert err.count("No such file") == 3 and "; ...); the others are packed" in err
    assert err.endswith("run the same command, or accept their absence with --allow-bad 0.34\n")
    assert len(Manifest.load(tmp_path / "out").samples) == 8
    assert run(capsys, *command, "--superpixels", "--allow-bad", 0.34)[0] == 0


def test_notes_of_the_source_are_told(coco_folder, tmp_path, capsys):
    change_json(coco_folder / "instances.json", lambda document: document["annotations"][0].update(segmentation=[]))
    places = "--images", coco_folder / "images", "--annotations", coco_folder / "instances.json"
    code, out, _ = run(capsys, "coco", *places, "--out", tmp_path / "out", "--processes", 1, "--superpixels")
    assert code == 0 and "note: 1 of 4 annotations cannot be drawn, 1 for one: their boxes are ignored" in out


def test_lists_that_cannot_be_read_are_one_sentence(voc_root, tmp_path, capsys, monkeypatch):
    def read_bytes(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    ids = voc_root / "list.txt"
    code, _, err = run(capsys, "voc", "--root", voc_root, "--ids", ids, "--out", tmp_path / "out")
    assert code == 2 and err == f"error: {ids} cannot be read (Permission denied)\n"


@pytest.mark.parametrize("kind", ["coco", "indexed", "fss1000", "folder", "synthetic"])
def test_other_layouts(kind, coco_folder, fss_root, voc_root, tmp_path, capsys):
    (voc_root / "names.txt").write_text("\n".join(CLASSES.values()))
    options = {
        "coco": ("--images", coco_folder / "images", "--annotations", coco_folder / "instances.json"),
        "indexed": (
            "--images",
            voc_root / "JPEGImages",
            "--masks",
            voc_root / "SegmentationClass",
            "--classes",
            voc_root / "names.txt",
        ),
        "fss1000": ("--root", fss_root),
        "folder": ("--root", coco_folder),
        "synthetic": ("--count", 2),
    }[kind]
    out = tmp_path / "out"
    code, text, _ = run(capsys, kind, *options, "--out", out, "--processes", 1, "--superpixels")
    assert code == 0 and "superpixels none" in text
    counts = {"coco": 2, "indexed": 12, "fss1000": 4, "folder": 2, "synthetic": 2}
    assert len(Manifest.load(out).samples) == counts[kind]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["synthetic", "--out", "x", "--sed", "1"], "unrecognized arguments: --sed 1"),
        (["synthetic"], "--out"),
        (["imagenet", "--out", "x"], "invalid choice: 'imagenet'"),
        (["synthetic", "--out", "x", "--superpixels", "seeds"], "invalid choice: 'seeds'"),
        (["synthetic", "--out", "x", "--count", "many"], "invalid int value: 'many'"),
        (["synthetic", "--out", "x", "--processes", "0"], "must be 1 or more"),
        (["synthetic", "--out", "x", "--allow-bad", "1.5"], "invalid share value: '1.5'"),
        (["folder", "--root", "nowhere", "--out", "x"], "nowhere is not a folder"),
    ],
)
def test_what_is_wrong_is_one_sentence(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *argv)
    assert code == 2 and out == ""
    assert err.startswith("error: ") and message in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_names_the_way_to_continue(tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("launch.pack.pack", interrupted)
    code, _, err = run(capsys, "synthetic", "--out", tmp_path / "out")
    assert code == 130 and "the same command continues" in err


def test_the_script_runs_from_anywhere(tmp_path):
    command = [
        sys.executable,
        ROOT / "launch" / "pack.py",
        "synthetic",
        *"--count 3 --processes 2 --out set".split(),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "3 of 3 images" in done.stdout and (tmp_path / "set" / "manifest.json").exists()
