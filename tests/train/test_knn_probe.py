"""The probe: right on features that separate classes, as good as guessing on others, equal on any number of ranks."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fss.collectives import SingleProcess
from fss.errors import ConfigError
from fss.train.validation.knn_probe import ProbeConfig, embed, probe, probe_crops
from shards.format import ShardError
from shards.read import ShardSet
from tests.support.contexts import joined
from tests.support.labelled import rectangles
from tests.support.ranks import on_ranks
from tests.support.toy import Toy

CPU = torch.device("cpu")
LABELS = [1, 2, 3] * 14 + [2] * 5


class Colour(Toy):
    """Sees the middle of a crop; says how large its batches were."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def embed(self, image: Tensor) -> Tensor:
        self.batches.append(len(image))
        # the batch leaks into the features a little, as it does on real hardware
        return image[:, :, 12:20, 12:20].float().mean((2, 3)) + 1e-3 * image.float().mean()  # [B, 3]


class Blind(Toy):
    def embed(self, image: Tensor) -> Tensor:
        return torch.ones(len(image), 5)


def crops_of(folder: Path):
    return probe_crops(ProbeConfig(size=32), ShardSet(folder))


def test_colour_tells_the_classes_apart_and_a_blind_method_guesses(tmp_path):
    crops = probe_crops(ProbeConfig(size=32), rectangles(tmp_path, LABELS))
    good = probe(Colour(), crops, SingleProcess(), CPU)
    assert good["knn/top1"] == 1.0
    assert good["knn/images"] == len(LABELS) and good["knn/unreadable"] == 0
    asked = [row.label for row in crops.rows if row.held_out]
    assert good["knn/chance_level"] == max(map(asked.count, asked)) / len(asked)
    assert probe(Blind(), crops, SingleProcess(), CPU)["knn/top1"] <= good["knn/chance_level"]


def probe_of_rank(folder: Path, few: Path) -> tuple[dict, list, list[int], dict]:
    context = joined()
    method, crops = Colour(), crops_of(folder)
    features, _ = embed(method, crops, context.collectives, CPU, batch=4)
    fewer_crops_than_ranks = probe(Colour(), crops_of(few), context.collectives, CPU, batch=4)
    return (
        probe(Colour(), crops, context.collectives, CPU, batch=4),
        features.tolist(),
        method.batches,
        fewer_crops_than_ranks,
    )


def test_any_number_of_ranks_gives_the_same_numbers(tmp_path):
    folder, few = tmp_path / "many", tmp_path / "few"
    rectangles(folder, LABELS)
    rectangles(few, [1, 2, 1, 2, 1, 2])
    crops = crops_of(folder)
    alone = probe(Colour(), crops, SingleProcess(), CPU, batch=4)
    features, _ = embed(Colour(), crops, SingleProcess(), CPU, batch=4)
    for result, others, batches, fewer in on_ranks(3, probe_of_rank, folder, few):
        assert result == alone
        assert others == features.tolist()  # the same batches, so the same bits
        assert batches == [4] * 4  # 12 batches of 47 crops, a third each
        assert fewer == probe(Colour(), crops_of(few), SingleProcess(), CPU, batch=4)


def test_an_unreadable_sample_is_left_out_and_counted(tmp_path, monkeypatch):
    crops = probe_crops(ProbeConfig(size=32), rectangles(tmp_path, LABELS))
    load = crops.load

    def broken(index: int, bad: int):
        if index == bad:
            raise ShardError("cut short")
        return load(index)

    monkeypatch.setattr(crops, "load", partial(broken, bad=3))
    result = probe(Colour(), crops, SingleProcess(), CPU)
    assert result["knn/unreadable"] == 1 and result["knn/images"] == len(LABELS) - 1 and result["knn/top1"] == 1


def test_training_shards_without_labels_are_no_error_but_named_ones_are(tmp_path):
    few = rectangles(tmp_path, [1, 2, 3, 4])
    assert probe_crops(ProbeConfig(), few) is None
    with pytest.raises(ConfigError, match=r"probe\.shards .* 0 labelled crops"):
        probe_crops(ProbeConfig(shards=str(tmp_path)), few)


@pytest.mark.parametrize(("name", "value"), [("every", -1), ("k", 0), ("size", 8), ("limit", 1)])
def test_impossible_options_are_named(name, value):
    with pytest.raises(ConfigError, match=rf"probe\.{name} is {value}: give at least"):
        ProbeConfig(**{name: value})
