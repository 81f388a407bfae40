"""Backup and restore of a whole mesh: the database, the CA that its hosts trust, and what must hold between them.

A backup can issue certificates in the mesh's name and name every host in it: it is as secret as the state directory.
"""

from pathlib import Path
from typing import Final

from controller.audit import GENESIS, Action, verify_chain
from controller.bootstrap import open_existing, prepared
from controller.clock import Clock
from controller.identity.ca import CertificateAuthority
from controller.identity.secret import new_id
from controller.settings import Settings
from controller.state_dir import StateDir
from controller.store import backup
from controller.store.backup import BackupError
from controller.store.engine import Engines
from controller.store.store import Store

__all__ = ["BackupError", "back_up", "restore", "verify_audit"]

_FILES: Final = ("ca.key", "ca.pem")  # the key first: a certificate without it would look like a CA that lost it


async def back_up(settings: Settings, target: Path, now: Clock) -> int:
    """Write the mesh, as it is at this moment, to the new file `target`; return the number of rows.

    Works beside a controller that serves. Raises BackupError, StoreError, StateDirError.
    """
    state = StateDir(settings.state_dir)
    await (await open_existing(settings, now)).close()
    files = {name: content for name in _FILES if (content := state.read(name)) is not None}
    missing = [name for name in _FILES if name not in files]
    if missing:
        raise BackupError(
            f"{state.path} has no {missing[0]}: without the mesh's CA, hosts would refuse what is restored"
        )
    engines = Engines(settings.database)
    try:
        return await backup.create(engines, target, files)
    finally:
        await engines.dispose()


async def restore(settings: Settings, source: Path, now: Clock) -> int:
    """Put a backup into an empty state directory and database; return the number of rows.

    Hosts that were ahead of it get their whole map anew, because history goes on differently from here. Raises
    BackupError, BrokenChain, StoreError, StateDirError; then the mesh is not there, and nothing else was changed.
    """
    state = StateDir(settings.state_dir)
    state.prepare()
    state.lock()
    try:
        for name in _FILES:
            if state.read(name) is not None:
                raise BackupError(f"{state.path} has a {name} already: restore into an empty --state-dir")
        async with backup.opened(source, state.path) as (copy, files):
            await _check(copy, files, now)
            return await _restore(settings, state, copy, files, now)
    finally:
        state.unlock()


async def _check(copy: Engines, files: dict[str, bytes], now: Clock) -> None:
    """Is it the backup of a mesh that hosts would accept, with its whole history?"""
    store = Store(copy, now)
    found = await store.load_mesh()
    if found is None or any(name not in files for name in _FILES):
        raise BackupError("the backup has no mesh or no CA in it: take another")
    authority = CertificateAuthority.load(files["ca.pem"], files["ca.key"])
    if authority.sha256 != found[1]:
        raise BackupError("the CA in the backup is not that of its mesh: every node would refuse it; take another")
    await verify_audit(store)


async def _restore(settings: Settings, state: StateDir, copy: Engines, files: dict[str, bytes], now: Clock) -> int:
    timeline = new_id()
    engines = prepared(settings)
    store = Store(engines, now)
    try:
        rows = await backup.fill(engines, copy, timeline)
        # The database without its CA is refused at start, with the remedy; the CA without a database would make a new
        # mesh. So the CA comes second.
        for name in _FILES:
            state.write(name, files[name])
        found = await store.load_mesh()
        assert found is not None
        async with store.mutation("system", Action.MESH_RESTORE, f"mesh:{found[0].id}") as tx:
            tx.record(new={"timeline": timeline})
    finally:
        await store.close()
    return rows


async def verify_audit(store: Store) -> tuple[int, str]:
    """Walk the audit's hash chain from its first entry; return the last one's number and hash. Raises BrokenChain."""
    seq, last = 0, GENESIS
    async with store.read() as tables:
        while entries := await tables.ledger.audit_after(seq):
            seq, last = verify_chain(entries, last, seq)
    return seq, last
