"""Draw the projection of a chest: what attenuates X-rays, as a sum of soft shapes, an opacity in a lung included.

Coordinates are centred on the chest and isotropic: x from the patient's right (image left) to left, y from head to
foot; the thorax is about 1.7 wide. Values are attenuations in arbitrary units: 0 is the air beside the body, 1 about
the spine below the heart. Every chest differs in width, rotation, breath, heart size, lung markings and thickness, so
that no single region's brightness tells whether there is an opacity.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.random import Generator


@dataclass(frozen=True)
class _Chest:
    """The proportions of one made-up patient, as drawn; lengths in half thorax widths."""

    width: float
    apex: float
    base: float
    rotation: float
    heart: float
    thickness: float
    rib_spacing: float
    rib_offset: float

    @classmethod
    def draw(cls, random: Generator) -> _Chest:
        return cls(
            width=random.uniform(0.92, 1.06),
            apex=random.uniform(-0.80, -0.70),
            base=random.uniform(0.48, 0.64),
            rotation=random.uniform(-0.035, 0.035),
            heart=random.uniform(0.85, 1.2),
            thickness=random.uniform(0.9, 1.12),
            rib_spacing=random.uniform(0.150, 0.175),
            rib_offset=random.uniform(0, 1),
        )


def chest(x: np.ndarray, y: np.ndarray, opacity: float, random: Generator) -> np.ndarray:
    """Return the attenuation (H, W), float32, of a new patient over the coordinates x (1, W) and y (H, 1).

    ``opacity`` is what the centre of an opacity adds, 0 for none.
    """
    patient = _Chest.draw(random)
    x = (x - patient.rotation * y - random.uniform(-0.05, 0.05)).astype(np.float32) / np.float32(patient.width)
    y = (y - np.float32(random.uniform(-0.05, 0.05))).astype(np.float32) + 0 * x
    body = _body(x, y)
    right, left = (_lung(side, x, y, patient) for side in (-1, 1))
    lungs = np.maximum(right, left)

    image = 0.60 * patient.thickness * body * (1 + 0.15 * _edge(y, -0.2, 0.6))
    image = image + _bones(x, y, body, lungs, patient)
    image = image - 0.40 * lungs
    image = image + _middle(x, y, lungs, patient)
    image = image + _vessels(x, y, lungs, random)
    if opacity:
        image = image + opacity * _opacity(x, y, (right, left), random)
    return np.maximum(image, 0).astype(np.float32)


def smooth_noise(shape: tuple[int, int], scale: float, random: Generator) -> np.ndarray:
    """Return noise (H, W) of unit variance whose grain is about ``scale`` pixels."""
    spectrum = np.fft.rfft2(random.standard_normal(shape, dtype=np.float32)) * _low_pass(shape, scale)
    noise = np.fft.irfft2(spectrum, s=shape)
    return (noise / noise.std()).astype(np.float32)


@lru_cache(maxsize=16)
def _low_pass(shape: tuple[int, int], scale: float) -> np.ndarray:
    fy, fx = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None]
    return np.exp(-0.5 * (np.pi * scale) ** 2 * (fx**2 + fy**2)).astype(np.float32)


def _edge(value: np.ndarray, at: float | np.ndarray, softness: float) -> np.ndarray:
    """Rise from 0 to 1 where ``value`` passes ``at``."""
    return 0.5 * (1 + np.tanh((value - at) / softness))


def _ellipse(x: np.ndarray, y: np.ndarray, centre: tuple[float, float], axes: tuple[float, float]) -> np.ndarray:
    """Return the radius of each point, 1 on the ellipse."""
    return np.sqrt(((x - centre[0]) / axes[0]) ** 2 + ((y - centre[1]) / axes[1]) ** 2)


def _body(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Neck, sloping shoulders and trunk, thinning toward the skin."""
    shoulders = 0.24 + 0.78 * _edge(y, -0.80, 0.10)
    half_width = shoulders - 0.14 * _edge(y, -0.25, 0.25)
    inside = 1 - np.abs(x) / half_width
    return _edge(inside, 0.0, 0.03) * np.sqrt(np.sqrt(np.clip(inside + 0.02, 0.0, 1.0)))


def _lung(side: int, x: np.ndarray, y: np.ndarray, patient: _Chest) -> np.ndarray:
    """One lung field: rounded apex, dome of diaphragm below; ``side`` -1 is the patient's right, 1 the left."""
    base = patient.base + (0.04 if side > 0 else -0.03)  # the liver lifts the right dome
    height = np.clip((y - patient.apex) / (base - patient.apex), 0.0, 1.0)
    outer = 0.30 + 0.50 * np.sqrt(np.sin(np.pi / 2 * np.clip(1.35 * height, 0, 1)))
    inner = 0.13 + 0.02 * np.cos(3 * np.pi * height)
    across = np.minimum(side * x - inner, outer - side * x)
    dome = base + 0.20 * ((side * x - 0.40) / 0.40) ** 2 - 0.08
    return _edge(across, 0.0, 0.030) * _edge(y, patient.apex, 0.035) * (1 - _edge(y, dome, 0.035))


