"""Mutual-TLS mesh between the parties: frames, certificates, traffic counters. Knows nothing of what it carries.

`Mesh.connect` brings the parties together; `Mesh.exchange` is one round. `make_local` writes certificates for a trial
on one machine, and `Credentials` loads a party's folder.
"""

from mpc_imaging.transport.attempt import Peer
from mpc_imaging.transport.certificates import CertificateError, Credentials, make_local
from mpc_imaging.transport.channel import PeerAbortedError, PeerLeftError
from mpc_imaging.transport.frames import FrameError, Kind
from mpc_imaging.transport.mesh import Mesh, Observer
from mpc_imaging.transport.traffic import Counters, Traffic, TrafficSnapshot

__all__ = [
    "CertificateError",
    "Counters",
    "Credentials",
    "FrameError",
    "Kind",
    "Mesh",
    "Observer",
    "Peer",
    "PeerAbortedError",
    "PeerLeftError",
    "Traffic",
    "TrafficSnapshot",
    "make_local",
]
