"""Stop signals: said at once, and handlers that come back."""

import logging
import signal
import threading

import pytest

from barlow_jax.run.signals import StopSignals


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"])
def test_each_is_said_at_once_and_stops(name, caplog, request):
    number = signal.Signals[name]
    before = signal.signal(number, lambda *_: None)  # whatever the tests were started under, such as nohup
    request.addfinalizer(lambda: signal.signal(number, before))
    before_run = signal.getsignal(number)
    with caplog.at_level(logging.INFO), StopSignals() as stop:
        assert stop.received is None
        signal.raise_signal(number)
        assert stop.received == number
        said = [record.getMessage() for record in caplog.records]
        assert len(said) == 1 and said[0].startswith("Ctrl-C" if name == "SIGINT" else name)
        assert "saves after the steps that are on their way, and stops" in said[0]
        if name == "SIGINT":
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(number)
    assert signal.getsignal(number) is before_run


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_outside_of_the_main_thread_nothing_is_handled():
    before, seen = signal.getsignal(signal.SIGINT), []

    def elsewhere():
        with StopSignals():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [before]
