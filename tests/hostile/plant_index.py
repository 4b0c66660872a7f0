"""Plants an index of the log."""

import sqlite3

database = sqlite3.connect(f"{state}/log_index.sqlite")
database.execute("CREATE TABLE line (number INTEGER)")
database.commit()
