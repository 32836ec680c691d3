"""The program's own writer and reader of the format of safetensors, against the library's."""

import hashlib

import pytest
import torch
from safetensors.torch import load_file, save_file

from fss.train import tensor_file

TENSORS = {
    "weight": torch.arange(60, dtype=torch.float32).view(3, 4, 5),
    "bytes/of an odd number": torch.arange(7, dtype=torch.uint8),
    "flags": torch.tensor([True, False, True]),
    "half": torch.arange(5).to(torch.bfloat16),
    "step": torch.tensor(2**40),
    "double": torch.tensor([0.1], dtype=torch.float64),
    "nothing": torch.empty(0, 3),
    "naïve": torch.arange(3, dtype=torch.int16),
}


def assert_equal(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert found[name].equal(tensor), name


@pytest.mark.parametrize("piece", [5, 64, tensor_file.PIECE])
@pytest.mark.parametrize("tensors", [TENSORS, {}], ids=["some", "none"])
def test_what_is_written_is_read_by_safetensors_and_here(tmp_path, monkeypatch, tensors, piece):
    monkeypatch.setattr(tensor_file, "PIECE", piece)
    signs: list[str] = []
    path = tmp_path / "file"
    digest = tensor_file.write(path, tensors, lambda: signs.append("written"))
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert_equal(load_file(path), tensors)
    data, same = tensor_file.read(path, lambda: signs.append("read"))
    assert same == digest
    assert data.numpy().tobytes() == path.read_bytes()
    assert_equal(tensor_file.parse(data), tensors)
    content = sum(tensor.nbytes for tensor in tensors.values())
    assert min(signs.count("written"), signs.count("read")) >= content / piece


def test_what_safetensors_writes_is_read(tmp_path):
    path = tmp_path / "file"
    save_file(TENSORS, path, metadata={"format": "pt"})
    assert_equal(tensor_file.parse(tensor_file.read(path, lambda: None)[0]), TENSORS)


def test_what_is_read_is_no_second_copy(tmp_path):
    path = tmp_path / "file"
    tensor_file.write(path, TENSORS, lambda: None)
    data, _ = tensor_file.read(path, lambda: None)
    memory = {tensor.untyped_storage().data_ptr() for tensor in tensor_file.parse(data).values() if tensor.numel()}
    assert memory == {data.data_ptr()}
