"""Fuzzes one target on demand: `scripts/fuzz TARGET [SECONDS]`.

With atheris (coverage-guided, libFuzzer inside) where it can be installed, else with the mutator of mutate.py. An input
that breaks the target is written to its corpus, so that the suite breaks on it too until the bug is mended.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import logging
import secrets
import signal
import sys
import time
from pathlib import Path
from random import Random
from types import FrameType
from typing import NoReturn

from tests.fuzz import targets
from tests.fuzz.mutate import TOKENS, mutated

SLOW = 10
"""Seconds that one input may take before it counts as a hang."""

LARGEST = 1 << 14
"""Bytes of the largest input that is tried: bugs of size are the business of ordinary tests."""

CACHE = Path(__file__).parents[2] / ".pytest_cache" / "fuzz"
"""What reached new code in earlier runs; may be deleted at any time."""


def keep(target: str, data: bytes) -> Path:
    """Write `data`, which broke `target`, to its corpus."""
    file = targets.CORPUS / target / f"found-{hashlib.sha256(data).hexdigest()[:12]}"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


def _tried(target: str, check: targets.Check, data: bytes) -> None:
    signal.alarm(SLOW)
    try:
        check(data)
    except BaseException:
        print(f"\nBROKEN by {keep(target, data)}", file=sys.stderr)
        raise
    finally:
        signal.alarm(0)


def _hang(number: int, frame: FrameType | None) -> NoReturn:
    raise TimeoutError(f"not done after {SLOW} s")


def plain(target: str, seconds: float, seed: int) -> int:
    """Mutate the corpus for `seconds`; returns how many inputs were tried. The exception of a bug goes through."""
    check, random = targets.load(target), Random(seed)
    signal.signal(signal.SIGALRM, _hang)
    seeds = [file.read_bytes() for file in targets.kept(target)] or [b""]
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        _tried(target, check, mutated(seeds, random, LARGEST))
        count += 1
    return count


def guided(target: str, seconds: int) -> NoReturn:
    """Let atheris look for inputs that reach new code. Ends the process, with a status that is not 0 after a find."""
    atheris = importlib.import_module("atheris")  # not part of the environment
    with atheris.instrument_imports(include=["proxy"]):
        check = targets.load(target)
    cache = CACHE / target
    cache.mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={seconds}", f"-timeout={SLOW}", f"-max_len={LARGEST}", "-rss_limit_mb=1500"]
    options += [f"-dict={_dictionary()}", f"-artifact_prefix={targets.CORPUS / target / 'found-'}"]
    (targets.CORPUS / target).mkdir(parents=True, exist_ok=True)
    atheris.Setup([sys.argv[0], *options, str(cache), str(targets.CORPUS / target)], check)
    atheris.Fuzz()
    sys.exit(0)


def _dictionary() -> Path:
    """TOKENS as libFuzzer reads them."""
    file = CACHE / "tokens"
    spelled = ("".join(f"\\x{byte:02x}" for byte in token) for token in TOKENS)
    file.write_text("".join(f'"{token}"\n' for token in spelled), "ascii")
    return file


def main() -> int:
    """0: nothing found."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("target", choices=targets.names())
    parser.add_argument("seconds", type=int, nargs="?", default=60)
    parser.add_argument("--plain", action="store_true", help="without coverage, though atheris is there")
    parser.add_argument("--seed", type=int, help="of --plain: repeats a run")
    options = parser.parse_args()
    # What it has to say of broken connections would bury what is found.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    if not options.plain and importlib.util.find_spec("atheris"):
        guided(options.target, options.seconds)
    seed = secrets.randbits(32) if options.seed is None else options.seed
    print(f"{options.target}: random mutations, no coverage, --seed {seed}", file=sys.stderr)
    count = plain(options.target, options.seconds, seed)
    print(f"{count} inputs in {options.seconds} s, nothing found", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
