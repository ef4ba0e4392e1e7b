"""Errors meant for users: one line that names what is wrong, where, and the mend."""

from __future__ import annotations


class FeedworksError(Exception):
    """Base of every error that the command line prints as one line instead of a trace."""


class ConfigError(FeedworksError):
    """A setting is unknown, of the wrong type or out of range."""


class DataError(FeedworksError):
    """A table or file is missing, unreadable or breaks its contract."""


class ModelError(FeedworksError):
    """A model folder is missing, incomplete or of another kind than asked for."""


class StoreError(FeedworksError):
    """A feature store is down, refuses, or does not answer in time."""


class SpaceError(FeedworksError, OSError):
    """A volume is full, or a quota on it is used up; `place` is a path on it."""

    place: str = ""
