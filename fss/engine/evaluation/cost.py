"""What one episode costs in arithmetic, counted while it is computed."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from fss.data.episodes import Episode
from fss.data.transforms import fit_image, read_labelled
from fss.engine.evaluation.measure import Scoring, evaluating
from fss.methods.base import Method
from shards.read import ShardSet


def episode_flops(method: Method, shards: ShardSet, episode: Episode, how: Scoring, device: torch.device) -> int:
    """Floating point operations of `episode` with its first support alone: two encodings, a description, a prediction.

    A multiplication and an addition are two. Counted are matrix products, convolutions and attention.
    device: where the method is. Raises ShardError where a sample cannot be read.
    """
    support, mask = read_labelled(shards, episode.supports[0], episode.class_id, how.labels)
    query, _ = read_labelled(shards, episode.query, episode.class_id, how.labels)
    (shown, frame), (asked, _) = (fit_image(image, how.size, how.resize) for image in (support, query))
    shown, asked = shown[None].to(device), asked[None].to(device)
    seen = torch.from_numpy(frame.mask(mask))[None].to(device)
    with evaluating(method), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        known = method.describe(method.encode(shown), seen)
        features = method.encode(asked)
        if method.encodes_queries:
            features = features | method.encode_query(asked)
        method.predict(features, [known])
    return counter.get_total_flops()
