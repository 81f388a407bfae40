"""First start and every start: the database migrated, the CA and the mesh there, and both belonging together.

Each step finds what an interrupted start left and goes on from there; nothing is made twice.
"""

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from controller.addresses import DEFAULT_PREFIX4, AddressPlan, PrefixError, random_prefix6
from controller.audit import Action
from controller.clock import Clock
from controller.identity.ca import CertificateAuthority
from controller.identity.secret import new_id
from controller.settings import Settings, SettingsError
from controller.state_dir import StateDir, StateDirError, reason_of
from controller.store.engine import Engines, check_whole
from controller.store.migrate import check_current, migrate
from controller.store.store import Store
from controller.tracing import Tracing
from controller.wire.base import check_name
from controller.wire.netmap import Mesh

__all__ = ["Foundation", "lay", "open_existing", "open_store", "prepared"]

DEFAULT_NAME = "mesh"


@dataclass(frozen=True, slots=True)
class Foundation:
    """What everything else stands on."""

    store: Store
    mesh: Mesh
    authority: CertificateAuthority


async def open_existing(settings: Settings, now: Clock) -> Store:
    """The database of a mesh that exists, beside the controller that serves it. Raises StoreError, StateDirError."""
    engines = Engines(settings.database)
    if engines.sqlite:
        _check_exists(Path(engines.url.database or ""))
    store = Store(engines, now)
    try:
        await check_current(engines)
        mesh = await store.load_mesh()
    except BaseException:
        await store.close()
        raise
    if mesh is None:
        await store.close()
        raise StateDirError("there is no mesh in the database yet: `wardmesh-controller serve` makes one")
    return store


def _check_exists(database: Path) -> None:
    if not database.is_file():
        raise StateDirError(f"there is no database {database} yet: `wardmesh-controller serve` makes one")


async def open_store(settings: Settings, now: Clock, tracing: Tracing) -> tuple[Engines, Store]:
    """The database, migrated; without a mesh in it yet if it is new. Raises StoreError, StateDirError."""
    engines = prepared(settings)
    try:
        await check_whole(engines)
        await migrate(engines)
    except BaseException:
        await engines.dispose()
        raise
    return engines, Store(engines, now, tracing)


def prepared(settings: Settings) -> Engines:
    """The database's engines; an SQLite file is there, private, and empty if it is new. Raises StateDirError."""
    engines = Engines(settings.database)
    if engines.sqlite and engines.url.database:
        _create_private(Path(engines.url.database))
    return engines


def _create_private(database: Path) -> None:
    # SQLite would create it with the umask's mode, and its -wal and -shm files take the mode of this one.
    try:
        os.close(os.open(database, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise StateDirError(f"cannot open the database {database}: {reason_of(error)}") from error


async def lay(settings: Settings, state: StateDir, store: Store, now: Clock) -> Foundation:
    """The mesh that the database holds, made at first start.

    Raises SettingsError when an option contradicts it, StateDirError when the CA in `state` is not its CA.
    """
    found = await store.load_mesh()
    if found is None:
        mesh, authority = await _create(settings, state, store, now)
    else:
        mesh, ca_sha256 = found
        _check_unchanged(settings, mesh)
        authority = _existing_authority(state, ca_sha256)
    return Foundation(store=store, mesh=mesh.model_copy(update={"ca": authority.pem}), authority=authority)


async def _create(settings: Settings, state: StateDir, store: Store, now: Clock) -> tuple[Mesh, CertificateAuthority]:
    try:
        name = check_name(settings.mesh_name or DEFAULT_NAME)
    except ValueError as error:
        raise SettingsError(f"--mesh-name {error}") from error
    try:
        plan = AddressPlan.parse(settings.prefix4 or DEFAULT_PREFIX4, settings.prefix6 or random_prefix6())
    except PrefixError as error:
        raise SettingsError(f"the mesh's prefix {error}") from error
    found = _read_authority(state)
    authority = found or CertificateAuthority.create(name, now())
    if found is None:
        # The key first: a certificate without it would look like a CA that lost its key.
        state.write("ca.key", authority.key_pem)
        state.write("ca.pem", authority.pem.encode())
    mesh = Mesh(id=new_id(), name=name, prefix4=str(plan.prefix4), prefix6=str(plan.prefix6))
    async with store.mutation("system", Action.MESH_CREATE, f"mesh:{mesh.id}") as tx:
        if await tx.has_mesh():
            tx.discard()
            if found is None:
                state.remove("ca.pem")
                state.remove("ca.key")
            raise StateDirError(
                "another controller has just made the mesh in this database: copy its ca.pem and ca.key to "
                f"{state.path} (mode 0600) and start this one again"
            )
        await tx.create_mesh(mesh, authority.sha256)
        tx.record(new={**mesh.model_dump(), "ca": authority.sha256})
    await store.load_mesh()
    return mesh, authority


def _check_unchanged(settings: Settings, mesh: Mesh) -> None:
    for option, wanted, fixed in (
        ("--mesh-name", settings.mesh_name, mesh.name),
        ("--prefix4", settings.prefix4, mesh.prefix4),
        ("--prefix6", settings.prefix6, mesh.prefix6),
    ):
        if wanted is not None and not _same(wanted, fixed):
            raise SettingsError(
                f"{option} {wanted}: this mesh was made with {fixed}, and its nodes hold addresses and names from it; "
                "leave the option away, or make a new mesh with another --state-dir and database"
            )


def _same(wanted: str, fixed: str) -> bool:
    if wanted == fixed:
        return True
    try:
        return ipaddress.ip_network(wanted) == ipaddress.ip_network(fixed)
    except ValueError:
        return False


def _existing_authority(state: StateDir, ca_sha256: str) -> CertificateAuthority:
    authority = _read_authority(state)
    if authority is None:
        raise StateDirError(
            f"the database belongs to a mesh whose CA is not in {state.path}: "
            "put its ca.pem and ca.key there (from a backup, or from another controller of the mesh), or give this "
            "state directory a database of its own"
        )
    if authority.sha256 != ca_sha256:
        raise StateDirError(
            f"the CA in {state.path} (SHA-256 {authority.sha256}) is not that of the mesh in the database "
            f"({ca_sha256}): every node would refuse it; put the right ca.pem and ca.key there"
        )
    return authority


def _read_authority(state: StateDir) -> CertificateAuthority | None:
    certificate, key = state.read("ca.pem"), state.read("ca.key")
    if certificate is None:
        return None
    if key is None:
        raise StateDirError(f"{state.path} has ca.pem but not ca.key: put the key back; nodes know this CA only")
    try:
        return CertificateAuthority.load(certificate, key)
    except (ValueError, TypeError) as error:
        raise StateDirError(f"the CA in {state.path} cannot be read ({error}): restore ca.pem and ca.key") from error
