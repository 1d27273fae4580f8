from tests.engine.conftest import parties, three, two
from tests.parties.consortium import certificates, consortium

__all__ = ["certificates", "consortium", "parties", "three", "two"]
