"""Starts a pool of processes."""

from concurrent.futures import ProcessPoolExecutor

with ProcessPoolExecutor(1) as pool:
    assert pool.submit(abs, -1).result(20) == 1
