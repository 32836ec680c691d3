"""The arithmetic of one episode, counted while it is computed."""

from torch.utils.flop_counter import FlopCounterMode

from fss.data.episodes import Episode
from fss.data.transforms import read_labelled
from fss.datasets.base import Labels
from fss.evaluate.predictor import EpisodePredictor
from shards.read import ShardSet


def episode_flops(predictor: EpisodePredictor, shards: ShardSet, episode: Episode, labels: Labels) -> int:
    """Count the floating point operations of `episode` with its first support alone.

    Counted are matrix products, convolutions and attention of two encodings, a support's description and a prediction;
    a multiplication and an addition are two operations. labels: how masks are read, see `fss.data.episodes.Policy`.
    Raises ShardError if a sample cannot be read, RunError if the logits are not finite.
    """
    support, mask = read_labelled(shards, episode.supports[0], episode.class_id, labels)
    query, _ = read_labelled(shards, episode.query, episode.class_id, labels)
    (shown, frame), (square, _) = predictor.fit(support), predictor.fit(query)
    with predictor, FlopCounterMode(display=False) as counter:
        description = predictor.encode_support(predictor.encode(shown), mask, frame)
        features = predictor.encode_query(square, predictor.encode(square))
        predictor.predict(features, [description], shards.keys[episode.query])
    return counter.get_total_flops()
