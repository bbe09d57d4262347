"""The database's migrations, NNNN_name.sql: data, in one order for the whole database."""
