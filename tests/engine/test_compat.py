"""In fresh processes: CrypTen loads on a torch without its old ONNX parts, and leaves nothing behind."""

import json
import subprocess
import sys

import pytest

PROGRAM = """
import importlib.abc, json, sys
import torch, torch.onnx

GONE = ["torch.onnx." + name for name in ("symbolic_helper", "utils", "symbolic_registry", "_internal.registration")]

class Refuse(importlib.abc.MetaPathFinder):  # torch of the future, on a machine without onnx
    def find_spec(self, name, path, target=None):
        if name in GONE or name.split(".")[0] in ("onnx", "tensorflow"):
            raise ModuleNotFoundError(name)

for name in GONE:
    sys.modules.pop(name, None)
for name in ("symbolic_helper", "utils", "OperatorExportTypes"):
    torch.onnx.__dict__.pop(name, None)
sys.meta_path.insert(0, Refuse())
modules, attributes = set(sys.modules), set(torch.onnx.__dict__)

def attempt(function, *arguments):
    try:
        function(*arguments)
    except Exception as error:
        return type(error).__name__, str(error)

facts = {"stock": attempt(__import__, "crypten")}
for name in [name for name in sys.modules if name.split(".")[0] == "crypten"]:
    del sys.modules[name]  # what the failed import left

from mpc_imaging.engine import compat
crypten = compat.load()
facts["version"] = crypten.__version__
facts["same"] = compat.load() is crypten
facts["added"] = sorted(set(sys.modules) - modules)
facts["attributes"] = sorted(attributes ^ set(torch.onnx.__dict__))
facts["from_pytorch"] = attempt(crypten.nn.from_pytorch, torch.nn.Linear(2, 1), torch.zeros(1, 2))
facts["from_onnx"] = attempt(crypten.nn.from_onnx, b"")
print(json.dumps(facts))
"""


def _facts(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def facts():
    return _facts(PROGRAM)


def test_crypten_loads_where_its_own_import_fails(facts):
    assert facts["stock"][0] == "ModuleNotFoundError", "without compat the import must fail, or compat is not needed"
    assert facts["version"] == "0.4.1"
    assert facts["same"], "a second load gives the same module"


def test_stand_ins_are_gone_afterwards(facts):
    roots = {name.split(".")[0] for name in facts["added"]}
    assert not roots & {"onnx", "tensorflow"}
    assert not [name for name in facts["added"] if name.startswith("torch.onnx")]
    assert facts["attributes"] == [], "torch.onnx is as it was"


def test_nothing_heavy_comes_along(facts):
    roots = {name.split(".")[0] for name in facts["added"]}
    assert not roots & {"sklearn", "torchvision", "matplotlib", "hydra", "sympy"}


@pytest.mark.parametrize("name", ["from_pytorch", "from_onnx"])
def test_onnx_import_says_what_to_do_instead(facts, name):
    kind, message = facts[name]
    assert kind == "NotImplementedError"
    assert "mpc_imaging.models.convert" in message


def test_modules_that_were_loaded_before_are_put_back():
    kept = _facts(
        """
import json, sys, types
import torch.onnx
onnx, utils = types.ModuleType("onnx"), types.ModuleType("torch.onnx.utils")
export_types = torch.onnx.__dict__.get("OperatorExportTypes")
sys.modules["onnx"], sys.modules["torch.onnx.utils"], torch.onnx.utils = onnx, utils, utils
from mpc_imaging.engine import compat
compat.load()
print(json.dumps([
    sys.modules["onnx"] is onnx,
    sys.modules["torch.onnx.utils"] is utils,
    torch.onnx.utils is utils,
    torch.onnx.__dict__.get("OperatorExportTypes") is export_types,
]))
"""
    )
    assert kept == [True] * 4
