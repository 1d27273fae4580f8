"""CrypTen's configuration as plain attributes.

`crypten.cfg` looks every setting up in an OmegaConf tree, at 25 µs a time, and CrypTen asks for one at each access to
a tensor's attribute: a quarter of the time of a small inference, more in training. `flatten` gives the same object,
which CrypTen's modules have imported by name, a class that keeps the settings in instance dictionaries. All that
CrypTen documents still works: ``cfg.a.b`` and ``cfg["a.b"]``, read and written, `load_config`, `set_config`,
`temp_override`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mpc_imaging.engine import compat

compat.load()

from crypten.config.config import CrypTenConfig  # noqa: E402  (CrypTen can only be imported after compat.load)


class Section(dict):
    """Settings by name, as items and as attributes, which share one dictionary."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.__dict__ = self


def _tree(values: Mapping[str, Any]) -> Section:
    return Section({name: _tree(v) if isinstance(v, Mapping) else v for name, v in values.items()})


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _plain(v) if isinstance(v, Mapping) else v for name, v in values.items()}


@functools.lru_cache(maxsize=256)
def _parsed(text: str) -> Any:
    return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]


def _value(value: Any) -> Any:
    """A value as CrypTen's configuration takes it: text is parsed ("12" is a number), mappings become sections."""
    if isinstance(value, str):
        value = copy.deepcopy(_parsed(value))
    return _tree(value) if isinstance(value, Mapping) else value


class FlatConfig(CrypTenConfig):
    """A `CrypTenConfig` whose sections are attributes of its own. Made by `flatten`, not constructed."""

    # Not CrypTen's, which goes by way of an exception: a setting is found as any attribute of any object is.
    __getattribute__ = object.__getattribute__

    def __getattr__(self, name: str) -> Any:
        """``getattr(cfg, "a.b")``; raises `AttributeError` for what there is not."""
        first, *rest = name.split(".")
        if first not in self.__dict__:
            raise AttributeError(f"CrypTen's configuration has no {name!r}")
        return functools.reduce(getattr, rest, self.__dict__[first])

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """``cfg.a = value``, or `name` may be a path such as ``a.b``; sections on the way are made."""
        if name == "config":
            self._fill(value)
            return
        *path, last = name.split(".")
        section: dict[str, Any] = self.__dict__
        for key in path:
            section = section.setdefault(key, Section())
        value = _value(value)
        if isinstance(value, Section) and isinstance(section.get(last), Section):
            for key, entry in value.items():  # merged, as OmegaConf does
                self[f"{name}.{key}"] = entry
        else:
            section[last] = value

    def _fill(self, config: Any) -> None:
        values = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else config
        tree = _tree(values)
        self.__dict__.clear()
        self.__dict__.update(tree)

    @property
    def config(self) -> DictConfig:
        """The settings as OmegaConf has them: a copy, and read-only, since what is written there would be lost."""
        settings = OmegaConf.create(_plain(self.__dict__))
        OmegaConf.set_readonly(settings, True)
        return settings

    @contextlib.contextmanager
    def temp_override(self, override_dict: Mapping[str, Any]) -> Iterator[None]:
        """Other values inside, by path; afterwards all settings are as they were before."""
        before = dict(self.__dict__)
        try:
            self._fill(before)  # copies: the sections of `before` stay as they are
            for name, value in override_dict.items():
                self[name] = value
            yield
        finally:
            self.__dict__.clear()
            self.__dict__.update(before)


def flatten(cfg: CrypTenConfig) -> Callable[[], None]:
    """Make `cfg` a `FlatConfig`; returns a function that makes it again what it was, with the settings it had."""
    kind, before = type(cfg), dict(vars(cfg))
    values = OmegaConf.to_container(cfg.config, resolve=True)
    object.__setattr__(cfg, "__class__", FlatConfig)
    cfg.config = values

    def restore() -> None:
        object.__setattr__(cfg, "__class__", kind)
        cfg.__dict__.clear()
        cfg.__dict__.update(before)

    return restore
