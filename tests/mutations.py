"""Small mutations of a module, made from its syntax tree, so that no line of it is quoted.

Each changes one place: a comparison, a boundary, an operation, a boolean, a constant, a return, a
statement, the order of two arguments, or an argument that has a default.
"""

import ast
import difflib
import hashlib
from dataclasses import dataclass, replace

NEGATED = {
    "==": "!=", "!=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">", "is": "is not",
    "is not": "is", "in": "not in", "not in": "in",
}  # fmt: skip
SYMMETRIC = {"max", "min"}
SHIFTED = {"<": "<=", "<=": "<", ">": ">=", ">=": ">"}
EXCHANGED = {
    "+": "-", "-": "+", "*": "/", "/": "*", "//": "*", "%": "*", "**": "*", "&": "|", "|": "&",
}  # fmt: skip


@dataclass(frozen=True)
class Mutation:
    """Bytes `start` to `end` of the module become `new`."""

    kind: str
    function: str  # its qualified name, "" outside of functions
    start: int
    end: int
    new: bytes
    key: str = ""  # its name, which stays while its function keeps the changed lines

    def apply(self, source):
        data = source.encode()
        return (data[: self.start] + self.new + data[self.end :]).decode()

    def diff(self, source):
        lines = source.splitlines(), self.apply(source).splitlines()
        return list(difflib.unified_diff(*lines, n=0, lineterm=""))[2:]


