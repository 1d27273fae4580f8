"""All cases by name: of functions, and of modules, losses, optimisers and sharings."""

from tests.engine.conformance.cases import CASES
from tests.engine.conformance.completions import COMPLETIONS
from tests.engine.conformance.edges import EDGES
from tests.engine.conformance.modules import MODULES
from tests.engine.conformance.training import TRAINING, Training

FUNCTIONS = CASES | COMPLETIONS | EDGES
WHOLES: dict[str, Training] = TRAINING | MODULES
ALL = FUNCTIONS | WHOLES
