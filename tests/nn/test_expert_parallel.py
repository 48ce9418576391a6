"""What decides which token is sent where, on one device; whole exchanges are in tests/sharded."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistral_jax.config import expert_shards
from mistral_jax.nn import expert_exchange
from mistral_jax.nn import expert_parallel
from mistral_jax.nn import expert_transport
from mistral_jax.nn import experts
from mistral_jax.nn import routing

GROUPS_WHOLE = expert_shards.ExpertShards(8, 2, 3, 4, 4)
GROUPS_SPLIT = expert_shards.ExpertShards(2, 8, 2, 4, 4)
NUM_TOKENS = 40


def choices(shards: expert_shards.ExpertShards, seed: int = 0) -> np.ndarray:
    """Return [N, k] experts of open groups without repetition; the last tokens use none."""
    generator = np.random.default_rng(seed)
    size, rows = shards.group_size, []
    for _ in range(NUM_TOKENS):
        groups = generator.permutation(shards.num_groups)[: shards.groups_per_token]
        available = (groups[:, None] * size + np.arange(size)).reshape(-1)
        rows.append(generator.permutation(available)[: shards.top_k])
    chosen = np.stack(rows).astype(np.int32)
    chosen[-3:] = shards.num_groups * size
    return chosen


def places(chosen: np.ndarray, shards: expert_shards.ExpertShards) -> list[set[int]]:
    """Return the devices that each token needs."""
    # What a device holds, from a table of [group, member] split as sharding.spec splits it.
    table = np.arange(shards.num_groups * shards.group_size).reshape(shards.num_groups, -1)
    parts = np.split(table, shards.count, axis=0 if shards.are_groups_whole else 1)
    home = {int(expert): shard for shard, part in enumerate(parts) for expert in part.flat}
    return [{home[int(expert)] for expert in row if int(expert) in home} for row in chosen]


def test_on_one_device_experts_run_as_numpy_says() -> None:
    generator = np.random.default_rng(1)
    stack, width, hidden = (2, 3), 4, 5
    gate, up = (generator.normal(size=(*stack, width, hidden)) for _ in range(2))
    down = generator.normal(size=(*stack, hidden, width))
    x = generator.normal(size=(2, 3, width))
    chosen = generator.integers(0, 7, size=(2, 3, 2))
    weights = generator.random(size=(2, 3, 2))
    expected = np.zeros_like(x)
    for index in np.ndindex(chosen.shape):
        if chosen[index] == 6:
            continue
        expert, token = divmod(int(chosen[index]), 3), x[index[:2]]
        into = token @ gate[expert]
        hidden_values = into / (1 + np.exp(-into)) * (token @ up[expert])
        expected[index[:2]] += weights[index] * (hidden_values @ down[expert])
    kernels = experts.Kernels(*(jnp.asarray(each, jnp.float32) for each in (gate, up, down)))
    choice = routing.Choice(jnp.asarray(chosen, jnp.int32), jnp.asarray(weights, jnp.float32))
    found, overflow = expert_parallel.run(
        jnp.asarray(x, jnp.float32), choice, kernels, expert_parallel.Placement()
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert float(overflow) == 0


@pytest.mark.parametrize("shards", [GROUPS_WHOLE, GROUPS_SPLIT], ids=["whole", "split"])
def test_each_token_is_sent_once_to_each_device_that_it_needs(
    shards: expert_shards.ExpertShards,
) -> None:
    chosen = choices(shards)
    needed = places(chosen, shards)
    copies = expert_exchange.copies_of(jnp.asarray(chosen), shards)
    found = [sorted(int(shard) for shard in row if shard < shards.count) for row in copies.shard]
    assert found == [sorted(each) for each in needed]
    sent = expert_exchange.sent_rows(jnp.asarray(chosen), shards)
    expected = [sum(shard in each for each in needed) for shard in range(shards.count)]
    assert sent.tolist() == expected
    # Every assignment lies on exactly one of the token's copies; those of padding on none.
    on_copies = np.asarray(copies.is_here).sum(axis=1)
    np.testing.assert_array_equal(on_copies, chosen < shards.num_groups * shards.group_size)


@pytest.mark.parametrize("shards", [GROUPS_WHOLE, GROUPS_SPLIT], ids=["whole", "split"])
def test_local_indices_number_each_device_s_experts_in_storage_order(
    shards: expert_shards.ExpertShards,
) -> None:
    table = np.arange(shards.num_groups * shards.group_size).reshape(shards.num_groups, -1)
    parts = np.split(table, shards.count, axis=0 if shards.are_groups_whole else 1)
    shard, local = expert_exchange.place_of(jnp.asarray(table, jnp.int32), shards)
    for device, part in enumerate(parts):
        order = np.asarray(local)[np.asarray(shard) == device]
        np.testing.assert_array_equal(part.reshape(-1)[order], table[np.asarray(shard) == device])
        assert sorted(order.tolist()) == list(range(shards.experts_per_shard))


def test_an_assignment_beyond_the_known_groups_is_no_copy() -> None:
    # One group a token is the promise; the first token breaks it with experts of groups 0 and 1.
    shards = expert_shards.ExpertShards(4, 2, 1, 2, 4)
    copies = expert_exchange.copies_of(jnp.asarray([[0, 2], [4, 5]], jnp.int32), shards)
    assert copies.shard.tolist() == [[0], [2]]
    assert copies.is_here.tolist() == [[[True, False]], [[True, True]]]


@pytest.mark.parametrize("factor", [0.5, 1.0, float("inf")])
def test_slots_fill_each_run_in_the_order_of_tokens_up_to_its_limit(factor: float) -> None:
    shards, chosen = GROUPS_WHOLE, choices(GROUPS_WHOLE)
    copies = expert_exchange.copies_of(jnp.asarray(chosen), shards)
    way = expert_transport.padded_transport(copies.counts(shards.count), shards, NUM_TOKENS, factor)
    slots = expert_exchange.slots_of(copies, way)
    source = np.asarray(expert_exchange.sources_of(slots, way.size)).reshape(shards.count, -1)
    needed = places(chosen, shards)
    for shard, run in enumerate(source):
        wanted = [token for token, each in enumerate(needed) if shard in each]
        expected = wanted[: len(run)]
        # A copy's number, by token; an empty row has the number after the last.
        tokens = [int(copy) // shards.max_copies for copy in run]
        assert tokens == expected + [NUM_TOKENS] * (len(run) - len(expected))


def ragged_in_numpy(
    sent: list[np.ndarray], table: expert_transport.Offsets, room: int
) -> list[np.ndarray]:
    """Return the receive buffers that the offsets lead to; no row may be written twice."""
    received = [np.full((room, part.shape[1]), np.nan) for part in sent]
    for source, destination in np.ndindex(table.sizes.shape):
        start, to, size = (
            int(each[source, destination])
            for each in (table.in_send, table.in_receive, table.sizes)
        )
        assert to + size <= room
        assert np.isnan(received[destination][to : to + size]).all()
        received[destination][to : to + size] = sent[source][start : start + size]
    return received


@pytest.mark.parametrize("room", [7, 40, 160])
def test_ragged_offsets_bring_the_rows_of_the_padded_transport(room: int) -> None:
    shards = GROUPS_WHOLE
    parts = [expert_exchange.copies_of(jnp.asarray(choices(shards, seed)), shards)
             for seed in range(shards.count)]  # fmt: skip
    counts = jnp.stack([part.counts(shards.count) for part in parts])
    table = expert_transport.ragged_offsets(counts, room)
    by_padded, by_ragged = [], []
    for source, copies in enumerate(parts):
        number = 1000 * source
        padded = expert_transport.padded_transport(counts[source], shards, NUM_TOKENS, np.inf)
        ragged = expert_transport.RaggedTransport(
            table.in_send[source], table.sizes[source], NUM_TOKENS * shards.max_copies, room, table
        )
        for way, into in ((padded, by_padded), (ragged, by_ragged)):
            slots = expert_exchange.slots_of(copies, way)
            copy = np.asarray(expert_exchange.sources_of(slots, way.size))
            is_row = copy < slots.size
            into.append(np.where(is_row, number + copy // shards.max_copies, -1.0)[:, None])
    received = ragged_in_numpy(by_ragged, table, room)
    for destination in range(shards.count):
        runs = [part.reshape(shards.count, -1)[destination] for part in by_padded]
        expected = np.concatenate([run[run >= 0] for run in runs])[:room]
        found = received[destination][:, 0]
        np.testing.assert_array_equal(found[: len(expected)], expected)
        assert np.isnan(found[len(expected) :]).all()


def test_unknown_transports_are_refused_and_auto_follows_the_platform() -> None:
    assert expert_parallel.choose_transport("auto", "tpu") == "ragged"
    assert expert_parallel.choose_transport("auto", "cpu") == "padded"
    assert expert_parallel.choose_transport("padded", "tpu") == "padded"
    with pytest.raises(ValueError, match="unknown experts transport 'mail'; known: auto, padded"):
        expert_parallel.choose_transport("mail", "cpu")


def test_spreading_and_collecting_are_transposes() -> None:
    shards = GROUPS_WHOLE
    copies = expert_exchange.copies_of(jnp.asarray(choices(shards)), shards)
    way = expert_transport.padded_transport(copies.counts(4), shards, NUM_TOKENS, 0.5)
    slots = expert_exchange.slots_of(copies, way)
    source = expert_exchange.sources_of(slots, way.size) // shards.max_copies
    x = jax.random.normal(jax.random.key(0), (NUM_TOKENS, 3))

    def spread(x: jax.Array) -> jax.Array:
        return expert_exchange.spread(x, source, slots)

    rows, back = jax.vjp(spread, x)
    # Automatic differentiation of the plain gather is the oracle.
    _, plain_back = jax.vjp(lambda x: x.at[source].get(mode="fill", fill_value=0), x)
    direction = jax.random.normal(jax.random.key(1), rows.shape)
    np.testing.assert_allclose(back(direction)[0], plain_back(direction)[0], atol=1e-6)
    collected, back = jax.vjp(lambda rows: expert_exchange.collect(rows, source, slots), direction)
    np.testing.assert_allclose(collected, plain_back(direction)[0], atol=1e-6)
    np.testing.assert_allclose(back(x)[0], rows, atol=0)


def test_placement_is_hashable_for_a_static_argument() -> None:
    one = expert_parallel.Placement("all", "padded", 1.25)
    assert hash(one) == hash(dataclasses.replace(one))