class Generator(ast.NodeVisitor):
    """Collects the mutations of a module in `found`."""

    def __init__(self, source):
        self.data, self.found = source.encode(), []
        lengths = [len(line) for line in self.data.splitlines(keepends=True)]
        self.starts = [sum(lengths[:i]) for i in range(len(lengths))]
        self.names, self.bound = [], [set()]
        self.visit(ast.parse(source))

    def span(self, node):
        return (
            self.starts[node.lineno - 1] + node.col_offset,
            self.starts[node.end_lineno - 1] + node.end_col_offset,
        )

    def text(self, node):
        start, end = self.span(node)
        return self.data[start:end].decode()

    def change(self, kind, start, end, new):
        self.found.append(Mutation(kind, ".".join(self.names), start, end, new.encode()))

    def change_node(self, kind, node, new):
        self.change(kind, *self.span(node), new)

    def change_operator(self, kind, left, right, table):
        """The operator stands alone between its operands, or is left as it is."""
        start, end = self.span(left)[1], self.span(right)[0]
        gap = self.data[start:end].decode()
        old = " ".join(gap.replace(")", " ").replace("(", " ").split())
        if old in table and gap.count(old) == 1:
            self.change(kind, start, end, gap.replace(old, table[old]))

    # What is left as it is

    def visit_JoinedStr(self, node):  # a message; and Python 3.11 does not say where its parts are
        pass

    def visit_Raise(self, node):  # the wording of an error
        self.delete(node)

    def visit_keyword(self, node):
        if node.arg != "strict":  # of zip: what it refuses does not occur
            self.visit(node.value)

    def visit_arg(self, node):  # its annotation
        pass

    def visit_AnnAssign(self, node):
        if node.value:
            self.visit(node.value)

    # Statements

    def visit_FunctionDef(self, node):
        for part in (*node.decorator_list, node.args):
            self.visit(part)
        self.names.append(node.name)
        arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        self.bound.append({argument.arg for argument in arguments})
        for statement in node.body:
            self.visit(statement)
        self.bound.pop()
        self.names.pop()

    def visit_ClassDef(self, node):
        for decorator in node.decorator_list:
            self.visit(decorator)
        self.names.append(node.name)
        for statement in node.body:
            self.visit(statement)
        self.names.pop()

    def delete(self, node):
        self.change_node("statement", node, "pass")

    def visit_Expr(self, node):
        if not isinstance(node.value, ast.Constant):  # a docstring or an ellipsis
            if not isinstance(node.value, (ast.Yield, ast.YieldFrom)):
                self.delete(node)
            self.generic_visit(node)

    def visit_Assign(self, node):
        names = {n.id for target in node.targets for n in ast.walk(target)
                 if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}  # fmt: skip
        if self.names and names <= self.bound[-1]:  # what was assigned before remains
            self.delete(node)
        self.bound[-1] |= names
        if names != {"__all__"}:
            self.generic_visit(node)

    def visit_AugAssign(self, node):
        self.delete(node)
        self.change_operator("arithmetic", node.target, node.value,
                              {f"{a}=": f"{b}=" for a, b in EXCHANGED.items()})  # fmt: skip
        self.generic_visit(node)

    def visit_Return(self, node):
        if node.value:
            if not (isinstance(node.value, ast.Constant) and node.value.value is None):
                self.change_node("return", node.value, "None")
            self.visit(node.value)

    def visit_If(self, node):
        if self.text(node.test) != "TYPE_CHECKING":
            self.condition(node)
            self.generic_visit(node)

    def condition(self, node):
        if not isinstance(node.test, ast.Compare) or len(node.test.ops) > 1:
            self.change_node("boolean", node.test, f"not ({self.text(node.test)})")

    def visit_IfExp(self, node):
        self.condition(node)
        self.generic_visit(node)

    # Expressions

    def visit_Compare(self, node):
        operands = [node.left, *node.comparators]
        for left, right in zip(operands, operands[1:], strict=False):
            self.change_operator("comparison", left, right, NEGATED)
            self.change_operator("boundary", left, right, SHIFTED)
        self.generic_visit(node)

    def visit_BinOp(self, node):
        self.change_operator("arithmetic", node.left, node.right, EXCHANGED)
        self.generic_visit(node)

    def visit_BoolOp(self, node):
        for left, right in zip(node.values, node.values[1:], strict=False):
            self.change_operator("boolean", left, right, {"and": "or", "or": "and"})
        self.generic_visit(node)

    def visit_UnaryOp(self, node):
        if isinstance(node.op, (ast.Not, ast.USub, ast.Invert)):
            kind = "boolean" if isinstance(node.op, ast.Not) else "arithmetic"
            self.change_node(kind, node, f"({self.text(node.operand)})")
        self.generic_visit(node)

    def visit_Constant(self, node):
        value = node.value
        if isinstance(value, bool):
            self.change_node("constant", node, str(not value))
        elif isinstance(value, int):
            self.change_node("constant", node, str(value + 1))
        elif isinstance(value, float):
            self.change_node("constant", node, repr(2 * value or 1.0))

    def visit_Call(self, node):
        pairs = zip(node.args, node.args[1:], strict=False)
        first = next(pairs, None)
        if (
            first
            and self.text(node.func) not in SYMMETRIC
            and not any(isinstance(a, (ast.Starred, ast.GeneratorExp)) for a in first)
        ):
            (start, middle), (right, end) = map(self.span, first)
            one, other = map(self.text, first)
            gap = self.data[middle:right].decode()
            self.change("arguments", start, end, f"{other}{gap}{one}")
        for before, keyword in zip([*node.args, *node.keywords][:-1],
                                   [*node.args, *node.keywords][1:], strict=True):  # fmt: skip
            if isinstance(keyword, ast.keyword) and keyword.arg not in (None, "strict"):
                gap = self.data[self.span(before)[1] : self.span(keyword)[0]].decode()
                if gap.strip() == ",":
                    self.change("arguments", self.span(before)[1], self.span(keyword)[1], "")
        self.generic_visit(node)


def mutations(source):
    """The places of a module that can be changed, each with its key."""
    data, found, seen = source.encode(), [], {}
    for m in Generator(source).found:
        first, last = data.rfind(b"\n", 0, m.start) + 1, (data + b"\n").index(b"\n", m.end)
        before, after = data[first:last], data[first : m.start] + m.new + data[m.end : last]
        text = "\n".join([m.kind, m.function, before.decode(), after.decode()])
        seen[text] = seen.get(text, 0) + 1
        key = hashlib.sha256(f"{text}\n{seen[text]}".encode()).hexdigest()[:10]
        found.append(replace(m, key=key))
    return found


def sample(source, n, seed=0):
    """`n` mutations by chance. A change elsewhere in the module leaves most of them as they are."""

    def rank(m):
        return hashlib.sha256(f"{seed} {m.key}".encode()).digest()

    same, drawn = ast.dump(ast.parse(source)), []
    for m in sorted(mutations(source), key=rank):
        if len(drawn) == n:
            break
        try:
            if ast.dump(ast.parse(m.apply(source))) != same:
                drawn.append(m)
        except SyntaxError:  # an operator of another precedence, in rare places
            continue
    return drawn
