"""The mathematics of secure computation on arrays: knows nothing of CrypTen, sockets or models.

Each protocol takes a `Context`: something that exchanges arrays with the other compute parties, and something that
hands out correlated randomness. No protocol opens a value that is not masked.
"""
