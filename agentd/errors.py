"""Errors that end an agentd command: one clear sentence each, with the remedy. They are printed without a traceback."""

__all__ = ["AgentError", "ConfigError", "ControllerError", "StateError"]


class AgentError(Exception):
    """What went wrong, with which value, and what to do. The command exits with 1."""


class ConfigError(AgentError):
    """The configuration file cannot be used; names the file, the key and the remedy."""


class StateError(AgentError):
    """The state directory cannot be used; nothing in it was changed half-way."""


class ControllerError(AgentError):
    """The controller could not be reached, did not make sense, or refused.

    `final` means that asking again with the same input gives the same answer; `kind` is the problem's stable type
    (RFC 9457), empty when there was none.
    """

    def __init__(self, message: str, *, final: bool = False, kind: str = "") -> None:
        super().__init__(message)
        self.final = final
        self.kind = kind
