"""The process in which environments of the `verifiers` package run: `python -m anabranch.environments.verifiers_host`.

Their code may seed global generators, block, or end the process; none of it happens where a model is trained. One JSON
object a line comes in, `{"id", "op", ...}`, and one goes out for each, `{"id", "ok": ...}` or `{"id", "error": TEXT}`:

    open    settings, tools (null: found out with the first task)     -> tools
    begin   rollout, taskset, task, question                          -> null
    step    rollout, text                                             -> {"said": [[ROLE, TEXT], ...]} or {"reward"}
    end     rollout                                                   -> null
    stop                                                              -> null, and the process ends

The environments' model is a server on the loopback interface that speaks OpenAI's chat completions: this is all that
they know of it, whatever program plays the agent.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from typing import Any, TextIO

from aiohttp import web
from verifiers import v1 as vf

from anabranch.environments import verifiers_chat
from anabranch.environments.verifiers_conversation import Conversation, RefusedError, shortened, total
from anabranch.errors import AnabranchError, WorldError, explain
from anabranch.tasks.verifiers_env import question

MODEL = "anabranch"
SESSION = "X-Session-ID"
"""Header with the id of the conversation (the package's `Trace.id`)."""
ENDLESS = 1e9
"""Seconds. The package's clock for an agent runs while the model waits to be drawn, so it must not decide."""
GIVEN_UP = "the rollout was given up"
OURS = ("model", "client", "sampling", "retries", "max_turns", "max_input_tokens", "max_output_tokens")
"""Settings of an agent that the recipe has, or that make no sense in a rollout."""


class Endpoint:
    """The model, as environments see it."""

    def __init__(self) -> None:
        self.conversations: dict[str, Conversation] = {}
        """By session."""

    async def start(self, stack: AsyncExitStack) -> str:
        """Listen; returns the address."""
        app = web.Application(client_max_size=2**30)
        app.router.add_post("/v1/chat/completions", self._complete)
        runner = web.AppRunner(app)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, "127.0.0.1", 0, shutdown_timeout=1)
        await site.start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}/v1"

    async def _complete(self, request: web.Request) -> web.Response:
        session, body = request.headers.get(SESSION, ""), await request.json()
        conversation = self.conversations.get(session)
        if conversation is None:
            return web.json_response({"error": {"message": "no such rollout"}}, status=404)
        try:
            message = await conversation.ask(session, body)
        except RefusedError as error:
            return web.json_response({"error": {"message": str(error)}}, status=400)
        end = "tool_calls" if message.get("tool_calls") else "stop"
        head = {"id": session, "created": 0, "model": MODEL}
        if body.get("stream"):
            delta = dict(message)
            if "tool_calls" in delta:
                delta["tool_calls"] = [{"index": i, **call} for i, call in enumerate(delta["tool_calls"])]
            chunk = head | {"object": "chat.completion.chunk"}
            events = (
                {"index": 0, "delta": delta, "finish_reason": None},
                {"index": 0, "delta": {}, "finish_reason": end},
            )
            lines = [f"data: {json.dumps(chunk | {'choices': [event]})}\n\n" for event in events]
            return web.Response(text="".join([*lines, "data: [DONE]\n\n"]), content_type="text/event-stream")
        choice = {"index": 0, "message": message, "finish_reason": end}
        return web.json_response(head | {"object": "chat.completion", "choices": [choice]})


