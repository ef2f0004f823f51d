"""Tables, plots and one self-contained page from the result files of a grid of runs alone.

In reading order: `read` (what a results folder holds), `comparison` (which run answers more, tested), `study`
(the published figures beside ours), `results` (what report.json says), `graph` (what was made from what),
`page` (from a folder to report.json, index.html and a terminal's table), `figures` (numbers as text, values
as plots).
"""
