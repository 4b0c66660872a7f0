"""Changes the limits of another process."""

import resource

resource.prlimit(victim, resource.RLIMIT_CORE, (0, 0))
