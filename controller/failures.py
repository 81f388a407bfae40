"""The errors that end a command with a sentence. Anything else is a defect, and shows its traceback."""

from typing import Final

from controller.audit import BrokenChain
from controller.backup import BackupError
from controller.problems import Refused
from controller.settings import SettingsError
from controller.state_dir import StateDirError
from controller.store.engine import StoreError
from controller.tls import TlsError

__all__ = ["EXPECTED"]

EXPECTED: Final = (SettingsError, StateDirError, StoreError, TlsError, Refused, BrokenChain, BackupError)
