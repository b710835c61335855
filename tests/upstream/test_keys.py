"""Which key pays: the least loaded one that may, and none that rests or was refused where another one was not."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.errors import KeyFault, ProviderBusy, ProxyError
from proxy.core.secret import Secret
from proxy.upstream.keys import MOST_MODELS, OUT, REST, KeyPool, Payment
from tests.asgi import Log

MODEL = "mistral-small-latest"


@dataclass
class Pool:
    """A pool with a clock of its own."""

    count: int = 2
    longest: float = 60.0
    now: float = 1000.0
    log: Log = field(default_factory=Log)

    def __post_init__(self) -> None:
        secrets = [Secret(f"provider-key-{n}") for n in range(self.count)]
        self.pool = KeyPool("mistral key", secrets, self.log, self.longest, now=lambda: self.now)

    def begin(self, model: str = MODEL) -> tuple[Payment, str]:
        payment = self.pool.payment(model)
        payment.take()
        return payment, payment.key.label

    def call(self, *faults: ProxyError | None, model: str = MODEL) -> list[str]:
        """The keys of one call, of which each ends with the next of `faults`; None: it is answered."""
        payment, used = self.pool.payment(model), []
        before = [key.load for key in self.pool.keys]
        for fault in faults:
            payment.take()
            used.append(payment.key.label)
            if fault is None:
                payment.accepted()
            another = fault is not None and payment.refused(fault)
            payment.give()
            if not another:
                break
        assert [key.load for key in self.pool.keys] == before
        return used

    def call_refusing(self, bad: str) -> list[str]:
        """The keys of one call to a provider that refuses this key."""
        payment, used = self.pool.payment(MODEL), list[str]()
        while not used or used[-1] == bad:
            payment.take()
            used.append(payment.key.label)
            if used[-1] == bad:
                assert payment.refused(REFUSED)
            else:
                payment.accepted()
            payment.give()
        return used

    def events(self) -> list[tuple[str, str]]:
        return [(event, fields["key"]) for _, event, fields in self.log.lines]


def fault(key: KeyFault, asked: float | None = None) -> ProxyError:
    error = ProxyError("no")
    error.key, error.asked = key, asked
    return error


REFUSED, NO_MODEL, SPENT = (fault(key) for key in (KeyFault.REFUSED, KeyFault.NO_MODEL, KeyFault.SPENT))
ONE, TWO = "mistral key 1", "mistral key 2"


def test_a_key_without_others_has_no_number():
    assert Pool(1).begin()[1] == "mistral key"


def test_without_any_key_calls_are_made_without_one():
    payment, _ = Pool(0).begin()
    assert payment.key.headers == []


@given(st.integers(1, 5), st.lists(st.one_of(st.none(), st.integers(0, 30)), max_size=60))
def test_the_least_loaded_pays(count: int, steps: list[int | None]):
    """None begins a call, a number ends one of those under way."""
    setting = Pool(count)
    running: list[Payment] = []
    for step in steps:
        if step is None:
            least = min(key.load for key in setting.pool.keys)
            payment, _ = setting.begin()
            assert payment.key.load == least + 1
            running.append(payment)
        elif running:
            running.pop(step % len(running)).give()
        loads = Counter(id(payment.key) for payment in running)
        assert [key.load for key in setting.pool.keys] == [loads[id(key)] for key in setting.pool.keys]


def test_calls_one_after_the_other_take_turns():
    setting = Pool(3)
    assert Counter(setting.call(None)[0] for _ in range(30)) == {f"mistral key {n}": 10 for n in (1, 2, 3)}


@pytest.mark.parametrize(("refusal", "elsewhere"), [(REFUSED, False), (NO_MODEL, True)])
def test_a_refused_key_is_out_once_another_has_done_it(refusal: ProxyError, elsewhere: bool):
    setting = Pool()
    bad, good = setting.call(refusal, None)
    assert {bad, good} == {ONE, TWO}
    assert setting.events() == [("key_out", bad)]
    assert {setting.call(None)[0] for _ in range(4)} == {good}
    others = {setting.call(None, model="mistral-large-latest")[0] for _ in range(4)}
    assert others == ({ONE, TWO} if elsewhere else {good})


def test_what_every_key_is_refused_for_puts_none_out():
    """As a firewall refuses a prompt: nobody can put out the keys of all by sending it."""
    setting = Pool()
    assert len(setting.call(REFUSED, REFUSED, None)) == 2
    assert setting.events() == []
    assert {setting.call(None)[0] for _ in range(4)} == {ONE, TWO}


def test_one_call_finds_out_whether_it_is_well():
    setting = Pool()
    bad, good = setting.call(REFUSED, None)
    setting.now += OUT
    probe, first = setting.begin()
    while first != bad:  # equals take turns
        probe.give()
        probe, first = setting.begin()
    others = [setting.begin() for _ in range(4)]  # at once, and however loaded the other key is
    assert {label for _, label in others} == {good}
    for payment, _ in others:
        payment.give()
    probe.accepted()
    probe.give()
    assert setting.events()[-1] == ("key_back", bad)
    assert {setting.call(None)[0] for _ in range(4)} == {ONE, TWO}


def test_one_that_is_refused_again_stays_out():
    setting = Pool()
    bad, good = setting.call(REFUSED, None)
    setting.now += OUT
    used = [setting.call_refusing(bad) for _ in range(6)]
    assert used.count([bad, good]) == 1
    assert used.count([good]) == 5
    assert setting.events() == [("key_out", bad)] * 2


def test_a_spent_key_rests_for_as_long_as_it_is_told():
    setting = Pool()
    spent, other = setting.call(fault(KeyFault.SPENT, 7.0), None)
    assert {setting.call(None)[0] for _ in range(4)} == {other}
    assert {setting.call(None, model="another")[0] for _ in range(4)} == {ONE, TWO}  # limits are a model's
    setting.now += 6.5
    assert {setting.call(None)[0] for _ in range(4)} == {other}
    setting.now += 0.5
    assert {setting.call(None)[0] for _ in range(4)} == {spent, other}
    assert setting.events() == [("key_rests", spent)]


def test_nobody_waits_longer_than_we_do():
    setting = Pool(1, longest=3.0)
    setting.call(fault(KeyFault.SPENT, 700.0))
    setting.now += 3.0
    assert setting.call(None) == ["mistral key"]


def test_what_every_account_refuses_lets_none_rest():
    """As a prompt that is more than a minute's tokens: the others have theirs still."""
    setting = Pool()
    assert len(setting.call(SPENT, SPENT, None)) == 2
    assert setting.events() == []
    assert {setting.call(None)[0] for _ in range(4)} == {ONE, TWO}


