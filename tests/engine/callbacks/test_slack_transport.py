"""The way to the server, against a real one on a local port that has good and bad days."""

from __future__ import annotations

import datetime
import ipaddress
import logging
import multiprocessing
import os
import pickle
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from engine.callbacks.webhook import Secret, WebhookSender, read_address
from engine.errors import MisconfigurationException
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.callbacks.slack_server import TOKEN, WebhookServer

QUICK: dict[str, Any] = {"min_interval_s": 0.0, "timeouts_s": (0.5, 0.5)}


def sender_to(server: WebhookServer, **options: Any) -> WebhookSender:
    return WebhookSender(Secret(server.url), "Slack", **{**QUICK, **options})


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_messages_arrive_in_order_as_json() -> None:
    with WebhookServer() as server:
        sender = sender_to(server)
        for i in range(3):
            sender.post({"text": f"日本語 {i}"}, f"key {i}")
        assert sender.close(5)
        assert server.texts() == ["日本語 0", "日本語 1", "日本語 2"]
        assert server.headers[0]["Content-Type"] == "application/json"


def test_posting_returns_at_once_while_the_server_hangs() -> None:
    with WebhookServer("hang") as server:
        sender = sender_to(server, timeouts_s=(5.0, 5.0))
        start = time.perf_counter()
        for i in range(100):
            sender.post({"text": str(i)}, "progress")
        assert time.perf_counter() - start < 0.1
        sender.close(0.1)


@pytest.mark.parametrize("answer", ["hang", "drip headers", 500, "reset", (429, "", {"Retry-After": "60"})])
def test_closing_takes_no_longer_than_its_limit(answer: Any, caplog: pytest.LogCaptureFixture) -> None:
    with WebhookServer(answer) as server:
        sender = sender_to(server, timeouts_s=(30.0, 30.0))
        sender.post({"text": "a"}, "a")
        server.wait_for(1)
        start = time.perf_counter()
        assert not sender.close(0.5)
        assert time.perf_counter() - start < 0.9
        assert len(warnings_in(caplog)) == 1


def test_a_burst_is_merged_into_its_newest_state() -> None:
    with WebhookServer() as server:
        sender = sender_to(server, min_interval_s=0.3)
        sender.post({"text": "started"}, "start")
        server.wait_for(1)
        for i in range(50):
            sender.post({"text": f"progress {i}"}, "progress")
        sender.close(5)
        assert server.texts() == ["started", "progress 49"]


def test_posts_keep_their_distance() -> None:
    with WebhookServer() as server:
        sender = sender_to(server, min_interval_s=0.2)
        for i in range(4):
            sender.post({"text": str(i)}, str(i))
        sender.close(5)
        gaps = [after - before for before, after in zip(server.times, server.times[1:], strict=False)]
        assert min(gaps) >= 0.19


def test_the_queue_is_bounded_and_drops_the_oldest() -> None:
    with WebhookServer("hang", 200) as server:
        sender = sender_to(server, max_pending=3)
        sender.post({"text": "first"}, "first")
        server.wait_for(1)
        for i in range(10):
            sender.post({"text": str(i)}, str(i))
        sender.close(5)
        assert server.texts() == ["first", "7", "8", "9"]


def test_retry_after_is_honoured_and_the_newest_state_is_sent_then() -> None:
    with WebhookServer((429, "", {"Retry-After": "1"}), 200) as server:
        sender = sender_to(server)
        sender.post({"text": "old"}, "progress")
        server.wait_for(1)
        sender.post({"text": "new"}, "progress")
        server.wait_for(2)
        assert server.times[1] - server.times[0] >= 1.0
        sender.close(2)
        assert server.texts() == ["old", "new"]


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        ("2", 2, 2),
        ("0", 1, 1),
        ("", 5, 5),
        ("soon", 5, 5),
        ("-3", 5, 5),
        ("1e9", 5, 5),
        ("99999", 300, 300),
        ("²", 5, 5),
        ("Fri, 27 Nov 2999 07:28:00 GMT", 300, 300),
        ("Sat, 21 Nov 2020 07:28:00 GMT", 1, 1),
        ("Sat, 99 Nov 2020 07:28:00 GMT", 5, 5),
        ("GMT", 5, 5),
    ],
)
def test_a_strange_retry_after_is_read_with_care(header: str, least: float, most: float) -> None:
    from engine.callbacks.webhook import _retry_after

    assert least <= _retry_after(header) <= most


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=40) | st.from_regex(r"[A-Z][a-z]{2}, -?\d{1,3} [A-Z][a-z]{2} \d{1,6} \d{1,3}:\d{2} GMT"))
def test_no_retry_after_is_read_as_no_pause_or_an_endless_one(header: str) -> None:
    from engine.callbacks.webhook import _retry_after

    assert 1 <= _retry_after(header) <= 300


