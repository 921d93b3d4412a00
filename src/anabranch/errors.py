"""Errors a user can act on. Each one is also the builtin it stands for, so `except ValueError` still works.

    AnabranchError
    ├── RecipeError (ValueError)        a recipe asks for something that cannot work; raised before a model is loaded
    ├── DataError (ValueError)          a data file or data set is missing, malformed or empty
    ├── ModelError (ValueError)         a model cannot be found, or is not what is needed
    ├── GraphError (ValueError)         a stream graph breaks a rule of `anabranch.structure`
    ├── ShapeError (ValueError)         an array does not have the shape its name promises
    ├── EngineError (RuntimeError)      an engine cannot do what it was asked
    ├── WorldError (RuntimeError)       an environment cannot be opened, or fails in a rollout
    ├── ProbeError (RuntimeError)       a start-of-run probe found a run that could not learn
    ├── StarvationError (RuntimeError)  dynamic sampling found too few groups that teach
    ├── TrainingError (RuntimeError)    an optimizer step cannot be taken; the weights are as they were before it
    ├── CheckpointError (RuntimeError)  a checkpoint is missing, damaged or of another run
    └── RunFolderError (RuntimeError)   a run folder is in use, or holds another run

Every message carries the same four facts: where, what was found, what is needed, and the smallest fix.
The command line prints the message without a traceback; any other exception is a bug of ours and keeps its traceback.
"""

from __future__ import annotations


class AnabranchError(Exception):
    """Base of every error raised on purpose by this package."""


class RecipeError(AnabranchError, ValueError):
    """A recipe asks for something that cannot work. Raised before any model is loaded."""


class DataError(AnabranchError, ValueError):
    """A data file or data set is missing, malformed or empty."""


class ModelError(AnabranchError, ValueError):
    """A model cannot be found, or is not what is needed."""


class GraphError(AnabranchError, ValueError):
    """A stream graph breaks a rule of `anabranch.structure`."""


class ShapeError(AnabranchError, ValueError):
    """An array does not have the shape its name promises."""


class EngineError(AnabranchError, RuntimeError):
    """An engine cannot do what it was asked."""


class WorldError(AnabranchError, RuntimeError):
    """An environment cannot be opened, or fails in a rollout."""


class ProbeError(AnabranchError, RuntimeError):
    """A start-of-run probe found a run that could not learn."""


class StarvationError(AnabranchError, RuntimeError):
    """Dynamic sampling reached its cap, or the end of the problems, with too few groups whose rewards differ."""


class TrainingError(AnabranchError, RuntimeError):
    """An optimizer step cannot be taken. The weights are as they were before it."""


class CheckpointError(AnabranchError, RuntimeError):
    """A checkpoint is missing, damaged or of another run."""


class RunFolderError(AnabranchError, RuntimeError):
    """A run folder is in use, or holds another run."""


def explain(where: str, found: object, need: str, fix: str) -> str:
    """The text of an error: where, what was found, what is needed, and the smallest change that gets there.

    >>> print(explain("rollout.per_problem", 1, "baseline 'group_mean' needs at least 2", "rollout.per_problem=8"))
    rollout.per_problem: found 1, but baseline 'group_mean' needs at least 2
      fix: rollout.per_problem=8
    """
    return f"{where}: found {found if isinstance(found, str) else repr(found)}, but {need}\n  fix: {fix}"
