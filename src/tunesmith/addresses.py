"""The address at which a server listens, taken before there is anything to answer with.

So a port that another process has is learned of at once, and not after a model was loaded. What has the socket decides when
it listens.
"""

import errno
import socket
import sys

from tunesmith.errors import RunError


def url_host(host: str) -> str:
    """A host as it stands in an address: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def bound(host: str, port: int) -> socket.socket:
    """A socket that has the address and does not listen yet.

    Args:
        host: name or address of this machine.
        port: 0 for one that is free.

    Raises:
        RunError: the host is not of this machine, or the port is taken or not to be had.
    """
    try:
        family, kind, number, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise RunError(f"--host {host}: is no address of this machine: {error.strerror}", "leave --host out") from error
    taken = socket.socket(family, kind, number)
    try:
        if sys.platform != "win32":  # where it would share a port that somebody has; elsewhere it takes one that was just left
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(place)
    except OSError as error:
        taken.close()
        raise RunError(f"{host}, port {port}: {error.strerror}", _hint(error)) from error
    return taken


def _hint(error: OSError) -> str:
    if error.errno == errno.EADDRNOTAVAIL:
        return "leave --host out, or give it an address of this machine"
    return "take another with --port, or --port 0 for one that is free"
