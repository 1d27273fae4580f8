"""Train and run medical-image models across hospitals on secret shares.

Start with ``python -m mpc_imaging --help``. README.md describes the architecture, SECURITY.md the threat model.
"""

__version__ = "0.1.1"
