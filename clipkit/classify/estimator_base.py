"""What scikit-learn asks of every estimator, without scikit-learn.

Nothing here imports scikit-learn but what it calls itself: `__sklearn_tags__`, and errors that its
tools look for by class.
"""

import copy
import importlib
import inspect
from typing import TYPE_CHECKING, Any

from clipkit.errors import ConfigError

if TYPE_CHECKING:
    from typing_extensions import Self


class Estimator:
    """Keep the arguments of the constructor as parameters, by name and unchanged."""

    _output: str

    @classmethod
    def _parameters(cls) -> dict[str, Any]:
        """Return the names of the parameters with their defaults."""
        parameters = list(inspect.signature(cls.__init__).parameters.values())
        return {one.name: one.default for one in parameters[1:]}  # without self

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters by name.

        Args:
            deep: also those of estimators inside of it. There are none.
        """
        return {name: getattr(self, name) for name in self._parameters()}

    def set_params(self, **params: object) -> "Self":
        """Set parameters by name, and return the estimator.

        Raises:
            ConfigError: if there is no parameter of that name. None is set then.
        """
        known = self._parameters()
        for name in params:
            if name not in known:
                raise ConfigError(
                    f"{type(self).__name__} has no parameter {name!r}: its parameters are "
                    f"{', '.join(known)}"
                )
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __sklearn_clone__(self) -> "Self":
        """Return an estimator that is not fitted, with the same parameters and the same model.

        scikit-learn would copy the model itself, once for each fit of a search.
        """
        given = self.get_params()
        own = {name: value for name, value in given.items() if name != "model"}
        clone = type(self)(**{**given, **copy.deepcopy(own)})
        if hasattr(self, "_output"):  # of `set_output`, which is no parameter
            clone._output = self._output
        return clone

    def _check_fitted(self, attribute: str) -> None:
        """Raise `ConfigError` unless `fit` has set an attribute."""
        if not hasattr(self, attribute):
            message = f"this {type(self).__name__} is not fitted yet: call fit first"
            raise error_for_sklearn(ConfigError, "NotFittedError")(message)

    def __repr__(self) -> str:
        """Return the constructor's call, with the parameters that are not the default."""
        defaults = self._parameters()
        changed = [
            f"{name}={value!r:.60}"
            for name, value in self.get_params().items()
            if value is not defaults[name] and repr(value) != repr(defaults[name])
        ]
        return f"{type(self).__name__}({', '.join(changed)})"


def class_of_sklearn(name: str, default: type[Any]) -> type[Any]:
    """Return a class of `sklearn.exceptions`, or the default where scikit-learn is not installed.

    Args:
        name: such as "DataConversionWarning".
        default: what to take in its place.
    """
    try:
        return getattr(importlib.import_module("sklearn.exceptions"), name, default)
    except ImportError:
        return default


def error_for_sklearn(error: type[Exception], name: str) -> type[Exception]:
    """Return an error that is also the one that scikit-learn's tools look for.

    Args:
        error: of clipkit.
        name: of the class in `sklearn.exceptions`.
    """
    other = class_of_sklearn(name, error)
    return error if other is error else type(error.__name__, (error, other), {})
