"""anabranch trains language models to reason with reinforcement learning from verifiable rewards.

Importing the package loads neither torch nor transformers; the modules that need them do.
"""

from importlib.metadata import version

__version__ = version("anabranch")
