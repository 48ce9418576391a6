"""How a mixture's experts divide over devices, and how many rows of a buffer that needs.

Arithmetic without jax, so that a plan and the model (nn/expert_exchange.py) count alike.
"""

import dataclasses
import math

from mistral_jax.config import model as model_config

# Tokens that a device sends at a time under full remat; more would fill no matmul better.
CHUNK_TOKENS = 4096
# Rows of a buffer come in whole tiles of a TPU's memory (8 sublanes).
ROW_TILE = 8


@dataclasses.dataclass(frozen=True)
class ExpertShards:
    """Experts on the devices of one mesh axis: whole groups, else a part of every group.

    Attributes:
        num_groups, group_size: experts are stored [group, expert in group].
        groups_per_token: how many groups a token may use.
        top_k: experts of a token.
        count: devices along the mesh axis.
        max_per_group: experts of one group that a token may use; None is all of them.
    """

    num_groups: int
    group_size: int
    groups_per_token: int
    top_k: int
    count: int
    max_per_group: int | None = None

    def __post_init__(self) -> None:
        check_divides(self.num_groups, self.group_size, self.count)

    @property
    def are_groups_whole(self) -> bool:
        """Whether a device holds whole groups; sharding.spec decides alike."""
        return self.num_groups % self.count == 0

    @property
    def experts_per_shard(self) -> int:
        """How many experts a device holds."""
        return self.num_groups * self.group_size // self.count

    @property
    def max_copies(self) -> int:
        """How many devices a token can need."""
        limit = self.groups_per_token if self.are_groups_whole else self.count
        return min(limit, self.top_k, self.count)

    @property
    def max_local(self) -> int:
        """How many experts of one device a token can use."""
        groups = self.num_groups // self.count if self.are_groups_whole else self.num_groups
        of_group = self.group_size if self.are_groups_whole else self.group_size // self.count
        each = min(of_group, self.max_per_group or of_group)
        return min(self.top_k, min(groups, self.groups_per_token) * each)

    @property
    def is_even(self) -> bool:
        """Whether a token uses equally many experts of each of its groups."""
        return self.max_per_group is not None and (
            self.max_per_group * self.groups_per_token == self.top_k
        )

    @property
    def reach(self) -> float:
        """Return how likely a token needs one given device if every choice is equally likely.

        A token draws its groups, then its experts among all of theirs, without replacement; it
        spares the device if none of them lies there. `count * reach` copies of a token travel.
        """
        available = self.groups_per_token * self.group_size
        if self.is_even:
            if self.are_groups_whole:
                elsewhere = self.num_groups - self.num_groups // self.count
                chosen, everywhere = self.groups_per_token, self.num_groups
                return 1 - math.comb(elsewhere, chosen) / math.comb(everywhere, chosen)
            elsewhere = self.group_size - self.group_size // self.count
            each = self.top_k // self.groups_per_token
            spared = math.comb(elsewhere, each) / math.comb(self.group_size, each)
            return 1 - spared**self.groups_per_token
        if not self.are_groups_whole:
            elsewhere = available - available // self.count
            return 1 - math.comb(elsewhere, self.top_k) / math.comb(available, self.top_k)
        here = self.num_groups // self.count
        spared = 0.0
        for groups in range(min(here, self.groups_per_token) + 1):
            ways = math.comb(here, groups)
            ways *= math.comb(self.num_groups - here, self.groups_per_token - groups)
            chance = ways / math.comb(self.num_groups, self.groups_per_token)
            elsewhere = available - groups * self.group_size
            spared += chance * math.comb(elsewhere, self.top_k) / math.comb(available, self.top_k)
        return 1 - spared

    def mean_most_local(self, num_rows: int, *, step: int = 1) -> float:
        """Return the mean of the most experts of one device that any of some sent rows uses.

        Counted in whole steps. As for `reach`, every choice is equally likely.
        """
        chances = self._local_chances()
        below, mean = 0.0, 0.0
        for count in range(1, self.max_local + 1):
            up_to = below + chances.get(count, 0.0)
            mean += -(-count // step) * (up_to**num_rows - below**num_rows)
            below = up_to
        return mean

    def _local_chances(self) -> dict[int, float]:
        """Return how likely a sent row uses 1, 2, .. experts of the device."""
        here = self.num_groups // self.count if self.are_groups_whole else self.num_groups
        size = self.group_size if self.are_groups_whole else self.group_size // self.count
        chances: dict[int, float] = {}
        for groups in range(1, min(here, self.groups_per_token) + 1):
            ways = math.comb(here, groups)
            ways *= math.comb(self.num_groups - here, self.groups_per_token - groups)
            if self.is_even and self.are_groups_whole:
                each = {groups * self.top_k // self.groups_per_token: 1.0}
            else:
                available = self.groups_per_token * self.group_size
                each = {
                    count: math.comb(groups * size, count)
                    * math.comb(available - groups * size, self.top_k - count)
                    / math.comb(available, self.top_k)
                    for count in range(1, self.max_local + 1)
                }
            for count, chance in each.items():
                chances[count] = chances.get(count, 0.0) + ways * chance
        total = sum(chances.values())
        return {count: chance / total for count, chance in chances.items()}

    def rows_to_one(self, num_tokens: int, factor: float) -> int:
        """Return how many rows one device may send to one other, of `num_tokens` that it has.

        `factor` times the even share `num_tokens * reach`, in whole tiles; at `num_tokens`, which
        a factor of `1 / reach` reaches, nothing can overflow.
        """
        return _tiled(factor * self.reach * num_tokens, num_tokens)

    def rows_of_all(self, num_tokens: int, factor: float) -> int:
        """Return how many rows one device may receive from all, each with `num_tokens`."""
        worst = self.count * num_tokens
        return _tiled(factor * self.reach * worst, worst)

    def pairs_of_all(self, num_tokens: int, factor: float) -> int:
        """Return how many (token, expert) pairs one device may run, of what all sent it.

        `factor` times its even share, `num_tokens * top_k`, where each device has `num_tokens`; at
        most as many as its rows can have.
        """
        worst = self.rows_of_all(num_tokens, factor) * self.max_local
        return _tiled(factor * num_tokens * self.top_k, worst)


def chunk_of(num_tokens: int, limit: int | None) -> int:
    """Return the largest divisor of a device's tokens that is not above the limit."""
    if limit is None or num_tokens <= limit:
        return num_tokens
    return next(size for size in range(limit, 0, -1) if num_tokens % size == 0)


def check_divides(num_groups: int, group_size: int, expert_axis: int) -> None:
    """Check that experts divide over the devices of the mesh axis `expert`.

    Raises:
        ValueError: neither whole groups nor the experts of a group divide.
    """
    if num_groups % expert_axis and group_size % expert_axis:
        raise ValueError(
            f"mesh axis expert={expert_axis} must divide num_groups ({num_groups}) or the experts "
            f"of a group ({group_size}); choose a divisor of one of them"
        )


def of_ffn(ffn: model_config.MoeFfn, expert_axis: int) -> ExpertShards:
    """Return how a mixture layer divides; raises ValueError as `check_divides`."""
    return ExpertShards(
        ffn.num_groups, ffn.group_size, ffn.chosen_groups, ffn.top_k, expert_axis,
        ffn.max_per_group,
    )  # fmt: skip


def _tiled(rows: float, limit: int) -> int:
    """Return rows rounded up to whole tiles, or the limit if that is less."""
    if rows >= limit:
        return limit
    # The product of a share may be 96.00000000000001, which is 96 rows.
    return min(math.ceil(round(rows / ROW_TILE, 6)) * ROW_TILE, limit)
