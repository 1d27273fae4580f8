from tests.parties.consortium import certificates, consortium

__all__ = ["certificates", "consortium"]
