"""What every rank of a learner gang does, whatever it learns from: join the gang, give its weights away, save them."""

import os
import socket
from pathlib import Path

import ray
import torch

from pipeline.weight_buckets import pack_buckets


class LearnerRank:
    """Base of the learners. `config` has the sections model and learner."""

    def __init__(self, config, rank: int):
        torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
        self.config = config
        self.rank = rank

    def engine_options(self) -> dict:
        """What `ZeroEngine` takes beside the two sections."""
        raise NotImplementedError

    def address(self) -> tuple[str, int]:
        """A host and free port at which this rank can be the gang's meeting point."""
        with socket.socket() as s:
            s.bind(("", 0))
            return ray.util.get_node_ip_address(), s.getsockname()[1]

    def join(self, host: str, port: int) -> None:
        """Form the gang with the other ranks and load the model."""
        os.environ.update(
            RANK=str(self.rank),
            WORLD_SIZE=str(self.config.learner.ranks),
            LOCAL_RANK="0",  # Ray shows each rank its own GPU only
            MASTER_ADDR=host,
            MASTER_PORT=str(port),
        )
        # Imported here: who only holds a handle to this actor need not spend seconds on importing DeepSpeed.
        from actors.zero_engine import ZeroEngine

        self.engine = ZeroEngine(self.config.model, self.config.learner, **self.engine_options())

    def publish(self) -> list[ray.ObjectRef] | None:
        """Put the weights into the object store in buckets (rank 0; the others help to gather them)."""
        size = self.config.learner.bucket_mib * 2**20
        parameters = self.engine.parameters(size)
        if self.rank == 0:
            return [ray.put(bucket) for bucket in pack_buckets(_copied(parameters), size)]
        for _ in parameters:
            pass
        return None

    def save(self, folder: str) -> None:
        """Write the Hugging Face folder of a checkpoint; complete or not there at all."""
        partial = Path(folder + ".partial")
        self.engine.save(partial)
        if self.rank == 0:
            from transformers import AutoTokenizer

            AutoTokenizer.from_pretrained(
                self.config.model.path, trust_remote_code=self.config.model.trust_remote_code
            ).save_pretrained(partial)
            partial.rename(folder)

    def close(self) -> None:
        self.engine.close()


def _copied(parameters):
    """Gathered parameters are freed when the next group is gathered; buckets may span groups."""
    return ((name, tensor.detach().cpu().clone()) for name, tensor in parameters)
