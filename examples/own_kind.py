"""A kind of your own: `count-words` counts the most frequent words of a text, in a pool of its own.

Name this module in XNAI_KINDS and give the pool slots: XNAI_POOLS="words=1x1,…". The API imports it
for the payload; only a slot of the pool runs the handler.
"""

import re
from collections import Counter
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from jobs.errors import Fail
from jobs.kinds import Kind, Payload, Text
from jobs.model import JsonObject

if TYPE_CHECKING:  # the API must not load the workers' code
    from workers.run import Run

WORD = re.compile(r"[^\W\d_]+")


class CountWordsPayload(Payload):
    """The text, and how many of its words to report."""

    text: Annotated[Text, Field(min_length=1, max_length=100_000)]
    top: Annotated[int, Field(ge=1, le=100)] = 10


async def handle(run: "Run[CountWordsPayload]") -> JsonObject:
    """Count, showing progress line by line; bears being repeated, since it writes nothing."""
    lines = run.payload.text.splitlines()
    counts: Counter[str] = Counter()
    for number, line in enumerate(lines, start=1):
        counts.update(word.casefold() for word in WORD.findall(line))
        await run.progress(number, len(lines), "lines counted")
    if not counts:
        raise Fail("the text has no word in it", type_="no_words")
    return {"words": counts.total(), "top": dict(counts.most_common(run.payload.top))}


KINDS = (
    Kind(
        "count-words",
        CountWordsPayload,
        pool="words",
        handler="examples.own_kind:handle",
        exclusive=False,
        in_hand=16,
        max_attempts=2,
        timeout_s=60.0,
    ),
)
