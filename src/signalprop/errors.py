"""The errors that a user can meet: one clear sentence, and what to do next."""


class SignalpropError(Exception):
    """Something about the model, the batch or the call that has to be changed by the user."""


class BatchError(SignalpropError):
    """The batch does not fit the model, or its form is not understood."""


class LossError(SignalpropError):
    """There is no scalar loss that gradients can be taken of."""


class ModelError(SignalpropError):
    """The model cannot be observed: no parameters, no graph, or it raised."""


class TargetError(SignalpropError):
    """The thing named on the command line could not be loaded."""


class MissingPackageError(SignalpropError):
    """An optional package is needed for what was asked."""
