"""A compute party that uses up its store: the program that `test_store` kills.

It agrees with its peer over a pipe and "sends" by appending to a log what it took: every line is a byte that left.
Imports nothing but the store and its keys, so that it starts at once.
"""

import hashlib
import json
import os
import socket
import sys
from pathlib import Path

from mpc_imaging.parties.parts import recipient
from mpc_imaging.randomness.store import Store
from mpc_imaging.transport.certificates import Credentials

PARTIES = ("a", "b")
PLAN = "5e" * 32


def _exchange(link, hello):
    """The peer's hello, or None once it is dead."""
    try:
        link.write(json.dumps(hello).encode() + b"\n")
        line = link.readline()
    except OSError:
        return None
    return json.loads(line) if line.endswith(b"\n") else None


def main(folder: str, party: str, certificates: str, descriptor: int, log: int) -> None:
    """Open the store and use session after session until the peer is gone or this process is killed."""
    peer = PARTIES[1 - PARTIES.index(party)]
    mine = recipient(Credentials(Path(certificates)), party, "dealer")
    with Store.open(Path(folder), mine, PARTIES, PLAN) as store:
        link = socket.socket(fileno=descriptor).makefile("rwb", buffering=0)
        while True:
            theirs = _exchange(link, store.hello())
            if theirs is None:
                return
            index = store.claim({peer: theirs})
            theirs = _exchange(link, store.hello())
            if theirs is None:
                return
            with store.confirm({peer: theirs}) as session:
                key = hashlib.sha256(session.key).hexdigest()
                os.write(log, f"{party} {index} {key} {session.key_id.hex()}\n".encode())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
