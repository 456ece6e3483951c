"""Weight buckets: what is packed comes out again, whatever the types and sizes."""

import torch

from pipeline.weights.buckets import BucketPacker, WeightBucket, pack_buckets, unpack_bucket


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
    check(buckets, tensors)


def check(buckets: list[WeightBucket], tensors: dict[str, torch.Tensor]) -> None:
    back = [pair for b in buckets for pair in unpack_bucket(b.entries, torch.from_numpy(b.data))]
    assert [name for name, _ in back] == list(tensors)
    for name, tensor in back:
        assert tensor.dtype == tensors[name].dtype and torch.equal(tensor, tensors[name]), name


def test_the_next_version_takes_the_memory_of_the_one_before():
    """Of the same sizes; others, and more or fewer, are right, too."""
    packer, addresses = BucketPacker(256), []
    for sizes in ([30, 70, 300, 5], [30, 70, 300, 5], [500, 1], [1] * 20):
        tensors = {f"t{i}": torch.randn(size) for i, size in enumerate(sizes)}
        packer.begin()
        for name, tensor in tensors.items():
            packer.add(name, tensor)
        made = list(packer.buckets())
        check(made, tensors)
        addresses.append([bucket.data.ctypes.data for bucket in made])
    assert addresses[0] == addresses[1]
