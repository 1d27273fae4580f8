"""Side-by-side runs of this package and stock CrypTen: ``python -m benchmarks --help``."""