def _bones(x: np.ndarray, y: np.ndarray, body: np.ndarray, lungs: np.ndarray, patient: _Chest) -> np.ndarray:
    """Ribs as two crossing families of stripes, clavicles, and the spine with its discs."""
    lateral = np.abs(x)
    cage = (
        _edge(y, patient.apex + 0.03, 0.04)
        * (1 - _edge(y, patient.base + 0.12, 0.06))
        * (1 - _edge(lateral, 0.84, 0.02))
    )
    back = (y - 0.10 * lateral - 0.42 * lateral**2) / patient.rib_spacing + patient.rib_offset
    front = (y + 0.55 * lateral - 0.25 * lateral**2) / (1.15 * patient.rib_spacing) + patient.rib_offset
    ribs = 0.10 * _stripes(back) + 0.05 * _stripes(front) * _edge(lateral, 0.32, 0.05)
    clavicle = np.abs(y - patient.apex - 0.16 + 0.20 * (lateral - 0.1))
    clavicles = (
        0.12 * (1 - _edge(clavicle, 0.028, 0.010)) * _edge(lateral, 0.06, 0.02) * (1 - _edge(lateral, 0.72, 0.03))
    )
    vertebrae = 0.09 + 0.03 * np.cos(2 * np.pi * y / 0.145)
    spine = vertebrae * (1 - _edge(lateral, 0.080, 0.018))
    return body * (ribs * cage * (0.4 + 0.6 * lungs) + clavicles + spine)


def _stripes(phase: np.ndarray) -> np.ndarray:
    return np.sqrt(np.clip((np.cos(2 * np.pi * phase) - 0.25) / 0.75, 0, 1))


def _middle(x: np.ndarray, y: np.ndarray, lungs: np.ndarray, patient: _Chest) -> np.ndarray:
    """Mediastinum, aortic knob and heart, brightest where they cover lung; the air in the trachea."""
    size = patient.heart
    heart = _ellipse(x - 0.30 * (y - 0.30), y, (0.13, patient.base - 0.22 * size), (0.32 * size, 0.30 * size))
    knob = _ellipse(x, y, (0.13, -0.27), (0.09, 0.10))
    shadow = np.maximum(1 - _edge(heart, 1.0, 0.07), 0.8 * (1 - _edge(knob, 1.0, 0.15)))
    shadow = np.maximum(shadow, 0.8 * (1 - _edge(np.abs(x), 0.165, 0.03)) * _edge(y, -0.75, 0.1))
    trachea = (1 - _edge(np.abs(x - 0.01), 0.042, 0.012)) * (1 - _edge(y, -0.33, 0.05))
    return shadow * (0.10 + 0.30 * lungs) - 0.13 * trachea * _edge(y, -1.1, 0.05)


def _vessels(x: np.ndarray, y: np.ndarray, lungs: np.ndarray, random: Generator) -> np.ndarray:
    """Lung markings: branches that leave each hilum and fade outward, over a fine texture."""
    markings = np.zeros_like(x)
    for side in (-1, 1):
        dx, dy = side * x - 0.17, y + 0.02
        distance = np.sqrt(dx**2 + dy**2)
        angle = np.arctan2(dy, dx)
        branches = np.zeros_like(x)
        for direction in random.uniform(-1.4, 1.4, size=6).tolist():
            aside = distance * (angle - direction - random.uniform(-0.6, 0.6) * distance)
            branches = np.maximum(branches, np.exp(-((aside / 0.020) ** 2)))
        markings += branches * np.exp(-distance / 0.25) * _edge(dx, 0.0, 0.05) * _edge(distance, 0.06, 0.05)
        markings += random.uniform(0.6, 1.1) * np.exp(-((dx / 0.09) ** 2) - (dy / 0.15) ** 2)
    return lungs * (0.13 * markings + 0.018 * smooth_noise(x.shape, 3.0, random))


def _opacity(x: np.ndarray, y: np.ndarray, lungs: tuple[np.ndarray, np.ndarray], random: Generator) -> np.ndarray:
    """A hazy consolidation of irregular outline, somewhere in one lung."""
    side = int(random.integers(2))
    centre = (2 * side - 1) * random.uniform(0.36, 0.56), random.uniform(-0.15, 0.30)
    size, shape = random.uniform(0.20, 0.32), random.uniform(0.8, 1.25)
    radius = _ellipse(x, y, centre, (size * shape, size / shape))
    radius = radius * (1 + 0.18 * smooth_noise(x.shape, 9.0, random))
    return np.exp(-(radius**2)) * lungs[side] * (1 + 0.12 * smooth_noise(x.shape, 4.0, random))
