"""Views: the weights as the forward pass sees them, a function of a member's parameters."""


def none(params):
    """The parameters as they are."""
    return params


VIEWS = {'none': none}
