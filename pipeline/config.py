"""Loads configurations: presets and command-line values, resolved into the typed dataclass of any schema.

A value comes from the command line (`key=value`), else from the preset (`configs/<preset>.yaml`), else from the
schema's default. Numbers must be finite and in range (pipeline/number_ranges.py), no text may hold credentials
(pipeline/credentials.py), and `${…}` is resolved only with `interpolation=yes`.
"""

import contextlib
import dataclasses
import difflib
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_origin

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.credentials import INSTEAD, has_credentials, without_credentials
from pipeline.errors import ConfigError
from pipeline.number_ranges import number_faults

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
UNRESOLVED = re.compile(r"(?<!\\)(\\\\)*\$\{")  # after an even number of backslashes: an odd number escapes it
# The libraries' errors for values that they cannot read or convert.
UNREADABLE = (OmegaConfBaseException, yaml.YAMLError, ValueError, OverflowError, RecursionError)
SHOWN = 200  # characters of a value in a message
INTERPOLATION = "interpolation"  # a command-line key beside those of the schema

Schema = TypeVar("Schema")


def load_config(arguments: list[str], schema: type[Schema]) -> Schema:
    """Resolve `preset=<name or file> key=value …` into a typed configuration.

    A schema may have a static method `defaults(presets)`: values by dotted name for keys that are empty, set before
    `${…}` is resolved. It may have a method `complete()`, which fills in values that depend on others.
    `interpolation=yes` resolves `${…}` in values.

    Raises:
        ConfigError: there is no such preset, a key is unknown (the message names the nearest valid one), a value has
            the wrong type, a number is not finite or out of range, or a text holds credentials.
    """
    if bad := [a for a in arguments if "=" not in a]:
        raise ConfigError(f"arguments are key=value; got {', '.join(repr(_shown(a)) for a in bad)}")
    if bad := [a for a in arguments if not _is_unicode(a)]:
        raise ConfigError(f"arguments are UTF-8 text; got {', '.join(ascii(_shown(a)) for a in bad)}")
    config = OmegaConf.structured(schema)
    # A schema may have a preset itself.
    given: dict[str, list[str]] = {name: [] for name in ("preset", INTERPOLATION) if name not in config}
    for argument in arguments:
        key, _, value = argument.partition("=")
        given.get(key, []).append(value)
    presets, resolve = given.get("preset", []), _interpolation(given[INTERPOLATION])
    overrides = [a for a in arguments if a.partition("=")[0] not in given]
    for preset in presets:
        *bases, (name, layer) = _layers(preset)
        _check_preset(schema, name, layer)
        for base_name, base in bases:  # of another job's preset only this schema's keys count: model, lengths
            where = _shown_preset(base_name)
            _check_interpolation(base, where, resolve)
            config = _merge(schema, config, _known(schema, base), where, resolve)
        config = _merge(schema, config, layer, _shown_preset(name), resolve)
    for override in overrides:
        try:
            layer = OmegaConf.from_dotlist([override])
        except UNREADABLE as error:
            raise ConfigError(f"{_shown(override)}: {_first_line(error)}") from None
        key, _, value = override.partition("=")
        if _type_of(schema, key) is str and isinstance(_leaf(_as_written(layer)), bool | int | float):
            layer = OmegaConf.create({})
            # YAML reads no as false, and 007 as 7. A comment is no part of the value.
            OmegaConf.update(layer, key, re.split(r"\s#", value, maxsplit=1)[0].strip())
        config = _merge(schema, config, layer, _shown(override), resolve)
    try:
        _set_defaults(config, schema, presets)
        if missing := OmegaConf.missing_keys(config):
            others = preset_names(schema)
            or_preset = f" (or choose a preset: {', '.join(others)})" if others else ""
            raise ConfigError(f"set {', '.join(sorted(missing))}{or_preset}")
        made = cast(Schema, OmegaConf.to_object(config))
    except OmegaConfBaseException as error:  # an interpolation without a target
        raise ConfigError(_first_line(error)) from None
    if faults := [*number_faults(made), *_text_faults(made)]:
        raise ConfigError("\n".join(faults))
    if hasattr(made, "complete"):
        made.complete()
    return made


def _set_defaults(config: DictConfig, schema: type, presets: list[str]) -> None:
    if hasattr(schema, "defaults"):
        for key, value in schema.defaults([_stem(preset) for preset in presets]).items():
            if not OmegaConf.select(config, key):
                OmegaConf.update(config, key, value)


