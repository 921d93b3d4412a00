"""A taskset of sums with one turn each, and of sums that do not end well. Rewards: right, and brief (weight 0.5)."""

import asyncio
import os
import time

import verifiers.v1 as vf

__all__ = ["SumsTaskset"]


class SumsConfig(vf.TasksetConfig):
    size: int = 3
    faults: tuple[str, ...] = ()
    """One more task each: `setup raises`, `reward raises`, `reward hangs`, `reward blocks`, `reward ends the process`,
    `reward is nan`."""
    system: str | None = None


class SumData(vf.TaskData):
    total: int
    fault: str = ""


class SumTask(vf.Task[SumData]):
    async def setup(self, trace, runtime) -> None:
        if self.data.fault == "setup raises":
            raise KeyError("no such row")

    @vf.reward
    async def right(self, trace: vf.Trace) -> float:
        match self.data.fault:
            case "reward raises":
                raise ValueError("cannot judge this")
            case "reward hangs":
                await asyncio.sleep(1000)
            case "reward blocks":
                time.sleep(1000)
            case "reward ends the process":
                print("the end", flush=True)
                os._exit(7)
            case "reward is nan":
                return float("nan")
        words = (trace.last_message.content or "").split()
        return float(words[-1:] == [str(self.data.total)])

    @vf.reward(weight=0.5)
    async def brief(self, trace: vf.Trace) -> float:
        return float(trace.last_message.content == str(self.data.total))


class SumsTaskset(vf.Taskset[SumTask, SumsConfig]):
    def load(self):
        system = self.config.system
        for a in range(self.config.size):
            yield SumTask(SumData(prompt=f"{a} + 2 = ?", system_prompt=system, total=a + 2), self.config.task)
        for fault in self.config.faults:
            yield SumTask(SumData(prompt=f"1 + 1 = ? ({fault})", total=2, fault=fault), self.config.task)
