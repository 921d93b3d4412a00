"""A taskset whose model has a tool: a Python function behind the Model Context Protocol."""

import verifiers.v1 as vf

__all__ = ["ToolsTaskset"]


class Adder(vf.Toolset[vf.ToolsetConfig, vf.State]):
    TOOL_PREFIX = None

    @vf.tool
    def add(self, a: int, b: int) -> str:
        """Add two whole numbers."""
        return str(a + b) * (1 if a < 1000 else 3000)


class ToolsTask(vf.Task[vf.TaskData]):
    @classmethod
    def toolsets(cls, config):
        return [Adder(vf.ToolsetConfig())]

    @vf.reward
    async def right(self, trace: vf.Trace) -> float:
        return float("42" in (trace.last_message.content or ""))

    @vf.metric
    async def calls(self, trace: vf.Trace) -> float:
        return float(sum(message.role == "tool" for message in trace.messages))


class ToolsTaskset(vf.Taskset[ToolsTask, vf.TasksetConfig]):
    def load(self):
        yield ToolsTask(vf.TaskData(prompt="What is 19 + 23?"))


if __name__ == "__main__":
    Adder.run()
