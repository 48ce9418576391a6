"""What one process can know of several: the environment's words, and that alone nothing changes.

Groups of processes are in tests/sharded and tests/faults.
"""

import socket

import numpy as np
import pytest

from launch import supervise
from launch import target as target_lib
from mistral_jax import distributed
from mistral_jax import run_checks
from mistral_jax import sharding

PLACE = {
    "MISTRAL_JAX_COORDINATOR": "10.0.0.2:8476",
    "MISTRAL_JAX_NUM_PROCESSES": "4",
    "MISTRAL_JAX_PROCESS_ID": "3",
}


def test_without_the_environment_a_run_is_one_process() -> None:
    assert distributed.membership({}) is None
    assert distributed.membership({"MISTRAL_JAX_DISTRIBUTED": ""}) is None
    assert distributed.membership({"MISTRAL_JAX_NUM_PROCESSES": "1"}) is None


def test_the_environment_names_the_coordinator_and_the_place() -> None:
    assert distributed.membership(PLACE) == distributed.Membership("10.0.0.2:8476", 4, 3, 10)
    auto = {"MISTRAL_JAX_DISTRIBUTED": "auto", "MISTRAL_JAX_HEARTBEAT_S": "30"}
    assert distributed.membership(auto) == distributed.Membership(None, None, None, 30)
    # A launcher that knows the place says more than the platform.
    assert distributed.membership(PLACE | auto) == distributed.Membership("10.0.0.2:8476", 4, 3, 30)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MISTRAL_JAX_PROCESS_ID": ""}, "without MISTRAL_JAX_PROCESS_ID"),
        ({"MISTRAL_JAX_PROCESS_ID": "4"}, r"must be below MISTRAL_JAX_NUM_PROCESSES \(4\), got 4"),
        ({"MISTRAL_JAX_PROCESS_ID": "-1"}, "whole number of 0 or more, got '-1'"),
        ({"MISTRAL_JAX_PROCESS_ID": "²"}, "whole number of 0 or more"),
        ({"MISTRAL_JAX_NUM_PROCESSES": "0"}, "whole number of 1 or more, got '0'"),
        ({"MISTRAL_JAX_COORDINATOR": "10.0.0.2"}, "expected host:port, got '10.0.0.2'"),
        ({"MISTRAL_JAX_COORDINATOR": "a b:1"}, "expected host:port"),
        ({"MISTRAL_JAX_HEARTBEAT_S": "1"}, "whole number of 2 or more"),
    ],
)
def test_a_wrong_environment_is_refused_in_a_sentence(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distributed.membership(PLACE | changes)


def test_an_unknown_way_to_find_the_others_is_refused() -> None:
    with pytest.raises(ValueError, match="expected auto or nothing, got 'yes'"):
        distributed.membership({"MISTRAL_JAX_DISTRIBUTED": "yes"})


def test_alone_everything_is_done_here() -> None:
    assert distributed.is_main()
    assert not distributed.is_shared()
    assert distributed.gather({"a": [1]}) == [{"a": [1]}]
    assert distributed.on_main(lambda: "done") == "done"
    error = ValueError("its own")
    with pytest.raises(ValueError, match="its own") as caught, distributed.group():
        distributed.everywhere(lambda: (_ for _ in ()).throw(error))
    assert caught.value is error


def test_alone_a_process_holds_every_row() -> None:
    mesh = sharding.single_device_mesh()
    assert distributed.held_rows(mesh, 6).tolist() == [0, 1, 2, 3, 4, 5]
    rows = np.arange(24).reshape(2, 3, 4)
    placed = distributed.place_rows(rows, sharding.micro_batch_sharding(mesh), axis=1)
    np.testing.assert_array_equal(distributed.whole(placed), rows)


def test_what_backends_say_of_a_lost_peer_is_known() -> None:
    for text in (
        "INTERNAL: Gloo all-reduce failed: [gloo/transport/tcp/pair.cc:547] Connection closed by "
        "peer [127.0.0.1]:41223",
        "UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats)",
    ):
        assert distributed.LOST.search(text)
    assert not distributed.LOST.search("step 3: the loss is nan, the gradient norm nan")


def test_a_target_of_more_hosts_than_processes_is_refused() -> None:
    machine = target_lib.load_target("v5e_16")
    with pytest.raises(ValueError, match=r"v5e_16 wants \d+ process\(es\), one a host, but 1 take"):
        run_checks.check_processes(machine)
    run_checks.check_processes(target_lib.load_target("local_cpu"))


def test_a_coordinator_that_is_not_there_is_told_in_a_sentence() -> None:
    place = f"127.0.0.1:{supervise.free_port()}"
    with pytest.raises(distributed.PeerLost, match=f"does not listen at {place} after 1 s"):
        distributed._wait_for(place, 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        distributed._wait_for(f"127.0.0.1:{server.getsockname()[1]}", 0.0)


def test_an_error_that_follows_from_a_lost_peer_is_known_as_one() -> None:
    try:
        try:
            raise RuntimeError("Gloo all-reduce failed: Connection reset by peer")
        except RuntimeError:
            raise ValueError("the save failed") from None
    except ValueError as error:
        assert "Gloo" in (distributed._lost(error) or "")
    assert distributed._lost(ValueError("no such field")) is None
