"""The model of a session: where its starting weights come from, and how the compute parties get them.

Prepared modules are the same at every party, since all build the architecture from the public seed; only the model
owner's holds the owner's weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from mpc_imaging import strict_json
from mpc_imaging.baselines.plaintext import train_plaintext
from mpc_imaging.data import load_whole_split
from mpc_imaging.engine.encoding import decode, encode
from mpc_imaging.errors import DataError, ModelError, SessionError
from mpc_imaging.models import headroom
from mpc_imaging.models.build import build
from mpc_imaging.models.convert import output_shape as traced_shape, prepare
from mpc_imaging.models.weights import load_weights, save_weights, set_weights
from mpc_imaging.parties import sealed, sharing
from mpc_imaging.parties.session import Session
from mpc_imaging.protocols.ranges import Bound
from mpc_imaging.settings import Loss, Method, Settings, TaskKind, TaskSettings, WeightsSource, public_digests
from mpc_imaging.tasks.features import features_of, output_shape, sample_shape

if TYPE_CHECKING:
    from collections.abc import Callable

SHARES = "shares.sealed"
# With more bits of fraction, bounds that follow from weights leave too little room for blocks of ordinary values.
MOST_BITS_FOR_BOUNDS = 20


def owner_module(settings: Settings, folder: Path, progress: Callable[[int, int], None] | None = None) -> nn.Module:
    """The model owner's module: weights from its file, or trained in plaintext on its own train split.

    folder: the owner's run folder, which gets `pretrained_file`. progress: called with (epoch, epochs).
    Raises `ModelError` for a file of weights or a model that does not fit, `DataError` for images that cannot be used.
    """
    module = build(settings.model, settings.seed)
    source = settings.model.weights.source
    if source is WeightsSource.file:
        set_weights(module, load_weights(settings.model.weights.path))
    elif source is WeightsSource.pretrain:
        prepared_module(settings, module)  # so that a model of the wrong shape is told before it is trained
        split = features_of(settings, load_whole_split(settings, folder, "train", settings.model_owner()))
        plan = settings.model.pretrain
        task = TaskSettings(
            epochs=plan.epochs,
            batch_size=plan.batch_size,
            lr=plan.lr,
            momentum=plan.momentum,
            weight_decay=plan.weight_decay,
            optimiser=plan.optimiser,
            loss=_pretraining_loss(settings),
        )
        told = (lambda epoch, loss: progress(epoch, plan.epochs)) if progress else None
        train_plaintext(module, split.images, split.labels, task, settings.seed, told)
        save_weights(module.state_dict(), pretrained_file(settings, folder))
    return module.eval()


def _pretraining_loss(settings: Settings) -> Loss:
    if settings.data.masks:
        return Loss.dice_bce
    return Loss.binary_cross_entropy if settings.data.multi_label else Loss.cross_entropy


def pretrained_file(settings: Settings, folder: Path) -> Path:
    """Where the model owner keeps what it trained in plaintext; weights.safetensors is what a task ends with."""
    return folder / ("weights.safetensors" if settings.task.kind is TaskKind.infer else "pretrained.safetensors")


def prepared_module(settings: Settings, module: nn.Module | None = None) -> fx.GraphModule:
    """The traced module that runs on shares; from the public seed where this party has no weights.

    Raises `ModelError` for layers that cannot run on shares, and for a model that does not fit images or classes.
    """
    module = build(settings.model, settings.seed) if module is None else module
    # Shares were made of the graph that was trained, in which nothing is folded.
    training = settings.task.kind is TaskKind.train or settings.model.weights.source is WeightsSource.shares
    prepared = prepare(module, training)
    given, wanted = tuple(traced_shape(prepared, (2, *sample_shape(settings)))), output_shape(settings)
    if given != (2, *wanted):
        raise ModelError([_shape_problem(settings, given, wanted)])
    return prepared


def _shape_problem(settings: Settings, given: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """What to write for a model that gives ``given`` for two images, and not ``wanted`` for each."""
    if settings.model.single_logit:  # all that it gave stands below each other
        return f"the model gives {given[0] // 2} values for an image, not one logit; write model.single_logit=false"
    what = f"a score for each of data.class_names ({wanted[0]}); set its number of classes in model.kwargs"
    if settings.data.masks:
        what = f"a logit for each pixel {wanted}; write model=unet_small, or data.masks=false"
    elif given in ((2,), (2, 1)) and wanted == (2,):
        what = "a score for each of two classes; write model.single_logit=true if it is the logit of the second one"
    return f"the model gives {given[1:] or 'one number'} for an image, not {what}"


def trained_on_shares(settings: Settings) -> bool:
    """Whether the compute parties train the model; in federated training, owners do."""
    return settings.task.kind is TaskKind.train and settings.task.method is Method.joint


def floating_state(prepared: nn.Module) -> dict[str, torch.Tensor]:
    """What the model owner shares: parameters and buffers, by name."""
    return {name: value for name, value in prepared.state_dict().items() if value.is_floating_point()}


def share_weights(session: Session, prepared: fx.GraphModule) -> dict[str, torch.Tensor] | None:
    """The starting weights at each compute party, by name; None at other parties.

    int64 shares, or float32 tensors where the owner declared them public and the task does not train them on shares.
    Raises `EncodingError` for weights that fixed point cannot hold, `DataError` and `SessionError` for share files that
    do not fit (see `read_shares`).
    """
    settings = session.settings
    bits = settings.protocol.fraction_bits
    state = floating_state(prepared)
    source = settings.model.weights.source
    if source is WeightsSource.shares:
        return read_shares(session, state)[0] if session.rank is not None else None
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
            if result is not None and trained_on_shares(settings):
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


Bounds = dict[str, dict[int | str, Bound]]


def has_bounds(settings: Settings) -> bool:
    """Return whether inputs of operations are checked against bounds that follow from the weights (`models.headroom`).

    That needs weights that somebody knows, and room for the sums of blocks: 20 bits of fraction at most. Elsewhere the
    results of layers are checked.
    """
    known = settings.task.kind is not TaskKind.train and settings.model.weights.source is not WeightsSource.shares
    return settings.checks_range() and known and settings.protocol.fraction_bits <= MOST_BITS_FOR_BOUNDS


def check_bounds(settings: Settings, prepared: fx.GraphModule) -> None:
    """Raise `ModelError`, which names the layers, if the owner's weights leave no room for any inputs."""
    bits = settings.protocol.fraction_bits
    if settings.checks_range() and settings.task.kind is not TaskKind.train:
        headroom.half_bounds(prepared, headroom.bounded_inputs(prepared, bits), bits)


