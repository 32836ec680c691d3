"""The measurement of a method on episodes, on any number of ranks.

Every episode yields integer counts, so their sums do not depend on the ranks that measured them.
"""

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from typing import TypeVar, overload

import numpy as np
from torch import Tensor

from fss.data.episodes import Episode
from fss.data.transforms import Frame
from fss.distributed.context import DistributedContext
from fss.distributed.signals import StopRequest
from fss.errors import RunError, UserError
from fss.evaluate import metrics
from fss.evaluate.feature_cache import AS_QUERY, FeatureCache, access_times
from fss.evaluate.partition import partition
from fss.evaluate.predictor import EpisodePredictor
from fss.evaluate.prefetch import Prefetcher
from fss.evaluate.record import EpisodeRecord, EpisodeResult
from fss.evaluate.scoring import Scoring
from fss.methods.base import EpisodeMethod, Features
from fss.nn.transfer import to_device
from shards.format import ShardError
from shards.read import ShardSet

GIB = 1 << 30


PredictorT = TypeVar("PredictorT", bound=EpisodePredictor)


@overload
def predictor_for(method: EpisodeMethod, scoring: Scoring, context: DistributedContext) -> EpisodePredictor: ...


@overload
def predictor_for(
    method: EpisodeMethod, scoring: Scoring, context: DistributedContext, kind: type[PredictorT]
) -> PredictorT: ...


def predictor_for(
    method: EpisodeMethod,
    scoring: Scoring,
    context: DistributedContext,
    kind: type[EpisodePredictor] = EpisodePredictor,
) -> EpisodePredictor:
    """The predictor at the size and resize rule of `scoring`, on the device and in the precision of the job.

    kind: the class of the predictor, for a study that also records intermediate results.
    """
    return kind(method, device=context.device, size=scoring.size, resize=scoring.resize, autocast=context.autocast)


def measure(
    predictor: EpisodePredictor,
    shards: ShardSet,
    episodes: Sequence[Episode],
    scoring: Scoring,
    context: DistributedContext,
    record: EpisodeRecord | None = None,
    *,
    cache: float = 4,
    readers: int = 2,
    stop: StopRequest | None = None,
    on_result: Callable[[EpisodeResult, int], None] = lambda result, left: None,
) -> list[EpisodeResult]:
    """Evaluate `episodes` on all ranks together; every rank gets all results, ordered by (seed, number). Collective.

    Every image is encoded alone. So on one device, with one number of threads, the counts of an episode do not depend
    on the ranks or on the episodes before.

    predictor: of `predictor_for(method, scoring, context)`, or one with another `predict_unchecked`.
    record: its episodes are not evaluated again, and every episode is written to it before the next begins.
    cache: GiB on each rank for the features of images and supports; 0 computes them anew for every episode.
    readers: threads a rank that read ahead.
    on_result: called on each rank with each of its results and the number of its episodes left.
    stop: with a record, all ranks stop after their current episode if it was asked on any of them; the results are
    those of the finished episodes.

    Raises ShardError on all ranks if a sample cannot be read, RunError if logits are not finite.
    """
    finished = context.on_main(record.begin) if record else {}
    wanted = {(episode.seed, episode.number) for episode in episodes}
    block = partition([e for e in episodes if (e.seed, e.number) not in finished], context.world_size)[context.rank]
    measured: list[EpisodeResult] = []
    failure = None
    try:
        with predictor:
            context.report_progress(f"at its {len(block)} episodes")
            for result in _EpisodeRunner(predictor, shards, block, scoring, cache).results(readers):
                measured.append(result)
                if record:
                    record.append(result)
                on_result(result, len(block) - len(measured))
                context.report_progress(f"past episode {len(measured)} of its {len(block)}")
                if record and stop and stop.asked:
                    record.halt()
                if record and record.halted:
                    break
        if record:
            record.close()
    except Exception as error:
        expected = isinstance(error, UserError | ShardError | OSError)
        failure = error if expected else RunError(f"rank {context.rank} failed: {error!r}")
        if not expected:
            traceback.print_exc()  # the other ranks get only the message
        with suppress(OSError):  # on a full disk, the other ranks see the failure at the gather below
            if record:
                record.halt()
    by_rank, failures = zip(*context.gather_objects((measured, failure)), strict=True)
    if first_failure := next((failure for failure in failures if failure), None):
        raise first_failure
    recorded = [result for key, result in finished.items() if key in wanted]
    return sorted([*recorded, *chain.from_iterable(by_rank)], key=lambda result: (result.seed, result.number))


