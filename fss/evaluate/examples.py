"""Single episodes with everything that a picture of them shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor
from torch.nn.functional import interpolate

from fss.data.episodes import Episode
from fss.data.transforms import Frame, read_labelled
from fss.evaluate.metrics import counts, ignored_as_background, ratio
from fss.evaluate.predictor import EpisodePredictor
from fss.evaluate.scoring import Scoring
from shards.read import ShardSet


@dataclass(frozen=True, kw_only=True)
class EpisodeExample:
    """One episode. Images uint8 RGB [H, W, 3]; masks uint8 [H, W]: 1 the class, 0 other, 255 not counted."""

    name: str
    """Of the class."""
    score: str
    supports: Sequence[tuple[np.ndarray, np.ndarray]]
    """Image and mask of each shot."""
    query: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    maps: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Name -> float [h, w] in 0..1, over the whole query."""


def predict_example(
    predictor: EpisodePredictor, shards: ShardSet, episode: Episode, scoring: Scoring
) -> EpisodeExample:
    """Predict an episode for a picture.

    The intersection over union is scored as `scoring` says; the prediction is at the photograph's own size.
    Raises ShardError if a sample cannot be read, RunError if the logits are not finite.
    """
    query, truth = read_labelled(shards, episode.query, episode.class_id, scoring.labels)
    supports = [read_labelled(shards, index, episode.class_id, scoring.labels) for index in episode.supports]
    with predictor:
        descriptions = []
        for image, mask in supports:
            square, frame = predictor.fit(image)
            descriptions.append(predictor.encode_support(predictor.encode(square), mask, frame))
        square, frame = predictor.fit(query)
        features = predictor.encode(square)
        name = f"query {shards.keys[episode.query]}"
        margin = predictor.predict(predictor.encode_query(square, features), descriptions, name).margin
        maps = {name: _over_image(found, frame) for name, found in predictor.maps(features, descriptions).items()}
    scored = frame.truth(truth, scoring.resolution)
    scored = scored if scoring.ignore_255 else ignored_as_background(scored)
    iou = ratio(counts(frame.restore(margin, scoring.resolution), scored)[1])
    return EpisodeExample(
        name=shards.manifest.classes[episode.class_id],
        score=f"IoU {100 * iou:.1f} %",
        supports=supports,
        query=query,
        truth=truth,
        prediction=frame.restore(margin, "original"),
        maps=maps,
    )


def _over_image(found: Tensor, frame: Frame) -> np.ndarray:
    """The part of a map [h, w] over the method's square input that lies over the image."""
    square = interpolate(found[None, None].float(), (frame.size, frame.size), mode="bilinear", align_corners=True)
    return square[0, 0, : frame.valid_h, : frame.valid_w].cpu().numpy()
