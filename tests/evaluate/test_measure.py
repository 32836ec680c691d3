"""Sharded, resumable evaluation: the same integers whoever adds them, in any order, with any memory, after any kill."""

import os
import random
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fss.data.episodes import Episode, Policy, evaluation_episodes
from fss.data.transforms import fit_image, read_labelled
from fss.distributed.signals import StopRequest
from fss.errors import RunError
from fss.evaluate.measure import measure, predictor_for
from fss.evaluate.prefetch import Prefetcher
from fss.evaluate.record import EpisodeRecord, EpisodeResult
from fss.evaluate.scoring import Scoring
from shards.format import ShardError
from shards.read import ShardSet
from shards.sources import Item, Sample
from shards.synthetic import synthetic
from shards.write import pack
from tests.support.contexts import joined
from tests.support.episode_toy import Colour
from tests.support.ranks import on_ranks

SCORING = Scoring(size=33)
CLASSES = (1, 5, 9, 13)
ENCODED = 4 * 3 * SCORING.size**2  # bytes that the toy keeps of an image


@dataclass
class Ignoring:
    """An item of the synthetic set whose first rows no metric may count."""

    item: Item

    def __getattr__(self, name: str):
        return getattr(self.item, name)

    def read(self) -> Sample:
        sample = self.item.read()
        sample.ignore = np.zeros_like(next(iter(sample.masks.values())))
        sample.ignore[:9] = True
        return sample


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    source = synthetic(60)
    source.items = [Ignoring(item) for item in source.items]
    folder = tmp_path_factory.mktemp("packed") / "synthetic"
    pack(source, folder, samples_per_shard=25)
    return folder


def drawn(folder: Path, shots: int = 2, episodes: int = 20, seeds=(0, 1)) -> list[Episode]:
    policy = Policy(draw="class_image", min_area=1)
    return evaluation_episodes(ShardSet(folder).manifest, CLASSES, policy, shots, episodes, seeds)


def measured(folder: Path, episodes: list[Episode], record: Path | None = None, **options) -> list[EpisodeResult]:
    """As one rank of a job; importable, so that it may be many."""
    torch.set_num_threads(1)
    context = joined()
    try:
        kept = EpisodeRecord(record, context.rank) if record else None
        return measure(
            predictor_for(Colour(), SCORING, context), ShardSet(folder), episodes, SCORING, context, kept, **options
        )
    finally:
        context.close()


def plain(folder: Path, episodes: list[Episode]) -> dict[tuple[int, int], tuple]:
    """What `measure` should find, episode by episode, with nothing kept."""
    shards, method, found = ShardSet(folder), Colour(), {}
    method.non_trainable.eval()
    for episode in episodes:

        def encoded(index, class_id=episode.class_id):
            image, mask = read_labelled(shards, index, class_id, "own")
            fitted, frame = fit_image(image, SCORING.size, "exact")
            return method.encode(fitted[None]), mask, frame

        supports = [encoded(index) for index in episode.supports]
        described = [method.encode_support(f, torch.from_numpy(frame.mask(mask))[None]) for f, mask, frame in supports]
        features, truth, frame = encoded(episode.query)
        prediction = frame.restore(method.predict(features, described).margin, "original")
        valid = truth != 255
        found[episode.seed, episode.number] = tuple(
            (
                int(((prediction == label) & (truth == label) & valid).sum()),
                int((((prediction == label) | (truth == label)) & valid).sum()),
            )
            for label in (0, 1)
        )
    return found


def test_every_episode_against_a_plain_loop(packed):
    episodes = drawn(packed)
    results = measured(packed, episodes)
    assert {(r.seed, r.number): r.counts for r in results} == plain(packed, episodes)
    assert [(r.seed, r.number) for r in results] == [(e.seed, e.number) for e in episodes]
    keys = ShardSet(packed).keys
    assert [(r.class_id, r.query, r.supports) for r in results] == [
        (e.class_id, keys[e.query], tuple(keys[s] for s in e.supports)) for e in episodes
    ]


@pytest.mark.parametrize("images", [0, 3])
def test_a_small_memory_finds_the_same_with_more_work(packed, images):
    episodes = drawn(packed)
    expected, found = measured(packed, episodes), measured(packed, episodes, cache=images * ENCODED / 2**30)
    assert found == expected
    assert sum(r.encoded for r in found) > sum(r.encoded for r in expected)
    assert sum(r.encoded for r in expected) == len({i for e in episodes for i in (e.query, *e.supports)})


def test_reading_ahead_changes_nothing(packed):
    episodes = drawn(packed)
    assert measured(packed, episodes, readers=0) == measured(packed, episodes, readers=3)


def test_nothing_read_ahead_outlives_its_use(packed, context, monkeypatch):
    """Four images, of which memory holds too few: one is often asked for again while it is still at hand."""
    shards, draw, left = ShardSet(packed), random.Random(0), []
    pool = [index for index, sample in enumerate(shards.manifest.samples) if CLASSES[0] in sample.classes][:4]
    pairs = [draw.sample(pool, 2) for _ in range(40)]
    episodes = [
        Episode(seed=0, number=number, class_id=CLASSES[0], query=query, supports=(support,))
        for number, (query, support) in enumerate(pairs)
    ]
    monkeypatch.setattr(Prefetcher, "__exit__", lambda reader, *_: left.append(len(reader._coming)))
    for images in (0, 2, 3):
        measure(
            predictor_for(Colour(), SCORING, context),
            shards,
            episodes,
            SCORING,
            context,
            cache=images * ENCODED / 2**30,
        )
    assert left == [0, 0, 0]


