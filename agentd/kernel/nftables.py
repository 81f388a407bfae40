"""libnftables, the library that the `nft` command is a shell of: runs a transaction in this process.

A process per transaction costs many times what the transaction does, and a revocation waits for it. Knows text and
errors, no table of ours.
"""

import ctypes
from typing import Any, Final

from agentd.model import KernelError

__all__ = ["Nftables"]

_LIBRARY: Final = "libnftables.so.1"
# struct nft_ctx's flags (nftables/libnftables.h)
_NFT_CTX_DEFAULT: Final = 0
_OUTPUT_HANDLE: Final = 1 << 3
_OUTPUT_JSON: Final = 1 << 4
_OUTPUT_NUMERIC_PRIO: Final = 1 << 8
_OUTPUT_TERSE: Final = 1 << 11  # without the elements of sets, which may be many
_LISTING: Final = _OUTPUT_HANDLE | _OUTPUT_NUMERIC_PRIO | _OUTPUT_TERSE


class Nftables:
    """One context, with a netlink socket in the network namespace of the thread that constructs it."""

    def __init__(self) -> None:
        """Raises KernelError when the library is not there."""
        try:
            self._library = _load()
        except OSError as error:
            raise KernelError(f"{_LIBRARY} is not installed: install the package nftables") from error
        self._context: Any = self._library.nft_ctx_new(_NFT_CTX_DEFAULT)
        if not self._context:
            raise KernelError("libnftables gave no context: the host is out of memory or of file descriptors")
        self._library.nft_ctx_buffer_error(self._context)
        self._library.nft_ctx_buffer_output(self._context)

    def run(self, text: str) -> str | None:
        """Commit `text` as one transaction. Returns None, or what libnftables says is wrong; then nothing is changed.

        It blocks, without the interpreter's lock: run what is large on a thread.
        """
        if self._library.nft_run_cmd_from_buffer(self._context, text.encode()) == 0:
            return None
        said: bytes = self._library.nft_ctx_get_error_buffer(self._context) or b""
        return said.decode(errors="replace").strip() or "libnftables gave no reason"

    def list_ruleset(self, *, json: bool) -> str:
        """All tables of the network namespace, without the elements of named sets. Raises KernelError.

        As JSON, or as nft's own text, which alone has what `iptables-nft` wrote in nft's words.
        """
        self._library.nft_ctx_output_set_flags(self._context, _LISTING | (_OUTPUT_JSON if json else 0))
        try:
            message = self.run("list ruleset")
        finally:
            self._library.nft_ctx_output_set_flags(self._context, 0)
        if message is not None:
            raise KernelError(f"nft could not list the ruleset: {message}; reading it needs CAP_NET_ADMIN")
        listed: bytes = self._library.nft_ctx_get_output_buffer(self._context) or b""
        return listed.decode(errors="replace")

    def close(self) -> None:
        """Free it; idempotent."""
        if self._context:
            self._library.nft_ctx_free(self._context)
            self._context = None


def _load() -> ctypes.CDLL:
    library = ctypes.CDLL(_LIBRARY)
    context = ctypes.c_void_p
    for name, arguments, result in (
        ("nft_ctx_new", [ctypes.c_uint32], context),
        ("nft_ctx_free", [context], None),
        ("nft_ctx_buffer_error", [context], ctypes.c_int),
        ("nft_ctx_buffer_output", [context], ctypes.c_int),
        ("nft_ctx_get_error_buffer", [context], ctypes.c_char_p),
        ("nft_ctx_get_output_buffer", [context], ctypes.c_char_p),
        ("nft_ctx_output_set_flags", [context, ctypes.c_uint], None),
        ("nft_run_cmd_from_buffer", [context, ctypes.c_char_p], ctypes.c_int),
    ):
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, result
    return library
