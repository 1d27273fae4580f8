"""Randomness: CSPRNG streams, the correlated randomness that protocols demand, and the dealer that makes it."""
