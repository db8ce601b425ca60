"""Where the detector stands as its host knows it: states, actions, and the one table of what leads where."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto

from firmware_iface.errors import OurMistake


class State(Enum):
    """Where the detector stands, as the host knows it."""

    DISCONNECTED = auto()
    IDLE = auto()
    ACQUIRING = auto()
    STOPPING = auto()
    ABORTING = auto()


class Action(Enum):
    """What may be asked of it, or happen to it."""

    CONNECT = auto()
    ASK = auto()
    CONFIGURE = auto()
    ACQUIRE = auto()
    TRIGGER = auto()
    STOP = auto()
    ABORT = auto()
    END_RUN = auto()
    CLOSE = auto()
    LOSE = auto()


_ALWAYS = (Action.CLOSE, Action.LOSE)
_RUNNING: Mapping[Action, State] = {
    Action.STOP: State.STOPPING,
    Action.ABORT: State.ABORTING,
    Action.END_RUN: State.IDLE,
    **dict.fromkeys(_ALWAYS, State.DISCONNECTED),
}
TRANSITIONS: Mapping[State, Mapping[Action, State]] = {
    State.DISCONNECTED: {
        Action.CONNECT: State.IDLE,
        Action.STOP: State.DISCONNECTED,  # nothing runs any more, which is what was wanted
        Action.ABORT: State.DISCONNECTED,
        **dict.fromkeys(_ALWAYS, State.DISCONNECTED),
    },
    State.IDLE: {
        Action.ASK: State.IDLE,
        Action.CONFIGURE: State.IDLE,
        Action.ACQUIRE: State.ACQUIRING,
        Action.STOP: State.IDLE,  # the run may have ended while the stop was on its way
        Action.ABORT: State.IDLE,
        **dict.fromkeys(_ALWAYS, State.DISCONNECTED),
    },
    State.ACQUIRING: {Action.ASK: State.ACQUIRING, Action.TRIGGER: State.ACQUIRING, **_RUNNING},
    State.STOPPING: {Action.ASK: State.STOPPING, **_RUNNING},
    State.ABORTING: {Action.ASK: State.ABORTING, **_RUNNING, Action.STOP: State.ABORTING},
}


def step(state: State, action: Action) -> State:
    """Return where an action leads.

    Raises
    ------
    OurMistake
        It leads nowhere.
    """
    allowed = TRANSITIONS[state]
    if action not in allowed:
        names = ", ".join(known.name for known in allowed)
        hint = "open the detector again" if state is State.DISCONNECTED else "wait for the run, or stop it"
        raise OurMistake(f"cannot {action.name} while {state.name}; allowed: {names}", hint=hint)
    return allowed[action]


def states_diagram() -> str:
    """Return the transitions as a Mermaid diagram; PROTOCOL.md holds the same text."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.DISCONNECTED.name}"]
    for state, actions in TRANSITIONS.items():
        for target in dict.fromkeys(actions.values()):
            names = ", ".join(action.name for action, to in actions.items() if to is target)
            lines.append(f"    {state.name} --> {target.name}: {names}")
    return "\n".join(lines)
