"""The ports, one file a family: its config, its block from `jaxlin.nn.blocks`, and its names in checkpoints."""
