"""Plants a submodule."""

from pathlib import Path

Path(project, ".gitmodules").write_text('[submodule "x"]\n\tpath = x\n\turl = /\n')
