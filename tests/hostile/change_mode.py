"""Makes setup.py writable for everybody."""

import os

os.chmod(f"{project}/setup.py", 0o666)
assert os.stat(f"{project}/setup.py").st_mode & 0o002