def test_an_end_before_the_server_lets_us_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with WebhookServer((429, "", {"Retry-After": "60"})) as server:
        sender = sender_to(server)
        sender.post({"text": "a"}, "a")
        server.wait_for(1)
        assert not sender.close(0.5)
        assert "asks to wait (429)" in warnings_in(caplog)[0]


def test_an_answer_without_an_end_is_given_up_for_good(caplog: pytest.LogCaptureFixture) -> None:
    with WebhookServer("drip headers") as server:
        sender = sender_to(server, timeouts_s=(0.15, 0.15))
        sender.post({"text": "a"}, "a")
        server.wait_for(1)
        time.sleep(1.0)
        sender.post({"text": "b"}, "b")
        start = time.perf_counter()
        assert not sender.close(5.0)
        assert time.perf_counter() - start < 1.0
        assert "has no end" in warnings_in(caplog)[0]


@pytest.mark.parametrize("status", [302, 407])
def test_who_stands_between_is_looked_for_there(status: int, caplog: pytest.LogCaptureFixture) -> None:
    with WebhookServer(status) as server:
        sender = sender_to(server)
        sender.post({"text": "a"}, "a")
        sender.close(3)
        assert "check the address and the proxy" in warnings_in(caplog)[0]


def test_the_training_s_random_numbers_are_left_alone() -> None:
    before = random.getstate()
    with WebhookServer(500, 200) as server:
        sender = sender_to(server)
        sender.post({"text": "a"}, "a")
        assert sender.close(10)
        assert server.texts() == ["a", "a"]
    assert random.getstate() == before


def test_errors_of_the_server_are_tried_again() -> None:
    with WebhookServer(500, 503, 200) as server:
        sender = sender_to(server)
        sender.post({"text": "a"}, "a")
        server.wait_for(3)
        assert server.times[2] - server.times[1] > server.times[1] - server.times[0] > 0.5
        sender.close(2)


def test_a_message_is_given_up_after_its_tries_and_the_next_one_arrives(caplog: pytest.LogCaptureFixture) -> None:
    with WebhookServer("reset", "reset", 200) as server:
        sender = sender_to(server, max_tries=2)
        sender.post({"text": "lost"}, "a")
        sender.post({"text": "arrives"}, "b")
        assert sender.close(5)
        assert server.texts() == ["lost", "lost", "arrives"]
        assert len(warnings_in(caplog)) == 1


@pytest.mark.parametrize(
    ("status", "body"),
    [(404, "no_service"), (403, "action_prohibited"), (410, "channel_is_archived"), (404, "no_team"), (401, "")],
)
def test_a_revoked_webhook_is_told_once_and_not_tried_again(
    status: int, body: str, caplog: pytest.LogCaptureFixture
) -> None:
    with WebhookServer((status, body)) as server:
        sender = sender_to(server)
        for i in range(5):
            sender.post({"text": str(i)}, str(i))
        sender.close(3)
        sender.post({"text": "later"}, "later")
        assert len(server.posts) == 1
        (warning,) = warnings_in(caplog)
        assert str(status) in warning
        assert body in warning
        assert "make a new webhook" in warning


