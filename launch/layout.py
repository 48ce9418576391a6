"""How a training step sits on the devices: what an estimate of its bytes needs to know."""

import dataclasses

from launch import arithmetic


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a step sits on the devices.

    Attributes:
        mesh: sizes of the mesh axes.
        num_tokens: the row's length T.
        micro_batch: rows in one forward and backward pass on one device.
        accumulation: passes per step; above 1 a second set of gradients lives.
        attention: implementation name.
        remat: none, dots, full or offload.
        compute_bytes: 2 for bfloat16, 4 for float32.
        frozen_bytes: of one frozen parameter as it is held, where it is not quantised.
        experts: implementation name, for a mixture.
        transport: how rows travel between experts' devices.
        buffer_factor: how many times the even share its buffers hold.
        mlp_chunk_tokens: of a row that go through a dense feed-forward at a time; None is all.
        offload: what else waits in the host's memory: none, or optimizer.
        frozen: a run's `precision.frozen`; nf4 and int8 store the layers' projections so.
    """

    mesh: dict[str, int]
    num_tokens: int
    micro_batch: int
    accumulation: int
    attention: str
    remat: str
    compute_bytes: int
    frozen_bytes: int
    experts: str = "ragged"
    transport: str = "padded"
    buffer_factor: float = 1.5
    mlp_chunk_tokens: int | None = None
    offload: str = "none"
    frozen: str = "checkpoint"

    @property
    def pass_tokens(self) -> float:
        """Tokens of one device in one pass."""
        return self.micro_batch * self.num_tokens / self.mesh["context"]

    @property
    def is_recomputed(self) -> bool:
        """Whether the backward pass runs each layer again."""
        return self.remat in arithmetic.RECOMPUTING

    @property
    def are_experts_rerun(self) -> bool:
        """Whether a mixture's experts run again for the backward pass, whatever the remat."""
        return arithmetic.are_experts_rerun(self.frozen, self.experts)
