"""Who reads a checkpoint when a run is resumed: one rank, once, however many nodes there are."""

import os
import platform
import sys
from pathlib import Path

import pytest
import torch

from fss.distributed import host_collectives
from fss.errors import WeightsError
from fss.train.checkpoint import CheckpointConfig, Checkpoints
from tests.support.contexts import joined
from tests.support.ranks import on_ranks
from tests.support.saves import new_state

NODES, RANKS_PER_NODE = 2, 2
RANKS = NODES * RANKS_PER_NODE


def on_its_node() -> str:
    """Make this rank one of two on one of two nodes; returns the name of the node."""
    node, local = divmod(int(os.environ["RANK"]), RANKS_PER_NODE)
    os.environ.update(LOCAL_RANK=str(local), LOCAL_WORLD_SIZE=str(RANKS_PER_NODE))
    platform.node = lambda: f"node{node}"
    return f"node{node}"


def _saved(folder: str) -> None:
    with joined(RANKS) as context:
        torch.manual_seed(context.rank)
        checkpoints = Checkpoints(Path(folder), CheckpointConfig(), context)
        state = new_state()
        with torch.no_grad():
            for tensor in state.tensors().values():
                tensor.add_(7)
        torch.manual_seed(100 + context.rank)
        checkpoints.save(state, 3)
        checkpoints.finish()


def _resumed(folder: str) -> tuple[str, list[str], str | None, float, float]:
    """Node, files that this rank opened in the folder, error, sum of the weights, a random number.

    The folder is there for rank 0 only: whatever another rank reads of it is missing.
    """
    node, opened = on_its_node(), []
    sys.addaudithook(lambda event, args: event == "open" and folder in str(args[0]) and opened.append(str(args[0])))
    host_collectives.PIECE = 1000  # several broadcasts
    error, state = None, new_state()
    with joined(RANKS) as context:
        seen = Path(folder) if context.rank == 0 else Path("nowhere")
        try:
            assert Checkpoints(seen, CheckpointConfig(), context).resume(state)[0] == 3
        except WeightsError as raised:
            error = str(raised)
        assert context.collectives.ranks_per_node == RANKS_PER_NODE
    weights = sum(tensor.double().sum().item() for tensor in state.tensors().values())
    return node, [Path(path).name for path in opened], error, weights, torch.rand(()).item()


def test_two_nodes_read_a_checkpoint_once(tmp_path):
    on_ranks(RANKS, _saved, str(tmp_path))
    found = on_ranks(RANKS, _resumed, str(tmp_path))
    assert [node for node, *_ in found] == ["node0", "node0", "node1", "node1"]
    first, *others = [opened for _, opened, *_ in found]
    assert sorted(name for name in first if name.startswith("state.")) == ["state.json", "state.safetensors"]
    assert others == [[]] * (RANKS - 1)
    expected = sum((tensor.double() + 7).sum().item() for tensor in new_state().tensors().values())
    assert [weights for *_, weights, _ in found] == [pytest.approx(expected)] * RANKS
    for rank, (*_, number) in enumerate(found):
        torch.manual_seed(100 + rank)
        assert number == torch.rand(()).item(), "every rank has its own generator"


def test_what_is_wrong_with_it_reaches_all_nodes(tmp_path):
    on_ranks(RANKS, _saved, str(tmp_path))
    path = tmp_path / "step_00000003" / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    errors = {error for _, _, error, *_ in on_ranks(RANKS, _resumed, str(tmp_path))}
    [message] = errors
    assert message and "step_00000003 is damaged" in message
