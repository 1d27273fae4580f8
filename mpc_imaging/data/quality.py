"""What an owner should look at before it shares its images: repeats, leaks across splits, blanks, a telling site.

Nothing but counts leaves this module; those of other owners are looked for in `tasks.duplicates`. Two images repeat
each other nearly if their thumbnails rise and fall alike (the difference hash "dHash" of 8 rows of 9 grey levels, at
most `HASH_BITS` of 64 bits apart) and correlate. The hash alone takes one chest X-ray for another: 27,326 pairs of the
4,708 in PneumoniaMNIST's train split have it, of which 18 are the same image, and those are also the pairs that
correlate.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from mpc_imaging.data.rows import Row
from mpc_imaging.errors import DataError
from mpc_imaging.settings import SPLITS, Quality

logger = logging.getLogger("mpc_imaging.data")

HASH_BITS = 3
CORRELATION = 0.995
THUMBNAIL = 14
CLIPPED = 0.4
CONFOUNDED = 0.8
ENOUGH_IMAGES = 10  # fewer say nothing about site and label
HALF_LEVEL = 0.5 / 255
_CHUNK = 256

REPEATED = "repeat an earlier image"
NEARLY = "nearly repeat an earlier image"
OTHERWISE_LABELLED = "repeat or nearly repeat an earlier image that has another label"
BLANK = "blank: one grey level"
SATURATED = f"clipped: over {CLIPPED:.0%} black or white, besides a black surrounding"
PATIENTS = "patients in both splits"
SITE = f"site tells the label (Cramér's V over {CONFOUNDED})"
ELSEWHERE = "also at {owner}"
ELSEWHERE_LEAKS = "also at {owner}, in another split there"


@dataclass(frozen=True)
class Finding:
    """So many images (or patients) of a split show something; ``split``: one, two (``train/test``), or all."""

    kind: str
    split: str
    count: int


@dataclass(frozen=True)
class Pictures:
    """Images of one split, as they were read: float32 (n, C, H, W) in [0, 1] each, with the row of every image.

    Or volumes (n, S, C, H, W). ``flaws``: what reading them found wrong, a line for each time.
    """

    images: Sequence[torch.Tensor] = field(repr=False)
    rows: Sequence[Row] = field(repr=False)
    flaws: Sequence[str] = ()


@dataclass(frozen=True)
class _Known:
    """Of N images, in order of their splits: what is compared. ``split``, ``label``, ``file``, ``content``: codes."""

    split: np.ndarray
    label: np.ndarray
    file: np.ndarray
    content: np.ndarray
    hash: np.ndarray  # (N,) uint64
    thumbnail: np.ndarray  # (N, THUMBNAIL**2, times S) float32, of mean 0 and length 1
    blank: np.ndarray
    clipped: np.ndarray


def check(splits: Mapping[str, Pictures], mode: Quality, party: str, record: Callable[..., None] | None = None) -> None:
    """Log what was found, a line each, and hand it to ``record("quality", findings=[...])`` if that is anything.

    Raises:
        DataError: something was found, and the mode is refuse.
    """
    found = [] if mode is Quality.off else findings(splits)
    if not found:
        return
    lines = [f"{finding.split}: {finding.count} {finding.kind}" for finding in found]
    for line in lines:
        logger.info("quality of %s", line)
    if record is not None:
        record("quality", findings=[dataclasses.asdict(finding) for finding in found])
    if mode is Quality.refuse:
        hint = "look at these images, or write data.quality=report"
        lines[-1] += f" ({hint})"
        raise DataError([f"{party}, quality of {line}" for line in lines])


def findings(splits: Mapping[str, Pictures]) -> list[Finding]:
    """Everything found in one owner's images, before any augmentation; frames of one file are no repeats."""
    names = [name for name in SPLITS if name in splits and splits[name].rows]
    if not names:
        return []
    rows = [row for name in names for row in splits[name].rows]
    known = _known([splits[name] for name in names], rows)
    found = list(_repeats(known, names))
    for kind, flags in ((BLANK, known.blank), (SATURATED, known.clipped)):
        found += [Finding(kind, name, int(flags[known.split == k].sum())) for k, name in enumerate(names)]
    found += [Finding(flaw, name, count) for name in names for flaw, count in Counter(splits[name].flaws).items()]
    found += _patients(splits, names)
    if confounded(rows):
        found.append(Finding(SITE, "all", len(rows)))
    return [finding for finding in found if finding.count]


def _known(parts: Sequence[Pictures], rows: Sequence[Row]) -> _Known:
    chunks = [_measure(chunk) for part in parts for chunk in _chunks(part.images)]
    content, hashes, thumbnails, blank, clipped = (np.concatenate(column) for column in zip(*chunks, strict=True))
    return _Known(
        np.repeat(np.arange(len(parts)), [len(part.rows) for part in parts]),
        _codes([row.label for row in rows]),
        _codes([(row.origin, row.number) for row in rows]),
        _codes(content.tolist()),
        hashes,
        thumbnails,
        blank,
        clipped,
    )


