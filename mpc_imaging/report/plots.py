"""The report's figures, each as a data URI of an SVG that needs nothing from outside the page.

Colours are Okabe and Ito's, told apart by colour-blind readers; in grey print the line widths tell them apart.
matplotlib is imported where a figure is made: only the process that writes reports pays for it.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

import numpy as np
import numpy.typing as npt

SECURE, PLAINTEXT, INK, FAINT = "#0072B2", "#D55E00", "#333333", "#8a8f98"
_CLASS_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#F0E442")
_MARKERS = "osD^vPX*"
_STYLE = {
    "font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 9.5, "axes.labelsize": 9, "legend.fontsize": 8.5,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": FAINT, "axes.labelcolor": INK,
    "text.color": INK, "xtick.color": INK, "ytick.color": INK, "axes.linewidth": 0.8, "grid.color": "#e3e6ea",
    "grid.linewidth": 0.7, "axes.axisbelow": True, "legend.frameon": False, "svg.hashsalt": "mpc_imaging",
}  # fmt: skip
_MOST_LAYERS = 30
_AXIS_NAMES = {"auc": "AUC", "dice": "Dice"}
_MOST_COUNTED_CLASSES = 15


def _figure(draw: Callable[..., Any]) -> Callable[..., str]:
    """Turn a function that returns a matplotlib figure into one that returns its data URI, drawn in our style."""

    @wraps(draw)
    def drawn(*args: Any, **kwargs: Any) -> str:
        import matplotlib

        # Without pyplot there is no window system and no figure that stays open; the SVG backend draws on save.
        with matplotlib.rc_context(_STYLE):
            content = io.BytesIO()
            figure = draw(*args, **kwargs)
            figure.savefig(
                content, format="svg", dpi=150, metadata={"Date": None}, bbox_inches="tight", pad_inches=0.05
            )
        return "data:image/svg+xml;base64," + base64.b64encode(content.getvalue()).decode()

    return drawn


@_figure
def confusion_matrices(matrices: Mapping[str, Sequence[Sequence[int]]], class_names: Sequence[str]) -> Any:
    """Confusion matrices (K, K) side by side, by title; colours are the share of each true class."""
    classes = len(class_names)
    side = 2.1 + 0.28 * min(classes, 15)
    figure = _new_figure(side * len(matrices), side)
    axes = figure.subplots(1, len(matrices), squeeze=False)[0]
    for axis, (title, matrix) in zip(axes, matrices.items(), strict=True):
        counts = np.asarray(matrix, dtype=np.int64)
        share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axis.imshow(share, cmap="Blues", vmin=0, vmax=1.15)
        slant = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if classes > 3 else {}
        axis.set_xticks(range(classes), class_names, **slant)
        axis.set_yticks(range(classes), class_names)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        axis.set(title=title, xlabel="predicted", ylabel="true")
        if classes <= _MOST_COUNTED_CLASSES:
            _write_counts(axis, counts, share)
    return figure


@_figure
def roc_curves(
    scores: Mapping[str, npt.NDArray[np.float64]], labels: npt.NDArray[np.int64], aucs: Mapping[str, float | None],
    chosen: Sequence[int],
) -> Any:  # fmt: skip
    """ROC of each run's ``scores`` (N, K) by title, plaintext below: mean over ``chosen``, each against the rest."""
    figure = _new_figure(4.1, 3.9)
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8, linestyle=":")
    for title, values in reversed(scores.items()):
        x, y = _mean_roc(values, labels, chosen)
        auc = aucs.get(title)
        legend = title if auc is None else f"{title}, AUC {auc:.4f}"
        axis.plot(x, y, label=legend, **_line(title))
    averaged = "" if len(chosen) == 1 else ", mean of one class against the rest"
    axis.set(
        xlabel=f"false-positive rate{averaged}", ylabel="true-positive rate", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02)
    )
    axis.set_aspect("equal")
    axis.grid(True)
    handles, names = axis.get_legend_handles_labels()
    axis.legend(handles[::-1], names[::-1], loc="lower right")
    return figure


