"""A process that lets calls in and ends them until it is killed, and says so after each: `o 17`, `c 17`.

python -m tests.store.ledger_writer DATABASE_URL DIRECTORY OWNER
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path

from proxy.store.database import open_database
from proxy.store.ledger.store import LedgerStore
from tests.store.ledgers import NOW, intent, outcome


async def main(url: str, directory: str, owner: str) -> None:
    dice = random.Random(owner)
    store = LedgerStore(open_database(url), Path(directory), owner, log=lambda *_, **__: None, now=lambda: NOW)
    await store.start()
    under_way: list[int] = []
    n = 0
    while True:
        if len(under_way) < 20 and dice.random() < 0.55:
            store.open(intent(n, owner, opened=NOW + n * 100_000))
            os.write(1, b"o %d\n" % n)
            under_way.append(n)
            n += 1
        elif under_way:
            done = under_way.pop(dice.randrange(len(under_way)))
            store.close(outcome(done, owner, status=dice.choice(("settled", "failed"))))
            os.write(1, b"c %d\n" % done)
        if dice.random() < 0.02:
            await asyncio.sleep(0.001)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
