"""Model families: typed configuration, presets, weight rules, shard plan and cells."""
