"""Fuzz targets: each module here with a function `check(data: bytes) -> None` is one, and raises on a bug only.

corpus/<target>/ keeps the inputs that matter; the suite runs them all, `scripts/fuzz TARGET` looks for new ones.
"""
