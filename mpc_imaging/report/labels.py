"""What is known of each label, where images may have several: rows for the page and for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mpc_imaging.report import wording

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = ("auc", "sensitivity", "specificity")


def label_rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of metrics.json, one row for each label: ``name``, ``images`` that have it, ``secure`` and ``plaintext`` values.

    The values are texts, in the order of `SHOWN`; ``plaintext`` is None without a plaintext run. There are no rows
    where each image has one class, or where nothing was revealed.
    """
    secure, plaintext = metrics["secure"].get("per_label"), (metrics["plaintext"] or {}).get("per_label")
    if not secure:
        return []
    return [
        {
            "name": name,
            "images": wording.count(entry["counts"]["true_positives"] + entry["counts"]["false_negatives"]),
            "secure": _texts(entry),
            "plaintext": _texts(plaintext[k]) if plaintext else None,
        }
        for k, (name, entry) in enumerate(zip(metrics["class_names"], secure, strict=True))
    ]


def label_table(metrics: Mapping[str, Any]) -> Table | None:
    """Return the same for the terminal, secure / plaintext in one cell; None where there are no rows."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rows = label_rows(metrics)
    if not rows:
        return None
    both = rows[0]["plaintext"] is not None
    title = "Each label, secure / plaintext" if both else "Each label"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("label", overflow="fold")
    for heading in ("images", *(wording.METRIC_NAMES[key] for key in SHOWN)):
        table.add_column(heading, justify="right")
    for row in rows:
        values = (
            [" / ".join(pair) for pair in zip(row["secure"], row["plaintext"], strict=True)] if both else row["secure"]
        )
        table.add_row(Text(row["name"]), row["images"], *values)
    return table


def _texts(entry: Mapping[str, Any]) -> list[str]:
    return [wording.metric(entry[key]) for key in SHOWN]
