"""A method on episodes, on any number of ranks: each gives integers, whose sum does not know who added them."""

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fss.data.episodes import Episode, Labels
from fss.data.transforms import Frame, Resize, Resolution
from fss.engine.dist import World
from fss.engine.evaluation import metrics
from fss.engine.evaluation.deal import deal
from fss.engine.evaluation.features import AS_QUERY, Kept, uses
from fss.engine.evaluation.reader import Reader
from fss.engine.evaluation.record import Record, Result
from fss.engine.loop import StopRequest
from fss.errors import RunError, UserError
from fss.methods.base import Features, Method
from shards.format import ShardError
from shards.read import ShardSet

GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What decides the score of one episode, beside the method."""

    size: int
    """Side of the square that the method sees, pixels."""
    resize: Resize = "exact"
    """How an image is fitted into that square, see fss.data.transforms.fit_image."""
    resolution: Resolution = "original"
    """Where the prediction meets the truth: at the size of the photograph, or in a square of so many pixels."""
    labels: Labels = "own"
    """Whether a class's pixels are its own mask, or what is left of it in the flattened label map."""
    ignore_255: bool = True
    """Pixels labelled 255 count nowhere; else they are background."""


def measure(
    method: Method,
    shards: ShardSet,
    episodes: Sequence[Episode],
    how: Scoring,
    world: World,
    record: Record | None = None,
    *,
    cache: float = 4,
    readers: int = 2,
    stop: StopRequest | None = None,
    seen: Callable[[Result, int], None] = lambda result, left: None,
) -> list[Result]:
    """Evaluate `episodes`, all ranks together; every rank gets all results, ordered by (seed, number).

    Every image is encoded alone, so that on one device, with one thread count, an episode's counts do not depend on the
    ranks or on what was evaluated before. The method's modules are on `world.device`; they come back as they were.

    record: what it holds already is not done again, and every episode is written to it before the next begins.
    cache: GiB on each rank for the features of images and supports; 0 computes them anew for every episode.
    readers: threads a rank that read ahead. seen: called on each rank with each of its results and how many are left.
    stop: with a record, all ranks stop after their episode at hand when it was asked on any; fewer results come back.

    Raises ShardError on all ranks where a sample cannot be read, RunError where logits are not finite.
    """
    finished = world.on_main(record.begin) if record else {}
    wanted = {(episode.seed, episode.number) for episode in episodes}
    block = deal([e for e in episodes if (e.seed, e.number) not in finished], world.size)[world.rank]
    found: list[Result] = []
    failure = None
    try:
        with evaluating(method), torch.inference_mode(), world.autocast():
            world.alive(f"at its {len(block)} episodes")
            for result in _Walk(method, shards, block, how, world.device, cache).results(readers):
                found.append(result)
                if record:
                    record.append(result)
                seen(result, len(block) - len(found))
                world.alive(f"past episode {len(found)} of its {len(block)}")
                if record and stop and stop.asked:
                    record.halt()
                if record and record.halted:
                    break
        if record:
            record.close()
    except Exception as error:
        expected = isinstance(error, UserError | ShardError | OSError)
        failure = error if expected else RunError(f"rank {world.rank} failed: {error!r}")
        if not expected:
            traceback.print_exc()  # the others only hear of it
        with suppress(OSError):  # on a full disk the others are told when they are through
            if record:
                record.halt()
    everyone, failures = zip(*world.gather_objects((found, failure)), strict=True)
    if error := next((failure for failure in failures if failure), None):
        raise error
    known = [result for key, result in finished.items() if key in wanted]
    return sorted([*known, *(result for found in everyone for result in found)], key=lambda r: (r.seed, r.number))


@contextmanager
def evaluating(method: Method) -> Iterator[None]:
    """Every module in evaluation mode while inside, and afterwards in the mode it had."""
    modules = [module for part in (method.trained, method.replica) for module in part.modules()]
    before = [module.training for module in modules]
    method.trained.eval()
    method.replica.eval()
    try:
        yield
    finally:
        for module, training in zip(modules, before, strict=True):
            module.training = training


