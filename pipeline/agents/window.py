"""Checks, before anything starts, that every conversation of an agent fits the window."""

from collections.abc import Sequence

from pipeline.agents import LongestPrompt
from pipeline.errors import ConfigError
from pipeline.sections import GenerationConfig


def check_window(config: GenerationConfig, longest: Sequence[LongestPrompt], positions: int | None) -> None:
    """Check that prompts, with the template's text, and responses fit the window, and the window fits the model.

    Args:
        config: the configuration.
        longest: the `longest_prompts` of all agents that the job uses.
        positions: the model's maximum number of positions; None if its config has none.

    Raises:
        ConfigError: a conversation would not fit, or the window is larger than the model allows.
    """
    a, wrong = config.agent, []
    for prompt, tokens, response, lower, slots in longest:
        over = tokens + response - a.window
        if over > 0:
            filled = "".join(f"{slot} {most} + " for slot, most in slots)
            filled = filled and f" ({filled}the text between)"
            wrong.append(
                f"agent.window={a.window} cannot hold the longest conversation: with the prompt {prompt} of "
                f"agent.prompt_template={a.prompt_template}{filled} and a response "
                f"of {response} it has {a.window + over} tokens; lower {lower} by {over} or raise agent.window"
            )
    if wrong:
        raise ConfigError("\n".join(wrong))
    if positions is not None and a.window > positions:
        raise ConfigError(f"agent.window={a.window} is over the model's {positions} positions ({config.model.path})")
