"""The one error a person at the command line is meant to read."""


class UserError(ValueError):
    """Something the caller can mend, in one sentence: the flag or file, what came, the remedy.

    Args:
        message: the sentence, printed as it is, without a traceback.
        code: exit status; 2 = a flag, configuration, model or backend is wrong, 3 = the data is,
            or the run failed.
    """

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code