@_figure
def training_curves(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> Any:
    """Training loss, and the validation metric where there is one, by epoch and run."""
    key = _validation_metric(histories)
    panels = [("mean training loss", lambda entry: entry["loss"])]
    if key:
        panels.append((f"validation {_AXIS_NAMES.get(key, key)}", lambda entry: (entry["val"] or {}).get(key)))
    figure = _new_figure(4.3 * len(panels), 3.0)
    for axis, (name, pick) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for title, history in reversed(histories.items()):
            points = [(entry["epoch"], pick(entry)) for entry in history if pick(entry) is not None]
            if points:
                x, y = zip(*points, strict=True)
                axis.plot(x, y, marker="o", markersize=3 if title == "Secure" else 6.5, label=title, **_line(title))
        axis.set(xlabel="epoch", ylabel=name)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(True)
        handles, names = axis.get_legend_handles_labels()
        axis.legend(handles[::-1], names[::-1])
    return figure


@_figure
def logit_agreement(secure: npt.ArrayLike, plaintext: npt.ArrayLike, class_names: Sequence[str]) -> Any:
    """Secure against plaintext logits (N, K) with the line of equality, and a histogram of their differences."""
    ours, theirs = np.asarray(secure, dtype=np.float64), np.asarray(plaintext, dtype=np.float64)
    figure = _new_figure(8.8, 3.5)
    left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.06})
    left.axline((0, 0), slope=1, color=FAINT, linewidth=0.8)
    few = len(class_names) <= len(_CLASS_COLOURS)
    for k, name in enumerate(class_names):
        look = {"color": _CLASS_COLOURS[k], "marker": _MARKERS[k]} if few else {"color": SECURE, "marker": "o"}
        # Thousands of vector marks would make the page heavy: the points alone are drawn as pixels.
        left.scatter(theirs[:, k], ours[:, k], s=9, alpha=0.55, linewidths=0, label=name, rasterized=True, **look)
    left.set(xlabel="plaintext logit", ylabel="secure logit")
    left.grid(True)
    if few:
        left.legend(title="output for class", title_fontsize=8.5, loc="upper left", markerscale=1.6)
    errors = (ours - theirs).ravel()
    right.hist(errors, bins=41, color=SECURE, edgecolor="white", linewidth=0.4)
    right.axvline(0, color=INK, linewidth=0.8)
    right.ticklabel_format(axis="x", style="sci", scilimits=(-2, 3), useMathText=True)
    right.set(xlabel="secure less plaintext logit", ylabel="number of logits")
    right.grid(True, axis="y")
    return figure


@_figure
def mask_overlays(rows: Sequence[tuple[npt.NDArray[Any], ...]]) -> Any:
    """Images (H, W) side by side, each with the outlines of its true, secure and plaintext mask."""
    across = min(3, len(rows))
    down = -(-len(rows) // across)
    figure = _new_figure(2.8 * across, 2.8 * down + 0.3)
    axes = figure.subplots(down, across, squeeze=False).flatten()
    outlines = [("true", "#F0E442", 0.9), ("plaintext", PLAINTEXT, 2.2), ("secure", "#56B4E9", 0.8)]
    for axis, (image, truth, secure, plaintext) in zip(axes, rows, strict=False):
        # The brightest percent would leave the rest of a microscopy image black.
        axis.imshow(image, cmap="gray", vmin=image.min(), vmax=np.percentile(image, 99.5), interpolation="nearest")
        for mask, (_, colour, width) in zip((truth, plaintext, secure), outlines, strict=True):
            if mask.any() and not mask.all():
                axis.contour(mask, levels=[0.5], colors=colour, linewidths=width)
    for axis in axes:
        axis.set_axis_off()
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=colour, linewidth=width, label=name) for name, colour, width in outlines]
    figure.legend(handles=lines, loc="outside lower center", ncols=3)
    return figure


