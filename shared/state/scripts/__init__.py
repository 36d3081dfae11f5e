"""The Lua scripts; ``shared.state.script`` reads them."""
