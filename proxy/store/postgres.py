"""A connection to PostgreSQL that does not wait for ever for a server that is frozen or unreachable.

The server's own timeouts are no help there, and TCP's neither: the kernel of a frozen server still takes all we send.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.pq import TransactionStatus


class Connection(psycopg.Connection[Any]):
    """`patience` is how many seconds the answer to one statement is waited for; then the connection is closed."""

    patience = 2.5

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        try:
            return super().wait(gen, interval, self.patience if timeout is None else timeout)
        except psycopg.OperationalError:
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                self.pgconn.finish()  # nobody knows what the server will still send
            raise
