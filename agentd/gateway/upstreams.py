"""Which kind of upstream a service has, made ready."""

from controller.wire.mcp import HttpUpstream, Service

from .http.pool import HttpUpstream as HttpPool
from .stdio import StdioPool
from .types import Upstream

__all__ = ["connect"]


def connect(service: Service) -> Upstream:
    """The service's upstream; nothing is sent or started yet."""
    if isinstance(service.upstream, HttpUpstream):
        return HttpPool(service.upstream.url)
    return StdioPool(service.name, service.upstream)
