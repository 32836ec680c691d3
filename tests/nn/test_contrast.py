"""The queue, InfoNCE and the momentum update."""

import pytest
import torch
from torch.nn import functional as F

from fss.nn.contrast import Queue, info_nce, momentum_update


def unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


@pytest.mark.parametrize("sizes", [[1, 2, 3, 4, 5], [10, 10], [7, 7, 7], [3, 25, 1], [31]])
def test_queue_holds_the_last_keys_whatever_the_batch(sizes):
    queue, oracle, count = Queue(10, 4, tagged=True), {}, 0
    before = queue.keys.clone()
    for size in sizes:
        keys, images = unit(size, 4), torch.randint(0, 100, (size,))
        queue.push(keys, images)
        for key, image in zip(keys, images, strict=True):  # one at a time
            oracle[count % 10] = (key, image)
            count += 1
        assert (queue.pointer, queue.total, int(queue.written)) == (count % 10, count, count)
        assert queue.filled == min(count, 10)
        assert queue.fill().item() == pytest.approx(min(count, 10) / 10)
        for slot in range(10):
            key, image = oracle.get(slot, (before[slot], torch.tensor(-1)))
            assert torch.equal(queue.keys[slot], key)
            assert queue.images[slot] == image


def test_queue_at_full_size_wraps_and_survives_a_round_trip():
    queue = Queue(65536, 128)
    queue.push(unit(65530, 128))
    keys = unit(12, 128)
    queue.push(keys)
    assert torch.equal(queue.keys[65530:], keys[:6])
    assert torch.equal(queue.keys[:6], keys[6:])
    other = torch.nn.ModuleDict({"queue": Queue(65536, 128, seed=5)})
    other.load_state_dict({f"queue.{name}": value for name, value in queue.state_dict().items()})
    for q in (queue, other["queue"]):
        q.push(keys)
    assert torch.equal(other["queue"].keys, queue.keys)
    assert other["queue"].total == queue.total == 65554


def test_queue_starts_alike_whatever_the_global_seed():
    torch.manual_seed(1)
    first = Queue(64, 16, seed=3)
    torch.manual_seed(2)
    assert torch.equal(first.keys, Queue(64, 16, seed=3).keys)
    assert not torch.equal(first.keys, Queue(64, 16, seed=4).keys)
    torch.testing.assert_close(first.keys.norm(dim=1), torch.ones(64))


def test_info_nce_is_cross_entropy():
    query, key, queue = unit(8, 16).requires_grad_(), unit(8, 16), unit(300, 16)
    result = info_nce(query, key, queue, 0.2)
    result.loss.mean().backward()
    ours, query.grad = query.grad, None
    all_logits = torch.cat([(query * key).sum(1, keepdim=True), query @ queue.T], dim=1) / 0.2
    losses = F.cross_entropy(all_logits, torch.zeros(8, dtype=torch.long), reduction="none")
    losses.mean().backward()
    torch.testing.assert_close(result.loss, losses, atol=1e-6, rtol=0)
    torch.testing.assert_close(ours, query.grad, atol=1e-6, rtol=0)
    torch.testing.assert_close(result.positive, (query * key).sum(1))
    torch.testing.assert_close(result.negative, (query @ queue.T).mean(1))
    assert torch.equal(result.hit, (all_logits.argmax(1) == 0).float())


def test_excluded_entries_are_no_negatives():
    query, key, queue = unit(3, 8), unit(3, 8), unit(20, 8)
    queue[5] = query[1]  # would be the nearest of all
    exclude = torch.zeros(3, 20, dtype=torch.bool)
    exclude[1, 5] = True
    result = info_nce(query, key, queue, 0.2, exclude)
    without = info_nce(query[1:2], key[1:2], torch.cat([queue[:5], queue[6:]]), 0.2)
    torch.testing.assert_close(result.loss[1:2], without.loss)
    assert result.hit[1] == without.hit[0]
    torch.testing.assert_close(result.loss[0], info_nce(query, key, queue, 0.2).loss[0])


def test_bf16_autocast_keeps_the_loss_close_and_float32():
    query, key, queue = unit(8, 128), unit(8, 128), unit(4096, 128)
    exact = info_nce(query, key, queue, 0.2).loss
    with torch.autocast("cpu", torch.bfloat16):
        rough = info_nce(query, key, queue, 0.2).loss
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, atol=0.01, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_momentum_update_arrives_in_float32(dtype):
    slow, fast = [torch.zeros(5), torch.ones(2, 3)], [torch.ones(5, dtype=dtype), torch.zeros(2, 3, dtype=dtype)]
    for _ in range(1000):
        momentum_update(slow, fast, 0.999)
    done = 1 - 0.999**1000  # of the way; bfloat16 arithmetic stops after a few percent of it
    torch.testing.assert_close(slow[0], torch.full((5,), done), atol=1e-5, rtol=0)
    torch.testing.assert_close(slow[1], torch.full((2, 3), 1 - done), atol=1e-5, rtol=0)


def test_momentum_update_between_equals_changes_nothing():
    slow = torch.randn(1000)
    fast = slow.clone()
    momentum_update([slow], [fast], 0.999)
    assert torch.equal(slow, fast)
