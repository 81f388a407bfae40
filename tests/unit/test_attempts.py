"""Failed logins by address: counted in windows of a minute, in bounded memory."""

from controller.attempts import FailedAttempts


def failing(attempts: FailedAttempts, client: str, times: int, now: float) -> None:
    for _ in range(times):
        attempts.failed(client, now)


def test_a_client_waits_after_too_many_failures_until_its_minute_is_over() -> None:
    attempts = FailedAttempts(3)
    failing(attempts, "192.0.2.1", 2, 100.0)
    assert attempts.wait("192.0.2.1", 110.0) == 0
    failing(attempts, "192.0.2.1", 1, 110.5)
    assert attempts.wait("192.0.2.1", 110.5) == 50
    assert attempts.wait("192.0.2.1", 159.9) == 1
    assert attempts.wait("192.0.2.1", 160.0) == 0
    failing(attempts, "192.0.2.1", 1, 161.0)
    assert attempts.wait("192.0.2.1", 161.0) == 0


def test_others_do_not_wait() -> None:
    attempts = FailedAttempts(1)
    failing(attempts, "192.0.2.1", 5, 0.0)
    assert attempts.wait("192.0.2.2", 0.0) == 0
    assert attempts.wait("2001:db8::1", 0.0) == 0


def test_a_client_of_ipv6_is_its_64() -> None:
    attempts = FailedAttempts(1)
    failing(attempts, "2001:db8:0:1::1", 1, 0.0)
    assert attempts.wait("2001:db8:0:1:ffff::9", 0.0) == 60
    assert attempts.wait("2001:db8:0:2::1", 0.0) == 0
    failing(attempts, "fe80::1%eth0", 1, 0.0)
    assert attempts.wait("fe80::2%eth0", 0.0) == 60


def test_memory_is_bounded_and_the_newest_are_kept() -> None:
    attempts = FailedAttempts(1, addresses=100)
    for number in range(1000):
        attempts.failed(f"192.0.{number // 250}.{number % 250}", 0.0)
    assert len(attempts) == 100
    assert attempts.wait("192.0.3.249", 0.0) == 60
    assert attempts.wait("192.0.0.0", 0.0) == 0
