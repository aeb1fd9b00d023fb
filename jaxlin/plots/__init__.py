"""Drawing with matplotlib: bars, heat maps, grids of words, curves and graphs, in axes that a caller may give.

Nothing here knows a result of an analysis: each result says in its method `plot` what is drawn. matplotlib is imported
when something is drawn, and nowhere else but by the figures of the paper.
"""

from jaxlin.plots.axes import axes_or_new, write
from jaxlin.plots.bar_charts import bars, token_bars
from jaxlin.plots.figure_files import check_format, save_plot
from jaxlin.plots.graphs import layered_graph
from jaxlin.plots.heat_maps import heat_map, word_grid
from jaxlin.plots.line_charts import curves, scatter

__all__ = [
    "axes_or_new",
    "bars",
    "check_format",
    "curves",
    "heat_map",
    "layered_graph",
    "save_plot",
    "scatter",
    "token_bars",
    "word_grid",
    "write",
]
