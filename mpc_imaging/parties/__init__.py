"""Parties: who takes part, what they agree on, what may be opened to whom, and the record of it."""
