"""The policy language: who may open which flows to whom, and call which tools. Read, checked and compiled here.

README.md beside this file is its reference. The way through the package: `tree` (text to values with places) -> `parse`
with `service_reader` and `mcp_reader` (values to `document`) -> `check` (for people) and `compile` (for hosts).
`model` says independently of `compile` what a document means. A new kind of selector is one more case in `parse`,
`model`, `population` and in `CompiledPolicy.role`; a new section is one more reader in `parse`.
"""

from .check import check
from .compile import CompiledPolicy, compile_policy
from .document import Document
from .findings import PolicyError
from .parse import parse
from .schema import policy_schema

__all__ = ["CompiledPolicy", "Document", "PolicyError", "check", "compile_policy", "parse", "policy_schema"]
