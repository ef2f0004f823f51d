"""A report's scores and comparisons on a terminal."""

from rich.console import Console
from rich.table import Table

from megatron_mathcpt.report.build import Report


def print_report(report: Report, title: str) -> None:
    """Print the score table, each comparison in words, and the path of the page to stdout."""
    table = Table(*report.rows[0][:1], title=f"{title}: accuracy in % ± standard error")
    for heading in report.rows[0][1:]:
        table.add_column(heading, justify="right")
    for row in report.rows[1:]:
        table.add_row(*row)
    console = Console(markup=False)
    console.print(table)
    for sentence in report.sentences:
        console.print(sentence, highlight=False)
    console.print(f"Report: {report.page}", soft_wrap=True, highlight=False)
