"""Why a layer cannot run on shares, and what to write instead."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """The start of an error of torch or of the user, whose messages can be pages long."""
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]


class LayerProblem(Exception):
    """One layer that cannot run: the reason, and a substitute that starts with a verb ("replace it by nn.ReLU")."""

    verdict = ""

    def __init__(self, reason: str, substitute: str) -> None:
        self.reason = reason
        self.substitute = substitute
        super().__init__(f"{self.verdict} ({reason}), {substitute}")

    def line(self, layer: str, kind: str) -> str:
        """The problem in one line, for the layer of that name and type."""
        return f"{layer} ({kind}): {self}"


class CannotRunSecurely(LayerProblem):
    """It would open a secret, or its result depends on more than the values: no protocol can ever run it."""

    verdict = "cannot run securely"


class NotBuiltYet(LayerProblem):
    """A protocol exists, but not in this version."""

    verdict = "not built yet"