def share_bounds(session: Session, prepared: fx.GraphModule) -> Bounds:
    """What the inputs of the model's operations may be at most at each compute party, by node and argument.

    Bounds that follow from secret weights are shares. Empty where no bounds are checked, and at other parties.
    """
    settings = session.settings
    if not has_bounds(settings):
        return {}
    bits, source, owner = settings.protocol.fraction_bits, settings.model.weights.source, settings.model_owner()
    every = headroom.bounded_inputs(prepared, bits)
    # Of a model whose weights are all computed from others there are none.
    inputs, halves = [each for each in every if each.weight is not None], torch.empty(0, dtype=torch.int64)
    if session.me == owner or (source is WeightsSource.seed and session.rank is not None):
        halves = headroom.half_bounds(prepared, inputs, bits)
    secret = source is not WeightsSource.seed and settings.model.weights.secret
    if inputs and source is not WeightsSource.seed:
        halves = _halves_of_owner(session, owner, secret, halves, len(inputs))
    if session.rank is None:
        return {}
    bounds: list[Bound] = [2 * each.public for each in every if each.weight is None]
    known = list(halves) if secret else [2 * half for half in halves.tolist()]
    return _by_node([each for each in every if each.weight is None] + inputs, bounds + known)


def _halves_of_owner(
    session: Session, owner: str, secret: bool, halves: torch.Tensor, count: int
) -> torch.Tensor | None:
    name, shape = "bounds of inputs", torch.Size([count])
    if not secret:
        return sharing.broadcast(session, owner, name, halves, shape)
    if session.me == owner:
        return sharing.share(session, name, halves)
    return None if session.rank is None else sharing.receive(session, owner, name, shape)


