"""Plants a finding."""

import os

os.mkdir(f"{project}/findings/0001-forged")