def test_a_refused_message_does_not_keep_others_from_arriving(caplog: pytest.LogCaptureFixture) -> None:
    with WebhookServer((400, "invalid_payload"), 200) as server:
        sender = sender_to(server)
        sender.post({"text": "bad"}, "a")
        sender.post({"text": "good"}, "b")
        assert sender.close(3)
        assert server.texts() == ["bad", "good"]
        assert "invalid_payload" in warnings_in(caplog)[0]


def test_a_redirect_is_not_followed(caplog: pytest.LogCaptureFixture) -> None:
    with WebhookServer() as elsewhere, WebhookServer((302, "", {"Location": elsewhere.url})) as server:
        sender = sender_to(server)
        sender.post({"text": "a"}, "a")
        sender.close(3)
        assert elsewhere.paths == []
        assert "302" in warnings_in(caplog)[0]


def test_a_body_that_drips_holds_nothing_up(caplog: pytest.LogCaptureFixture) -> None:
    with WebhookServer("drip body") as server:
        sender = sender_to(server)
        sender.post({"text": "a"}, "a")
        start = time.perf_counter()
        sender.close(10)
        assert time.perf_counter() - start < 4
        assert "404" in warnings_in(caplog)[0]


def test_an_untrusted_certificate_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with WebhookServer(certificate=_self_signed(tmp_path)) as server:
        sender = sender_to(server)
        sender.post({"text": "a"}, "a")
        sender.close(3)
        assert server.posts == []
        assert "certificate" in warnings_in(caplog)[0]


def test_a_certificate_of_the_companys_own_is_accepted_when_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = _self_signed(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate[0]))
    with WebhookServer(certificate=certificate) as server:
        sender = sender_to(server)
        sender.post({"text": "a"}, "a")
        assert sender.close(3)
        assert server.texts() == ["a"]


def test_a_dead_network_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    with WebhookServer() as server:
        url = server.url
    sender = WebhookSender(Secret(url), "Slack", max_tries=2, **QUICK)
    sender.post({"text": "a"}, "a")
    sender.post({"text": "b"}, "b")
    assert not sender.close(5)
    (warning,) = warnings_in(caplog)
    assert "ConnectionError" in warning


def test_a_proxy_that_refuses_is_told_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    with WebhookServer() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.http.server_port}")
        sender = WebhookSender(Secret(f"https://hooks.invalid/services/{TOKEN}"), "Slack", max_tries=1, **QUICK)
        sender.post({"text": "a"}, "a")
        assert not sender.close(5)
    (warning,) = warnings_in(caplog)
    assert "ProxyError" in warning


def test_the_log_never_holds_the_address_even_at_debug_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with WebhookServer(200, 500, "reset", "garble", (404, f"no_service {TOKEN}")) as server:
        sender = sender_to(server, max_tries=1)
        for i in range(5):
            sender.post({"text": str(i)}, str(i))
        sender.close(10)
        assert len(server.posts) == 5
    assert TOKEN not in caplog.text
    assert "/services/" not in caplog.text


def test_debug_lines_of_others_still_reach_the_log(caplog: pytest.LogCaptureFixture) -> None:
    import requests

    caplog.set_level(logging.DEBUG)
    with WebhookServer() as server:
        sender_to(server).close(1)
        requests.post(server.url, json={"text": "someone else"}, timeout=5)
    assert "POST" in caplog.text


def test_a_message_that_holds_the_address_is_sent_without_it() -> None:
    with WebhookServer() as server:
        sender = sender_to(server)
        sender.post({"text": f"KeyError: {server.url}"}, "a")
        sender.close(3)
        assert server.texts() == ["KeyError: ***"]


def test_a_fork_begins_with_nothing_to_send_and_its_own_thread() -> None:
    with WebhookServer("hang", 200) as server:
        sender = sender_to(server, timeouts_s=(5.0, 1.0))
        sender.post({"text": "parent 1"}, "a")
        server.wait_for(1)
        sender.post({"text": "parent 2"}, "b")
        child = multiprocessing.get_context("fork").Process(target=_post_from_a_fork, args=(sender,))
        child.start()
        child.join(10)
        assert child.exitcode == 0
        sender.close(5)
        assert sorted(server.texts()) == ["child", "parent 1", "parent 1", "parent 2"]


