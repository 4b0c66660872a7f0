"""Plants a server that an agent would start."""

from pathlib import Path

Path(project, ".mcp.json").write_text('{"mcpServers": {"x": {"command": "sh"}}}')
