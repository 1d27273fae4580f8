"""Certificates for the parties of a consortium, so that each machine can prove which party it is.

Each party's private key is made on its own machine and never leaves it:

  1. One institution runs the authority, on a machine with few users:
       python -m mpc_imaging.certs ca authority
  2. Every party (each hospital, the model owner, the dealer) makes its key and a request, under its name in the
     topology, and sends certificates/party.csr (no secret) to the authority:
       python -m mpc_imaging.certs request certificates hospital_a
  3. The authority checks with the party, by telephone, that the fingerprint is the one that step 2 printed, and signs:
       python -m mpc_imaging.certs sign authority hospital_a party.csr
  4. The party puts the two files that come back, party.crt and ca.crt, beside its party.key and sets
       transport.certificates=certificates

A dealer that writes stores (python -m mpc_imaging.preprocess) seals each part to its party's certificate: it gets the
party.crt of each compute party, which is no secret, and puts it beside its own as certificates/peers/hospital_a.crt.

For a trial on one machine, all at once (a run without transport.certificates does this by itself):
       python -m mpc_imaging.certs local certificates hospital_a hospital_b dealer
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mpc_imaging import hardening
from mpc_imaging.errors import MPCImagingError
from mpc_imaging.transport import certificates


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Errors are one line on stderr."""
    hardening.harden()
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except MPCImagingError as error:
        print(f"certs: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog=certificates.COMMAND, description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")

    ca = _command(commands, "ca", _ca, "make the consortium's authority (step 1)", certificates.AUTHORITY_DAYS)
    ca.add_argument("folder", metavar="FOLDER", type=Path, help="where ca.key (secret) and ca.crt are written")

    request = _command(commands, "request", _request, "make a party's key and a request for its certificate (step 2)")
    request.add_argument("folder", metavar="FOLDER", type=Path, help="gets party.key (secret) and party.csr")
    request.add_argument("name", metavar="NAME", help="the party's name in the topology, e.g. hospital_a")

    sign = _command(commands, "sign", _sign, "sign a request, as the authority (step 3)", certificates.PARTY_DAYS)
    sign.add_argument("folder", metavar="FOLDER", type=Path, help="the authority's folder, made by ca")
    sign.add_argument("name", metavar="NAME", help="the party that sent the request; it must ask for this name")
    sign.add_argument("request", metavar="REQUEST", type=Path, help="the request, party.csr")

    local = _command(commands, "local", _local, "certificates of all parties, for a trial", certificates.LOCAL_DAYS)
    local.add_argument("folder", metavar="FOLDER", type=Path, help="gets one folder for each party")
    local.add_argument("names", metavar="NAME", nargs="+", help="the parties' names in the topology")
    return parser


def _command(commands, name: str, run, text: str, days: int | None = None) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.set_defaults(run=run)
    parser.add_argument("--force", action="store_true", help="replace keys and certificates that are already there")
    if days is not None:
        parser.add_argument("--days", type=_days, default=days, help="validity in days (default: %(default)s)")
    return parser


def _days(text: str) -> int:
    days = int(text)
    if not 1 <= days <= 3650:
        raise argparse.ArgumentTypeError("a number of days from 1 to 3650")
    return days


def _ca(args: argparse.Namespace) -> None:
    path = certificates.make_authority(args.folder, days=args.days, force=args.force)
    print(f"Authority made: {path}. Keep {path.with_suffix('.key')} secret: who has it can pose as any party.")


def _request(args: argparse.Namespace) -> None:
    path = certificates.make_request(args.folder, args.name, force=args.force)
    print(f"Send {path} to the authority, and keep {path.with_suffix('.key')} on this machine.")
    print(f"Fingerprint of {args.name}: {certificates.fingerprint(path)}")


def _sign(args: argparse.Namespace) -> None:
    folder = certificates.sign(args.folder, args.name, args.request, days=args.days, force=args.force)
    print(f"Compare with {args.name}, by telephone, before you send anything back.")
    print(f"Fingerprint of {args.name}: {certificates.fingerprint(folder / 'party.crt')}")
    print(f"Then send party.crt and ca.crt in {folder} to {args.name}; they are not secret.")


def _local(args: argparse.Namespace) -> None:
    if len(set(args.names)) < len(args.names):
        raise certificates.CertificateError(f"{' '.join(args.names)}: a name is given twice; write each party's once")
    certificates.make_local(args.folder, args.names, days=args.days, force=args.force)
    print(
        f"Certificates of {len(args.names)} parties in {args.folder}, for trials only: the keys were made in one place."
    )


if __name__ == "__main__":
    sys.exit(main())
