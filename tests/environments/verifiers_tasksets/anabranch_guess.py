"""A game of several turns, driven by the environment as the model's user: find a number, told whether it is higher."""

import verifiers.v1 as vf

__all__ = ["GuessEnv", "GuessTaskset"]


class GuessData(vf.TaskData):
    number: int


class GuessTask(vf.Task[GuessData]):
    pass


class GuessTaskset(vf.Taskset[GuessTask, vf.TasksetConfig]):
    INFINITE = True

    def load(self):
        number = 1
        while True:
            number = number * 5 % 23
            yield GuessTask(GuessData(prompt="Guess my number, 1 to 22.", name=f"#{number}", number=number))


class GuessEnvConfig(vf.EnvConfig):
    player: vf.AgentConfig = vf.AgentConfig()
    second_try: bool = False
    """Whether a game that was not found is played again, in a new conversation."""


class GuessEnv(vf.Env[GuessEnvConfig]):
    async def run(self, task, agents):
        """Found is worth 1, not found -1."""
        found = False
        for _ in range(1 + self.config.second_try):
            async with agents.player.interaction(task) as interaction:
                segment = await interaction.turn()
                while not segment.terminated and not found:
                    guess = int(segment.last_reply) if segment.last_reply.isdigit() else 99  # raises for "²"
                    found = guess == task.data.number
                    if not found:
                        segment = await interaction.turn(
                            f"{guess}? It is {'higher' if guess < task.data.number else 'lower'}."
                        )
            interaction.trace.record_reward("found", 1.0 if found else -1.0)
            if found:
                break
