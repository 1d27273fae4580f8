"""A party that writes down every frame: the same program as `mpc_imaging.party`, with an observer on its mesh.

Run as a module in the place of `mpc_imaging.party`. With MASKS_OFF=1 the keystreams give zeros, which the test must
notice.
"""

import os
import struct
import sys
from pathlib import Path

import numpy as np

from mpc_imaging import party
from mpc_imaging.randomness.streams import Stream
from mpc_imaging.transport.frames import Kind
from mpc_imaging.transport.mesh import Mesh

HEAD = struct.Struct("!BBHQ")
DIRECTIONS = ("sent", "received")


def _record(mesh: Mesh) -> None:
    folder = Path(os.environ["FRAMES"])
    folder.mkdir(exist_ok=True)
    file = (folder / f"{mesh.me}.frames").open("wb")

    def write(direction: str, peer: str, kind: Kind, payload: bytes) -> None:
        name = peer.encode()
        file.write(HEAD.pack(DIRECTIONS.index(direction), kind, len(name), len(payload)) + name + payload)
        file.flush()

    mesh.observers.append(write)


def frames(folder: Path, name: str) -> list[tuple[str, str, Kind, bytes]]:
    """(direction, peer, kind, payload) of every frame that a party saw, in order."""
    data, position, result = (folder / f"{name}.frames").read_bytes(), 0, []
    while position < len(data):
        direction, kind, name_size, size = HEAD.unpack_from(data, position)
        position += HEAD.size
        peer = data[position : position + name_size].decode()
        position += name_size
        result.append((DIRECTIONS[direction], peer, Kind(kind), data[position : position + size]))
        position += size
    return result


def main() -> int:
    """Patch, then run the party."""
    connect = Mesh.connect.__func__

    def recorded(cls, *args, **kwargs):
        mesh = connect(cls, *args, **kwargs)
        _record(mesh)
        return mesh

    Mesh.connect = classmethod(recorded)
    if os.environ.get("MASKS_OFF"):
        Stream.octets = lambda self, count: np.zeros(count, np.uint8)
    return party.main()


if __name__ == "__main__":
    sys.exit(main())
