"""Walks through a page of docs/: its commands, in order, in the terminals that it names, against what it shows.

A block ```console is a part of what stands in a terminal, the first one or that of its title. `$ ` begins a command,
other lines are shown by it: they come in that order, `…` is anything. The walk goes on once they have come; a terminal
has its next command when the one before has ended, with code 0 unless `echo $?` shows another. A block that begins
without a command goes on with what the terminal shows; `^C` interrupts. A block with a file's name for its title is
that file.
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Self

_BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
INTERRUPT = "^C"


@dataclass
class Block:
    """One block of a page: of a terminal, or a file."""

    language: str
    title: str
    text: str


def blocks(page: str, *headings: str) -> list[Block]:
    """Those of a page's sections in its order; of the text above the first heading where none is named."""
    sections = {part.partition("\n")[0]: part for part in re.split(r"^## ", page, flags=re.MULTILINE)}
    wanted = [sections[heading] for heading in headings] if headings else [page.partition("\n## ")[0]]
    return [Block(*found) for text in wanted for found in _BLOCK.findall(text)]


@dataclass
class Terminal:
    """A shell's folder, environment and last exit code, and the command that runs in it."""

    folder: Path
    state: Path
    environment: dict[str, str]
    code: int = 0
    command: str = ""
    process: subprocess.Popen[bytes] | None = None
    log: Path = field(default_factory=Path)
    seen: int = 0

    def begin(self, command: str, log: Path) -> None:
        """Start a command once the one before has ended."""
        self.wait(may_fail=command == "echo $?")
        script = f"[ -e {self.state} ] && . {self.state}\n(exit {self.code})\n{command}\n"
        script += f'code=$?; {{ declare -px; echo "cd $PWD"; }} > {self.state}; exit $code'
        self.command, self.log, self.seen = command, log, 0
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                ["bash", "-c", script],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                # What is started in the background, as by nohup, ignores interrupts, and so would all that it starts.
                preexec_fn=partial(signal.signal, signal.SIGINT, signal.default_int_handler),
            )

    def show(self, line: str, deadline: float) -> None:
        """Wait until the command shows a line, after those that it has been seen to show."""
        pattern = re.compile(r".*?".join(re.escape(part.strip()) for part in line.split("…")))
        while True:
            assert self.process is not None, f"nothing runs that could show: {line}"
            has_ended = self.process.poll() is not None
            lines = self.log.read_text(errors="replace").splitlines()
            for number in range(self.seen, len(lines)):
                if pattern.search(lines[number]):
                    self.seen = number + 1
                    return
            assert not has_ended, f"{self.command}: does not show {line!r} after line {self.seen} of\n{self.end()}"
            assert time.monotonic() < deadline, f"{self.command}: has not shown {line!r} in time\n{self.end()}"
            time.sleep(0.1)

    def interrupt(self) -> None:
        """Ctrl-C; whatever code the command then ends with is as good as another."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGINT)
        self.process.wait(60)
        self.process = None

    def wait(self, seconds: float = 900, *, may_fail: bool = False) -> None:
        """Wait for the command's end."""
        if self.process is None:
            return
        self.code = self.process.wait(seconds)
        self.process = None
        assert self.code == 0 or may_fail, f"{self.command}: exit code {self.code}\n{self.end()}"

    def kill(self) -> None:
        """End what still runs; the children of a launcher end with it."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def end(self) -> str:
        """The last lines that the command has written."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-40:])


class Walk:
    """A folder, and the terminals that are open in it."""

    def __init__(self, folder: Path, environment: dict[str, str], replaced: dict[str, str]) -> None:
        self.folder, self.environment, self.replaced = folder, environment, replaced
        self.terminals: dict[str, Terminal] = {}
        self.logs, self.commands = folder.parent / f"{folder.name}-terminals", 0
        folder.mkdir()
        self.logs.mkdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for terminal in self.terminals.values():
            terminal.kill()

    def go(self, steps: list[Block], seconds: float) -> None:
        """Do what blocks show; raises AssertionError where it comes otherwise, or not within the seconds."""
        deadline = time.monotonic() + seconds
        for block in steps:
            text = block.text
            for old, new in self.replaced.items():
                text = text.replace(old, new)
            if block.language == "console":
                for line in text.splitlines():
                    self._step(self._terminal(block.title), line, deadline)
            else:
                (self.folder / block.title).write_text(text)
        for terminal in self.terminals.values():
            terminal.wait(max(1.0, deadline - time.monotonic()))

    def _step(self, terminal: Terminal, line: str, deadline: float) -> None:
        if line.startswith("$ "):
            self.commands += 1
            terminal.begin(line.removeprefix("$ "), self.logs / f"{self.commands}.log")
        elif line == INTERRUPT:
            terminal.interrupt()
        else:
            terminal.show(line, deadline)

    def _terminal(self, title: str) -> Terminal:
        if title not in self.terminals:
            state = self.logs / f"state-{title or 'first'}"
            self.terminals[title] = Terminal(self.folder, state, self.environment)
        return self.terminals[title]


def commands(steps: list[Block]) -> Iterator[str]:
    """Of blocks, in their order."""
    for block in steps:
        if block.language == "console":
            yield from (line[2:] for line in block.text.splitlines() if line.startswith("$ "))
