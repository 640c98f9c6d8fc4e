"""The address of a server: taken once, before anybody listens."""

import socket

import pytest

from tunesmith.addresses import bound
from tunesmith.errors import RunError


def test_an_address_is_taken_before_anybody_listens():
    with bound("127.0.0.1", 0) as first, socket.socket() as guest:
        place = first.getsockname()
        assert guest.connect_ex(place) != 0
        first.listen()
        with pytest.raises(RunError, match=f"127.0.0.1, port {place[1]}: .*in use\nhint: .*--port 0 for one that is free"):
            bound("127.0.0.1", place[1])
    with bound("127.0.0.1", place[1]):
        pass  # which was free again at once


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1"])  # the second is nobody's (RFC 5737)
def test_what_is_no_address_of_this_machine_is_refused(host):
    with pytest.raises(RunError, match="\nhint: leave --host out"):
        bound(host, 0)
