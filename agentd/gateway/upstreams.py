"""Which kind of upstream a service has, made ready."""

from controller.wire.mcp import HttpUpstream, Service

from ..errors import AgentError
from .http.pool import HttpUpstream as HttpPool
from .types import Upstream

__all__ = ["connect"]


def connect(service: Service) -> Upstream:
    """The service's upstream; nothing is sent yet. Raises AgentError."""
    if isinstance(service.upstream, HttpUpstream):
        return HttpPool(service.upstream.url)
    raise AgentError("this gateway cannot spawn a command as upstream: give the service an HTTP upstream")
