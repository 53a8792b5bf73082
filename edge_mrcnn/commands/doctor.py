"""`edge-mrcnn doctor`: what this machine can run and build."""

from __future__ import annotations

from edge_mrcnn import doctor
from edge_mrcnn.commands import JsonTarget, report


def command(json_target: JsonTarget = None) -> None:
    """Tell what this machine can run and build, and what to install for the rest.

    Args:
        json_target: Where the findings go as JSON.
    """
    findings = doctor.examine()
    report(doctor.to_lines(findings), doctor.to_json(findings), json_target)
