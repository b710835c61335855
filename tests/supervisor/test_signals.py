from __future__ import annotations

import os
import select
import signal

from proxy.supervisor.signals import Signals


def test_no_storm_of_one_signal_hides_another() -> None:
    before = signal.getsignal(signal.SIGHUP)
    with Signals() as signals:
        assert signals.received() == []
        for _ in range(2000):  # more than the socket has room for
            os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        assert select.select([signals], [], [], 0)[0]
        assert signals.received() == [signal.SIGHUP, signal.SIGTERM]
        assert not select.select([signals], [], [], 0)[0]
        assert signals.received() == []
    assert signal.getsignal(signal.SIGHUP) == before


def test_a_second_signal_to_end_counts() -> None:
    with Signals() as signals:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert signals.received() == [signal.SIGTERM, signal.SIGTERM, signal.SIGINT]
