def operation_similarity(first: str, second: str) -> float | None:
    return None
