"""Checkers that misbehave in every way there is. A module of its own: workers import it by name."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from anabranch.records import Problem, Reason, Verdict
from anabranch.tasks.base import Checker


@dataclass(frozen=True)
class Obedient(Checker):
    """Does what the text says; anything else is correct."""

    def __call__(self, problem: Problem, text: str) -> Verdict:
        word, _, rest = text.partition(" ")
        match word:
            case "sleep":
                time.sleep(float(rest))
            case "hang":
                while True:
                    with contextlib.suppress(BaseException):  # like the bare excepts of some scorers
                        time.sleep(1)
            case "c-hang":
                _ = 10 ** (10**9) % 7  # one bytecode: no signal handler of Python gets a turn
            case "exit":
                os._exit(3)
            case "abort":
                os.abort()
            case "raise":
                raise RuntimeError(rest)
            case "recurse":
                return self(problem, text)
            case "memory":
                _ = bytearray(8 * 2**30)
            case "write":
                Path(rest).write_text("x")
            case "os-write":
                os.open(rest, os.O_WRONLY | os.O_CREAT)
            case "remove":
                Path(rest).unlink()
            case "connect":
                socket.create_connection(("127.0.0.1", 9))
            case "popen":
                subprocess.run(["true"], check=False)
            case "system":
                os.system("true")
            case "fork":
                os.fork()
            case "print":
                print("noise on standard output")
            case "modules":
                return Verdict(1.0, Reason.CORRECT, detail=",".join(sorted(sys.modules)))
        return Verdict(1.0, Reason.CORRECT, text)
