"""The same job without secret sharing, to compare with. Only local simulation may run it: it sees everybody's data."""