def no_bounds(settings: Settings, prepared: fx.GraphModule) -> Bounds:
    """As `share_bounds`, of bounds that are zero: for dry runs."""
    if not has_bounds(settings):
        return {}
    inputs = headroom.bounded_inputs(prepared, settings.protocol.fraction_bits)
    return _by_node(inputs, [0] * len(inputs))


def _by_node(inputs: list[headroom.BoundedInput], bounds: list[Bound]) -> Bounds:
    table: Bounds = {}
    for each, bound in zip(inputs, bounds, strict=True):
        table.setdefault(each.node, {})[each.slot] = bound
    return table


def _public_share(session: Session, value: torch.Tensor) -> torch.Tensor:
    share = session.zero_share(value.shape)
    return share + value if session.first else share


def write_shares(
    session: Session,
    shares: Mapping[str, torch.Tensor],
    folder: Path,
    step: int = 0,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write this compute party's int64 shares of trained weights, sealed with its operator's key.

    folder: the party's run folder. step: training steps that made them. extra: goes into the public header.
    With all compute parties' files and keys, the weights can be told. Raises `ConfigError` and `DataError` as `sealed`.
    """
    header = {
        "kind": "weights",
        "session": session.mesh.session_id.hex(),
        "party": session.me,
        "parties": session.compute,
        "step": step,
        "fraction_bits": session.settings.protocol.fraction_bits,
        "settings": public_digests(session.settings),
    }
    key = sealed.sealing_key(session.settings, folder, session.one_machine)
    sealed.seal(folder / SHARES, shares, header | dict(extra or {}), key)


def share_file(settings: Settings, party: str) -> Path:
    """Where a compute party's share file lies: ``model.weights.path``, or in the run folder that it names."""
    path = Path(settings.model.weights.path).expanduser()
    return path / "parties" / party / SHARES if path.is_dir() else path


def read_share_file(settings: Settings, party: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Shares (int64, by name) and header of one party's file. Its key lies beside it, unless it is configured.

    Raises `DataError`, which names no path, if it is missing, cannot be read, or is no file of shares of weights;
    `ConfigError` if there is no key.
    """
    path, name = share_file(settings, party), f"model.weights.path: the share file of {party}"
    sealed.read_header(path, name)  # a file that is missing needs no key
    content = sealed.unseal(path, sealed.share_key(settings, path.parent), name)
    if content.header["kind"] != "weights":
        raise DataError([f"{name} is a {content.header['kind']}; give the run folder of a training run that ended"])
    return content.tensors, content.header


def read_shares(session: Session, state: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """This compute party's shares, int64 by name, and their header; all compute parties' come from one training run.

    state: tensors of the shapes that the model needs. Raises `DataError` with all that is wrong with this party's file,
    `SessionError` if the parties' files are those of different runs.
    """
    shares, header = read_share_file(session.settings, session.me)
    bits, problems = session.settings.protocol.fraction_bits, []
    if header["party"] != session.me:
        problems.append(f"the share file of {header['party']} was given to {session.me}; each party loads its own")
    if header["parties"] != session.compute:
        made = ", ".join(header["parties"])
        problems.append(f"the shares were made by {made}, not by this topology's compute parties")
    if header["fraction_bits"] != bits:
        problems.append(f"the shares have {header['fraction_bits']} bits of fraction; set protocol.fraction_bits so")
    if {name: tuple(v.shape) for name, v in shares.items()} != {name: tuple(v.shape) for name, v in state.items()}:
        problems.append("the shares are those of another model; set model as in the training run")
    if problems:
        raise DataError(problems)
    origin = hashlib.sha256(header["session"].encode()).hexdigest()
    for name, theirs in session.swap({"origin": origin}).items():
        if not strict_json.same(theirs, {"origin": origin}):
            raise SessionError(
                f"{name} and {session.me} hold shares of different training runs; give both the same run's"
            )
    return shares, header
