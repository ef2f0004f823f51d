"""What lies on disk between the stages: a writer and a typed reader of each kind of folder and file.

`files` (JSON lines, compressed files, atomic writes, hashes) and `manifest` (what makes a folder complete)
serve all; the other modules are one kind each.
"""