def preset_names(schema: type) -> list[str]:
    """The presets of a job: those whose keys are all in its schema."""
    valid = {*_keys(schema), "preset"}
    found = []
    for path in CONFIGS.glob("*.yaml"):
        with contextlib.suppress(ConfigError):  # a broken preset is reported when it is chosen
            found += [path.stem] * all(_is_known(key, valid) for key in _paths(_read_layer(path.stem)))
    return sorted(found)


def save_config(config: object, path: Path) -> None:
    OmegaConf.save(OmegaConf.structured(config), path)


def config_yaml(config: object) -> str:
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _check_preset(schema: type, name: str, layer: DictConfig) -> None:
    """Raise a `ConfigError` if a preset in configs/ has keys that the schema lacks."""
    valid = list(_keys(schema))
    unknown = [key for key in _paths(layer) if not _is_known(key, valid)]
    if unknown and not names_file(name):  # of a preset outside configs/, _merge names the key
        raise ConfigError(
            f"{_shown_preset(name)}: unknown key {_shown(unknown[0])!r}{_nearest(unknown[0], valid)}\n"
            f"{_shown(name)} is no preset of this job; its presets are: {', '.join(preset_names(schema)) or 'none'}"
        )


def _layers(preset: str, above: tuple[str, ...] = ()) -> list[tuple[str, DictConfig]]:
    """The preset, preceded by the presets it builds on (`preset: <name or file>` in its file).

    The path of such a file is relative to the folder of the file that names it.
    """
    if preset in above:
        raise ConfigError(f"{_shown_preset(preset)} builds on itself: {' → '.join([*above, preset])}")
    layer = _read_layer(preset)
    base = _as_written(layer).get("preset")
    if base is not None and not isinstance(base, str):
        raise ConfigError(f"{_shown_preset(preset)}: preset must be the name of one preset")
    if base and names_file(base):
        base = os.path.abspath(_preset_path(preset).parent / base)
    layer = OmegaConf.masked_copy(layer, [str(key) for key in layer if key != "preset"])
    return [*(_layers(base, (*above, preset)) if base else []), (preset, layer)]


