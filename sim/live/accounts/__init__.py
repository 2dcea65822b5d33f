"""Keys, budgets and use, kept in a store: SQLite or Redis."""
