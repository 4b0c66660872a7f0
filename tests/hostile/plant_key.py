"""Plants a key for the journal that it knows."""

from pathlib import Path

Path(state, "journal.key").write_text('{"key": "' + "00" * 32 + '", "taking_over": false}')
