"""The words that a configuration may use where only a few are valid. `settings` offers them all again."""

from __future__ import annotations

from enum import Enum


class Role(Enum):
    """What a party does in a session."""

    data_owner = "data_owner"
    model_owner = "model_owner"
    compute = "compute"
    dealer = "dealer"
    receiver = "receiver"


class ProtocolName(Enum):
    """How the compute parties compute. ``auto``, which is no longer there once settings are read: fss for two of them,
    beaver for more.
    """

    auto = "auto"
    fss = "fss"
    beaver = "beaver"
    insecure_simulation = "insecure_simulation"


class RandomnessMode(Enum):
    """How correlated randomness reaches the compute parties."""

    stream = "stream"
    stored = "stored"
    on_demand = "on_demand"


class DataKind(Enum):
    """Where images come from."""

    phantoms = "phantoms"
    dicom = "dicom"
    medmnist = "medmnist"
    arrays = "arrays"


class PartitionKind(Enum):
    """How one data set is divided over the data owners."""

    even = "even"
    site = "site"
    fraction = "fraction"
    label_skew = "label_skew"
    private = "private"


class Frames(Enum):
    """Which frames of a multi-frame object become images."""

    first = "first"
    middle = "middle"
    all = "all"


class Invalid(Enum):
    """What to do with a file that cannot be used."""

    refuse = "refuse"
    skip = "skip"


class Quality(Enum):
    """What to do about images that repeat, leak across splits or are blank: see `data.quality`."""

    report = "report"
    refuse = "refuse"
    off = "off"


class TaskKind(Enum):
    """What the parties do together."""

    infer = "infer"
    train = "train"
    stream = "stream"


class Loss(Enum):
    """Training losses."""

    cross_entropy = "cross_entropy"
    binary_cross_entropy = "binary_cross_entropy"
    mse = "mse"
    dice_bce = "dice_bce"


class Method(Enum):
    """How owners train together: jointly on shares of all images, or each on its own, adding up updates on shares."""

    joint = "joint"
    federated = "federated"


class Optimiser(Enum):
    """How gradients become steps."""

    sgd = "sgd"
    adam = "adam"
    amsgrad = "amsgrad"


class RateSchedule(Enum):
    """How the learning rate moves from step to step."""

    constant = "constant"
    step = "step"
    linear = "linear"
    cosine = "cosine"


class StopMetric(Enum):
    """What decides, on the validation split, which epoch was best."""

    none = "none"
    loss = "loss"
    accuracy = "accuracy"
    auc = "auc"


class PrivacyName(Enum):
    """What protects training images from those who see what is revealed."""

    none = "none"
    dp = "dp"


class FeatureNorm(Enum):
    """How an owner scales the features that a public backbone makes of an image."""

    none = "none"
    unit = "unit"


class WeightsSource(Enum):
    """Where the model's weights come from: a public seed, the owner's file, plaintext pre-training, or share files."""

    seed = "seed"
    file = "file"
    pretrain = "pretrain"
    shares = "shares"


REVEALABLE = (
    "logits",
    "predictions",
    "metrics",
    "auc",
    "loss",
    "weights",
    "epoch",
    "update",
    "range_ok",
    "range_layer",
    "duplicates",
)
IMAGE_OWNER = "image_owner"
SPLITS = ("train", "val", "test")

# The values of the policy that a task produces for somebody to use: what else a policy names is never asked for.
PRODUCED = {
    TaskKind.infer: ("logits", "predictions", "metrics", "auc"),
    TaskKind.train: ("logits", "predictions", "metrics", "auc", "loss", "weights", "epoch", "update"),
    TaskKind.stream: ("logits", "predictions"),
}
