"""How often the host waits for the device in an evaluated episode, from the shards to its counts."""

import re
from itertools import pairwise

import pytest
import torch

from fss.data.episodes import Episode
from fss.errors import RunError
from fss.evaluate.measure import measure, predictor_for
from fss.evaluate.scoring import Scoring
from fss.methods import METHODS
from fss.methods.base import EpisodeMethod
from fss.methods.msanet.config import BAMConfig
from fss.methods.prototype import PrototypeConfig
from shards.read import ShardSet
from tests.support.contexts import joined
from tests.support.counted_context import jobs_on_the_device
from tests.support.counted_device import DEVICE
from tests.support.labelled import rectangles
from tests.support.made_episodes import SIZE
from tests.support.tiny_gfsam import tiny

MOST = 2
MOST_GFSAM = 6
SHOTS = 1, 5


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> ShardSet:
    return rectangles(tmp_path_factory.mktemp("set"), [1, 2] * 7)


@pytest.fixture
def make(msanet_config, mshnet_config, qgnet_config):
    """Name -> the method, on the CPU."""

    def built(name: str) -> EpisodeMethod:
        configs = {
            "qgnet": lambda: qgnet_config,
            "msanet": msanet_config,
            "msanet, masked": lambda: msanet_config(prior_mask="masked"),
            "bam": lambda: msanet_config(BAMConfig),
            "mshnet": lambda: mshnet_config,
            "prototype": lambda: PrototypeConfig(size=SIZE, backbone="resnet18"),
        }
        torch.manual_seed(0)
        if name == "gfsam":
            return tiny()
        config = configs[name]()
        return METHODS[config.name](config)

    return built


def evaluated(method: EpisodeMethod, shards: ShardSet, shots: int, after=lambda: None) -> list:
    """The counts of two episodes without a common image, on the device of this process's context."""
    images = [[shards.find(f"r{2 * i + odd:04d}") for i in range(1 + shots)] for odd in (0, 1)]  # of classes 1 and 2
    episodes = [
        Episode(seed=0, number=i, class_id=1 + i, query=rows[0], supports=tuple(rows[1:]))
        for i, rows in enumerate(images)
    ]
    scoring, context = Scoring(size=method.config.size), joined()
    try:
        for part in (method.trainable, method.non_trainable):
            part.to(context.device)
        predictor = predictor_for(method, scoring, context)
        results = measure(
            predictor, shards, episodes, scoring, context, readers=0, on_result=lambda result, left: after()
        )
    finally:
        context.close()
    return [result.counts for result in results]


@pytest.mark.parametrize("name", ["qgnet", "msanet", "msanet, masked", "bam", "mshnet", "prototype", "gfsam"])
def test_an_episode_from_shards_to_counts(counted, make, shards, name):
    """One wait for the numbers of object pixels in all supports, one for mask and check: also in the first episode."""
    method, most = make(name), MOST_GFSAM if name == "gfsam" else MOST
    expected = [evaluated(method, shards, shots) for shots in SHOTS]
    found, waits = [], [0]
    with counted(), jobs_on_the_device():
        for part in (method.trainable, method.non_trainable):
            part.to(DEVICE)
        with counted() as count:
            for shots in SHOTS:
                found.append(evaluated(method, shards, shots, lambda: waits.append(count.waits.total())))
    each = [after - before for before, after in pairwise(waits)]
    assert len(each) == 2 * len(SHOTS) and 1 <= min(each) and max(each) <= most, (each, count.waits)
    assert found == expected


@pytest.mark.parametrize("on_device", [False, True])
def test_logits_that_are_not_finite_name_their_episode(counted, make, shards, on_device):
    method = make("qgnet")
    with torch.no_grad():
        next(reversed(list(method.trainable.parameters()))).fill_(torch.nan)
    message = "the logits of episode 0 of seed 0 (query r0000) are not finite: give other weights, or run.precision"
    with pytest.raises(RunError, match=re.escape(f"{message} float32")):
        if on_device:
            with counted(), jobs_on_the_device():
                evaluated(method, shards, 1)
        else:
            evaluated(method, shards, 1)
