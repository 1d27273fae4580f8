"""The model of a session: where its starting weights come from, and how the compute parties get them.

Prepared modules are the same at every party, since all build the architecture from the public seed; only the model
owner's holds the owner's weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import fx, nn

from mpc_imaging.baselines.plaintext import train_plaintext
from mpc_imaging.data import load_whole_split
from mpc_imaging.engine.encoding import decode, encode
from mpc_imaging.errors import DataError, ModelError, SessionError
from mpc_imaging.models.build import build
from mpc_imaging.models.convert import output_shape, prepare
from mpc_imaging.models.weights import load_weights, save_weights, set_weights
from mpc_imaging.parties import sharing
from mpc_imaging.parties.session import Session
from mpc_imaging.report.predictions import write_atomically
from mpc_imaging.settings import Loss, Settings, TaskKind, WeightsSource

if TYPE_CHECKING:
    from collections.abc import Callable

SHARES = "shares.safetensors"


def owner_module(settings: Settings, folder: Path, progress: Callable[[int, int], None] | None = None) -> nn.Module:
    """The model owner's module: weights from its file, or trained in plaintext on its own train split.

    folder: the owner's run folder, which gets weights.safetensors. progress: called with (epoch, epochs).
    Raises `ModelError` for a file of weights that does not fit, `DataError` for images that cannot be used.
    """
    module = build(settings.model, settings.seed)
    source = settings.model.weights.source
    if source is WeightsSource.file:
        set_weights(module, load_weights(settings.model.weights.path))
    elif source is WeightsSource.pretrain:
        split = load_whole_split(settings, folder, "train", settings.model_owner())
        plan = settings.model.pretrain
        train_plaintext(
            module,
            split.images,
            split.labels,
            epochs=plan.epochs,
            batch_size=plan.batch_size,
            lr=plan.lr,
            momentum=plan.momentum,
            weight_decay=plan.weight_decay,
            loss=Loss.cross_entropy,
            seed=settings.seed,
            on_epoch=(lambda epoch, loss: progress(epoch, plan.epochs)) if progress else None,
        )
        save_weights(module.state_dict(), folder / "weights.safetensors")
    return module.eval()


def prepared_module(settings: Settings, module: nn.Module | None = None) -> fx.GraphModule:
    """The traced module that runs on shares; from the public seed where this party has no weights.

    Raises `ModelError` for layers that cannot run on shares, and for a model that does not fit images or classes.
    """
    module = build(settings.model, settings.seed) if module is None else module
    # Shares were made of the graph that was trained, in which nothing is folded.
    training = settings.task.kind is TaskKind.train or settings.model.weights.source is WeightsSource.shares
    prepared = prepare(module, training)
    data = settings.data
    shape = output_shape(prepared, (2, data.channels, data.image_size, data.image_size))
    if tuple(shape) != (2, len(data.class_names)):
        raise ModelError(
            [
                f"the model gives {tuple(shape[1:])} for an image, not a score for each of data.class_names "
                f"({len(data.class_names)}); set its number of classes in model.kwargs"
            ]
        )
    return prepared


def floating_state(prepared: nn.Module) -> dict[str, torch.Tensor]:
    """What the model owner shares: parameters and buffers, by name."""
    return {name: value for name, value in prepared.state_dict().items() if value.is_floating_point()}


def share_weights(session: Session, prepared: fx.GraphModule) -> dict[str, torch.Tensor] | None:
    """The starting weights at each compute party, by name; None at other parties.

    int64 shares, or float32 tensors where the owner declared them public and the task does not train them.
    Raises `EncodingError` for weights that fixed point cannot hold, `DataError` and `SessionError` for share files that
    do not fit (see `read_shares`).
    """
    settings = session.settings
    bits = settings.protocol.fraction_bits
    state = floating_state(prepared)
    source = settings.model.weights.source
    if source is WeightsSource.shares:
        return read_shares(session, state) if session.rank is not None else None
    if source is WeightsSource.seed:
        if session.rank is None:
            return None
        return {name: _public_share(session, encode(value, bits)) for name, value in state.items()}
    owner = settings.model_owner()
    shares: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        encoded = encode(value, bits) if session.me == owner else None
        if not settings.model.weights.secret:
            result = sharing.broadcast(session, owner, f"weights {name}", encoded, value.shape)
            if result is not None and settings.task.kind is TaskKind.train:
                result = _public_share(session, result)  # training makes them secret
            elif result is not None:
                result = decode(result, bits, torch.float32)
        elif session.me == owner:
            result = sharing.share(session, f"weights {name}", encoded)
        elif session.rank is not None:
            result = sharing.receive(session, owner, f"weights {name}", value.shape)
        else:
            continue
        shares[name] = result
    return shares if session.rank is not None else None


def _public_share(session: Session, value: torch.Tensor) -> torch.Tensor:
    share = session.zero_share(value.shape)
    return share + value if session.first else share


def write_shares(session: Session, shares: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Write this compute party's int64 shares of trained weights, whole or not at all, for its operator's eyes only.

    Alone they tell nothing; with those of all other compute parties they tell the weights.
    """
    from safetensors.torch import save

    metadata = {
        "origin": session.mesh.session_id.hex(),
        "party": session.me,
        "parties": json.dumps(session.compute),
        "fraction_bits": str(session.settings.protocol.fraction_bits),
    }
    content = save({name: value.contiguous() for name, value in shares.items()}, metadata)
    write_atomically(folder / SHARES, content, mode=0o600)