class _EpisodeRunner:
    """Evaluates one rank's episodes in order; features are cached while a later episode needs them."""

    def __init__(
        self,
        predictor: EpisodePredictor,
        shards: ShardSet,
        episodes: Sequence[Episode],
        scoring: Scoring,
        cache: float,
    ) -> None:
        self._predictor = predictor
        self._shards = shards
        self._episodes = episodes
        self._scoring = scoring
        self._cache = FeatureCache(int(cache * GIB), access_times(episodes))
        self._frames: dict[int, Frame] = {}
        self._last_read: tuple[int, Tensor] | None = None
        self._encoded = 0

    def results(self, readers: int) -> Iterator[EpisodeResult]:
        """Yield the result of each episode in order. readers: threads that read ahead."""
        scoring, ahead = self._scoring, 2 * readers
        prefetcher = Prefetcher(
            self._shards, size=scoring.size, resize=scoring.resize, labels=scoring.labels, threads=readers
        )
        with prefetcher as self._prefetcher:
            for episode in self._episodes[:ahead]:
                self._expect(episode)
            for now, episode in enumerate(self._episodes):
                for coming in self._episodes[now + ahead : now + ahead + 1]:
                    self._expect(coming)
                began, encoded = time.monotonic(), self._encoded
                counts, flags = self._counts(episode, now)
                background, foreground = counts.tolist()
                yield EpisodeResult(
                    seed=episode.seed,
                    number=episode.number,
                    class_id=episode.class_id,
                    query=self._shards.keys[episode.query],
                    supports=tuple(self._shards.keys[support] for support in episode.supports),
                    counts=((background[0], background[1]), (foreground[0], foreground[1])),
                    flags=flags,
                    encoded=self._encoded - encoded,
                    seconds=time.monotonic() - began,
                )

    def _expect(self, episode: Episode) -> None:
        """Begin to read the images and masks of an episode that are not cached."""
        undescribed = [s for s in episode.supports if (s, episode.class_id) not in self._cache]
        for image in (episode.query, *undescribed):
            self._prefetcher.expect((image, episode.class_id))
            as_query = self._predictor.method.needs_query_encoding and image == episode.query
            if image not in self._cache or (as_query and (image, AS_QUERY) not in self._cache):
                self._prefetcher.expect(image)

    def _counts(self, episode: Episode, now: int) -> tuple[np.ndarray, tuple[str, ...]]:
        """Evaluate one episode: intersections and unions, int64 [2, 2], and the flags of its prediction."""
        described = self._encode_supports(list(dict.fromkeys(episode.supports)), episode.class_id, now)
        query = self._encode_query(episode.query, now)
        name = f"episode {episode.number} of seed {episode.seed} (query {self._shards.keys[episode.query]})"
        supports = [described[support] for support in episode.supports]
        frame, resolution = self._frames[episode.query], self._scoring.resolution
        found = self._predictor.segment(query, supports, name, frame, resolution)
        truth = frame.truth(self._mask(episode.query, episode.class_id), resolution)
        if not self._scoring.ignore_255:
            truth = metrics.ignored_as_background(truth)
        return metrics.counts(found.mask, truth), found.flags

    def _encode(self, image: int, now: int) -> Features:
        features = self._cache.get(image, now)
        if features is None:
            features = self._predictor.encode(self._square(image))
            self._encoded += 1
            self._cache.put(image, features, now)
        return features

    def _encode_query(self, image: int, now: int) -> Features:
        features = self._encode(image, now)
        if not self._predictor.method.needs_query_encoding:
            return features
        extras = self._cache.get((image, AS_QUERY), now)
        if extras is None:
            extras = self._predictor.query_extras(self._square(image))
            self._cache.put((image, AS_QUERY), extras, now)
        return features | extras

    def _square(self, image: int) -> Tensor:
        """The image as the method sees it, [1, 3, S, S]; read once if it is needed twice in a row."""
        if self._last_read is None or self._last_read[0] != image:
            square, self._frames[image] = self._prefetcher.take_image(image)
            self._last_read = image, to_device(square, self._predictor.device)
        else:
            self._prefetcher.drop(image)
        return self._last_read[1]

    def _encode_supports(self, images: Sequence[int], class_id: int, now: int) -> dict[int, Features]:
        """The descriptions of a class in different images; those that are not cached are computed together."""
        cached = {image: self._cache.get((image, class_id), now) for image in images}
        described = {image: description for image, description in cached.items() if description is not None}
        missing = [image for image in images if image not in described]

        def supports() -> Iterator[tuple[Features, np.ndarray, Frame]]:
            for image in missing:
                features = self._encode(image, now)
                yield features, self._mask(image, class_id), self._frames[image]

        for image, description in zip(missing, self._predictor.encode_supports(supports()), strict=True):
            self._cache.put((image, class_id), description, now)
            described[image] = description
        return described

    def _mask(self, image: int, class_id: int) -> np.ndarray:
        """The mask of a class in an image whose frame is known, uint8 [H, W]."""
        mask, frame = self._prefetcher.take_mask(image, class_id), self._frames[image]
        if mask.shape != (frame.height, frame.width):
            raise ShardError(
                f"the mask of class {class_id} of sample {self._shards.keys[image]} is {mask.shape}, its image "
                f"{(frame.height, frame.width)}: pack the set again"
            )
        return mask
