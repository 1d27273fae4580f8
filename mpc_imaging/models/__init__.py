"""Models: plain torch modules, and their conversion into modules that run on secret shares.

Build or bring a torch module, `prepare` it (every layer that cannot run on shares is reported at once), and run it with
`SecureModule` over the operations of the engine. torchvision is imported only for a model that names it.
"""

from mpc_imaging.models.build import build
from mpc_imaging.models.convert import output_shape, prepare
from mpc_imaging.models.secure_module import SecureModule
from mpc_imaging.models.weights import load_weights, save_weights, set_weights

__all__ = ["SecureModule", "build", "load_weights", "output_shape", "prepare", "save_weights", "set_weights"]
