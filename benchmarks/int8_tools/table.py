"""The comparison as a Markdown table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.int8_tools.process import Row

HEADS = (
    "",
    "box AP",
    "mask AP",
    "drop, box",
    "drop, mask",
    "INT8 layers",
    "MB",
    "CPU s",
    "peak MiB",
    "speed",
    "TensorRT",
)


LONGEST = 300
"""Characters of a message; all of it is in the JSON."""


def markdown(rows: Sequence[Row]) -> list[str]:
    """A line for each subject, errors below."""
    lines = ["| " + " | ".join(HEADS) + " |", "|" + "---|" * len(HEADS)]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows]
    errors = [_line(row["name"], row["error"]) for row in rows if "error" in row]
    return [*lines, "", *errors, *_refusals(rows)]


def _cells(row: Row) -> list[str]:
    drop = row.get("drop") or {}
    layers = f"{row['int8_layers']}/{row['layers']}" if "layers" in row else "-"
    return [
        row["name"],
        _number(row.get("box_ap"), ".1f"),
        _number(row.get("mask_ap"), ".1f"),
        _interval(drop.get("box")),
        _interval(drop.get("mask")),
        layers,
        _number(row["size"] / 1e6 if "size" in row else None, ".1f"),
        _number(row.get("cpu_seconds"), ".0f"),
        _number(row.get("peak_mib"), ".0f"),
        _number(row.get("speed_up"), ".2f"),
        _verdict(row.get("tensorrt")),
    ]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _interval(drop: Mapping[str, float] | None) -> str:
    return "-" if drop is None else f"{drop['value']:.2f} ({drop['low']:.2f} to {drop['high']:.2f})"


def _verdict(found: Row | None) -> str:
    if found is None:
        return "-"
    return "builds" if found.get("accepted") else f"refused ({found.get('stage', 'died')})"


def _refusals(rows: Sequence[Row]) -> list[str]:
    answers = [(row["name"], row.get("tensorrt") or {"accepted": True}) for row in rows]
    return [
        _line(f"{name}: TensorRT-RTX", answer.get("reason") or answer.get("error") or "")
        for name, answer in answers
        if not answer.get("accepted")
    ]


def _line(who: str, text: str) -> str:
    return f"{who}: {' '.join(text.split())[:LONGEST]}"
