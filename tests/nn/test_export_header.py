"""Exports: what is written is read, files of the old version too, and damage is named."""

import json
from dataclasses import fields

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fss.errors import WeightsError
from fss.nn.exports import ExportHeader, load_export, read_header, save_export

BASE = ExportHeader(
    method="base", backbone="resnet50", stem="deep", classes={"1": "aeroplane", "12": "dog"}, best_miou=0.5, epochs=2.5
)
PRIOR = ExportHeader(
    method="prior", backbone="resnet18", recipe={"dim": 128, "local": "patch"}, images_seen=12, knn=1.0
)
FULL = ExportHeader(
    format="pt",
    method="qgnet",
    config={"size": 473, "bins": [1.0, 0.5], "prior_weights": None},
    base=BASE,
    prior=PRIOR,
    data="voc",
    images=7,
    steps=100,
    epochs=1.5,
    images_seen=800,
    episodes_seen=400,
    scheme="pascal5i",
    fold=0,
    novel=[1, 2],
    held_out=[7],
    shots=1,
    novel_in_training="drop",
    selected_on="base",
    score=0.25,
    scored_by="val/base/miou",
    code="1a2b3c",
    job={"optim": {"lr": 0.1}},
)
TENSORS = {"weight": torch.arange(6.0).view(2, 3), "steps": torch.tensor(3)}


def entries(path) -> dict[str, str]:
    """The table of strings in a file, as any other program reads it."""
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def test_what_is_saved_is_loaded(tmp_path):
    path = tmp_path / "export.safetensors"
    save_export(path, {**TENSORS, "transposed": torch.rand(4, 5).T}, FULL)
    tensors, header = load_export(path)
    assert header == FULL == read_header(path)
    assert header.base == BASE and header.prior == PRIOR
    assert tensors.keys() == {"weight", "steps", "transposed"}
    assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())
    assert [file.name for file in tmp_path.iterdir()] == ["export.safetensors"]


def test_an_empty_header_is_an_empty_table(tmp_path):
    save_export(tmp_path / "export.safetensors", TENSORS, ExportHeader())
    assert read_header(tmp_path / "export.safetensors") == ExportHeader()
    assert ExportHeader().table() == {}


def test_in_the_file_text_stands_as_it_is_and_the_rest_as_json(tmp_path):
    save_export(tmp_path / "export.safetensors", TENSORS, FULL)
    table = entries(tmp_path / "export.safetensors")
    assert table["method"] == "qgnet" and table["fold"] == "0" and json.loads(table["novel"]) == [1, 2]
    assert "recipe" not in table and "knn" not in table
    nested = json.loads(table["base"])
    assert nested["backbone"] == "resnet50" and json.loads(nested["classes"]) == {"1": "aeroplane", "12": "dog"}


def test_files_of_the_old_version(tmp_path):
    """These were plain tables of strings, nested ones too, and had '{}' in the place of a prior extractor."""
    old = {
        "format": "pt",
        "method": "bam",
        "config": json.dumps({"backbone": "resnet50"}),
        "base": json.dumps({"method": "base", "classes": json.dumps({"3": "bird"}), "best_miou": "0.5"}),
        "prior": "{}",
        "novel": "[1, 2, 3]",
        "epochs": "12",
        "score": "0.25",
        "images_seen": "800",
        "data": "voc",
    }
    save_file(TENSORS, tmp_path / "old.safetensors", old)
    header = read_header(tmp_path / "old.safetensors")
    assert header == ExportHeader(
        format="pt",
        method="bam",
        config={"backbone": "resnet50"},
        base=ExportHeader(method="base", classes={"3": "bird"}, best_miou=0.5),
        novel=[1, 2, 3],
        epochs=12.0,
        score=0.25,
        images_seen=800,
        data="voc",
    )
    assert isinstance(header.epochs, float) and header.base.class_names == {3: "bird"}
    qgnet = ExportHeader.parse({"prior": json.dumps({"method": "moco", "backbone": "resnet50"})})
    assert qgnet.prior == ExportHeader(method="moco", backbone="resnet50")


def test_unknown_entries_are_left_out_and_null_is_none():
    header = ExportHeader.parse({"method": "base", "colour": "blue", "score": "null", "steps": "3"})
    assert header == ExportHeader(method="base", steps=3)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("steps", "many"),
        ("steps", "1.5"),
        ("steps", "true"),
        ("epochs", "true"),
        ("epochs", '"3"'),
        ("config", "[1, 2]"),
        ("novel", '{"1": 2}'),
        ("base", "[]"),
        ("prior", '"moco"'),
        ("classes", "{"),
    ],
)
def test_a_damaged_entry_is_named(tmp_path, name, text):
    path = tmp_path / "damaged.safetensors"
    save_file(TENSORS, path, {"method": "base", name: text})
    for read in (read_header, load_export):
        with pytest.raises(
            WeightsError, match=rf"damaged\.safetensors has a damaged entry {name} \(.*give another file"
        ):
            read(path)


def test_a_damaged_entry_of_a_nested_header_is_named(tmp_path):
    path = tmp_path / "damaged.safetensors"
    save_file(TENSORS, path, {"method": "bam", "base": json.dumps({"images": "few"})})
    with pytest.raises(
        WeightsError, match=r"damaged\.safetensors, base, has a damaged entry images \(.*give another file"
    ):
        read_header(path)


def test_missing_and_damaged_files_are_refused(tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00")
    for name in ("cut.safetensors", "absent.safetensors"):
        for read in (read_header, load_export):
            with pytest.raises(WeightsError, match="cannot be read"):
                read(tmp_path / name)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "export.safetensors"
    save_export(path, TENSORS, FULL)

    def fail(*args):
        raise OSError("no space left")

    monkeypatch.setattr("fss.nn.exports.save_file", fail)
    with pytest.raises(OSError, match="no space left"):
        save_export(path, TENSORS, BASE)
    assert read_header(path) == FULL
    assert [file.name for file in tmp_path.iterdir()] == ["export.safetensors"]


def test_every_field_survives_alone():
    for name in (f.name for f in fields(ExportHeader) if getattr(FULL, f.name) is not None):
        one = ExportHeader(**{name: getattr(FULL, name)})
        assert ExportHeader.parse(one.table()) == one, name


def test_unseen_classes():
    assert FULL.unseen_classes == {1, 2, 7} and FULL.learned
    assert ExportHeader(novel=[4]).unseen_classes == {4}
    assert ExportHeader().unseen_classes is None and not ExportHeader().learned


@pytest.mark.parametrize(
    "entries", [{"config": "resnet50.yaml"}, {"epochs": "300 epochs", "stem": "deep"}, {"prior": "uniform"}]
)
def test_entries_of_another_program_are_not_ours(tmp_path, entries):
    path = tmp_path / "theirs.safetensors"
    save_file(TENSORS, path, {"format": "pt", **entries})
    assert read_header(path) == ExportHeader(format="pt", stem=entries.get("stem"))
