"""Who may ask, and how often.

Keys come from an environment variable that the command line names, one or several by comma or line; they are held as hashes and
compared in constant time, all of them for every request. Outside of this file a key is its number: that is what logs show and
what rates are counted by. A rate is a bucket that fills by one request every ``60 / rate`` seconds and holds a minute's worth.

A server without a key answers to loopback only. That is no protection from the programs of other users of the machine, which is
said where it starts.
"""

import hashlib
import hmac
import re
import time
from collections.abc import Callable

from tunesmith import hardware
from tunesmith.errors import RunError
from tunesmith.serve.api_error import ApiError

SHORTEST = 8  # characters of a key


class Keys:
    """The keys that may ask.

    Args:
        variable: name of the environment variable that holds them.

    Raises:
        RunError: it is not set, or holds something that no header can carry or that is guessed at once.
    """

    def __init__(self, variable: str):
        held = [key for key in re.split(r"[\s,]+", hardware.secret(variable) or "") if key]
        if not held:
            raise RunError(
                f"--key-env {variable}: the environment variable is not set or empty",
                f'run: export {variable}="sk-$(openssl rand -hex 24)"',
            )
        for number, key in enumerate(held, start=1):
            if len(key) < SHORTEST or not (key.isascii() and key.isprintable()):
                raise RunError(
                    f"--key-env {variable}: key {number} is shorter than {SHORTEST} characters or not plain ASCII",
                    "make one with: openssl rand -hex 24",
                )
        self._digests = [hashlib.sha256(key.encode()).digest() for key in held]

    def __len__(self) -> int:
        return len(self._digests)

    def name_of(self, authorization: str | None) -> str:
        """The number of the key in a header ``Authorization: Bearer KEY``, as ``key 1``.

        Raises:
            ApiError: there is none, or it is not known (401).
        """
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            said = "You didn't provide an API key: send it in a header, Authorization: Bearer KEY."
            raise ApiError(401, said, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        digest = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if True not in matches:
            raise ApiError(401, "Incorrect API key provided.", "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        return f"key {matches.index(True) + 1}"


class Rate:
    """How many requests a minute each key may make.

    Args:
        per_minute: that many; as many may come at once after a quiet minute.
        clock: seconds that only grow.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic):
        self.per_minute = per_minute
        self._clock = clock
        self._left: dict[str, tuple[float, float]] = {}  # of each key: requests left, and when that was so

    def take(self, key: str) -> None:
        """Count one request.

        Raises:
            ApiError: the bucket is empty (429).
        """
        now = self._clock()
        left, then = self._left.get(key, (float(self.per_minute), now))
        left = min(float(self.per_minute), left + (now - then) * self.per_minute / 60)
        if left < 1:
            self._left[key] = left, now
            wait = (1 - left) * 60 / self.per_minute
            said = f"Rate limit reached: {self.per_minute} requests a minute for this key; try again in {wait:.1f} seconds."
            raise ApiError(429, said, "rate_limit_exceeded", headers={"Retry-After": str(int(wait) + 1)})
        self._left[key] = left - 1, now