def _chunks(images: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    for start in range(0, len(images), _CHUNK):
        yield from torch.cat(list(images[start : start + _CHUNK])).split(_CHUNK)


def _measure(images: torch.Tensor) -> tuple[np.ndarray, ...]:
    """Of images (n, C, H, W): digest, hash, thumbnail, whether blank, whether clipped.

    Of volumes (n, S, C, H, W) the hash is that of the mean of all slices, the thumbnails are those of each. One is
    clipped if half of its slices are.
    """
    digests = [hashlib.sha256(image.tobytes()).hexdigest() for image in images.numpy()]
    slices = images.unsqueeze(1) if images.dim() == 4 else images
    grey = slices.mean(2)  # (n, S, H, W)
    nine = F.interpolate(grey.mean(1, keepdim=True), size=(8, 9), mode="area")[:, 0]
    bits = (nine[:, :, 1:] > nine[:, :, :-1]).reshape(len(images), 64).numpy()
    small = F.interpolate(grey, size=(THUMBNAIL, THUMBNAIL), mode="area").flatten(1)
    small = F.normalize(small - small.mean(1, keepdim=True), eps=1e-6)
    blank = (images.flatten(1).amax(1) - images.flatten(1).amin(1) < HALF_LEVEL).numpy()
    clipped = _clipped(grey.flatten(0, 1).numpy()).reshape(grey.shape[:2]).mean(1) >= 0.5
    clipped &= ~blank
    return np.array(digests), np.packbits(bits, axis=1).view(np.uint64)[:, 0], small.numpy(), blank, clipped


def _clipped(grey: np.ndarray) -> np.ndarray:
    """Whether too much of each image (n, H, W) is black or white.

    Black that reaches an edge of the image in a straight line is a surrounding: collimation, air, padding.
    """
    black, white = grey < HALF_LEVEL, grey > 1 - HALF_LEVEL
    outside = np.zeros_like(black)
    for axis in (1, 2):
        outside |= np.logical_and.accumulate(black, axis=axis)
        outside |= np.flip(np.logical_and.accumulate(np.flip(black, axis), axis=axis), axis)
    inside = np.maximum((~outside).sum((1, 2)), 1)
    return ((black & ~outside) | white).sum((1, 2)) > CLIPPED * inside


def _repeats(known: _Known, names: Sequence[str]) -> Iterator[Finding]:
    """Count the images that repeat an earlier one, of their own split or of another."""
    flagged: dict[tuple[str, int, int], np.ndarray] = defaultdict(lambda: np.zeros(len(known.split), dtype=bool))
    for i, j in _near_pairs(known):
        same = known.content[i] == known.content[j]
        kinds = {REPEATED: same, NEARLY: ~same, OTHERWISE_LABELLED: known.label[i] != known.label[j]}
        pairs = known.split[i] * len(names) + known.split[j]
        for (kind, chosen), code in itertools.product(kinds.items(), np.unique(pairs)):
            flagged[kind, *divmod(int(code), len(names))][j[chosen & (pairs == code)]] = True
    for kind in (REPEATED, NEARLY, OTHERWISE_LABELLED):
        for first, second in itertools.combinations_with_replacement(range(len(names)), 2):
            where = names[first] if first == second else f"{names[first]}/{names[second]}"
            if (kind, first, second) in flagged:
                yield Finding(kind, where, int(flagged[kind, first, second].sum()))


def _near_pairs(known: _Known) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield indices i < j of images that are alike, block by block; blank ones are like nothing."""
    some = np.flatnonzero(~known.blank)
    hashes, thumbnails, files = known.hash[some], known.thumbnail[some], known.file[some]
    for start in range(0, len(some), _CHUNK):
        block, later = slice(start, start + _CHUNK), slice(start, None)
        alike = np.bitwise_count(hashes[block, None] ^ hashes[None, later]) <= HASH_BITS
        alike &= thumbnails[block] @ thumbnails[later].T >= CORRELATION
        alike &= files[block, None] != files[None, later]
        rows, columns = np.nonzero(np.triu(alike, 1))
        yield some[rows + start], some[columns + start]


def _patients(splits: Mapping[str, Pictures], names: Sequence[str]) -> Iterator[Finding]:
    of = {name: {row.patient for row in splits[name].rows} for name in names}
    for first, second in itertools.combinations(names, 2):
        yield Finding(PATIENTS, f"{first}/{second}", len(of[first] & of[second]))


def confounded(rows: Sequence[Row]) -> bool:
    """Whether the site of an image tells its label, or one of its labels: Cramér's V over `CONFOUNDED`."""
    if len(rows) < ENOUGH_IMAGES:
        return False
    sites = _codes([row.site for row in rows])
    labels = np.array([row.label for row in rows]).reshape(len(rows), -1)
    return any(_association(sites, _codes(column.tolist())) > CONFOUNDED for column in labels.T)


def _association(first: np.ndarray, second: np.ndarray) -> float:
    """Cramér's V of two codes (N,): 0 where they are independent or one is constant, 1 where one tells the other."""
    table = np.zeros((first.max() + 1, second.max() + 1))
    np.add.at(table, (first, second), 1)
    smaller = min(table.shape) - 1
    if smaller == 0:
        return 0.0
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / len(first)
    return float(np.sqrt(((table - expected) ** 2 / expected).sum() / (len(first) * smaller)))


def _codes(values: Sequence[object]) -> np.ndarray:
    """Equal values as equal numbers, from 0 in order of first sight: int64 (N,)."""
    seen: dict[object, int] = {}
    return np.array([seen.setdefault(value, len(seen)) for value in values], dtype=np.int64)
