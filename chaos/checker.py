"""Judges a history: which promises of the design it breaks. Pure: no I/O, no clock.

history = await collect(connection, log)
violations = check(history)
"""

from collections.abc import Callable, Iterator

from chaos.facts import Facts
from chaos.history import History
from chaos.rules import acceptance, batches, keys, lives, runs, webhooks
from chaos.violation import Violation

__all__ = ["RULES", "Violation", "check", "report"]

type Rule = Callable[[Facts], Iterator[Violation]]

RULES: tuple[Rule, ...] = (
    *acceptance.RULES,
    *lives.RULES,
    *runs.RULES,
    *keys.RULES,
    *batches.RULES,
    *webhooks.RULES,
)
_IDS_SHOWN = 3


def check(history: History) -> list[Violation]:
    """Every broken promise, in the order of the rules; empty when all are kept."""
    facts = Facts(history)
    return [violation for rule in RULES for violation in rule(facts)]


def report(violations: list[Violation]) -> str:
    """One line each, to read: code, ids, facts."""
    return "\n".join(map(_line, violations))


def _line(violation: Violation) -> str:
    shown = [str(found) for found in violation.ids[:_IDS_SHOWN]]
    more = len(violation.ids) - len(shown)
    ids = ", ".join(shown) + (f" and {more} more" if more else "")
    return (
        f"{violation.code}: {ids} {violation.detail}"
        if ids
        else (f"{violation.code}: {violation.detail}")
    )
