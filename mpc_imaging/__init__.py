"""Train and run medical-image models across hospitals on secret shares.

Start with ``python -m mpc_imaging --help``; the architecture is described in README.md, the threat model in SECURITY.md.
"""

__version__ = "0.1.0"
