"""The sections of the configuration: dataclasses with their defaults. `settings.Settings` holds one of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mpc_imaging.choices import (
    DataKind,
    FeatureNorm,
    Frames,
    Invalid,
    Loss,
    Method,
    Optimiser,
    PartitionKind,
    PrivacyName,
    ProtocolName,
    Quality,
    RandomnessMode,
    RateSchedule,
    Role,
    StopMetric,
    TaskKind,
    WeightsSource,
)


@dataclass
class PartySettings:
    """One institution: its roles, and where its peers reach it (``host:port``; port 0: chosen by the launcher)."""

    roles: list[Role] = field(default_factory=list)
    address: str = "127.0.0.1:0"


@dataclass
class TopologySettings:
    """The parties and their roles."""

    name: str = "two_hospitals"
    parties: dict[str, PartySettings] = field(default_factory=dict)


@dataclass
class ProtocolSettings:
    """The protocol and the fixed-point precision: a value v is held as round(v * 2**fraction_bits) modulo 2**64.

    comparison_bits: width of comparisons (fss); null: all bits, so that no value can be too large for it. range_check:
    whether it is checked on shares, before anything is opened, that no value has left the range.
    """

    name: ProtocolName = ProtocolName.auto
    fraction_bits: int = 16
    comparison_bits: int | None = None
    range_check: bool = True


@dataclass
class TransportSettings:
    """Mutual TLS 1.3. ``certificates``: the folder with ca.crt, party.crt and party.key of this party."""

    name: str = "tls"
    certificates: str | None = None
    timeout_s: float = 60.0
    connect_timeout_s: float = 60.0


@dataclass
class RandomnessSettings:
    """Where correlated randomness comes from.

    buffer_mb: how much of it a compute party takes from the dealer before the task starts (stream). store: the folder
    that ``python -m mpc_imaging.preprocess`` wrote for this compute party, or the one with those of all (stored).
    max_jump: sessions of its store that this compute party gives up at most, to meet peers that are further (stored).
    witness: the folder where this party remembers which stored sessions it has seen; null: that of its certificates.
    """

    mode: RandomnessMode = RandomnessMode.stream
    buffer_mb: int = 512
    store: str | None = None
    max_jump: int = 16
    witness: str | None = None


@dataclass
class PartitionSettings:
    """How one ``data.path`` for all is divided: each party keeps only its own rows, never splitting a patient."""

    kind: PartitionKind = PartitionKind.even
    fractions: dict[str, float] = field(default_factory=dict)
    skew: float = 0.8
    seed: int = 0


@dataclass
class LimitSettings:
    """At most so many images of a split, over all owners together; null: all of them."""

    train: int | None = None
    val: int | None = None
    test: int | None = None


@dataclass
class AugmentSettings:
    """What an owner does to its train images before it shares them; drawn from the public seed, one draw per copy.

    copies: of each image, of which the first stays as it is. flip: left and right, half of the copies. shift: pixels.
    rotate: degrees. brightness: of the pixel values' range.
    """

    copies: int = 1
    flip: bool = False
    shift: int = 0
    rotate: float = 0.0
    brightness: float = 0.0


@dataclass
class FoldSettings:
    """Cross-validation: all rows of all splits in ``count`` folds, of which number ``index`` becomes the test split.

    Each owner divides its own rows, by patient and stratified by label. count: null for the splits that the data have.
    """

    count: int | None = None
    index: int = 0


@dataclass
class WindowSettings:
    """Which grey values of a DICOM image become black and white.

    index: of the windows (or VOI tables) that a file has, from 0; the first where it has fewer. centre, width: in
    Hounsfield units, for CT, in place of the file's own.
    """

    index: int = 0
    centre: float | None = None
    width: float | None = None


@dataclass
class PhantomSettings:
    """Size of the generated chest phantoms: images in each split."""

    train: int = 400
    val: int = 80
    test: int = 120
    seed: int = 0


@dataclass
class ArraySettings:
    """How the images of an .npz file without splits are divided: shares of each split, drawn by a public seed."""

    train: float = 0.7
    val: float = 0.1
    test: float = 0.2
    seed: int = 0


@dataclass
class DataSettings:
    """Images and labels. Pixels become (value in [0, 1] - mean) / std, with one entry per channel or one for all.

    slices: each sample is a volume of so many, from a folder with one series or a multi-frame file; null for images.
    dicom_results: an owner writes the results that it gets on its own images as DICOM reports too, in ``results/``.
    multi_label: an image may show any number of the classes (labels are rows of 0 and 1), not exactly one.
    masks: labels are masks, one for each image: what the model marks, pixel by pixel.
    mask_segment: the number of the segment that is used of a DICOM segmentation.
    quality: what an owner does about images that repeat, leak across splits, are blank or tell their site, or that
    another owner has too, if the policy lets it find out (``duplicates``).
    pseudonym_key_file: an owner's key, with which its images have the same pseudonyms in every run; null: new ones.
    require_consent: only images whose manifest has consent for ``purpose``, the run's, which all parties agree on.
    """

    kind: DataKind = DataKind.phantoms
    path: str | None = None
    paths: dict[str, str] = field(default_factory=dict)
    dataset: str | None = None
    image_size: int = 28
    channels: int = 1
    slices: int | None = None
    mean: list[float] = field(default_factory=lambda: [0.5])
    std: list[float] = field(default_factory=lambda: [0.25])
    frames: Frames = Frames.first
    invalid: Invalid = Invalid.refuse
    dicom_results: bool = False
    pseudonym_key_file: str | None = None
    quality: Quality = Quality.report
    require_consent: bool = False
    purpose: str | None = None
    window: WindowSettings = field(default_factory=WindowSettings)
    class_names: list[str] = field(default_factory=lambda: ["negative", "positive"])
    positive_class: int | None = None
    multi_label: bool = False
    masks: bool = False
    mask_segment: int = 1
    partition: PartitionSettings = field(default_factory=PartitionSettings)
    limit: LimitSettings = field(default_factory=LimitSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    folds: FoldSettings = field(default_factory=FoldSettings)
    phantoms: PhantomSettings = field(default_factory=PhantomSettings)
    arrays: ArraySettings = field(default_factory=ArraySettings)


@dataclass
class WeightsSettings:
    """The starting weights. ``secret``: shared by the model owner; otherwise they are public to the compute parties."""

    source: WeightsSource = WeightsSource.seed
    path: str | None = None
    secret: bool = True


@dataclass
class PretrainSettings:
    """Plaintext training by the model owner on its own train split, before sharing (``weights.source=pretrain``)."""

    epochs: int = 5
    batch_size: int = 64
    optimiser: Optimiser = Optimiser.sgd
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.0001


@dataclass
class BackboneSettings:
    """A public network that each owner runs in plaintext on its images; the secret model gets its features.

    _target_: the dotted name of a class or function, null for none. path: a file of its weights (null: those that
    the public seed gives). features: how many it makes of an image. layer: the module whose input they
    are; null: its last linear layer. norm: unit scales each image's features to Euclidean length ``scale``.
    """

    _target_: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    path: str | None = None
    layer: str | None = None
    features: int = 0
    norm: FeatureNorm = FeatureNorm.unit
    scale: float = 1.0
    batch_size: int = 64


@dataclass
class ModelSettings:
    """A torch module: the dotted name of a class or function, and its keyword arguments.

    single_logit: of two classes it gives one logit, that of the second, as for BCEWithLogitsLoss.
    allow_code: packages of one's own that `_target_` may name (see `model_checks`). Only the command line of this
    machine's operator sets it, never a file: see `settings.from_mapping`.
    """

    name: str = "small_cnn"
    _target_: str = "mpc_imaging.models.zoo.SmallCNN"
    kwargs: dict[str, Any] = field(default_factory=dict)
    single_logit: bool = False
    weights: WeightsSettings = field(default_factory=WeightsSettings)
    pretrain: PretrainSettings = field(default_factory=PretrainSettings)
    backbone: BackboneSettings = field(default_factory=BackboneSettings)
    allow_code: list[str] = field(default_factory=list)


@dataclass
class ScheduleSettings:
    """The learning rate over the steps of training.

    constant; step: times ``factor`` after every ``step_epochs`` epochs; linear and cosine: down to ``factor`` times
    the rate at the last step. warmup_steps: before all that, up from zero in so many equal parts.
    """

    kind: RateSchedule = RateSchedule.constant
    warmup_steps: int = 0
    step_epochs: int = 1
    factor: float = 0.1


@dataclass
class EarlyStoppingSettings:
    """Which epoch's weights are kept, decided on shares by a ``metric`` of the validation split.

    patience: stop after so many epochs without a better one, if the policy opens `epoch` (null: train all of them).
    """

    metric: StopMetric = StopMetric.none
    patience: int | None = None


@dataclass
class StreamSettings:
    """Cine, frame by frame (task=stream).

    queue: decoded frames that wait at an owner, at most. fps: frames that come each second, as from a live source: the
    oldest that waits is dropped when the queue is full; null: as fast as they can be taken, none is dropped.
    frames_per_step: frames of one owner that are computed together; more of them take longer, and less each.
    """

    queue: int = 4
    fps: float | None = None
    frames_per_step: int = 1


@dataclass
class TaskSettings:
    """What to do. ``split``: what infer runs on, and train is tested on at the end; each epoch is evaluated on val.

    betas, eps: of adam and amsgrad. clip_value, clip_norm: of the gradient of a step (mean over its batch), each entry
    or all parameters together. class_weights: one per class, times the loss of its images; balanced: from how often
    each class is there, which stays secret. auc_bins: of the secret histogram of scores. local_epochs, update_norm: in
    federated training, each owner's epochs in a round (``epochs`` counts rounds), and the length of its update at most.
    """

    kind: TaskKind = TaskKind.infer
    split: str = "test"
    batch_size: int = 32
    epochs: int = 3
    loss: Loss = Loss.cross_entropy
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.0
    method: Method = Method.joint
    optimiser: Optimiser = Optimiser.sgd
    nesterov: bool = False
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 0.001
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    clip_value: float | None = None
    clip_norm: float | None = None
    class_weights: list[float] = field(default_factory=list)
    balanced: bool = False
    label_smoothing: float = 0.0
    early_stopping: EarlyStoppingSettings = field(default_factory=EarlyStoppingSettings)
    auc_bins: int = 256
    local_epochs: int = 1
    update_norm: float | None = None
    evaluate_each_epoch: bool = True
    eval_batch_size: int = 64
    stream: StreamSettings = field(default_factory=StreamSettings)


@dataclass
class PolicySettings:
    """Which named values may be opened, and to whom: a party, a role, or ``image_owner`` (its own rows only)."""

    name: str = "image_owners"
    reveal: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class PrivacySettings:
    """Differential privacy of the training images, against those who see what is revealed.

    clip: Euclidean length of one image's gradient at most (federated: of one owner's update). input_norm: length of
    one image at most, for models of one linear layer, whose residuals are clipped instead of gradients.
    micro_batch: images whose mean gradient is clipped together. noise_multiplier: standard deviation of the noise that
    *each* compute party adds, over the sensitivity. epsilon, delta: the budget, which training may not exceed (epsilon
    null: only reported). outside: values of the policy that are declared to be outside of the guarantee.
    """

    name: PrivacyName = PrivacyName.none
    clip: float = 1.0
    input_norm: float | None = None
    micro_batch: int = 1
    noise_multiplier: float = 1.0
    epsilon: float | None = None
    delta: float = 0.00001
    outside: list[str] = field(default_factory=list)


@dataclass
class CheckpointSettings:
    """Shares on disk, encrypted (AES-256-GCM): of weights while training (each ``every`` steps) and at its end.

    key_file: 32 random bytes that nobody else may read, as ``(umask 077; openssl rand -out FILE 32)`` writes; or the
    variable MPC_IMAGING_SHARE_KEY holds them in hex. path: with resume=true, the run folder to go on from. keep: so
    many of the latest steps.
    """

    every: int | None = None
    keep: int = 2
    key_file: str | None = None
    path: str | None = None


@dataclass
class PreprocessSettings:
    """What ``python -m mpc_imaging.preprocess`` writes: ``count`` sessions, into a new folder ``store``."""

    count: int = 10
    store: str = "store"
