"""A file system that fails when told to: a FUSE server of its own, in a process of its own.

It keeps files in memory, in one directory.  Like many network file systems it cannot map a file
into the memory that processes share, so that SQLite finds no place for a -shm.  The kernel's side
is described in ``include/uapi/linux/fuse.h`` (Linux 6.18).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import threading
from collections.abc import Callable
from typing import Any

from children import Child, Voice

_IN = struct.Struct("<IIQQIIII")
_OUT = struct.Struct("<IiQ")
_ATTR = struct.Struct("<6Q10I")
_ENTRY = struct.Struct("<4Q2I")
_OPENED = struct.Struct("<QIi")
_DIRECT_IO = 1
_STATFS = struct.pack("<5Q4I24x", 1 << 20, *[1 << 19] * 4, 4096, 255, 4096, 0)

_ROOT = 1
_BLOCK = 4096


class FaultyDisk:
    """The file system, mounted at *place*; leaving its ``with`` takes it away."""

    def __init__(self, place: str) -> None:
        self.place = place
        self._server = Child(serve, place)

    def __enter__(self) -> FaultyDisk:
        said = self._server.next()
        if said != "mounted":
            self._server.kill()
            raise OSError(said)
        return self

    def __exit__(self, *_: object) -> None:
        _libc().umount2(os.fsencode(self.place), 2)
        self._server.__exit__(None, None, None)

    def fail(self, what: str, code: int, *, after: int = 0) -> None:
        """Have every ``"write"``, ``"create"`` or ``"fsync"`` fail with *code*; 0 ends that.

        Args:
            after: so many are still done.
        """
        self._server.tell((what, code, after))
        assert self._server.next() == "told"


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def serve(say: Voice, place: str) -> None:
    """Mount and serve, and listen to what is to fail."""
    try:
        device = os.open("/dev/fuse", os.O_RDWR)
    except OSError as error:
        say(str(error))
        return
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
    if _libc().mount(b"faulty", os.fsencode(place), b"fuse", 6, options.encode()):
        say(os.strerror(ctypes.get_errno()))
        return
    server = _Server(device)
    threading.Thread(target=server.run, daemon=True).start()
    say("mounted")
    while True:
        what, code, after = say.heard()
        server.faults[what] = [code, after]
        say("told")


class _File:
    def __init__(self, mode: int) -> None:
        self.mode = mode
        self.data = bytearray()
        self.links = 1


class _Server:
    def __init__(self, device: int) -> None:
        self._device = device
        self.faults: dict[str, list[int]] = {}
        self._files: dict[int, _File] = {_ROOT: _File(0o40755)}
        self._names: dict[bytes, int] = {}
        self._calls: dict[int, Callable[[int, bytes], bytes]] = {
            1: self._lookup,
            3: self._getattr,
            4: self._setattr,
            10: self._unlink,
            12: lambda node, data: self._rename(data[8:]),
            13: lambda node, data: self._link(data),
            14: lambda node, data: _OPENED.pack(0, _DIRECT_IO, 0),
            15: self._read,
            16: self._write,
            17: lambda node, data: _STATFS,
            18: lambda node, data: b"",
            20: lambda node, data: self._may("fsync"),
            26: self._init,
            27: lambda node, data: _OPENED.pack(0, 0, 0),
            28: self._list,
            29: lambda node, data: b"",
            30: lambda node, data: b"",
            35: self._create,
            45: lambda node, data: self._rename(data[16:]),
        }

    def run(self) -> None:
        """Answer the kernel until the file system is unmounted."""
        while True:
            try:
                request = os.read(self._device, 1 << 18)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.ENOENT):
                    continue
                return
            _, operation, unique, node, *_ = _IN.unpack_from(request)
            if operation in (2, 36, 42):  # forget, interrupt: nobody waits for an answer
                continue
            answer, code = b"", 0
            try:
                call = self._calls.get(operation)
                if call is None:
                    raise OSError(errno.ENOSYS, "")
                answer = call(node, request[_IN.size :])
            except OSError as error:
                code = error.errno or errno.EIO
            head = _OUT.pack(_OUT.size + len(answer), -code, unique)
            try:
                os.write(self._device, head + answer)
            except OSError as error:
                if error.errno != errno.ENOENT:  # who asked was killed
                    return

    def _may(self, what: str) -> bytes:
        fault = self.faults.get(what, [0, 0])
        fault[1] -= 1
        if fault[0] and fault[1] < 0:
            raise OSError(fault[0], "")
        return b""

    def _file(self, node: int) -> _File:
        if node not in self._files:
            raise OSError(errno.ESTALE, "")
        return self._files[node]

    def _named(self, name: bytes) -> int:
        if name not in self._names:
            raise OSError(errno.ENOENT, "")
        return self._names[name]

    def _attributes(self, node: int) -> bytes:
        file = self._file(node)
        size = len(file.data)
        numbers = (node, size, -(-size // 512), 0, 0, 0, 0, 0, 0, file.mode, file.links)
        return _ATTR.pack(*numbers, 0, 0, 0, _BLOCK, 0)

    def _entry(self, node: int) -> bytes:
        return _ENTRY.pack(node, 0, 0, 0, 0, 0) + self._attributes(node)

    def _init(self, node: int, data: bytes) -> bytes:
        return struct.pack("<4I2H2I2H2I24x", 7, 31, 0, 0, 0, 0, 1 << 17, 1, 0, 0, 0, 0)

    def _lookup(self, node: int, data: bytes) -> bytes:
        return self._entry(self._named(data[:-1]))

    def _getattr(self, node: int, data: bytes) -> bytes:
        return struct.pack("<QII", 0, 0, 0) + self._attributes(node)

    def _setattr(self, node: int, data: bytes) -> bytes:
        valid, _, _, size = struct.unpack_from("<IIQQ", data)
        (mode,) = struct.unpack_from("<I", data, 68)
        file = self._file(node)
        if valid & 1:
            file.mode = file.mode & ~0o7777 | mode & 0o7777
        if valid & 8:
            if size > len(file.data):
                self._may("write")
            del file.data[size:]
            file.data.extend(bytes(size - len(file.data)))
        return self._getattr(node, b"")

    def _create(self, node: int, data: bytes) -> bytes:
        self._may("create")
        _, mode, umask = struct.unpack_from("<III", data)
        node = max(self._files) + 1
        self._files[node] = _File(0o100000 | mode & ~umask & 0o7777)
        self._names[data[16:-1]] = node
        return self._entry(node) + _OPENED.pack(0, _DIRECT_IO, 0)

    def _link(self, data: bytes) -> bytes:
        (node,), name = struct.unpack_from("<Q", data), data[8:-1]
        if name in self._names:
            raise OSError(errno.EEXIST, "")
        self._names[name] = node
        self._file(node).links += 1
        return self._entry(node)

    def _rename(self, names: bytes) -> bytes:
        before, after, _ = names.split(b"\0")
        node = self._named(before)
        if after in self._names:
            self._unlink(_ROOT, after + b"\0")
        self._names[after] = node
        del self._names[before]
        return b""

    def _unlink(self, node: int, data: bytes) -> bytes:
        # Its bytes stay, for whoever has it open.
        self._file(self._named(data[:-1])).links -= 1
        del self._names[data[:-1]]
        return b""

    def _read(self, node: int, data: bytes) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", data)
        return bytes(self._file(node).data[offset : offset + size])

    def _write(self, node: int, data: bytes) -> bytes:
        self._may("write")
        _, offset, size = struct.unpack_from("<QQI", data)
        content = self._file(node).data
        if len(content) < offset:
            content.extend(bytes(offset - len(content)))
        content[offset : offset + size] = data[40 : 40 + size]
        return struct.pack("<II", size, 0)

    def _list(self, node: int, data: bytes) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", data)
        out = b""
        for place, (name, number) in enumerate(list(self._names.items())[offset:], offset + 1):
            entry = struct.pack("<QQII", number, place, len(name), 8) + name
            entry += bytes(-len(entry) % 8)
            if len(out) + len(entry) > size:
                break
            out += entry
        return out
