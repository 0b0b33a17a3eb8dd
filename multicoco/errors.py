"""The one exception that commands turn into a message instead of a traceback."""


class UserError(Exception):
    """A mistake in what the user gave: a config key, a record, an image, a checkpoint, a ds_config.

    The message names the file, record or key, says what is wrong and what to do.

    Attributes:
        on_all_ranks: it is known that every rank has it.
    """

    on_all_ranks = False
