"""Copies between host and device, and the tables that stay on a device."""

import torch

from fss.nn.transfer import device_table, to_device, to_host


def test_a_table_is_made_once_and_serves_training_after_an_evaluation():
    made = []

    @device_table
    def table(n: int, device: torch.device) -> torch.Tensor:
        made.append(n)
        return torch.arange(n, device=device)

    with torch.inference_mode():
        table(3, torch.device("cpu"))
    x = torch.randn(3, requires_grad=True)
    x[table(3, torch.device("cpu"))].square().sum().backward()  # an index is saved for the gradient
    assert made == [3] and x.grad is not None


def test_tensors_go_and_come_back(counted):
    from tests.support.counted_device import DEVICE

    given = torch.randn(2, 3), torch.randn(4)
    with counted() as count:
        there = [to_device(x, DEVICE) for x in given]
        assert not count.waits
        back = to_host(*there)
    assert count.waits.total() == 1
    assert all(map(torch.equal, back, given))
