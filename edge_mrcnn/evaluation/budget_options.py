"""`BudgetOptions`: how layers are chosen to stay within a budget."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BudgetOptions:
    """How `fit_budget` searches."""

    certain: bool = False
    """With --max-drop: hold the upper end of the drop's 95 % interval against it, and not the drop measured."""

    limit: int | None = None
    """With --max-drop: measure AP on the first so many pictures only; all when not given."""

    pictures: int = 32
    """With --max-drop: pictures that noise is measured on, by which groups are ranked."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: One is not positive.
        """
        for name in ("limit", "pictures"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"BudgetOptions.{name} must be at least 1, got {value}")
