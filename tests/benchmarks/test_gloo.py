"""What we count for stock CrypTen is what TCP says that gloo has sent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ELEMENTS = 20_000
# Headers that gloo puts before its messages and after those of the peer.
OVERHEAD_BYTES = 1_500

PARTY = """
import json, os, socket, struct, sys, time
import torch
from benchmarks.gloo import CountingCommunicator
import crypten

def sent_over_tcp():
    total = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as sock:
                info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        except OSError:
            continue  # closed meanwhile, or no TCP
        total += struct.unpack_from("Q", info, 200)[0]  # tcpi_bytes_sent of struct tcp_info
    return total

rank = int(os.environ["RANK"])
crypten.init()
party = CountingCommunicator.install()
x = torch.ones(int(sys.argv[1]), dtype=torch.int64)
calls = {
    "all_reduce": lambda: party.all_reduce(x),
    "batched all_reduce": lambda: party.all_reduce([x, x[:100]], batched=True),
    "all_gather": lambda: party.all_gather(x),
    "reduce": lambda: party.reduce(x, 1),
    "gather": lambda: party.gather(x, 0),
    "broadcast": lambda: party.broadcast(x, 1),
    "scatter": lambda: party.scatter([x, x], 0),
    "send and recv": lambda: party.send(x, 1) if rank == 0 else party.recv(x, 0),
    "broadcast_obj": lambda: party.broadcast_obj("o" * 9000 if rank == 0 else None, 0),
    "barrier": lambda: party.barrier(),
}
for name, call in calls.items():
    party.barrier()
    tcp, counted, rounds = sent_over_tcp(), party.sent_bytes, party.rounds
    call()
    time.sleep(0.1)  # gloo sends from a thread of its own
    print(json.dumps([name, sent_over_tcp() - tcp, party.sent_bytes - counted, party.rounds - rounds]), flush=True)
party.barrier()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads TCP's counters from Linux")
def test_counted_bytes_are_those_that_tcp_sent(tmp_path):
    parties = [
        subprocess.Popen(
            [sys.executable, "-c", PARTY, str(ELEMENTS)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            env=os.environ
            | {
                "RENDEZVOUS": f"file://{tmp_path / 'rendezvous'}",
                "WORLD_SIZE": "2",
                "RANK": str(rank),
                "DISTRIBUTED_BACKEND": "gloo",
                "OMP_NUM_THREADS": "1",
            },
        )
        for rank in (0, 1)
    ]
    try:
        lines = [party.communicate(timeout=120)[0].splitlines() for party in parties]
    finally:
        for party in parties:
            party.kill()
            party.wait()
    # Up to torch 2.9 gloo itself writes a line to standard output.
    counts = [[json.loads(line) for line in part if line.startswith(b'["')] for part in lines]
    both = [{name: rest for name, *rest in part} for part in counts]
    assert [len(part) for part in both] == [10, 10]
    for part in both:
        for name, (tcp, counted, rounds) in part.items():
            assert counted <= tcp <= counted + OVERHEAD_BYTES, name
            assert rounds == 1 or (name == "send and recv" and part is both[0] and rounds == 0)
    assert all(part["all_reduce"][1] == 8 * ELEMENTS for part in both)