def share_file(settings: Settings, party: str) -> Path:
    """Where a compute party's share file lies: ``model.weights.path``, or in the run folder that it names."""
    path = Path(settings.model.weights.path).expanduser()
    return path / "parties" / party / SHARES if path.is_dir() else path


def read_share_file(settings: Settings, party: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Shares (int64, by name) and metadata of one party's file.

    Raises `DataError`, which names no path, if it is missing, cannot be read, or is no share file.
    """
    from safetensors import SafetensorError, safe_open

    again = "give the run folder of a training run"
    try:
        with safe_open(share_file(settings, party), "pt") as file:
            metadata = file.metadata() or {}
            shares = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except FileNotFoundError:
        raise DataError([f"model.weights.path: no {SHARES} of {party}; {again}"]) from None
    except (SafetensorError, UnicodeDecodeError):
        raise DataError([f"model.weights.path: the share file of {party} is damaged; train again"]) from None
    except OSError as error:
        problem = error.strerror or type(error).__name__
        raise DataError([f"model.weights.path: the share file of {party} cannot be read: {problem}; {again}"]) from None
    integers = all(share.dtype is torch.int64 for share in shares.values())
    if not integers or not {"origin", "party", "parties", "fraction_bits"} <= metadata.keys():
        raise DataError([f"model.weights.path: the file of {party} holds no shares; {again}"])
    return shares, metadata


def read_shares(session: Session, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """This compute party's shares, int64 by name, from its file; all compute parties' come from one training run.

    state: tensors of the shapes that the model needs. Raises `DataError` with all that is wrong with this party's file,
    `SessionError` if the parties' files are those of different runs.
    """
    shares, metadata = read_share_file(session.settings, session.me)
    problems = []
    if metadata["party"] != session.me:
        problems.append(f"the share file of {metadata['party']} was given to {session.me}; each party loads its own")
    if metadata["parties"] != json.dumps(session.compute):
        problems.append(f"the shares were made by {metadata['parties']}, not by this topology's compute parties")
    if metadata["fraction_bits"] != str(session.settings.protocol.fraction_bits):
        problems.append(f"the shares have {metadata['fraction_bits']} bits of fraction; set protocol.fraction_bits so")
    if {name: tuple(v.shape) for name, v in shares.items()} != {name: tuple(v.shape) for name, v in state.items()}:
        problems.append("the shares are those of another model; set model as in the training run")
    if problems:
        raise DataError(problems)
    origin = hashlib.sha256(metadata["origin"].encode()).hexdigest()
    for name, theirs in session.swap({"origin": origin}).items():
        if theirs != {"origin": origin}:
            raise SessionError(
                f"{name} and {session.me} hold shares of different training runs; give both the same run's"
            )
    return shares
