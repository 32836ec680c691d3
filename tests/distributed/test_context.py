"""Collectives between real ranks, and the checks that catch ranks which are not those that were requested."""

import copy

import pytest
import torch

from fss.distributed import launch_checks
from fss.distributed.context import DistributedContext
from fss.distributed.wrapping import match_weight_strides
from fss.errors import RunError
from tests.support.contexts import joined
from tests.support.ranks import on_ranks


def collectives() -> dict:
    context = joined(3)
    collectives, rank = context.collectives, context.rank
    floats = [torch.full((2,), float(rank)), torch.tensor(float(rank * 10))]
    collectives.mean_(floats)
    first = [torch.tensor([rank + 1, 7])]
    collectives.broadcast_(first)
    rows = torch.arange(3, dtype=torch.uint8)[:, None] + 10 * rank  # row r of each rank goes to rank r
    out = {
        "gather": collectives.all_gather(torch.tensor([[rank, rank]])).tolist(),
        "exchange": collectives.all_to_all(rows, [1, 1, 1], [1, 1, 1]).flatten().tolist(),
        "uneven": collectives.all_to_all(rows[:2], [2, 0, 0], [2, 2, 2] if rank == 0 else [0, 0, 0]).flatten().tolist(),
        "sum": collectives.all_reduce(torch.tensor([rank])).tolist(),
        "gather_coalesced": [
            x.tolist() for x in collectives.all_gather_coalesced([torch.tensor([rank]), torch.tensor([[rank, 7]])])
        ],
        "sum_coalesced": [
            x.tolist() for x in collectives.all_reduce_coalesced([torch.tensor(float(rank)), torch.ones(2)])
        ],
        "mean": [t.tolist() for t in floats],
        "broadcast": first[0].tolist(),
        "any_rank": context.any_rank(rank == 1, False),
        "scalars": context.start_mean({"a": torch.tensor(float(rank))})(),
        "objects": context.gather_objects(f"r{rank}"),
        "main": context.on_main(lambda: "only rank 0"),
    }
    for name, act in {
        "main_error": lambda: context.on_main(lambda: (_ for _ in ()).throw(RunError("no space"))),
        "same": lambda: context.check_same("the code", "abc" if rank < 2 else "xyz"),
        "equal": lambda: context.check_equal([("fine", torch.ones(2)), ("queue", torch.ones(3) * (1 + (rank == 1)))]),
    }.items():
        try:
            act()
            out[name] = "nothing raised"
        except RunError as error:
            out[name] = str(error)
    context.close()
    return out


def test_collectives_on_three_ranks():
    outs = on_ranks(3, collectives)
    for rank, out in enumerate(outs):
        assert out["gather"] == [[0, 0], [1, 1], [2, 2]]
        assert out["exchange"] == [rank, 10 + rank, 20 + rank]
        assert out["uneven"] == ([0, 1, 10, 11, 20, 21] if rank == 0 else [])
        assert out["sum"] == [3]
        assert out["gather_coalesced"] == [[0, 1, 2], [[0, 7], [1, 7], [2, 7]]]
        assert out["sum_coalesced"] == [3, [3.0, 3.0]]
        assert out["mean"] == [[1.0, 1.0], 10.0]
        assert out["broadcast"] == [1, 7]
        assert out["any_rank"] == (True, False)
        assert out["scalars"] == {"a": 1.0}
        assert out["objects"] == ["r0", "r1", "r2"]
        assert out["main"] == "only rank 0"
        assert out["main_error"] == "no space"
        assert "rank 2 has xyz" in out["same"]
        assert out["equal"].startswith("queue is not the same on rank")


def requested(ranks: int) -> str:
    try:
        joined(ranks)
    except RunError as error:
        return str(error)
    return "accepted"


def test_another_number_of_ranks_than_requested_is_refused():
    assert all("promises 4 ranks but 2 started" in text for text in on_ranks(2, requested, 4))
    with pytest.raises(RunError, match="promises 2 ranks but 1 started"):
        joined(2)


def single_in_a_launch() -> str:
    """A process that does not see the other of the launch: what accelerate makes on CPU of a GPU configuration."""
    import accelerate

    # The launcher's own state, set before the number of ranks is checked. No rank leaves before both are connected.
    accelerate.Accelerator(cpu=True).wait_for_everyone()
    import os

    os.environ["WORLD_SIZE"] = "5"
    return requested(2)


def test_processes_that_see_no_other_rank_are_refused():
    assert all("launcher started 5 processes" in text for text in on_ranks(2, single_in_a_launch))


def test_a_launcher_that_reaches_into_the_weights_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    with pytest.raises(RunError, match="asks to compile with dynamo's inductor: leave it out"):
        joined(1)
    monkeypatch.delenv("ACCELERATE_DYNAMO_BACKEND")
    monkeypatch.setattr(launch_checks, "SUPPORTED", {"MULTI_GPU"})  # FSDP cannot be had without a GPU
    with pytest.raises(RunError, match="asks for NO: only plain data parallelism"):
        joined(1)


def test_a_node_whose_gpus_cannot_be_used_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(launch_checks, "NVIDIA_DEVICE", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(RunError, match="has an NVIDIA driver but torch sees no CUDA device there"):
        DistributedContext(world_size=4, device="auto", precision="float32", accumulate=1, timeout_minutes=1)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_of_1x1_convolutions_have_the_strides_of_their_weights(layout):
    """Whatever the layout of the image, with one gradient a number, and one for all."""
    plain = torch.nn.Conv2d(8, 4, 1).to(memory_format=layout)
    matched = copy.deepcopy(plain)
    match_weight_strides(matched)
    images = [torch.randn(16, 8, 5, 5).to(memory_format=f) for f in (torch.contiguous_format, torch.channels_last)]
    losses = [lambda conv, image=image: conv(image).sum() for image in images]
    for loss in (*losses, lambda conv: conv.weight.sum()):
        for conv in (plain, matched):
            conv.zero_grad()
            loss(conv).backward()
        assert matched.weight.grad.stride() == matched.weight.stride()
        assert torch.equal(matched.weight.grad, plain.weight.grad)
