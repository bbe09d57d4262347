"""Streaming: whole characters only, and never a piece of a stop string."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from engines.stream import TextStream

TEXT = st.text(alphabet="abc \n👩é漢", max_size=40)


def stream_of(stop: tuple[str, ...]) -> tuple[TextStream, list[str]]:
    shown: list[str] = []
    return TextStream(stop, shown.append), shown


@given(pieces=st.lists(TEXT, max_size=8), stop=st.text(alphabet="abc 👩", min_size=1, max_size=5))
def test_what_is_shown_ends_before_the_stop_string_however_it_is_cut(
    pieces: list[str], stop: str
) -> None:
    stream, shown = stream_of((stop,))
    for piece in pieces:
        stream.feed(piece)
        assert stop not in "".join(shown)
    whole = "".join(pieces)
    assert stream.finish() == whole.split(stop)[0]
    assert "".join(shown) == stream.text
    assert stream.is_stopped == (stop in whole)


@given(text=TEXT, cuts=st.lists(st.integers(0, 160), max_size=20))
def test_characters_cut_into_bytes_come_out_whole(text: str, cuts: list[int]) -> None:
    content = text.encode()
    edges = sorted({0, len(content), *(cut for cut in cuts if cut < len(content))})
    stream, shown = stream_of(())
    for start, end in itertools.pairwise(edges):
        stream.feed_bytes(content[start:end])
    assert stream.finish() == text
    assert "\ufffd" not in "".join(shown)


def test_an_unfinished_character_is_dropped_at_the_end() -> None:
    stream, shown = stream_of(())
    stream.feed_bytes("ok 👩".encode()[:-2])
    assert stream.finish() == "ok "
    assert shown == ["ok "]


def test_text_is_held_back_only_while_it_may_become_a_stop_string() -> None:
    stream, shown = stream_of(("<end>", ""))
    stream.feed("one <e")
    assert shown == ["one "]
    stream.feed("nough> two")
    assert "".join(shown) == "one <enough> two"
    stream.feed("<end> never shown")
    stream.feed("nor this")
    assert stream.is_stopped
    assert stream.finish() == "one <enough> two"


def test_the_first_of_several_stop_strings_ends_it() -> None:
    stream, _ = stream_of(("later", "soon"))
    stream.feed("not soon, later")
    assert stream.finish() == "not "
