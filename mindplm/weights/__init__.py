"""Weight rules and foreign checkpoint formats; numpy only."""
