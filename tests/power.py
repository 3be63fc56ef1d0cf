"""Power failures, replayed: the disk as it may look when the machine stops at a given moment.

The writes of a real process are recorded as system calls.  What was synced is on the disk; of
what was not, each write may be there, may be missing, and may be torn at a sector's edge, whatever
the order in which they were made.
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

SECTOR = 512
_CALLS = "pwrite64,write,fsync,fdatasync,ftruncate,unlink,unlinkat,link,linkat"
_LINE = re.compile(r"\d+\s+(\w+)\((.*)\)\s+= (\d+)")
_RESUMED = re.compile(r"<\.\.\. \w+ resumed>")
_FILE = re.compile(r"(\d+)<([^>]*)>")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')


@dataclass(frozen=True)
class Write:
    """Bytes that were written at an offset."""

    file: str
    offset: int
    data: bytes


@dataclass(frozen=True)
class Truncate:
    """A file that was cut or extended."""

    file: str
    size: int


@dataclass(frozen=True)
class Unlink:
    """A file that was removed."""

    file: str


@dataclass(frozen=True)
class Link:
    """A file that got a second name.

    It is taken as being on the disk at once: databases are made so, and the directory is synced
    before anything is said.
    """

    source: str
    file: str


@dataclass(frozen=True)
class Sync:
    """A file whose writes are on the disk from here on; ``""``: the directory."""

    file: str


@dataclass(frozen=True)
class Said:
    """A line that the process had printed: it took something for stored."""

    line: str


Step = Write | Truncate | Unlink | Link | Sync | Said


@dataclass
class Disk:
    """The files of a database while steps are applied to them."""

    files: dict[str, bytearray] = field(default_factory=dict)

    def apply(self, step: Step) -> None:
        if isinstance(step, Unlink):
            self.files.pop(step.file, None)
        elif isinstance(step, Link):
            self.files[step.file] = self.files[step.source]
        elif isinstance(step, Truncate):
            data = self.files.setdefault(step.file, bytearray())
            del data[step.size :]
            data.extend(bytes(step.size - len(data)))
        elif isinstance(step, Write):
            data = self.files.setdefault(step.file, bytearray())
            data.extend(bytes(max(0, step.offset - len(data))))
            data[step.offset : step.offset + len(step.data)] = step.data

    def save(self, folder: Path) -> None:
        for name, data in self.files.items():
            (folder / name).write_bytes(bytes(data))


def record(database: Path, arguments: list[str]) -> list[Step]:
    """What ``python *arguments*`` does to *database*'s files, and what it prints."""
    trace = database.with_name("trace")
    command = ["strace", "-f", "-y", "-xx", "-s", "10000000", "-e", f"trace={_CALLS}"]
    subprocess.run(
        [*command, "-o", str(trace), sys.executable, *arguments],
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=120,
    )
    with trace.open() as lines:
        return [step for line in _whole(lines) for step in _steps(line, database)]


def after_power_failure(steps: list[Step], chance: random.Random) -> tuple[Disk, list[str]]:
    """A disk as it may be when the power fails behind *steps*, and what had been said."""
    disk, said = Disk(), []
    pending: dict[str, list[Step]] = defaultdict(list)
    for step in steps:
        if isinstance(step, Said):
            said.append(step.line)
        elif isinstance(step, Link):
            disk.apply(step)
        elif not isinstance(step, Sync):
            pending[step.file].append(step)
        elif step.file:
            for one in pending.pop(step.file, ()):
                disk.apply(one)
        else:
            _sync_names(disk, pending)
    for unsynced in pending.values():
        share = chance.choice((0.0, 0.3, 0.7, 0.95, 1.0))
        for one in unsynced:
            if chance.random() < share:
                disk.apply(_torn(one, chance))
            elif isinstance(one, Unlink):
                break  # the name still means the old file: what follows went to another one
    disk.files = {name: data for name, data in disk.files.items() if not name.endswith("-shm")}
    return disk, said


def _sync_names(disk: Disk, pending: dict[str, list[Step]]) -> None:
    """What was removed is gone for good; what has been written since under its name may be."""
    for file, unsynced in pending.items():
        removals = [at for at, one in enumerate(unsynced) if isinstance(one, Unlink)]
        if removals:
            disk.apply(Unlink(file))
            pending[file] = unsynced[removals[-1] + 1 :]


def _whole(lines: Iterable[str]) -> Iterator[str]:
    """The lines of a trace; a call that another thread's cut in two is joined where it ends."""
    begun: dict[str, str] = {}
    for line in lines:
        process = line.split(maxsplit=1)[0]
        resumed = _RESUMED.search(line)
        if line.endswith("<unfinished ...>\n"):
            begun[process] = line.removesuffix("<unfinished ...>\n")
        elif resumed is not None:
            yield begun.pop(process) + line[resumed.end() :]
        else:
            yield line


def _torn(step: Step, chance: random.Random) -> Step:
    """*step*, or now and then only its first sectors."""
    if not isinstance(step, Write) or len(step.data) <= SECTOR or chance.random() > 0.1:
        return step
    sectors = chance.randrange(1, len(step.data) // SECTOR + 1)
    return Write(step.file, step.offset, step.data[: sectors * SECTOR])


def _steps(line: str, database: Path) -> Iterator[Step]:
    name = database.name
    found = _LINE.match(line)
    if found is None:
        return
    call, arguments = found[1], found[2]
    texts = [bytes.fromhex(text.replace("\\x", "")) for text, _ in _TEXT.findall(arguments)]
    if call.startswith("link"):
        source, target = (Path(text.decode()).name for text in texts[:2])
        if target.startswith(name):
            yield Link(source, target)
        return
    if call.startswith("unlink"):
        file = Path(texts[0].decode()).name
        if file.startswith(name):
            yield Unlink(file)
        return
    handle = _FILE.match(arguments)
    if handle is None:
        return
    path = handle[2]
    if path.startswith("\\x"):
        path = bytes.fromhex(path.replace("\\x", "")).decode()
    file = Path(path).name
    if call == "write" and handle[1] == "1":
        for text in texts[0].decode().splitlines():
            yield Said(text)
    elif call in ("fsync", "fdatasync"):
        if file.startswith(name):
            yield Sync(file)
        elif Path(path) == database.parent:
            yield Sync("")
    elif file.startswith(name) and call == "pwrite64":
        yield Write(file, int(arguments.rsplit(",", 1)[1]), texts[0])
    elif file.startswith(name) and call == "ftruncate":
        yield Truncate(file, int(arguments.rsplit(",", 1)[1]))