def _read_layer(preset: str) -> DictConfig:
    """The values of a preset's file. Raises `ConfigError`."""
    try:
        layer = OmegaConf.load(_preset_path(preset))
    except ConfigError:
        raise
    except (OSError, *UNREADABLE) as error:
        raise ConfigError(f"{_shown_preset(preset)} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(layer, DictConfig):
        raise ConfigError(f"{_shown_preset(preset)} is a list; expected sections with keys and values")
    return layer


def names_file(named: str) -> bool:
    """Whether a preset or a prompt template is named by its file's path, and not by its name in configs/."""
    return "/" in named or named.endswith((".yaml", ".yml"))


def _shown_preset(preset: str) -> str:
    return _shown(preset) if names_file(preset) else f"configs/{_shown(preset)}.yaml"


def _stem(preset: str) -> str:
    return Path(preset).stem if names_file(preset) else preset


def _preset_path(name: str) -> Path:
    path = Path(name) if names_file(name) else CONFIGS / f"{name}.yaml"
    if path.is_file():
        return path
    if names_file(name):
        raise ConfigError(f"preset={_shown(name)}: no such file (from {Path.cwd()})")
    names = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    raise ConfigError(f"no preset {_shown(name)!r}{_nearest(name, names)}; there are: {', '.join(names)}")


def _interpolation(values: list[str]) -> bool:
    if wrong := [value for value in values if value not in ("yes", "no")]:
        raise ConfigError(f"{INTERPOLATION}={wrong[0]} must be yes or no")
    return values[-1:] == ["yes"]


def _merge(schema: type, config: DictConfig, layer: DictConfig, where: str, resolve: bool) -> DictConfig:
    valid = list(_keys(schema))
    try:
        for key in _paths(layer):
            if not _is_known(key, valid):
                raise ConfigError(f"{where}: unknown key {_shown(key)!r}{_nearest(key, valid)}")
        _check_interpolation(layer, where, resolve)
        return cast(DictConfig, OmegaConf.merge(config, layer))
    except ConfigError:
        raise
    except UNREADABLE as error:
        said = _first_line(error)
        for text in _texts(_as_written(layer)):  # a text may hold a password with blanks
            said = said.replace(text, _shown(text))
        raise ConfigError(f"{where}: {said}") from None


def _check_interpolation(layer: DictConfig, where: str, resolve: bool) -> None:
    """Raise a `ConfigError` if a value of the layer holds `${…}` and interpolation was not asked for."""
    if not resolve and (found := _interpolated(_as_written(layer))):
        raise ConfigError(
            f"{where}: ${{…}} in {found} is not resolved; write the value itself, or add {INTERPOLATION}=yes"
        )


def _interpolated(layer: object, name: str = "") -> str:
    """The name of the first value with an interpolation; empty if there is none."""
    if isinstance(layer, str):
        return name if UNRESOLVED.search(layer) else ""
    pairs = layer.items() if isinstance(layer, dict) else enumerate(layer) if isinstance(layer, list) else ()
    found = (_interpolated(value, f"{name}.{key}" if name else str(key)) for key, value in pairs)
    return next(filter(None, found), "")


def _text_faults(config: Any, prefix: str = "") -> Iterator[str]:
    """Yield one line for each value whose text holds credentials or is not valid Unicode."""
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            yield from _text_faults(value, f"{prefix}{f.name}.")
            continue
        texts = list(_texts(value))
        if any(map(has_credentials, texts)):
            yield f"{prefix}{f.name} holds credentials in a URI; {INSTEAD}"
        if not all(map(_is_unicode, texts)):
            yield f"{prefix}{f.name} is not valid Unicode: it holds half of a surrogate pair"


def _texts(value: object) -> Iterator[str]:
    """Yield all texts in a value, including keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from itertools.chain.from_iterable(map(_texts, [*value.keys(), *value.values()]))
    elif isinstance(value, list):
        yield from itertools.chain.from_iterable(map(_texts, value))


def _is_unicode(text: str) -> bool:
    """Whether the text holds no half of a surrogate pair, spelled out or made from a byte that is not UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _shown(text: str) -> str:
    """A value as messages show it: without credentials, and cut if it is long."""
    text = without_credentials(text, whole=True)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _known(schema: type, layer: DictConfig) -> DictConfig:
    """The values of a layer whose keys the schema has."""
    known = OmegaConf.create({})
    valid = list(_keys(schema))
    for key in _paths(layer):
        if _is_known(key, valid):
            OmegaConf.update(known, key, OmegaConf.select(layer, key))
    return known


def _keys(schema: type, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all values of the schema; `name.*` for a mapping, whose keys the user chooses."""
    for f in dataclasses.fields(schema):
        if isinstance(f.type, type) and dataclasses.is_dataclass(f.type):
            yield from _keys(f.type, f"{prefix}{f.name}.")
        elif get_origin(f.type) is dict:
            yield f"{prefix}{f.name}.*"
        else:
            yield prefix + f.name


def _type_of(schema: type, key: str) -> object:
    """The annotation of the value with this dotted name; None if there is no such value."""
    name, _, rest = key.partition(".")
    kind = next((f.type for f in dataclasses.fields(schema) if f.name == name), None)
    if rest and get_origin(kind) is dict:
        return get_args(kind)[1]
    return _type_of(kind, rest) if rest and isinstance(kind, type) and dataclasses.is_dataclass(kind) else kind


def _is_known(key: str, valid: Iterable[str]) -> bool:
    return key in valid or f"{key.rpartition('.')[0]}.*" in valid or f"{key}.*" in valid


def _paths(layer: DictConfig) -> list[str]:
    """The dotted names of all values that a layer sets."""
    return list(_paths_of(_as_written(layer)))


def _paths_of(layer: dict, prefix: str = "") -> Iterator[str]:
    for name, value in layer.items():
        if isinstance(value, dict):
            yield from _paths_of(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _as_written(layer: DictConfig) -> dict:
    """The values of a layer, unresolved."""
    return cast(dict, OmegaConf.to_container(layer, resolve=False))


def _leaf(layer: object) -> object:
    """The value of a layer that has no other."""
    return _leaf(next(iter(layer.values()))) if isinstance(layer, dict) and layer else layer


def _nearest(name: str, names: list[str]) -> str:
    """A suggestion for a message: the most similar name; the last part counts most."""
    same_end = [n for n in names if n.rpartition(".")[2] == name.rpartition(".")[2]]
    near = same_end or difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if not near:
        ends = {n.rpartition(".")[2]: n for n in names}
        near = [ends[e] for e in difflib.get_close_matches(name.rpartition(".")[2], list(ends), n=1, cutoff=0.5)]
    return f"; did you mean {near[0]!r}?" if near else ""


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