def test_without_a_time_the_others_have_a_moments_precedence():
    setting = Pool()
    spent, other = setting.call(SPENT, None)
    assert {setting.call(None)[0] for _ in range(4)} == {other}
    setting.now += REST
    assert {setting.call(None)[0] for _ in range(4)} == {spent, other}


def test_the_only_key_rests_only_when_it_is_told_to():
    setting = Pool(1)
    assert setting.call(SPENT) == ["mistral key"]
    assert setting.call(None) == ["mistral key"]
    setting.call(fault(KeyFault.SPENT, 5.0))
    with pytest.raises(ProviderBusy) as busy:
        setting.begin()
    assert busy.value.asked == 5.0
    assert dict(busy.value.headers)[b"retry-after"] == b"5"


def test_when_all_rest_the_first_to_be_back_is_told():
    setting = Pool()
    assert len(setting.call(fault(KeyFault.SPENT, 9.0), fault(KeyFault.SPENT, 4.0))) == 2
    with pytest.raises(ProviderBusy) as busy:
        setting.begin()
    assert busy.value.asked == 4.0


def test_no_call_is_made_twice_with_one_key():
    setting = Pool(3)
    used = setting.call(REFUSED, NO_MODEL, SPENT, None)
    assert sorted(used) == [ONE, TWO, "mistral key 3"]


def test_what_is_no_keys_fault_is_not_tried_with_another():
    setting = Pool()
    assert len(setting.call(ProxyError("a mistake of the client"), None)) == 1


def test_names_that_clients_make_up_are_not_remembered_for_ever():
    setting = Pool(1)
    for n in range(3 * MOST_MODELS):
        setting.call(fault(KeyFault.SPENT, 60.0), model=f"model-{n}")
    assert len(setting.pool.keys[0]._rests) == MOST_MODELS
    setting.now += 61
    setting.call(fault(KeyFault.SPENT, 60.0), model="one")
    assert list(setting.pool.keys[0]._rests) == ["one"]