def _post_from_a_fork(sender: WebhookSender) -> None:
    sender.post({"text": "child"}, "a")
    os._exit(0 if sender.close(5) else 1)


def test_nothing_can_be_posted_after_the_end() -> None:
    with WebhookServer() as server:
        sender = sender_to(server)
        sender.close(1)
        sender.post({"text": "late"}, "a")
        assert threading.active_count() >= 1
        assert server.posts == []


def test_an_unused_sender_costs_no_thread_and_no_time() -> None:
    before = threading.active_count()
    sender = WebhookSender(Secret("https://hooks.invalid/a"))
    start = time.perf_counter()
    assert sender.close(10)
    assert time.perf_counter() - start < 0.1
    assert threading.active_count() == before


def test_the_address_comes_from_the_environment_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "secret"
    file.write_text("https://example.com/from-file\n")
    monkeypatch.delenv("HOOK", raising=False)
    monkeypatch.delenv("HOOK_FILE", raising=False)
    assert read_address("HOOK") is None
    monkeypatch.setenv("HOOK_FILE", str(file))
    assert _revealed("HOOK") == "https://example.com/from-file"
    file.write_bytes(b"\xef\xbb\xbfhttps://example.com/from-an-editor\r\n")
    assert _revealed("HOOK") == "https://example.com/from-an-editor"
    monkeypatch.setenv("HOOK", " https://example.com/from-environment ")
    assert _revealed("HOOK") == "https://example.com/from-environment"


def _revealed(environment: str) -> str:
    secret = read_address(environment)
    assert secret is not None
    return secret.reveal()


@pytest.mark.parametrize(
    "value",
    [
        "hooks.slack.com/services/x",
        "http://hooks.slack.com/services/x",
        "https://",
        "https://elsewhere",
        "ftp://host/x",
        "https://a b/c",
    ],
)
def test_what_is_no_address_is_refused_without_being_shown(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK", value)
    with pytest.raises(MisconfigurationException, match="https://host/path") as caught:
        read_address("HOOK")
    assert value == "https://" or value not in str(caught.value)


@pytest.mark.parametrize(
    "value", ["http://relay/x", "http://relay:8080/x", "http://10.0.0.7:80/x", "http://[::1]:80/x"]
)
def test_a_relay_nearby_needs_no_certificate(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK", value)
    assert _revealed("HOOK") == value


def test_an_empty_file_is_a_mistake_and_no_wish_for_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text("\n")
    monkeypatch.setenv("HOOK", "")
    monkeypatch.setenv("HOOK_FILE", str(tmp_path / "secret"))
    with pytest.raises(MisconfigurationException, match=f"{tmp_path / 'secret'} does not read like"):
        read_address("HOOK")


@pytest.mark.parametrize("value", ["/no/such/file", f"https://hooks.slack.com/services/{TOKEN}", "/"])
def test_a_file_that_cannot_be_read_is_told_without_showing_an_address_in_its_place(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK_FILE", value)
    with pytest.raises(MisconfigurationException, match="cannot be read from the file that HOOK_FILE names") as caught:
        read_address("HOOK")
    assert TOKEN not in str(caught.value)


def test_a_secret_is_shown_by_nothing() -> None:
    secret = Secret(TOKEN)
    sender = WebhookSender(Secret(f"https://example.com/{TOKEN}"))
    shown = (repr(secret), str(secret), f"{secret}", f"{[secret]}", pickle.dumps(secret), repr(sender))
    assert not any(TOKEN in str(text) for text in shown)
    assert pickle.loads(pickle.dumps(secret)).reveal() == ""


def _self_signed(folder: Path) -> tuple[Path, Path]:
    """Return a certificate for 127.0.0.1 that nobody trusts, and its key."""
    x509 = pytest.importorskip("cryptography.x509", reason="makes the certificate; comes with mlflow")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "nobody")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1))
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False).sign(key, hashes.SHA256())
    files = folder / "certificate.pem", folder / "key.pem"
    files[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    files[1].write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return files
