"""Lists as one caller may see them: only what it may use, in the upstream's order, page by page.

Pure. Cursors are the upstream's and pass untouched: a page may come out short or empty, and the next one follows.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from controller.wire.calls import Use, template_sample

from .types import UpstreamError

__all__ = ["filter_list"]

# method -> (where the list is, what names an item, how policy sees that name)
_LISTS: Final[Mapping[str, tuple[str, str, Callable[[str], Use]]]] = {
    "tools/list": ("tools", "name", lambda name: Use("tool", name)),
    "prompts/list": ("prompts", "name", lambda name: Use("prompt", name)),
    "resources/list": ("resources", "uri", lambda uri: Use("resource", uri)),
    "resources/templates/list": (
        "resourceTemplates",
        "uriTemplate",
        lambda template: Use("resource", template_sample(template)),
    ),
}
# A result that has one of these is of revision 2026-07-28, where every list says who may share a cached copy.
_MODERN: Final = ("resultType", "cacheScope", "ttlMs")


def filter_list(method: str, result: Mapping[str, Any], may_use: Callable[[Use], bool]) -> Mapping[str, Any] | None:
    """The list with what `may_use` allows; None when the result can stay as it is.

    Raises UpstreamError when it is no list: what cannot be filtered is not shown.
    """
    key, name_key, use = _LISTS[method]
    items = result.get(key)
    if not isinstance(items, list):
        raise UpstreamError(f"the server's answer to {method} has no array {key!r}", reached=True)
    kept = [item for item in items if _is_named(item, name_key) and may_use(use(item[name_key]))]
    # What differs by caller must not be shared between callers, on any page (basic/utilities/caching, cacheScope).
    public = any(mark in result for mark in _MODERN) and result.get("cacheScope") != "private"
    if len(kept) == len(items) and not public:
        return None
    return {**result, key: kept, **({"cacheScope": "private"} if public else {})}


def _is_named(item: Any, name_key: str) -> bool:
    return isinstance(item, dict) and isinstance(item.get(name_key), str)
