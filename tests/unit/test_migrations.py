"""The migrations are one line of revisions: two that were written beside each other are found before they meet."""

import warnings

from alembic.config import Config
from alembic.script import ScriptDirectory

from controller.store.migrate import migrations_path


def test_the_migrations_are_one_line_in_the_order_of_their_files() -> None:
    config = Config()
    config.set_main_option("script_location", str(migrations_path()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # alembic only warns of a revision that is there twice
        revisions = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    files = sorted(path.name.partition("_")[0] for path in (migrations_path() / "versions").glob("*.py"))
    assert revisions[::-1] == files
