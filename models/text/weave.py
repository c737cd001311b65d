"""Puts the meters of `budget.py` into a template while it is compiled, as a rewriting of jinja's syntax tree."""

from __future__ import annotations

import types
from typing import Any

from jinja2 import nodes
from jinja2.visitor import NodeTransformer

from triptych.models.text.budget import BudgetedEnvironment, BudgetExceededError

__all__ = ["budgeted_program"]


def budgeted_program(environment: BudgetedEnvironment, source: str) -> types.CodeType:
    """The template compiled with its meters. Run it with `jinja2.Template.from_code` in any BudgetedEnvironment."""
    if len(source) > environment.budget.limits.max_source_chars:
        raise BudgetExceededError(f"a template of more than {environment.budget.limits.max_source_chars} characters")
    tree = _Weaver().visit(environment.parse(source))
    return environment.compile(tree)


def _metered(meter: str, *values: nodes.Expr, lineno: int) -> nodes.Call:
    """A call of the environment's own method: templates have no name for it, so they cannot replace it."""
    call = nodes.Call(nodes.EnvironmentAttribute(meter), list(values), [], None, None)
    call.set_lineno(lineno)
    return call


def _metered_statement(meter: str, *values: nodes.Expr, lineno: int) -> nodes.ExprStmt:
    statement = nodes.ExprStmt(_metered(meter, *values, lineno=lineno))
    statement.set_lineno(lineno)
    return statement


class _Weaver(NodeTransformer):
    """Puts the meters into a parsed template."""

    def _visit_body(self, node: Any) -> Any:
        self.generic_visit(node)
        node.body.insert(0, _metered_statement("metered_turn", lineno=node.lineno))
        return node

    visit_For = visit_Macro = visit_CallBlock = visit_Block = _visit_body

    def visit_Output(self, node: nodes.Output) -> list[nodes.Node]:
        self.generic_visit(node)
        data = sum(len(child.data) for child in node.nodes if isinstance(child, nodes.TemplateData))
        node.nodes = [
            child if isinstance(child, nodes.TemplateData) else _metered("metered_output", child, lineno=node.lineno)
            for child in node.nodes
        ]
        return [_metered_statement("metered_data", nodes.Const(data), lineno=node.lineno), node]

    def _visit_literal(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        if getattr(node, "ctx", "load") != "load":
            return node
        return _metered("metered_value", node, lineno=node.lineno)

    visit_List = visit_Dict = visit_Tuple = _visit_literal

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _metered("metered_concat", *node.nodes, lineno=node.lineno)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _metered("metered_operand", node, lineno=node.lineno) if node.ctx == "load" else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _metered("metered_operand", node.expr, lineno=node.lineno)
        return node

    def visit_Test(self, node: nodes.Test) -> nodes.Node:
        self.generic_visit(node)
        node.node = _metered("metered_operand", node.node, lineno=node.lineno)
        return node
