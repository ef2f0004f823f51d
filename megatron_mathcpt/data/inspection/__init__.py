"""Looking into a finished corpus: documents, tokens, drops, duplicates, and the way of one record.

Nothing loads a corpus whole: places and indexes are mapped, JSON lines streamed or sought.
"""
