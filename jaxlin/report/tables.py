"""An `Attribution` in a notebook."""

from jaxlin.attribution import Attribution


def tables(found: Attribution) -> str:
    """Both of its lists, each of which sums to the value: by input token, and by layer."""
    tokens = [(f"token {t}", value) for t, value in enumerate(found.tokens.tolist())]
    tokens += [("first token, set aside", found.set_aside)] if found.set_aside else []
    header = "<tr><th>layer</th><th>attention</th><th>MLP</th></tr>"
    layers = "".join(
        f"<tr><th>{layer}</th>{_cell(attn)}{_cell(mlp)}</tr>"
        for layer, (attn, mlp) in enumerate(zip(found.attn.tolist(), found.mlp.tolist(), strict=True))
    )
    ends = _row("embedding", found.embed, 2), _row("final biases", found.final_bias, 2)
    return (
        f"<p>value <b>{found.value:.4f}</b>; off by {found.defect:.0e} of the largest token's part, "
        f"{found.component_defect:.0e} of the largest layer's</p>"
        f"<table><tr><th>input</th><th>contribution</th></tr>"
        f"{''.join(_row(name, value) for name, value in tokens)}{_row('b, the biases', found.bias)}</table>"
        f"<table>{header}{ends[0]}{layers}{ends[1]}</table>"
    )


def _row(name: str, value: float, columns: int = 1) -> str:
    return f"<tr><th>{name}</th>{_cell(value, columns)}</tr>"


def _cell(value: float, columns: int = 1) -> str:
    span = f' colspan="{columns}"' if columns > 1 else ""
    return f'<td{span} style="text-align:right;font-variant-numeric:tabular-nums">{value:+.4f}</td>'
