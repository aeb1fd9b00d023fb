"""``jaxlin models``: the models that can be loaded."""


def models() -> None:
    """List the supported models."""
    from rich.console import Console
    from rich.table import Table

    from jaxlin.loading.registry import families

    table = Table("family file", "model_type in config.json", "GGUF architecture")
    for family in families():
        table.add_row(f"models/{family.name}.py", ", ".join(family.types), ", ".join(family.gguf))
    Console(highlight=False).print(table)
