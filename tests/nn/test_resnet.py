"""The contrastive ResNets: torchvision's names, and 1x1 convolutions that compute what any others do."""

import pytest
import torch
import torchvision

from fss.nn.resnet import ENCODERS, PointwiseConv2d


@pytest.mark.parametrize("backbone", ENCODERS)
def test_backbones_have_torchvisions_names(backbone):
    with torch.device("meta"):
        theirs = getattr(torchvision.models, backbone)().state_dict()
        ours = ENCODERS[backbone](128).state_dict()
    assert {n: t.shape for n, t in ours.items() if not n.startswith("fc.")} == {
        n: t.shape for n, t in theirs.items() if not n.startswith("fc.")
    }
    assert ours["fc.2.weight"].shape[0] == 128


def pair(dtype: torch.dtype = torch.float32, **how) -> tuple[torch.nn.Conv2d, torch.nn.Conv2d]:
    """A PointwiseConv2d and torch's Conv2d of the same weights, 8 -> 16 channels."""
    ours, plain = (kind(8, 16, 1, dtype=dtype, **how) for kind in (PointwiseConv2d, torch.nn.Conv2d))
    plain.load_state_dict(ours.state_dict())
    return ours, plain


@pytest.mark.parametrize("how", [{"bias": False}, {"stride": 2}, {"groups": 2}], ids=str)
@pytest.mark.parametrize(("dtype", "bf16"), [(torch.float32, False), (torch.float32, True), (torch.float64, False)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pointwise_convolutions_compute_what_conv2d_does(layout, dtype, bf16, how):
    ours, plain = pair(dtype, **how)
    images = [torch.randn(2, 8, 9, 9, dtype=dtype).to(memory_format=layout) for _ in range(2)]
    images[1].copy_(images[0])
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        a, b = (layer(image.requires_grad_()) for layer, image in zip((ours, plain), images, strict=True))
    assert a.dtype == b.dtype and a.stride() == b.stride()
    torch.testing.assert_close(a, b)
    for out in (a, b):
        out.to(dtype).square().sum().backward()
    torch.testing.assert_close(images[0].grad, images[1].grad)
    for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def operations(layer: torch.nn.Module) -> set[str]:
    """The torch operations of a forward and a backward pass over two images."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        layer(torch.randn(2, 8, 9, 9, requires_grad=True)).sum().backward()
    return {event.key for event in profile.key_averages()}


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch was built without oneDNN")
def test_pointwise_convolutions_take_onednn_on_one_thread():
    """A plain Conv2d uses oneDNN in neither pass there, a PointwiseConv2d in both."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ours, plain = map(operations, pair())
    finally:
        torch.set_num_threads(threads)
    assert "aten::_slow_conv2d_forward" in plain and "aten::_slow_conv2d_backward" in plain
    assert not any("slow" in name for name in ours) and "aten::mkldnn_convolution" in ours
