"""`on_denied`: told of each refused call, in its own thread, before the caller is."""

import threading

import device_models
import pytest
from device_models import MUL_FEED, frames
from device_paths import WAYS
from device_site import MUL, ROWS, limited, quiet_options, recorded, session

from device_sdk import DenialError, DeviceError, LedgerError, LicensedSession


@pytest.fixture
def told():
    return []


@pytest.fixture(params=WAYS)
def use(request):
    return lambda running: WAYS[request.param](running, MUL_FEED)


def test_each_refused_call_is_told_before_it_is_raised(site, told, use):
    device = site.activated(limited(MUL, 2))
    licensed = session(device, on_denied=told.append)
    use(licensed)
    use(licensed)
    assert told == []
    for number in range(1, 4):
        with pytest.raises(DenialError) as caught:
            use(licensed)
        assert len(told) == number
        assert told[-1] is caught.value
        assert caught.value.code == "limit_reached"
    assert recorded(device) == 2


def test_it_is_told_in_the_thread_that_is_refused(site, use):
    heard = []
    device = site.activated(limited(MUL, 0))
    licensed = session(device, on_denied=lambda _: heard.append(threading.get_ident()))
    refused = []

    def work() -> None:
        try:
            use(licensed)
        except DenialError:
            refused.append(threading.get_ident())

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(heard) == sorted(refused)
    assert len(refused) == 3


@pytest.mark.parametrize("case", ["not_activated", "model_not_licensed", "model_digest_wrong"])
def test_what_is_refused_at_open_is_told_too(site, told, case):
    device = site.open() if case == "not_activated" else site.activated(MUL)
    name = "unheard-of" if case == "model_not_licensed" else "mul"
    data = b"another file" if case == "model_digest_wrong" else device_models.mul()
    with pytest.raises(DenialError) as caught:
        LicensedSession(data, quiet_options(), device=device, model=name, on_denied=told.append)
    assert told == [caught.value]
    assert caught.value.code == case


def test_what_is_no_denial_is_not_told(site, told, monkeypatch):
    device = site.activated(MUL, ROWS)
    licensed, rows = (session(device, name, on_denied=told.append) for name in ("mul", "rows"))
    with pytest.raises(ValueError, match="missing"):
        licensed.run(None, {})
    with pytest.raises(DeviceError):
        rows.run(None, {})

    def fails(*_args, **_kwargs):
        raise LedgerError("ledger_unwritable")

    with monkeypatch.context() as patch:
        patch.setattr(device.counter.store, "write", fails)
        with pytest.raises(LedgerError):
            rows.run(None, frames(1))
    assert told == []


def test_what_the_hook_raises_neither_replaces_the_denial_nor_is_lost(site, monkeypatch, use):
    lost = []
    monkeypatch.setattr("sys.unraisablehook", lambda what: lost.append(what.exc_value))
    fault = LookupError("the host's own mistake")

    def hook(_denial):
        raise fault

    licensed = session(site.activated(limited(MUL, 0)), on_denied=hook)
    with pytest.raises(DenialError) as caught:
        use(licensed)
    assert caught.value.code == "limit_reached"
    assert lost == [fault]
    assert lost[0].__traceback__ is not None
    with pytest.raises(DenialError):
        LicensedSession(b"", device=licensed._device, model="mul", on_denied=hook)
    assert lost == [fault, fault]


@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit])
def test_what_is_meant_for_the_whole_program_passes(site, ending, use):
    def hook(_denial):
        raise ending

    device = site.activated(limited(MUL, 0))
    licensed = session(device, on_denied=hook)
    with pytest.raises(ending) as caught:
        use(licensed)
    assert isinstance(caught.value.__context__, DenialError)
    assert recorded(device) == 0


def test_the_hook_may_get_more(site, use):
    """It may do what a program does when it is denied: sync. The next call is allowed."""
    device = site.activated(limited(MUL, 1))
    licensed = session(device, on_denied=lambda _: site.sync(device, limited(MUL, 5)))
    use(licensed)
    with pytest.raises(DenialError):
        use(licensed)
    for _ in range(5):
        use(licensed)
    assert site.vendor.units("mul") + 5 == 6
    assert recorded(device) == 6


def test_a_hook_that_takes_another_denial_costs_the_allowed_nothing(site, told):
    """It is the session's own: another session's denials are not told to it."""
    device = site.activated(MUL, limited(ROWS, 0))
    licensed, rows = session(device, on_denied=told.append), session(device, "rows")
    with pytest.raises(DenialError):
        rows.run(None, frames(1))
    licensed.run(None, MUL_FEED)
    assert told == []
