"""Weight buckets: what is packed comes out again, whatever the types and sizes."""

import torch

from pipeline.weights.buckets import pack_buckets, unpack_bucket


def test_every_tensor_comes_back_and_buckets_keep_their_size():
    torch.manual_seed(0)
    tensors = {
        "a": torch.randn(7, 3),
        "b": torch.randn(5).to(torch.bfloat16),
        "c": torch.arange(6).reshape(2, 3).T,  # not contiguous
        "scalar": torch.tensor(1.5),
        "larger than a bucket": torch.randn(300),
        "d": torch.randn(2, 2, 2),
    }
    buckets = list(pack_buckets(tensors.items(), bucket_bytes=256))
    assert len(buckets) > 2
    assert all(b.data.size <= 256 or len(b.entries) == 1 for b in buckets)
    back = [pair for b in buckets for pair in unpack_bucket(b.entries, torch.from_numpy(b.data))]
    assert [name for name, _ in back] == list(tensors)
    for name, tensor in back:
        assert tensor.dtype == tensors[name].dtype and torch.equal(tensor, tensors[name]), name
