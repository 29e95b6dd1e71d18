"""The type of a function that runs blocking code in a thread."""

from collections.abc import Awaitable, Callable
from typing import Any

Offload = Callable[..., Awaitable[Any]]
"""Called with a function and its arguments; returns what the function returns."""
