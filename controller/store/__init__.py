"""The database: the only SQL. `Store.read` and `Store.mutation` are its two doors."""
