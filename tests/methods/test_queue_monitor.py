"""The histograms of a queue: the age of its keys, and their similarity."""

import pytest
import torch
from torch.nn.functional import normalize

from fss.methods.prior.queue_monitor import QueueMonitor
from fss.nn.contrast import Queue


def distributions(size: int, pushes: list[torch.Tensor], keys_per_image: int = 1) -> dict[str, torch.Tensor]:
    queue = Queue(size, 4)
    for keys in pushes:
        queue.push(keys)
    return QueueMonitor("global", queue, option="queue", keys_per_image=keys_per_image).distributions()


def unit(count: int, axis: int) -> torch.Tensor:
    return torch.eye(4)[axis].repeat(count, 1)


def test_ages_count_images_and_leave_random_vectors_out():
    assert distributions(8, [unit(3, 0)])["queue_age/global"].tolist() == [0, 1, 2]
    assert distributions(4, [unit(3, 0), unit(3, 1)], keys_per_image=2)["queue_age/global"].tolist() == [0, 0.5, 1, 1.5]
    assert distributions(8, [unit(1, 0)]).keys() == {"queue_age/global"}, "one key is like no other"


@pytest.mark.parametrize("size", [40, 64], ids=["wrapped round", "not yet full"])
def test_keys_that_tell_their_age_show(size):
    """The old keys point elsewhere than the young ones, which are like the latest."""
    found = distributions(size, [unit(10, 3), unit(20, 1), unit(20, 0)])
    assert found["key_similarity/global_young"].min() == 1
    assert found["key_similarity/global_old"].abs().max() == 0


def test_a_long_queue_is_sampled():
    keys = normalize(torch.randn(20000, 4, generator=torch.Generator().manual_seed(0)))
    found = distributions(20000, [keys])
    assert all(len(values) <= 64 * 512 for name, values in found.items() if name.startswith("key"))
    young, old = (found[f"key_similarity/global_{end}"] for end in ("young", "old"))
    assert abs(young.mean() - old.mean()) < 0.02 and young.abs().max() <= 1 + 1e-6
