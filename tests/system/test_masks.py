"""Segmentation with real processes: masks to their owners alone, training on shares that follows plaintext."""

import numpy as np
import pytest

from mpc_imaging.report.masks import MASKS, read_masks
from tests.system.command import mpc_imaging

PARTIES = ("hospital_a", "hospital_b")


def write_disks(path, count=20, side=32):
    """Bright disks on noise, and where they are."""
    rng = np.random.default_rng(3)
    rows, columns = np.mgrid[:side, :side]
    centres, radii = rng.uniform(8, side - 8, (count, 2)), rng.uniform(3, 7, count)
    masks = (rows - centres[:, 0, None, None]) ** 2 + (columns - centres[:, 1, None, None]) ** 2 < radii[
        :, None, None
    ] ** 2
    images = rng.integers(20, 80, masks.shape, dtype=np.uint8) + masks.astype(np.uint8) * 120
    np.savez(path, images=images, labels=masks.astype(np.uint16))
    return path


def _run(tmp_path, *overrides):
    path = write_disks(tmp_path / "disks.npz")
    return mpc_imaging(
        "data=nuclei", f"data.path={path}", "data.image_size=16", "data.mean=[0.2]", "data.std=[0.2]",
        "model=unet_small", "model.kwargs.width=4", "model.kwargs.convs=1", "protocol=beaver", *overrides, cwd=tmp_path,
    )  # fmt: skip


TRAIN = (
    "task=train", "task.loss=dice_bce", "task.optimiser=adam", "task.lr=0.01", "task.epochs=2", "task.batch_size=8",
    "protocol.fraction_bits=24", "task.early_stopping.metric=loss",
)  # fmt: skip


@pytest.mark.slow
def test_training_on_masks_follows_plaintext(tmp_path):
    run = _run(tmp_path, *TRAIN)
    assert run.code == 0, run.output
    secure, plain = run.metrics["secure"], run.metrics["plaintext"]
    for name in ("dice", "iou", "mean_dice", "accuracy"):
        assert secure[name] == pytest.approx(plain[name], abs=0.01)
    losses = [[entry["loss"] for entry in run.metrics["history"][kind]] for kind in ("secure", "plaintext")]
    assert losses[0] == pytest.approx(losses[1], rel=0.005) and losses[0][1] < losses[0][0]
    assert run.metrics["history"]["secure"][-1]["val"]["dice"] is not None
    fidelity = run.metrics["fidelity"]
    assert fidelity["unit"] == "pixels" and fidelity["agreeing"] > 0.995 * fidelity["images"]
    assert fidelity["images"] == sum(run.result(PARTIES[0])["counts"][p]["test"] for p in PARTIES) * 16 * 16
    assert "Masks" in (run.folder / "report.html").read_text()


def test_owners_see_the_masks_of_their_own_images_alone(tmp_path):
    """Without logits, masks are compared on shares; the other party's never reach an owner."""
    run = _run(
        tmp_path, "topology=outsourced",
        "policy.reveal={predictions: [image_owner], metrics: [receiver], range_ok: [compute]}",
        "data.arrays.train=0", "data.arrays.val=0", "data.arrays.test=1", "protocol.fraction_bits=20",
    )  # fmt: skip
    assert run.code == 0, run.output
    files = {path.parent.name: read_masks(path.parent, ["a", "b"]) for path in run.folder.glob(f"parties/*/{MASKS}")}
    counts = run.result(next(iter(files)))["counts"]
    assert {party: len(part.ids) for party, part in files.items()} == {party: n["test"] for party, n in counts.items()}
    assert len({image for part in files.values() for image in part.ids}) == 20
    assert all(part.logits is None for part in files.values())
    assert run.metrics["fidelity"]["agreeing"] >= run.metrics["fidelity"]["images"] - 2
    opened = {event for party in files for event in run.events(party) if event[0] == "reveal"}
    assert opened <= {("reveal", "predictions"), ("reveal", "metrics")}


@pytest.mark.slow
def test_nuclei_at_128_keep_the_dice_of_plaintext(tmp_path, medical_data):
    path = medical_data / "nuclei_256_gray.npz"
    run = mpc_imaging(
        "experiment=nuclei_segment", f"data.path={path}", "data.limit.test=20", cwd=tmp_path, timeout_s=560
    )
    assert run.code == 0, run.output
    secure, plain = run.metrics["secure"], run.metrics["plaintext"]
    assert plain["dice"] > 0.7 and abs(secure["dice"] - plain["dice"]) < 0.005
    assert abs(secure["mean_dice"] - plain["mean_dice"]) < 0.005
