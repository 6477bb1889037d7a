"""The ARM template and what the page about Azure shows: consistent, and the same as in the code.

Azure's own validation needs an account (`az deployment group validate`). Here the expressions are evaluated, as "ARM
template functions" says, and what comes out is compared with what `mtask init` makes.
"""

from __future__ import annotations

import ast
import json
import re
import uuid
from pathlib import Path
from typing import Any

import pytest

from mtask_azure import table_beside
from mtask_azure.address import queue_address
from mtask_azure.faults import BLOB, QUEUE, TABLE
from mtask_azure.names import physical

DOCS = Path(__file__).parents[2] / "docs/backends"
ROLES = {
    "974c5e8b-45b9-4653-ba55-dd855dd15fb8": "Storage Queue Data Contributor",
    "0a9a7e1f-b9d0-4cc4-a60d-0319b160aaa3": "Storage Table Data Contributor",
    "ba92f5b4-2d11-453d-a403-e96b0029c9fe": "Storage Blob Data Contributor",
}
"""Azure built-in roles, by id (Azure RBAC documentation)."""
PATTERNS = {
    "Microsoft.Storage/storageAccounts": "[a-z0-9]{3,24}",
    "Microsoft.Storage/storageAccounts/queueServices/queues": "[a-z0-9]{3,24}/default/(?=.{3,63}$)[a-z0-9]+(-[a-z0-9]+)*",
    "Microsoft.Storage/storageAccounts/tableServices/tables": "[a-z0-9]{3,24}/default/[A-Za-z][A-Za-z0-9]{2,62}",
    "Microsoft.Storage/storageAccounts/blobServices/containers": "[a-z0-9]{3,24}/default/(?=.{3,63}$)[a-z0-9]+(-[a-z0-9]+)*",
    "Microsoft.Authorization/roleAssignments": "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
}
"""Of names: "Naming rules and restrictions for Azure resources"."""


class Deployment:
    """The template with its parameters filled in."""

    def __init__(self, **parameters: Any) -> None:
        self.template: dict[str, Any] = json.loads((DOCS / "azure.json").read_text(encoding="utf-8"))
        assert parameters.keys() <= self.template["parameters"].keys()
        self.given, self.used, self.index = parameters, set[str](), 0
        self.functions: dict[str, Any] = {
            "parameters": self.parameter,
            "variables": lambda name: self.value(self.template["variables"][name]),
            "copyIndex": lambda: self.index,
            "resourceGroup": lambda: {"location": "westeurope"},
            "resourceId": lambda *parts: f"/subscriptions/S/resourceGroups/G/providers/{'/'.join(parts)}",
            "subscriptionResourceId": lambda *parts: f"/subscriptions/S/providers/{'/'.join(parts)}",
            "format": lambda text, *values: text.format(*values),
            "toLower": str.lower,
            "replace": lambda text, old, new: text.replace(old, new),
            "guid": lambda *parts: str(uuid.uuid5(uuid.NAMESPACE_URL, "-".join(parts))),
            "length": len,
            "mul": lambda one, other: one * other,
            "div": lambda one, other: one // other,
            "mod": lambda one, other: one % other,
        }

    def parameter(self, name: str) -> Any:
        self.used.add(name)
        said = self.template["parameters"][name]
        value = self.given[name] if name in self.given else self.value(said["defaultValue"])
        assert isinstance(value, {"string": str, "bool": bool, "array": list}[said["type"]])
        return value

    def value(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self.value(each) for key, each in value.items()}
        if isinstance(value, list):
            return [self.value(each) for each in value]
        if isinstance(value, str) and value.startswith("["):
            assert value.endswith("]")
            return self.evaluated(ast.parse(value[1:-1], mode="eval").body)
        return value

    def evaluated(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Call(func=ast.Name(id=name), args=args):
                return self.functions[name](*map(self.evaluated, args))
            case ast.Attribute(value=of, attr=name):
                return self.evaluated(of)[name]
            case ast.Subscript(value=of, slice=at):
                return self.evaluated(of)[self.evaluated(at)]
        raise AssertionError(ast.dump(node))

    def resources(self) -> list[dict[str, Any]]:
        found = []
        for resource in self.template["resources"]:
            count = self.value(resource.get("copy", {}).get("count", 1))
            for self.index in range(count):
                found.append(self.value({key: each for key, each in resource.items() if key != "copy"}))
        return found


def test_it_makes_what_init_makes() -> None:
    deployment = Deployment(accountName="mystorage", name="reads-2026", principalIds=["p-1", "p-2"])
    resources = deployment.resources()
    for resource in resources:
        assert re.fullmatch(PATTERNS[resource["type"]], resource["name"]), resource
        assert re.fullmatch(r"20\d\d-\d\d-\d\d", resource["apiVersion"])
    names = {resource["name"] for resource in resources}
    assert len({(each["type"], each["name"]) for each in resources}) == len(resources) == 5 + 6
    url = deployment.value(deployment.template["outputs"]["queue"]["value"])
    address = queue_address(url)
    for name in (physical(address), physical(address, poison=True)):
        assert f"mystorage/default/{name}" in names
    assert deployment.value(deployment.template["outputs"]["table"]["value"]) == table_beside(url)
    account, *others = resources
    assert account["kind"] == "StorageV2"
    assert account["properties"]["allowSharedKeyAccess"] is False
    made = deployment.functions["resourceId"](account["type"], account["name"])
    assert all(made in other["dependsOn"] for other in others)
    assert deployment.used == deployment.template["parameters"].keys()
    assert len(physical(queue_address(f"azureq://mystorage/{'x' * 56}"), poison=True)) == 63


def test_each_principal_gets_each_role() -> None:
    given = [
        (resource["properties"]["principalId"], resource["properties"]["roleDefinitionId"].rpartition("/")[2])
        for resource in Deployment(accountName="mystorage", principalIds=["p-1", "p-2"]).resources()
        if "roleAssignments" in resource["type"]
    ]
    assert sorted(given) == sorted((principal, role) for principal in ("p-1", "p-2") for role in ROLES)
    assert {service.role for service in (QUEUE, TABLE, BLOB)} == set(ROLES.values())
    assert len(Deployment(accountName="mystorage").resources()) == 5


@pytest.mark.parametrize("name", sorted(ROLES.values()))
def test_the_page_names_each_role(name: str) -> None:
    assert name in (DOCS / "azure.md").read_text(encoding="utf-8")


def test_the_function_of_the_page_can_be_imported() -> None:
    """By the package of Azure Functions, which makes of it what the host asks for."""
    pytest.importorskip("azure.functions")
    page = (DOCS / "azure.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^    .*\n|^\n)+", page, re.MULTILINE)
    [source] = [block for block in blocks if "func.FunctionApp()" in block]
    module: dict[str, Any] = {}
    exec(compile("\n".join(line[4:] for line in source.splitlines()), "function_app.py", "exec"), module)
    [function] = module["app"].get_functions()
    binding = json.loads(str(function))["bindings"][0]
    assert (binding["type"], binding["queueName"]) == ("queueTrigger", "reads")
    [host] = [block for block in blocks if '"maxDequeueCount"' in block]
    assert json.loads(host)["extensions"]["queues"]["maxDequeueCount"] >= 20
