"""Signatures, checked against the public library of Standard Webhooks and by tampering."""

import base64
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook

from webhooks.errors import BadSecret, BadSignature
from webhooks.sign import Secret, headers, verify

# The library reads the machine's clock, so what it verifies is signed now.
BODY = '{"type":"job.settled","data":{"text":"ü 漢 😀"}}'.encode()
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
SECRET, OLD = Secret.generate(), Secret.generate()


@given(st.binary(min_size=24, max_size=64), st.text(st.characters(codec="utf-8"), max_size=200))
def test_the_public_library_verifies_what_we_sign(key: bytes, text: str) -> None:
    secret, body = Secret(key), text.encode()
    signed = headers([secret], "msg_1", datetime.now(UTC), body)
    Webhook(secret.text).verify(body, signed, json_parse=False)
    verify([Secret.parse(secret.text)], signed, body, now=datetime.now(UTC))


def test_both_secrets_sign_during_a_rotation() -> None:
    now = datetime.now(UTC)
    signed = headers([SECRET, OLD], "msg_1", now, BODY)
    for secret in (SECRET, OLD):
        Webhook(secret.text).verify(BODY, signed)
    after = headers([SECRET], "msg_1", now, BODY)
    with pytest.raises(BadSignature):
        verify([OLD], after, BODY, now=now)


def test_we_verify_what_the_public_library_signs() -> None:
    signature = Webhook(SECRET.text).sign("msg_1", NOON, BODY.decode())
    given_headers = {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(int(NOON.timestamp())),
        "webhook-signature": f"v2,other {signature}",
    }
    verify([SECRET], given_headers, BODY, now=NOON)


@pytest.mark.parametrize(
    "change",
    [
        {"webhook-id": "msg_2"},
        {"webhook-timestamp": str(int(NOON.timestamp()) + 1)},
        {"webhook-signature": ""},
        {"webhook-signature": "v1,"},
        {"webhook-signature": "v1,ü"},
        {"webhook-timestamp": "NaN"},
        {"webhook-timestamp": "-1"},
        {"webhook-timestamp": "²"},
        {"webhook-timestamp": "9" * 400},
    ],
)
def test_any_change_is_noticed(change: dict[str, str]) -> None:
    signed = headers([SECRET], "msg_1", NOON, BODY)
    verify([SECRET], signed, BODY, now=NOON)
    with pytest.raises(BadSignature):
        verify([SECRET], signed | change, BODY, now=NOON)
    with pytest.raises(BadSignature):
        verify([SECRET], signed, BODY + b" ", now=NOON)


@pytest.mark.parametrize("missing", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_missing_header_is_named(missing: str) -> None:
    signed = headers([SECRET], "msg_1", NOON, BODY)
    del signed[missing]
    with pytest.raises(BadSignature, match=missing):
        verify([SECRET], signed, BODY, now=NOON)


@pytest.mark.parametrize("off", [timedelta(seconds=301), timedelta(seconds=-301)])
def test_a_replay_is_refused_after_five_minutes(off: timedelta) -> None:
    signed = headers([SECRET], "msg_1", NOON, BODY)
    verify([SECRET], signed, BODY, now=NOON + off * 0.99)
    with pytest.raises(BadSignature, match="300 s"):
        verify([SECRET], signed, BODY, now=NOON + off)


def test_a_secret_shows_itself_only_when_asked() -> None:
    assert SECRET.text not in repr(SECRET)
    assert repr(SECRET.key) not in repr(SECRET)
    assert SECRET.text.startswith("whsec_")
    assert Secret.parse(SECRET.text) == SECRET
    assert len(SECRET.key) == 32


@pytest.mark.parametrize(
    "text", ["", "whsec_", "whsec_!!!", "whsec_" + base64.b64encode(b"short").decode(), "whsec_ü"]
)
def test_a_bad_secret_is_refused_without_an_echo(text: str) -> None:
    with pytest.raises(BadSecret) as refused:
        Secret.parse(text)
    assert not text or text not in str(refused.value) or text == "whsec_"
