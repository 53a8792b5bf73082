"""Tracking: the same number for the same thing, from frame to frame."""

from __future__ import annotations
