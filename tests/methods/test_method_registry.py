"""Methods of other packages: found by their entry points, imported late, refused in a sentence."""

import logging
import sys
from pathlib import Path

import pytest

from fss import methods
from fss.errors import ConfigError
from fss.methods.base_learner import BaseLearner
from fss.methods.mshnet import MSHNet
from fss.methods.registry import MethodRegistry
from fss.nn.exports import save_export

MODULE = "methods_of_acme"
SOURCE = """
from dataclasses import dataclass
from typing import Literal
from fss.methods.mshnet import MSHNet, MSHNetConfig


@dataclass(frozen=True, kw_only=True)
class AcmeConfig(MSHNetConfig):
    name: Literal["acme"] = "acme"


class Acme(MSHNet):
    Config = AcmeConfig


class Nameless:
    pass
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Entry points by name -> a new package that has them, on the path; returns a registry that has not looked yet."""
    monkeypatch.syspath_prepend(tmp_path)

    def add(source: str = SOURCE, package: str = "acme", **points: str) -> MethodRegistry:
        (tmp_path / f"{MODULE}.py").write_text(source)
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"{name} = {MODULE}:{target}" for name, target in points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[fss.methods]", *lines, ""]))
        monkeypatch.syspath_prepend(tmp_path)  # what was looked up before is forgotten
        return MethodRegistry({"base": BaseLearner, "mshnet": MSHNet})

    yield add
    sys.modules.pop(MODULE, None)


def test_a_method_of_another_package_is_imported_when_it_is_asked_for(install):
    registry = install(acme="Acme")
    assert registry["base"] is BaseLearner and "acme" in registry and "other" not in registry
    assert MODULE not in sys.modules
    assert registry["acme"].__name__ == "Acme" and registry["acme"] is sys.modules[MODULE].Acme
    assert list(registry) == ["base", "mshnet", "acme"] and len(registry) == 3
    with pytest.raises(KeyError):
        registry["other"]


def test_a_listing_imports_what_it_lists(install):
    registry = install(acme="Acme")
    assert [(name, method.__name__) for name, method in registry.items()][-1] == ("acme", "Acme")


def test_its_export_is_restored(install, monkeypatch, mshnet_config, tmp_path):
    registry = install(acme="Acme")
    monkeypatch.setattr(methods, "METHODS", registry)
    kind = registry["acme"]
    options = {"size": mshnet_config.size, "backbone": "resnet18", "width": 16, "dilations": [1, 2]}
    save_export(tmp_path / "acme.safetensors", *kind(kind.Config(**options)).export())
    method, header = methods.load_method(tmp_path / "acme.safetensors")
    assert type(method) is kind and header.method == "acme"


@pytest.mark.parametrize(
    ("name", "target", "sentence"),
    [
        ("acme", "Gone", r"entry point methods_of_acme:Gone of acme cannot be imported \(AttributeError: .*uninstall"),
        ("acme", "Nameless", "methods_of_acme:Nameless of acme is no subclass of fss.methods.base.Method"),
        ("acme", "AcmeConfig", "is no subclass of fss.methods.base.Method"),
        ("other", "Acme", "is called other but its Config.name is 'acme'"),
    ],
)
def test_an_entry_point_that_cannot_be_used_stops_no_other_method(install, caplog, name, target, sentence):
    registry = install(**{name: target})
    with pytest.raises(ConfigError, match=sentence):
        registry[name]
    with caplog.at_level(logging.WARNING):
        assert list(registry) == list(registry) == ["base", "mshnet"]
    assert len(caplog.messages) == 1, "reported once"
    with pytest.raises(ConfigError) as refusal:
        registry[name]
    assert caplog.messages == [str(refusal.value)]


def test_a_module_that_fails_while_it_is_imported_is_named_with_its_error(install):
    registry = install("import a_module_that_is_not_there", acme="Acme")
    with pytest.raises(ConfigError, match="ModuleNotFoundError: No module named 'a_module_that_is_not_there'"):
        registry["acme"]


def test_a_class_without_options_is_refused(install):
    registry = install("from fss.methods.base import Method\n\n\nclass Bare(Method):\n    pass\n", acme="Bare")
    with pytest.raises(ConfigError, match="has no Config"):
        registry["acme"]


def test_a_built_in_name_stays_the_built_in_method(install, caplog):
    registry = install(mshnet="Acme")
    with caplog.at_level(logging.WARNING):
        assert list(registry) == ["base", "mshnet"]
    assert caplog.messages == [
        "the entry point methods_of_acme:Acme of acme has the name of the built-in method mshnet: rename it there"
    ]
    assert registry["mshnet"] is MSHNet and MODULE not in sys.modules


def test_two_packages_with_one_name_are_both_refused(install):
    install(acme="Acme")
    registry = install(package="second", acme="Acme")
    with pytest.raises(ConfigError, match=r"of (acme and .* of second|second and .* of acme) both name a method acme"):
        registry["acme"]


def test_the_shipped_table_finds_them_too(install, monkeypatch):
    install(acme="Acme")
    monkeypatch.setattr(methods.METHODS, "_found", None)
    monkeypatch.setattr(methods.METHODS, "_methods", dict(methods.METHODS._methods))
    assert methods.METHODS["acme"].__name__ == "Acme"
    assert Path(sys.modules[MODULE].__file__).stem == MODULE
