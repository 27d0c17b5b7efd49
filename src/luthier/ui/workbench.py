"""The process that reads data, plans and chooses for the page: it loads torch, which the page's server does not.

Calls and answers are lines of JSON: {"id", "call", "given"} on standard input, then {"id", "stage"} any number of
times, and {"id", "result"} or {"id", "error"} on standard output. One call is done at a time; a call that nobody waits
for any more ends with the process, and the next call starts another.
"""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from luthier.core.errors import InputError, LuthierError
from luthier.core.events import Progress
from luthier.core.strict_json import to_json

LONGEST = 2**26
"""Bytes of an answer."""
IDLE = 600.0
"""Seconds without a call after which the process ends: it holds torch and the data that was read last."""


class CallFailed(InputError):
    """The call ended with an error that the user can fix."""


class Workbench:
    """The server's side: one process at most, started when it is needed."""

    def __init__(self) -> None:
        self.process: asyncio.subprocess.Process | None = None
        self.lock = asyncio.Lock()
        self.number = 0
        self.stage = ""
        """What the call at work is doing."""
        self.idle: asyncio.TimerHandle | None = None

    async def call(self, name: str, given: dict[str, Any]) -> Any:
        """The result of a call; CallFailed with its message. Cancelling it ends the process."""
        async with self.lock:
            if self.idle:
                self.idle.cancel()
            process = await self._started()
            assert process.stdin and process.stdout
            self.number += 1
            self.stage = ""
            try:
                line = to_json({"id": self.number, "call": name, "given": given}, ensure_ascii=False)
                process.stdin.write(line.encode() + b"\n")
                await process.stdin.drain()
                while text := await process.stdout.readline():
                    found = json.loads(text)
                    if found["id"] != self.number:
                        continue
                    if "stage" in found:
                        self.stage = found["stage"]
                    elif "error" in found:
                        raise CallFailed(found["error"]["message"], fix=found["error"]["fix"])
                    else:
                        return found["result"]
            except (asyncio.CancelledError, ConnectionError, ValueError):
                self.end()
                raise
            finally:
                self.stage = ""
                self.idle = asyncio.get_running_loop().call_later(IDLE, self.end)
            self.end()
            raise CallFailed("the process that reads data has ended; out of memory?", fix="try again, with data.limit")

    async def _started(self) -> asyncio.subprocess.Process:
        if self.process is None or self.process.returncode is not None:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", __name__),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                limit=LONGEST,
                start_new_session=True,  # ctrl-C is for the server, which ends it
            )
        return self.process

    def end(self) -> None:
        """End the process."""
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
        self.process = None


class _Told(Progress):
    """Reports to the server what is being done."""

    def __init__(self, tell: Callable[[str], object]) -> None:
        self.tell, self.said_last = tell, ""

    def stage(self, text: str) -> None:
        self.said_last = text
        self.tell(text)

    def rows(self, done: int, total: int | None) -> None:
        if done % 10_000 == 0:
            self.tell(f"{self.said_last}: {done:,} rows")


def answer_calls() -> None:
    """Answer calls until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    from luthier.core.quiet import set_environment
    from luthier.ui.calls import CALLS

    set_environment()

    def answer(number: int, **found: Any) -> None:
        answers.write(to_json({"id": number, **found}, ensure_ascii=False) + "\n")
        answers.flush()

    for line in sys.stdin:
        asked = json.loads(line)
        number = asked["id"]
        try:
            progress = _Told(lambda text, number=number: answer(number, stage=text))  # type: ignore[misc]
            answer(number, result=CALLS[asked["call"]](asked["given"], progress))
        except LuthierError as error:
            answer(number, error={"message": error.message, "fix": error.fix})
        except Exception as error:
            answer(number, error={"message": f"{type(error).__name__}: {error}", "fix": ""})


if __name__ == "__main__":
    answer_calls()
