"""The ports: one file a family, each thin over `jaxlin.nn.decoder` and `jaxlin.nn.modules`."""