@_figure
def frame_latencies(latencies: Mapping[str, Sequence[float]]) -> Any:
    """Milliseconds from a frame's arrival to its result, by the frame's place in its owner's stream."""
    figure = _new_figure(8.6, 2.6)
    axis = figure.subplots()
    for number, (owner, values) in enumerate(latencies.items()):
        colour = _CLASS_COLOURS[number % len(_CLASS_COLOURS)]
        # A long cine has thousands of points, which would make the page heavy as vectors.
        axis.plot(range(len(values)), values, color=colour, linewidth=1.0, label=owner, rasterized=len(values) > 1000)
    axis.set(xlabel="frame", ylabel="latency in ms", ylim=(0, None))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(True)
    axis.legend(loc="lower right")
    return figure


@_figure
def layer_costs(layers: Sequence[Mapping[str, Any]]) -> Any:
    """Seconds, rounds and megabytes of each layer as horizontal bars, the first layer on top."""
    shown = costliest(layers)
    figure = _new_figure(8.6, 1.0 + 0.24 * len(shown))
    names = [f"{layer['name']}  ({layer['op']})" if layer["op"] else str(layer["name"]) for layer in shown]
    panels = [("seconds", "seconds", 1.0), ("rounds", "rounds", 1.0), ("sent_bytes", "MB sent", 1e-6)]
    for axis, (key, title, scale) in zip(figure.subplots(1, 3, sharey=True), panels, strict=True):
        axis.barh(range(len(shown)), [(layer[key] or 0) * scale for layer in shown], color=SECURE, height=0.62)
        axis.set_yticks(range(len(shown)), names)
        axis.tick_params(axis="y", length=0)
        axis.set(xlabel=title, ylim=(len(shown) - 0.4, -0.6))
        axis.xaxis.get_major_locator().set_params(nbins=5, integer=key == "rounds")
        axis.grid(True, axis="x")
    return figure


def costliest(layers: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The slowest layers, as many as a figure can name, still in the order of the network."""
    if len(layers) <= _MOST_LAYERS:
        return list(layers)
    limit = sorted((layer["seconds"] or 0 for layer in layers), reverse=True)[_MOST_LAYERS - 1]
    return [layer for layer in layers if (layer["seconds"] or 0) >= limit][:_MOST_LAYERS]


def _new_figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _line(title: str) -> dict[str, Any]:
    if title == "Secure":
        return {"color": SECURE, "linewidth": 1.4}
    # Wide and pale, below: two runs that agree draw the same line, and both must still be seen.
    return {"color": PLAINTEXT, "linewidth": 4.5, "alpha": 0.4, "solid_capstyle": "butt"}


def _write_counts(axis: Any, counts: npt.NDArray[np.int64], share: npt.NDArray[np.float64]) -> None:
    small = 10 if len(counts) <= 4 else 7.5
    for row, column in np.ndindex(counts.shape):
        text = f"{counts[row, column]:,}"
        if len(counts) <= 4:
            text += f"\n{100 * share[row, column]:.1f} %"
        colour = "white" if share[row, column] > 0.72 else INK
        axis.text(column, row, text, ha="center", va="center", color=colour, fontsize=small)


def _mean_roc(
    scores: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], chosen: Sequence[int]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    from sklearn.metrics import roc_curve

    curves = [roc_curve(labels == k, scores[:, k])[:2] for k in chosen]
    if len(curves) == 1:
        return curves[0]
    grid = np.unique(np.concatenate([x for x, _ in curves]))
    mean = np.mean([np.interp(grid, x, y) for x, y in curves], axis=0)
    return np.concatenate([[0.0], grid]), np.concatenate([[0.0], mean])


def _validation_metric(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> str | None:
    """AUC if every run has it, else accuracy if any has: counts alone give no AUC. Of masks, Dice."""
    evaluated = [entry["val"] for history in histories.values() for entry in history if entry["val"]]
    if any(val.get("dice") is not None for val in evaluated):
        return "dice"
    if evaluated and all(val["auc"] is not None for val in evaluated):
        return "auc"
    return "accuracy" if any(val["accuracy"] is not None for val in evaluated) else None
