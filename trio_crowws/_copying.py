"""How an exception is copied and pickled: as the arguments that it shows and its attributes, without its constructor.

Python copies an exception by calling its class with `args`. That fails for a class whose constructor takes something
else, and an error that cannot leave a worker process hangs or breaks the pool that it was raised in.
"""

from __future__ import annotations

import pickle
from typing import Any

__all__ = ["rebuild", "reduce_error", "survives"]


def reduce_error(error: BaseException) -> tuple[Any, ...]:
    """What `error.__reduce__` returns. The cause, the context and the traceback stay behind, as Python has it."""
    state = dict(error.__dict__)
    if isinstance(error, OSError):  # whose attributes have a place of their own, and change its text if they are set
        places = {name: getattr(error, name) for name in ("errno", "strerror")}
        state.update({name: value for name, value in places.items() if value is not None})
    return rebuild, (type(error), error.args), state


def survives(error: Exception) -> bool:
    """Whether an exception of the application's can be pickled and comes back as one."""
    try:
        return isinstance(pickle.loads(pickle.dumps(error)), Exception)
    except Exception:  # a constructor of its own, or an attribute that belongs to this process, as a lock
        return False


def rebuild(kind: type[BaseException], args: tuple[Any, ...]) -> BaseException:
    """An exception of `kind` with these `args`, before its attributes are set."""
    error = kind.__new__(kind, *args)
    error.args = args
    return error
