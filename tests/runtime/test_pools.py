"""The notation of pools, and the pools of machines of any size."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.pools import (
    BUILT_IN_POOLS,
    PoolSpec,
    default_pools,
    format_pools,
    parse_cpus,
    parse_pools,
)

SPECS = st.builds(
    PoolSpec,
    slots=st.integers(0, 256),
    cores=st.integers(1, 4),
    cpus=st.sets(st.integers(0, 300), min_size=4).map(lambda cpus: tuple(sorted(cpus))),
)
NAMES = st.from_regex(r"[a-z][a-z0-9_-]{0,10}", fullmatch=True)


@given(st.dictionaries(NAMES, SPECS, max_size=6))
def test_notation_round_trips(pools: dict[str, PoolSpec]) -> None:
    assert parse_pools(format_pools(pools)) == pools


@given(st.text())
def test_no_text_raises_anything_but_a_value_error(text: str) -> None:
    with suppress(ValueError):
        assert isinstance(parse_pools(text), dict)


def test_commas_within_cpus_and_between_pools() -> None:
    assert parse_pools("embed=2x1@0,2-3, generate=1x2") == {
        "embed": PoolSpec(2, 1, (0, 2, 3)),
        "generate": PoolSpec(1, 2),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("embed", "SLOTSxCORES"),
        ("embed=1x0", "1 to 256 cores"),
        ("embed=257x1", "0 to 256"),
        ("Embed=1x1", "lower-case"),
        ("embed=1x1,embed=1x1", "twice"),
        ("embed=1x4@0-1", "more cpus or fewer cores"),
        ("embed=1x1@3-2", "list of cpus"),
    ],
)
def test_mistakes_name_their_fix(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_pools(text)


@pytest.mark.parametrize(
    "table", [[], {"embed": 1}, {"embed": {"slots": "2"}}, {"embed": {"x": 1}}]
)
def test_tables_of_a_wrong_shape_are_refused(table: object) -> None:
    with pytest.raises(ValueError, match="pools"):
        parse_pools(table)


def test_cpus_are_sorted_and_single() -> None:
    assert parse_cpus("3,0-1+1") == (0, 1, 3)


@pytest.mark.parametrize("cores", [1, 2, 3, 4, 16, 256])
def test_default_pools_fit_the_machine(cores: int) -> None:
    pools = default_pools(cores)
    assert tuple(pools) == BUILT_IN_POOLS
    for spec in pools.values():
        assert spec.slots >= 1
        assert spec.cores <= cores
        assert spec.slots * spec.cores <= cores
