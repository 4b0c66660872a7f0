"""Takes a limit of another process away."""

import resource

resource.prlimit(victim, resource.RLIMIT_NOFILE)
