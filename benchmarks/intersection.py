"""How long two owners take to find the images that both have, on this machine: two processes, a pipe between them.

    python -m benchmarks.intersection 2354 2354      # images of train and test, at each owner

The digests are random, and as many as asked for with --common are at both. Seconds are of the slower owner. Both
compute at the same time: beside other work, and on one core, what the clock says is longer than the processor's time.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import time
from multiprocessing.connection import Connection

from mpc_imaging.protocols.intersection import ELEMENT_BYTES, Pair, intersect

SPLITS = ("train", "test", "val")


def _own(party: str, sizes: list[int], common: int) -> dict[str, list[bytes]]:
    def digest(split: str, number: int) -> bytes:
        return hashlib.sha256(f"{'both' if number < common else party} {split} {number}".encode()).digest()

    return {split: [digest(split, i) for i in range(size)] for split, size in zip(SPLITS, sizes, strict=False)}


def _party(me: str, peer: str, sizes: list[int], common: int, pipe: Connection, results: Connection) -> None:
    sent_bytes = 0

    def swap(outgoing: bytes, size: int) -> bytes:
        nonlocal sent_bytes
        sent_bytes += len(outgoing)
        if me < peer:  # a pipe holds little: one speaks first
            pipe.send_bytes(outgoing)
            return pipe.recv_bytes(size + ELEMENT_BYTES)
        received = pipe.recv_bytes(size + ELEMENT_BYTES)
        pipe.send_bytes(outgoing)
        return received

    own = _own(me, sizes, common)
    theirs = {split: len(images) for split, images in own.items()}
    began, worked = time.perf_counter(), time.process_time()
    places = intersect(own, theirs, Pair(me, peer, b"benchmark", swap))
    clock_s, processor_s = time.perf_counter() - began, time.process_time() - worked
    found = sum(bool(where) for ones in places.values() for where in ones)
    results.send((clock_s, processor_s, sent_bytes, found))


def measure(sizes: list[int], common: int) -> tuple[float, float, int, int]:
    """Seconds of the slower owner by the clock and of its processor, bytes that each sent, images found by each."""
    here, there = multiprocessing.Pipe()
    outcome, results = multiprocessing.Pipe(duplex=False)
    parties = [("a", "b", here), ("b", "a", there)]
    started = [
        multiprocessing.Process(target=_party, args=(me, peer, sizes, common, pipe, results))
        for me, peer, pipe in parties
    ]
    for process in started:
        process.start()
    clock_s, processor_s, sent_bytes, found = zip(*(outcome.recv() for _ in started), strict=True)
    for process in started:
        process.join()
    return max(clock_s), max(processor_s), max(sent_bytes), min(found)


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", type=int, nargs="+", help=f"images at each owner of {', '.join(SPLITS)}")
    parser.add_argument("--common", type=int, default=10, help="images of each split that both have")
    arguments = parser.parse_args()
    clock_s, processor_s, sent_bytes, found = measure(arguments.sizes[: len(SPLITS)], arguments.common)
    times = f"{clock_s:.2f} s, {processor_s:.2f} s of each owner's processor"
    print(f"{times}; {sent_bytes / 1e6:.2f} MB sent by each owner, {found} images found at both")


if __name__ == "__main__":
    main()
