"""Says, as JSON, what this interpreter can import and what ./pyproject.toml names."""

import importlib.metadata
import importlib.util
import json
import sys


def importable(name):
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def version(name):
    try:
        return importlib.metadata.version(name.replace("_", "-"))
    except importlib.metadata.PackageNotFoundError:
        return ""


def project():
    try:
        import tomllib as toml
    except ImportError:
        import tomli as toml
    try:
        with open("pyproject.toml", "rb") as file:
            tool = toml.load(file).get("tool", {})
    except FileNotFoundError:
        return {"problem": "neither -m nor -f is given, and there is no pyproject.toml here"}
    except ValueError as error:
        return {"problem": f"pyproject.toml cannot be read: {error}"}
    block, dg = tool.get("dagster", {}), tool.get("dg", {}).get("project", {})
    if block.get("module_name"):
        modules = [block["module_name"]]
    elif block.get("modules"):
        modules = [m["name"] for m in block["modules"] if m.get("type", "module") == "module"]
    elif dg.get("root_module"):
        modules = [dg.get("code_location_target_module") or dg["root_module"] + ".definitions"]
    else:
        return {"problem": "neither -m nor -f is given, and pyproject.toml has no module_name"}
    return {
        "modules": modules,
        "name": block.get("code_location_name") or dg.get("code_location_name") or "",
    }


missing = [name for name in sys.argv[1:] if not importable(name)]
try:
    named = project()
except ImportError:
    named = {"problem": "neither -m nor -f is given, and this Python cannot read pyproject.toml"}
json.dump(
    {
        "python": ".".join(map(str, sys.version_info[:3])),
        "old": sys.version_info < (3, 10),
        "missing": missing,
        "versions": {name: version(name) for name in sys.argv[1:]},
        "project": named,
    },
    sys.stdout,
)