class _Walk:
    """One rank's way through its episodes."""

    def __init__(
        self,
        method: Method,
        shards: ShardSet,
        episodes: Sequence[Episode],
        how: Scoring,
        device: torch.device,
        cache: float,
    ) -> None:
        self._method = method
        self._shards = shards
        self._episodes = episodes
        self._how = how
        self._device = device
        self._kept = Kept(int(cache * GIB), uses(episodes))
        self._frames: dict[int, Frame] = {}
        self._at_hand: tuple[int, Tensor] | None = None  # the image that was read last
        self._encoded = 0

    def results(self, readers: int) -> Iterator[Result]:
        """One result an episode, in their order."""
        how, ahead = self._how, 2 * readers
        reader = Reader(self._shards, size=how.size, resize=how.resize, labels=how.labels, threads=readers)
        with reader as self._reader:
            for episode in self._episodes[:ahead]:
                self._expect(episode)
            for now, episode in enumerate(self._episodes):
                for coming in self._episodes[now + ahead : now + ahead + 1]:
                    self._expect(coming)
                began, encoded = time.monotonic(), self._encoded
                counts = self._counts(episode, now)
                yield Result(
                    seed=episode.seed,
                    number=episode.number,
                    class_id=episode.class_id,
                    query=self._shards.keys[episode.query],
                    supports=tuple(self._shards.keys[support] for support in episode.supports),
                    counts=tuple(tuple(row) for row in counts.tolist()),
                    remarks=self._method.remarks(),
                    encoded=self._encoded - encoded,
                    seconds=time.monotonic() - began,
                )

    def _expect(self, episode: Episode) -> None:
        """Have the reader begin with what the episode needs and nobody keeps."""
        undescribed = [s for s in episode.supports if (s, episode.class_id) not in self._kept]
        for image in (episode.query, *undescribed):
            self._reader.expect((image, episode.class_id))
            as_query = self._method.encodes_queries and image == episode.query
            if image not in self._kept or (as_query and (image, AS_QUERY) not in self._kept):
                self._reader.expect(image)

    def _counts(self, episode: Episode, now: int) -> np.ndarray:
        """Intersections and unions of one episode, int64 [2, 2]."""
        described = {s: self._describe(s, episode.class_id, now) for s in dict.fromkeys(episode.supports)}
        query = self._encode_query(episode.query, now)
        logits = self._method.predict(query, [described[support] for support in episode.supports])  # [1, 2, S, S]
        if not torch.isfinite(logits).all():
            raise RunError(
                f"the logits of episode {episode.number} of seed {episode.seed} (query "
                f"{self._shards.keys[episode.query]}) are not finite: give other weights, or run.precision float32"
            )
        frame = self._frames[episode.query]
        truth = frame.truth(self._mask(episode.query, episode.class_id), self._how.resolution)
        if not self._how.ignore_255:
            truth = metrics.known(truth)
        return metrics.counts(frame.restore(logits, self._how.resolution), truth)

    def _encode(self, image: int, now: int) -> Features:
        features = self._kept.get(image, now)
        if features is None:
            features = self._method.encode(self._fitted(image))
            self._encoded += 1
            self._kept.put(image, features, now)
        return features

    def _encode_query(self, image: int, now: int) -> Features:
        features = self._encode(image, now)
        if not self._method.encodes_queries:
            return features
        more = self._kept.get((image, AS_QUERY), now)
        if more is None:
            more = self._method.encode_query(self._fitted(image))
            self._kept.put((image, AS_QUERY), more, now)
        return features | more

    def _fitted(self, image: int) -> Tensor:
        """The image as the method sees it, [1, 3, S, S] on its device; one asked for twice running is read once."""
        if self._at_hand is None or self._at_hand[0] != image:
            fitted, self._frames[image] = self._reader.take(image)
            self._at_hand = image, fitted.to(self._device)
        else:
            self._reader.drop(image)
        return self._at_hand[1]

    def _describe(self, image: int, class_id: int, now: int) -> Features:
        description = self._kept.get((image, class_id), now)
        if description is None:
            features = self._encode(image, now)
            mask = self._frames[image].mask(self._mask(image, class_id))  # [S, S]
            description = self._method.describe(features, torch.from_numpy(mask)[None].to(self._device))
            self._kept.put((image, class_id), description, now)
        return description

    def _mask(self, image: int, class_id: int) -> np.ndarray:
        """The class's mask of an image, uint8 [H, W], whose frame is known."""
        mask, frame = self._reader.take((image, class_id)), self._frames[image]
        if mask.shape != (frame.height, frame.width):
            raise ShardError(
                f"the mask of class {class_id} of sample {self._shards.keys[image]} is {mask.shape}, its image "
                f"{(frame.height, frame.width)}: pack the set again"
            )
        return mask
