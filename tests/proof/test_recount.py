"""A proof that could not fail would prove nothing: whatever is spoilt in a sound trial is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from proxy.core.money import usd
from proxy.proof.audit import Counters
from proxy.proof.recount import Evidence, had_room, most_at_once, verdict
from tests.proof.evidence import COST, PRICES, billed, mark, money, refused, requests, row, seen, slots


def wrong(evidence: Evidence) -> str:
    return "\n".join(verdict(evidence, PRICES).problems)


@pytest.mark.parametrize("sound", [requests, money, slots])
def test_nothing_is_wrong_with_a_sound_trial(sound: Callable[[], Evidence]) -> None:
    assert wrong(sound()) == ""


def test_the_numbers_of_requests() -> None:
    found = verdict(requests(), PRICES)
    assert (found.admitted, found.refused, found.overshoot, found.shortfall) == (2, 1, 0, 0)
    assert (found.ledger, found.recount, found.difference, found.without_end) == (2 * COST, 2 * COST, 0, 0)


def test_the_numbers_of_money() -> None:
    found = verdict(money(), PRICES)
    assert (found.ledger, found.recount, found.estimated) == (COST, COST, 2)
    assert (found.charged, found.bill) == (12 * 1500 + 3 * 7500 + 3 * COST, 10 * 1500 + 5 * 7500 + COST)


# Limits.


def test_one_too_many() -> None:
    spoilt = replace(
        requests(),
        seen=[[seen(0), seen(1), seen(2)]],
        billed=[billed(0), billed(1), billed(2)],
        rows=[row(0), row(1), row(2)],
        counters=Counters(3, 0),
    )
    assert verdict(spoilt, PRICES).overshoot == 1
    assert wrong(spoilt) == "team proof-0-1: 1 over the limit"


def test_one_too_few() -> None:
    spoilt = replace(
        requests(), seen=[[seen(0), refused(1), refused(2)]], billed=[billed(0)], rows=[row(0)], counters=Counters(1, 0)
    )
    assert verdict(spoilt, PRICES).shortfall == 1
    assert wrong(spoilt) == "team proof-0-1: 1 refused for whom there was room"


def test_one_nano_usd_too_much() -> None:
    sound = money()
    total = sum(one.cost or 0 for one in sound.rows)
    assert wrong(replace(sound, trial=replace(sound.trial, limit=total))) == ""
    spoilt = replace(sound, trial=replace(sound.trial, limit=total - 1))
    assert verdict(spoilt, PRICES).overshoot == 1
    assert "0.000000001 USD over the limit" in wrong(spoilt)


def test_a_slot_too_many() -> None:
    spoilt = replace(slots(), billed=[billed(0), billed(2, started=0.25)])
    assert verdict(spoilt, PRICES).overshoot == 1


def test_a_slot_that_does_not_come_back() -> None:
    spoilt = replace(
        slots(),
        seen=[[seen(0), refused(1)], [refused(2)]],
        billed=[billed(0)],
        rows=[row(0)],
        counters=Counters(0, 0, 1),
    )
    assert wrong(spoilt) == "team proof-0-1: 1 slots still held\nteam proof-0-1: 1 refused for whom there was room"


def test_a_refusal_that_had_room() -> None:
    numbers = {"used": "0.1 USD", "reserved": "0.2 USD", "limit": "0.4 USD", "asked": "0.1 USD"}
    assert had_room(seen(0, error=numbers))
    assert not had_room(seen(0, error=numbers | {"asked": "0.100000001 USD"}))
    assert had_room(seen(0, error={"rule": "without numbers"}))


# Rows.


@pytest.mark.parametrize("difference", [-1, 1])
def test_a_wrong_cost(difference: int) -> None:
    spoilt = replace(requests(), rows=[row(0), row(1, cost=COST + difference)])
    assert verdict(spoilt, PRICES).difference == difference
    assert wrong(spoilt).startswith(f"row w-1 of call proof-0-1.1 (chat, settled): costs {usd(COST + difference)}, ")
    assert wrong(spoilt).endswith("and the provider's bill is 0.000045 USD")


def test_a_missing_row() -> None:
    assert wrong(replace(requests(), rows=[row(0)])) == "call proof-0-1.1: reached the provider and has 0 rows"


def test_a_row_too_many() -> None:
    spoilt = replace(requests(), rows=[row(0), row(1), row(1, call="w-3")])
    assert wrong(spoilt) == "call proof-0-1.1: reached the provider and has 2 rows"


def test_a_row_without_end() -> None:
    spoilt = replace(requests(), rows=[row(0), row(1, status="open", cost=None, estimated=None)])
    assert verdict(spoilt, PRICES).without_end == 1
    assert "row w-1 of call proof-0-1.1 (chat, open): has not ended" in wrong(spoilt)


def test_a_row_without_a_cost() -> None:
    assert "has no cost" in wrong(replace(requests(), rows=[row(0), row(1, cost=None)]))


def test_more_than_was_reserved() -> None:
    assert "more than what was reserved" in wrong(replace(requests(), rows=[row(0), row(1, most_cost=COST - 1)]))


def test_a_row_that_nobody_has_asked_for() -> None:
    assert "nobody has asked for it" in wrong(replace(requests(), rows=[row(0), row(1), row(9)]))


def test_an_answer_that_the_provider_never_gave() -> None:
    spoilt = replace(requests(), billed=[billed(0), billed(1, model=None)])
    assert "has an answer that the provider knows nothing of" in wrong(spoilt)


# Estimates. The row of the stream is the second of `money`, that of the killed process the third.


def spoilt_row(at: int, **differing: object) -> str:
    sound = money()
    rows = list(sound.rows)
    rows[at] = replace(rows[at], **differing)  # type: ignore[arg-type]
    total = sum(one.cost or 0 for one in rows)
    return wrong(replace(sound, rows=rows, counters=Counters(total, 0)))


def test_less_than_the_client_saw() -> None:
    assert "1 tokens of which the client saw 2" in spoilt_row(1, completion=1, cost=12 * 1500 + 7500)


def test_more_than_the_provider_wrote() -> None:
    assert "6 tokens of which" in spoilt_row(1, completion=6, cost=12 * 1500 + 6 * 7500)


def test_not_the_price_of_its_tokens() -> None:
    assert "not the price of its tokens" in spoilt_row(1, cost=12 * 1500 + 3 * 7500 - 1)


def test_another_prompt_than_was_estimated() -> None:
    assert "has a prompt of 11 tokens, expected 12" in spoilt_row(1, prompt=11, cost=11 * 1500 + 3 * 7500)


def test_less_than_all_for_a_process_that_died() -> None:
    assert "not all that was reserved" in spoilt_row(2, cost=3 * COST - 1)


def test_less_than_the_bill_for_a_process_that_died() -> None:
    assert "less than the provider's bill" in spoilt_row(2, cost=COST - 1, most_cost=COST - 1)


# Clients.


def test_a_call_that_was_refused_and_let_in() -> None:
    spoilt = replace(requests(), seen=[[seen(0), refused(1), refused(2)]])
    assert "call proof-0-1.1: was refused, and yet let in" in wrong(spoilt)


def test_a_refusal_that_does_not_say_for_how_long() -> None:
    spoilt = replace(requests(), seen=[[seen(0), seen(1), refused(2, wait=None)]])
    assert wrong(spoilt) == "call proof-0-1.2: was refused without a Retry-After"


def test_another_answer() -> None:
    error = {"code": "store_unavailable"}
    failed = seen(2, end="failed", status=503, error=error)
    assert "proof-0-1.2: was neither answered nor refused by the quota: failed 503 store_unavailable" in wrong(
        replace(requests(), seen=[[seen(0), seen(1), failed]])
    )
    sound = money()
    [clients] = sound.seen
    assert "failed 503 store_unavailable" in wrong(replace(sound, seen=[[*clients, replace(failed, mark=mark(4))]]))


def test_an_answer_of_nobody() -> None:
    assert "was answered by nobody" in wrong(replace(requests(), seen=[[seen(0), seen(1), seen(2)]]))


def test_a_call_of_nobody() -> None:
    spoilt = replace(requests(), billed=[billed(0), billed(1), billed(7)])
    assert "call proof-0-1.7: reached the provider, and nobody has asked for it" in wrong(spoilt)


# Counters.


def test_something_that_is_still_reserved() -> None:
    assert "0.000000001 USD still reserved" in wrong(replace(money(), counters=Counters(430_500, 1)))


def test_counters_that_could_not_be_asked() -> None:
    assert wrong(replace(requests(), counters=None)) == "team proof-0-1: its counters could not be asked"


def test_counters_that_have_counted_otherwise() -> None:
    assert wrong(replace(requests(), counters=Counters(1, 0))) == "team proof-0-1: 1 counted as used, 2 let in"


def test_counters_and_ledger() -> None:
    sound = money()
    total = sum(one.cost or 0 for one in sound.rows)
    for killed, used, is_well in ((True, total + 1, True), (True, total - 1, False), (False, total + 1, False)):
        found = wrong(replace(sound, counters=Counters(used, 0), killed=killed))
        assert ("in the ledger" not in found) == is_well
    assert "over its limit" in wrong(replace(sound, counters=Counters(400_001, 0)))


def test_overlaps() -> None:
    assert most_at_once([]) == 0
    assert most_at_once([billed(0, started=0.0, ended=1.0), billed(1, started=1.0, ended=2.0)]) == 1
    assert most_at_once([billed(0, started=0.0, ended=1.5), billed(1, started=1.0, ended=2.0)]) == 2
