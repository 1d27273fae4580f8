"""After a local simulation: the same job in plaintext, and the joint report beside it.

    python -m mpc_imaging.tasks.joint RUN

This process sees what no party of a real session could: it reads every party's data and results, so it exists for
runs on one machine only.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from pathlib import Path

import torch
import yaml

from mpc_imaging import hardening, settings as config
from mpc_imaging.baselines.federated import joint_reference, run_federated
from mpc_imaging.baselines.plaintext import PlaintextResult, predict, run_plaintext
from mpc_imaging.data import load_party
from mpc_imaging.data.cine import open_cine
from mpc_imaging.engine.encoding import decode
from mpc_imaging.errors import ConfigError, MPCImagingError, unforeseen
from mpc_imaging.models.build import build
from mpc_imaging.models.weights import load_weights, set_weights
from mpc_imaging.report.joint import write_joint_report
from mpc_imaging.settings import Method, Settings, TaskKind, WeightsSource
from mpc_imaging.tasks import weights
from mpc_imaging.tasks.features import own_inputs
from mpc_imaging.tasks.privacy import plaintext_gradients
from mpc_imaging.tasks.run import needed_splits


def plaintext_baselines(run: Path, settings: Settings) -> tuple[PlaintextResult, PlaintextResult | None]:
    """The same task in plaintext: same images, starting weights and batches. Beside federated training, joint training.

    Raises `DataError` or `ModelError` for data and weights that have gone since the run.
    """
    if settings.task.kind is TaskKind.stream:
        return _streamed(run, settings, _module(run, settings)), None
    splits = needed_splits(settings)
    parts = {
        owner: own_inputs(settings, load_party(settings, owner, run / "parties" / owner, splits))[0]
        for owner in settings.data_owners()
    }
    data = {split: [parts[owner][split] for owner in parts] for split in splits}
    module = _module(run, settings)
    if settings.task.kind is TaskKind.train and settings.task.method is Method.federated:
        prepared = weights.prepared_module(settings, module)
        return run_federated(settings, prepared, data), joint_reference(settings, module, data)
    return run_plaintext(settings, module, data, plaintext_gradients(settings, module)), None


def _streamed(run: Path, settings: Settings, module: torch.nn.Module) -> PlaintextResult:
    """All frames of all owners in plaintext, also those that a live stream dropped; they are not held together."""
    ids, labels, logits = [], [], []
    for owner in settings.data_owners():
        cine = open_cine(settings, owner, run / "parties" / owner)
        split = cine.split()
        for number, load in cine.frames():
            image = load()
            if image is not None:
                ids.append(split.ids[number])
                labels.append(split.labels[number])
                logits.append(predict(module, image[None], 1)[0])
    return PlaintextResult(ids, torch.stack(labels), torch.stack(logits), [], module.state_dict())


def _module(run: Path, settings: Settings) -> torch.nn.Module:
    module = build(settings.model, settings.seed)
    source = settings.model.weights.source
    if source is WeightsSource.shares:
        module = weights.prepared_module(settings, module)
        module.load_state_dict(_joined_shares(settings), strict=False)
    elif source is WeightsSource.pretrain:
        set_weights(module, load_weights(weights.pretrained_file(settings, run / "parties" / settings.model_owner())))
    elif source is WeightsSource.file:
        set_weights(module, load_weights(settings.model.weights.path))
    return module


def _joined_shares(settings: Settings) -> dict[str, torch.Tensor]:
    total: dict[str, torch.Tensor] = {}
    for party in settings.compute_parties():
        shares, metadata = weights.read_share_file(settings, party)
        total = {name: total.get(name, 0) + share for name, share in shares.items()}
    return {name: decode(value, int(metadata["fraction_bits"]), torch.float32) for name, value in total.items()}


def _settings(run: Path, allow_code: list[str]) -> Settings:
    try:
        return config.load(run / "settings.yaml", allow_code=allow_code)
    except (OSError, yaml.YAMLError) as error:
        what = getattr(error, "strerror", None) or type(error).__name__
        raise ConfigError([f"{run}: no settings.yaml to read there ({what}); give the folder of a run"]) from None


def main(argv: list[str] | None = None) -> int:
    """Write metrics.json and report.html of a finished local run."""
    parser = argparse.ArgumentParser(prog="python -m mpc_imaging.tasks.joint", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run folder, such as outputs/2026-01-31/10-00-00-000000_demo_123")
    parser.add_argument("--one-machine", action="store_true", help=argparse.SUPPRESS)
    hardening.harden()
    parser.add_argument("--allow-code", action="append", default=[], metavar="PACKAGE", help="as the run was given it")
    arguments = parser.parse_args(argv)
    run = arguments.run
    os.umask(0o077)
    try:
        if not arguments.one_machine:
            what = (
                "only python -m mpc_imaging, which ran all parties on this machine, makes the report over all of them"
            )
            raise ConfigError([f"{run}: {what}; else each party reports what was revealed to it"])
        settings = _settings(run, arguments.allow_code)
        # On the same number of threads as a party, so that plaintext training is the same on every machine.
        torch.set_num_threads(1)
        write_joint_report(run, settings, *plaintext_baselines(run, settings))
    except MPCImagingError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except Exception as error:  # goes into a file of the run and to the terminal: where it arose, but no message
        print("".join(traceback.format_tb(error.__traceback__)), unforeseen(error), sep="\n", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
