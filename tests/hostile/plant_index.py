"""Puts an index of its own in the place of the log's."""

import sqlite3

database = sqlite3.connect(f"{state}/log_index.sqlite")
database.execute("DROP TABLE IF EXISTS line")
database.execute("CREATE TABLE line (number INTEGER)")
database.commit()