def test_the_method_comes_back_as_it_was(packed, context):
    method = Colour()
    method.trainable.train()
    method.non_trainable.train()
    measure(predictor_for(method, SCORING, context), ShardSet(packed), drawn(packed)[:2], SCORING, context)
    assert method.trainable.training and all(m.training for m in method.non_trainable.modules())


def test_pixels_that_the_protocol_does_not_ignore_are_background(packed, context):
    episodes = drawn(packed)[:4]
    pixels = {row.key: row.height * row.width for row in ShardSet(packed).manifest.samples}
    for ignore in (True, False):
        scoring = replace(SCORING, ignore_255=ignore)
        results = measure(predictor_for(Colour(), scoring, context), ShardSet(packed), episodes, scoring, context)
        for result in results:
            (_, background_union), (hits, _) = result.counts
            assert (background_union + hits < pixels[result.query]) == ignore


# --- records


def test_a_finished_episode_is_not_done_again(packed, tmp_path):
    episodes = drawn(packed)
    whole = measured(packed, episodes, tmp_path)
    again = measured(packed, episodes, tmp_path)
    assert again == whole
    assert [r.encoded for r in again] == [r.encoded for r in whole]  # read back, not encoded anew
    assert len(read_lines(tmp_path)) == len(episodes)


def read_lines(folder: Path) -> list[str]:
    return [line for path in folder.glob("rank_*.jsonl") for line in path.read_text().splitlines()]


def test_a_line_that_was_cut_short_is_done_again(packed, tmp_path):
    episodes = drawn(packed)
    whole = measured(packed, episodes, tmp_path)
    path = tmp_path / "rank_00000.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-3]) + lines[-2][:40])
    assert measured(packed, episodes, tmp_path) == whole
    assert len([line for line in read_lines(tmp_path) if line.endswith("}")]) == len(episodes)
    assert measured(packed, episodes, tmp_path) == whole


class Cut(BaseException):
    """What ends a process at any moment."""


def test_cut_off_at_a_random_episode_and_gone_on_with_by_other_ranks(packed, tmp_path):
    episodes = drawn(packed)
    expected = measured(packed, episodes)
    left = random.Random(0).randint(5, 30)

    def cut(result: EpisodeResult, left_here: int) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise Cut

    with pytest.raises(Cut):
        measured(packed, episodes, tmp_path / "cut", on_result=cut)
    before = len(read_lines(tmp_path / "cut"))
    assert 0 < before < len(episodes)
    # Two launches: ranks that join twice on one port may meet the store that the first job is closing.
    assert on_ranks(3, measured, packed, episodes) == [expected] * 3
    assert on_ranks(3, measured, packed, episodes, tmp_path / "cut") == [expected] * 3
    assert len(read_lines(tmp_path / "cut")) == len(episodes)


def test_a_rank_that_is_asked_to_stop_stops_all(packed, tmp_path):
    episodes = drawn(packed)
    one, other = on_ranks(2, stopped, packed, episodes, tmp_path)
    assert one == other and 0 < len(one) < len(episodes)
    assert measured(packed, episodes, tmp_path) == measured(packed, episodes)


def stopped(packed: Path, episodes: list[Episode], folder: Path) -> list[EpisodeResult]:
    stop, second = StopRequest(), os.environ["RANK"] == "1"

    def ask(result: EpisodeResult, left: int) -> None:
        stop.asked = second
        time.sleep(0.1)  # long enough for one rank's word to reach the other before that is done

    return measured(packed, episodes, folder, on_result=ask, stop=stop)


def test_a_rank_that_fails_stops_all(packed, tmp_path):
    episodes = drawn(packed)
    one, other = on_ranks(2, failed, packed, episodes, tmp_path)
    assert one == other == "rank 1 has seen enough"
    assert len(read_lines(tmp_path)) < len(episodes)


def failed(packed: Path, episodes: list[Episode], folder: Path) -> str:
    second = os.environ["RANK"] == "1"

    def fail(result: EpisodeResult, left: int) -> None:
        if second:
            raise RunError("rank 1 has seen enough")
        time.sleep(0.1)

    with pytest.raises(RunError) as refused:
        measured(packed, episodes, folder, on_result=fail)
    return str(refused.value)


# --- bad input


def test_an_unreadable_image_is_named_and_never_left_out(packed, tmp_path):
    episodes = drawn(packed)
    shards = ShardSet(packed)
    lost = shards.manifest.samples[episodes[7].query]
    broken = tmp_path / "broken"
    shutil.copytree(packed, broken)
    with open(broken / shards.shards[lost.shard].name, "r+b") as file:
        file.seek(lost.offset + 512)
        file.write(b"\0" * 600)
    with pytest.raises(ShardError, match=f"sample {lost.key} cannot be read .* leaves none out"):
        measured(broken, episodes)


def test_logits_that_are_not_finite_are_refused(packed, context):
    method = Colour()
    method.non_trainable.weight.fill_(float("nan"))
    with pytest.raises(RunError, match="not finite"):
        measure(predictor_for(method, SCORING, context), ShardSet(packed), drawn(packed), SCORING, context)
