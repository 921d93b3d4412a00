"""The program that plays an agent of the `verifiers` package here: a chat loop with the task's tools, in this process.

The package's own programs each start a process, and some install themselves from a package index. Loaded only in the
process of `anabranch.environments.verifiers_host`.
"""

from __future__ import annotations

import json
import sys
from contextlib import AsyncExitStack
from typing import Any

import httpx
from verifiers import v1 as vf
from verifiers.v1.dialects.chat import message_to_wire
from verifiers.v1.harnesses.utils.mcp import call_mcp, connect_mcp

__all__ = ["ChatHarness"]

NAME = "anabranch_chat"


def register() -> str:
    """Make the loop known to the package, which imports programs by the name of a top-level module; that name."""
    sys.modules[NAME] = sys.modules[__name__]
    return NAME


class ChatHarnessConfig(vf.HarnessConfig):  # type: ignore[misc]  # the package has no types here
    """As the package's."""


class ChatHarness(vf.Harness[ChatHarnessConfig]):  # type: ignore[misc]  # as above
    """Asks the model, runs the tools that it calls, and asks again until a turn calls none."""

    APPENDS_SYSTEM_PROMPT = True
    SUPPORTS_MCP = True
    SUPPORTS_RESUME = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(
        self,
        ctx: vf.ModelContext,
        trace: vf.Trace,
        runtime: vf.Runtime,
        endpoint: str,
        secret: str,
        mcp_urls: dict[str, str],
        data: vf.TaskData,
    ) -> vf.ProgramResult:
        """One segment of a conversation, see the package."""
        system, prompt = self.resolve_prompt(data)
        messages: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
        if isinstance(prompt, str):
            messages.append({"role": "user", "content": prompt})
        else:
            messages += [message_to_wire(message) for message in prompt or ()]
        servers = {name: {"url": url, "timeout": self.config.tool_timeout} for name, url in mcp_urls.items()}
        async with AsyncExitStack() as stack:
            tools, where, connections = await connect_mcp({"mcpServers": servers}, stack)
            client = await stack.enter_async_context(httpx.AsyncClient(timeout=None))
            while True:
                response = await client.post(
                    f"{endpoint}/chat/completions",
                    headers={"Authorization": f"Bearer {secret}"},
                    json={"model": ctx.model, "messages": messages, **({"tools": tools} if tools else {})},
                )
                if response.is_error:  # also how a limit or a stop of the task ends a conversation
                    return vf.ProgramResult(int(trace.stop_condition is None), "", response.text)
                reply = response.json()["choices"][0]["message"]
                messages.append(reply)
                if not reply.get("tool_calls"):
                    return vf.ProgramResult(0, "", "")
                for call in reply["tool_calls"]:
                    name, arguments = call["function"]["name"], json.loads(call["function"]["arguments"])
                    known = name in where
                    content = await call_mcp(connections, where, name, arguments) if known else f"no tool {name!r}"
                    messages.append({"role": "tool", "tool_call_id": call["id"], "name": name, "content": content})