class Host:
    """One environment, and the rollouts in it."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._endpoint = Endpoint()
        self._opened: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        self._rollouts: dict[int, tuple[Conversation, asyncio.Task[None]]] = {}
        self._ended: set[int] = set()
        self._ending: set[asyncio.Task[None]] = set()

    async def open(self, settings: Mapping[str, Any], tools: list[str] | None) -> list[str]:
        """Load the environment, and find out with its first task which tools the model is told about."""
        try:
            self._settings = settings
            self._env, self._role = load(settings)
            self._client = vf.EvalClientConfig(
                base_url=await self._endpoint.start(self._stack), api_key_var="ANABRANCH_NO_KEY"
            )
            await self._stack.enter_async_context(self._env.serving())
            found = await self._probe() if tools is None else tools
        except Exception as error:
            self._opened.set_exception(WorldError(str(error)))
            self._opened.exception()  # it is reported as the answer to this; rollouts that wait see it too
            raise
        self._opened.set_result(found)
        return found

    async def _probe(self) -> list[str]:
        """Begin the first task, and give it up."""
        first = next(iter(self._env.taskset), None)
        if first is None:
            need = "there is a task to begin with"
            raise WorldError(explain("environment.options.taskset", "no task", need, "see its settings"))
        row = first.data.model_dump(mode="json")
        tools = await self._begun(-1, row, question(self._env.config.taskset.id, row))
        await self.end(-1)
        return list(tools)

    async def begin(self, rollout: int, taskset: str, task: Mapping[str, Any], question: str) -> None:
        """Start a rollout, up to the point where the model is asked."""
        known = await asyncio.shield(self._opened)
        if rollout in self._ended:
            raise WorldError(GIVEN_UP)
        name = self._env.config.taskset.id
        if vf.import_taskset(taskset) is not vf.import_taskset(name):
            need, fix = f"the environment is of taskset '{name}'", f"data={{kind: verifiers, taskset: {name}}}"
            raise WorldError(explain("environment.options.taskset.id", f"a problem of '{taskset}'", need, fix))
        tools = await self._begun(rollout, task, question)
        if list(tools) != known:
            await self.end(rollout)
            need = "the prompt describes those of its first task"
            raise WorldError(explain("environment", "a task with tools of its own", need, "choose another taskset"))

    async def _begun(self, rollout: int, row: Mapping[str, Any], asked: str) -> tuple[str, ...]:
        task_type = type(self._env.taskset).task_type()
        task = task_type(task_type.data_type().model_validate(row), self._env.taskset.config.task)
        conversation = Conversation()
        playing = asyncio.create_task(self._play(task, conversation))
        self._rollouts[rollout] = conversation, playing
        return await conversation.begin(asked)

    async def step(self, rollout: int, text: str) -> dict[str, Any]:
        """Give a turn; what the environment says to it."""
        found = await self._rollouts[rollout][0].step(text)
        if isinstance(found, float):
            return {"reward": found}
        limit = self._settings["output_chars"]
        return {"said": [[said.role, shortened(said.content, limit)] for said in found]}

    async def end(self, rollout: int) -> None:
        """Give up what is left of a rollout; that it tidies up is not waited for."""
        self._ended.add(rollout)
        if rollout not in self._rollouts:
            return
        conversation, playing = self._rollouts.pop(rollout)
        conversation.fail(WorldError(GIVEN_UP))
        playing.cancel()
        self._ending.add(playing)
        playing.add_done_callback(self._ending.discard)
        sessions = self._endpoint.conversations
        for session in [session for session, held in sessions.items() if held is conversation]:
            del sessions[session]

    async def stop(self) -> None:
        """End everything."""
        for rollout in list(self._rollouts):
            await self.end(rollout)
        await asyncio.gather(*self._ending, return_exceptions=True)
        await self._stack.aclose()

    async def _play(self, task: Any, conversation: Conversation) -> None:
        """One episode of the environment."""

        def minted(trace: Any) -> None:
            if trace.agent.name == self._role:
                self._endpoint.conversations[trace.id] = conversation

        ctx = vf.ModelContext(model=MODEL, client=self._client)
        try:
            episode = await self._env.run_episode(task, ctx, on_trace=minted)
            conversation.finish(self._reward(episode))
        except WorldError as error:
            conversation.fail(error)
        except Exception as error:  # noqa: BLE001 - boundary: the environment's code, which may raise anything
            conversation.fail(_raised(f"{type(error).__name__}: {error}"))

    def _reward(self, episode: Any) -> float:
        traces = [trace for trace in episode.traces if trace.agent.name == self._role]
        errors = [*episode.errors, *(error for trace in episode.traces for error in trace.errors)]
        if not episode.ok:
            raise _raised(f"{errors[-1].type}: {errors[-1].message}" if errors else "an episode that did not complete")
        if len(traces) != 1:
            raise _raised(f"{len(traces)} conversations of agent '{self._role}'")
        rewards = {name: None if part is None else part.value for name, part in traces[0].rewards.items()}
        return total(rewards, self._settings["lowest"], self._settings["highest"])


def _raised(found: str) -> WorldError:
    return WorldError(explain("environment", found, "an environment ends with a reward", "see its documentation"))


def load(settings: Mapping[str, Any]) -> tuple[Any, str]:
    """The package's environment, and which of its agents the model plays.

    Args:
        settings: `anabranch.recipe.environment.Verifiers` as plain JSON.

    Raises:
        WorldError: it is not installed, is told something that it does not know, or has no agent that fits.
    """
    raw = dict(settings["options"])
    name = raw["taskset"]["id"]
    where = f"environment.options.taskset.id={name}"
    try:
        kind = vf.env_config_type(name, raw.get("id", ""))
        role = _role(kind, raw, settings["role"])
        raw[role] = _agent(kind, name, raw.get(role, {}), role) | {"max_turns": settings["turns"]}
        return vf.load_environment(kind.model_validate(raw)), role
    except ModuleNotFoundError as error:
        fix = f"install the package that has the module {name.replace('-', '_').lower()!r}"
        raise WorldError(explain(where, str(error), "an environment is an installed package", fix)) from error
    except (AttributeError, TypeError) as error:
        raise WorldError(explain(where, str(error), "a taskset is needed", "name another package")) from error
    except ValueError as error:
        if isinstance(error, AnabranchError):
            raise
        fix = "see the documentation of the environment"
        raise WorldError(explain("environment.options", str(error), "the environment has its own", fix)) from error


def _role(kind: Any, raw: Mapping[str, Any], wanted: str) -> str:
    """Which agent is the model. The others need a model of their own: one rollout is one conversation."""
    agents = {
        name: field.default for name, field in kind.model_fields.items() if isinstance(field.default, vf.AgentConfig)
    }
    if wanted not in agents and (wanted or len(agents) != 1):
        found, need = wanted or f"agents {', '.join(agents)}", "the model plays one of them"
        fix = f"environment.role={next(iter(agents))}"
        raise WorldError(explain("environment.role", found, f"{need}: {', '.join(agents)}", fix))
    role = wanted or next(iter(agents))
    for name, default in agents.items():
        if name != role and default.client is None and "client" not in raw.get(name, {}):
            need = f"only '{role}' is played by the model, and a rollout is one conversation"
            fix = f"environment.options.{name}={{model: NAME, client: {{base_url: URL, api_key_var: NAME}}}}"
            raise WorldError(explain(f"environment.options.{name}", "no client", need, fix))
    return role


def _agent(kind: Any, taskset: str, raw: Mapping[str, Any], role: str) -> dict[str, Any]:
    """The settings of the agent that the model plays: as they are, with what is left open in this process."""
    for name in (*OURS, "max_total_tokens"):
        if name in raw:
            need = "the recipe says how the model is drawn, and how long (rollout, environment.turns)"
            where = f"environment.options.{role}.{name}"
            raise WorldError(explain(where, raw[name], need, f"leave {name} out"))
    agent, default = dict(raw), kind.model_fields[role].default
    if default.harness is None and vf.default_harness_id(taskset) == "bash":
        agent.setdefault("harness", {"id": verifiers_chat.register()})
    if default.runtime == vf.PrimeConfig():
        agent.setdefault("runtime", {"type": "subprocess"})
    agent["timeout"] = {"rollout": ENDLESS} | agent.get("timeout", {})
    return agent


# ---------------------------------------------------------------------------------------------------------- the process


async def _serve(source: TextIO, answer: Callable[[dict[str, Any]], None]) -> None:
    """Answer lines until `stop`, or until the other side is gone."""
    host, loop, stopped = Host(), asyncio.get_running_loop(), asyncio.Event()
    at_work: set[asyncio.Task[None]] = set()

    async def handle(line: str) -> None:
        ask = json.loads(line)
        number = ask["id"]
        try:
            answer({"id": number, "ok": await _done(host, ask)})
        except AnabranchError as error:
            answer({"id": number, "error": str(error)})
        except Exception as error:  # noqa: BLE001 - boundary: the environment's code, which may raise anything
            answer({"id": number, "error": str(_raised(f"{type(error).__name__}: {error}"))})

    def received(line: str) -> None:
        if json.loads(line)["op"] == "stop":
            stopped.set()
            return
        task = loop.create_task(handle(line))
        at_work.add(task)
        task.add_done_callback(at_work.discard)

    def read() -> None:
        for line in source:
            loop.call_soon_threadsafe(received, line)
        os._exit(0)  # nobody is left to answer; environments may block, so no tidying up

    threading.Thread(target=read, daemon=True).start()
    await stopped.wait()
    with suppress(Exception):  # the process ends in any case
        await host.stop()


async def _done(host: Host, ask: Mapping[str, Any]) -> Any:
    """The result of an operation."""
    match ask["op"]:
        case "open":
            return await host.open(ask["settings"], ask["tools"])
        case "begin":
            return await host.begin(ask["rollout"], ask["taskset"], ask["task"], ask["question"])
        case "step":
            return await host.step(ask["rollout"], ask["text"])
        case "end":
            return await host.end(ask["rollout"])
        case op:
            raise AssertionError(op)


def main() -> None:
    """Serve on what were standard input and output; whatever else is printed goes to standard error."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(found: dict[str, Any]) -> None:
        out.write(json.dumps(found) + "\n")

    asyncio.run(_serve(sys.stdin, answer))
    out.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
