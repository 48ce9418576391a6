"""storage/owner.py: one writer at a time, by conditional writes and the store's own clock."""

import contextlib
import threading
import time
from collections.abc import Iterator

import pytest

from mistral_jax import storage
from mistral_jax.storage import owner

URI = "s3://bucket/models/x"
FIRST = "bucket/models/x/.owner/000001.json"


@pytest.fixture
def killed(store) -> Iterator[contextlib.ExitStack]:
    """Return what enters owners that do not leave while a test runs, as after kill -9.

    Behind it they must: their threads would write into the stores of other tests.
    """
    with contextlib.ExitStack() as stack:
        yield stack


def age(store, name: str, seconds: float) -> None:
    stored = store.objects[name]
    store.objects[name] = stored._replace(modified_s=stored.modified_s - seconds)


def test_a_second_owner_is_refused_and_told_how_to_take_over(store):
    with owner.Owner(URI, "here"), pytest.raises(owner.InUse) as caught, owner.Owner(URI, "there"):
        pass
    assert caught.value.exit_code == 3
    assert f"aws s3 rm {URI}/.owner/000001.json" in str(caught.value)
    assert "120 s after its last sign of life" in str(caught.value)
    assert set(store.objects) == {FIRST}


def test_who_has_left_or_died_is_followed_and_its_objects_go(store):
    with owner.Owner(URI, "here"):
        pass
    assert owner.read(f"s3://{FIRST}")["released"]
    dead = owner.Owner(URI, "there")
    dead.__enter__()  # and never leaves, as after kill -9
    name = "bucket/models/x/.owner/000002.json"
    assert set(store.objects) == {name}
    age(store, name, owner.EXPIRY_S - 10)
    with pytest.raises(owner.InUse), owner.Owner(URI, "here"):
        pass
    age(store, name, 11)
    with owner.Owner(URI, "here"):
        with pytest.raises(owner.Lost, match="has taken this output over") as caught:
            dead.check()
        assert caught.value.exit_code == 3
    with owner.Owner(URI, "anywhere"):
        pass
    dead.__exit__(None, None, None)  # says nothing in the name of the newer one
    assert set(store.objects) == {"bucket/models/x/.owner/000004.json"}


def test_a_run_that_starts_again_on_a_new_machine_waits_for_a_killed_owner(
    store, killed, monkeypatch
):
    """Else a pod that is restarted at once is refused, by code 3, which ends its whole set."""
    monkeypatch.setattr(owner, "WAIT_POLL_S", 0.01)
    killed.enter_context(owner.Owner(URI, "old pod"))
    dies = threading.Timer(0.3, lambda: age(store, FIRST, owner.EXPIRY_S + 1))
    dies.start()
    with owner.Owner(URI, "new pod", wait_s=20.0) as again:
        again.check()
    dies.join()
    with (
        owner.Owner(URI, "alive"),
        pytest.raises(owner.InUse),
        owner.Owner(URI, "there", wait_s=0.05),
    ):
        pass
    monkeypatch.setenv(owner.WAIT_VARIABLE, "long")
    with pytest.raises(storage.StorageError, match="expected a number of seconds, got 'long'"):
        owner.wait_s()


def test_the_same_folder_goes_on_at_once_after_a_kill(store, killed, tmp_path):
    place = owner.place_of(tmp_path / "runs" / "x")
    assert place == owner.place_of(tmp_path / "runs" / "x") != owner.place_of(tmp_path / "y")
    killed.enter_context(owner.Owner(URI, place))
    with owner.Owner(URI, place) as again:
        again.check()


def test_of_many_at_once_one_becomes_owner(store, killed):
    start, won, lost = threading.Barrier(6), [], []

    def contend(number: int) -> None:
        mine = owner.Owner(URI, str(number))
        start.wait()
        try:
            killed.enter_context(mine)
        except owner.InUse:
            lost.append(mine)
        else:
            won.append(mine)

    threads = [threading.Thread(target=contend, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 5)
    won[0].check()


def test_the_heartbeat_keeps_the_place(store, monkeypatch):
    monkeypatch.setattr(owner, "HEARTBEAT_S", 0.01)
    with owner.Owner(URI, "here"):
        age(store, FIRST, 1000)
        end = time.monotonic() + 10
        while time.time() - store.objects[FIRST].modified_s > 500:
            assert time.monotonic() < end, "no heartbeat came"
            time.sleep(0.01)
        with pytest.raises(owner.InUse), owner.Owner(URI, "there"):
            pass


def test_an_owner_whose_object_was_deleted_has_lost_it(store):
    mine = owner.Owner(URI, "here")
    mine.__enter__()
    storage.delete(f"s3://{FIRST}")
    with pytest.raises(owner.Lost, match="its owner object is gone"):
        mine.check()
    mine.__exit__(None, None, None)
    assert not store.objects


def test_a_bucket_that_refuses_writes_is_told_at_once(store):
    store.broken_uploads = 0
    with pytest.raises(storage.StorageError, match="refuses access"), owner.Owner(URI, "here"):
        pass
