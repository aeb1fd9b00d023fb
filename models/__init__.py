"""The ports: one file a family, each thin over `jaxlin.decoder` and `jaxlin.modules`."""
