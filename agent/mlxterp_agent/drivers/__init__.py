"""Who proposes the next experiment: a script, Claude Code, an API model, or a person with an editor."""
