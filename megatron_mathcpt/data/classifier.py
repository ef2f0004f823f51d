"""A fastText classifier of the user's as a rule, such as the MathScore model of OpenWebMath."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from megatron_mathcpt.config.corpus import Classifier
from megatron_mathcpt.data.drops import Drop, below
from megatron_mathcpt.errors import DataError


def classifier_drop(text: str, rules: Classifier) -> Drop | None:
    """A drop if the model gives the label less than the probability asked for.

    Raises `DataError` naming the model if it is missing, is no fastText model, or does not know the label.
    """
    labels, probabilities = _model(str(model_file(rules)), rules.label).predict(text.replace("\n", " "), k=-1)
    found = dict(zip(labels, probabilities.tolist(), strict=True))
    return below("classifier", found.get(rules.label, 0.0), rules.min_probability)


def model_file(rules: Classifier) -> Path:
    """The model's file; raises `DataError` if there is none."""
    if not (path := Path(rules.model)).is_file():
        raise DataError(f"filter.classifier.model: {path}: no such file; give the path of a fastText model")
    return path


@lru_cache(maxsize=2)
def _model(path: str, label: str) -> Any:
    try:
        import fasttext
    except ImportError as error:
        raise DataError("filter.classifier needs fasttext; install fasttext-numpy2-wheel") from error
    try:
        model = fasttext.load_model(path)
    except ValueError as error:
        raise DataError(f"filter.classifier.model: {path}: not a fastText model ({error})") from error
    if label not in model.get_labels():
        raise DataError(
            f"filter.classifier.label: {path} knows {', '.join(model.get_labels()[:5])}, not '{label}'"
        )
    return model
