"""A network switch in user space: what kernels without netem cannot do to frames, it does.

`python switch.py PORT...` forwards Ethernet frames between the interfaces of its network namespace. Each line
on its standard input is a JSON object that replaces its rules, answered with `ok`:

    {"drop": [["a", "b"]], "delay_s": {"c": 0.3}, "loss": {"c": 0.05}}

drops what goes from port a to port b, and delays or loses what goes to or comes from port c.
`python switch.py --plain INTERFACE` switches off the offloads that leave checksums and segments to a card.
"""

import contextlib
import ctypes
import fcntl
import heapq
import json
import random
import selectors
import socket
import struct
import sys
import time
from itertools import count
from typing import Any

ALL_PROTOCOLS = 0x0003
OUTGOING = 4
SIOCETHTOOL = 0x8946
# Transmit and receive checksums, segmentation offloads (TCP, generic), receive merging: set to off.
OFFLOADS = (0x17, 0x15, 0x1F, 0x24, 0x2C)


class Switch:
    """Learns which address lives behind which port; rules decide what becomes of a frame."""

    def __init__(self, ports: list[str]) -> None:
        self._sockets = {port: _raw_socket(port) for port in ports}
        self._homes: dict[bytes, str] = {}
        self._late: list[tuple[float, int, str, bytes]] = []
        self._order = count()
        self.obey({})

    def obey(self, rules: dict[str, Any]) -> None:
        """Replaces the rules."""
        self._drop = {(a, b) for a, b in rules.get("drop", [])}
        self._delay_s: dict[str, float] = rules.get("delay_s", {})
        self._loss: dict[str, float] = rules.get("loss", {})

    def run(self) -> None:
        """Forwards frames until standard input ends."""
        with selectors.DefaultSelector() as ready:
            for port, link in self._sockets.items():
                ready.register(link, selectors.EVENT_READ, port)
            ready.register(sys.stdin, selectors.EVENT_READ, None)
            while True:
                wait_s = max(0.0, self._late[0][0] - time.monotonic()) if self._late else None
                for key, _ in ready.select(wait_s):
                    if key.data is None:
                        line = sys.stdin.readline()
                        if not line:
                            return
                        self.obey(json.loads(line))
                        print("ok", flush=True)
                    else:
                        self._take(key.data)
                while self._late and self._late[0][0] <= time.monotonic():
                    _, _, port, frame = heapq.heappop(self._late)
                    self._send(port, frame)

    def _take(self, port: str) -> None:
        frame, address = self._sockets[port].recvfrom(1 << 16)
        if address[2] == OUTGOING:
            return
        target, source = frame[:6], frame[6:12]
        self._homes[source] = port
        home = self._homes.get(target)
        for other in [home] if home else [name for name in self._sockets if name != port]:
            if other != port and (port, other) not in self._drop:
                self._pass(port, other, frame)

    def _pass(self, source: str, target: str, frame: bytes) -> None:
        if any(random.random() < self._loss.get(port, 0.0) for port in (source, target)):
            return
        delay_s = self._delay_s.get(source, 0.0) + self._delay_s.get(target, 0.0)
        if delay_s:
            heapq.heappush(self._late, (time.monotonic() + delay_s, next(self._order), target, frame))
        else:
            self._send(target, frame)

    def _send(self, port: str, frame: bytes) -> None:
        with contextlib.suppress(OSError):  # its buffer is full, or its host is gone: a network loses frames
            self._sockets[port].send(frame)


def plain(interface: str) -> None:
    """Switches off an interface's offloads."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        for command in OFFLOADS:
            value = ctypes.create_string_buffer(struct.pack("II", command, 0))
            request = struct.pack("16sP16x", interface.encode(), ctypes.addressof(value))
            with contextlib.suppress(OSError):  # an offload that this interface does not have
                fcntl.ioctl(handle, SIOCETHTOOL, request)


def _raw_socket(port: str) -> socket.socket:
    link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(ALL_PROTOCOLS))
    link.bind((port, 0))
    link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    return link


if __name__ == "__main__":
    if sys.argv[1] == "--plain":
        plain(sys.argv[2])
    else:
        Switch(sys.argv[1:]).run()
