"""A small grammar of mathematical answers: LaTeX or plain text to a tree, without executing anything.

Standard precedence; implicit multiplication binds like an explicit one (1/2x is x/2); a whole number before a
proper fraction of whole numbers is a mixed number; `\\log` is to base 10; subscripts are part of names.
"""

import re
from contextvars import ContextVar
from fractions import Fraction
from typing import NamedTuple


class NotAnExpression(ValueError):
    """The text is outside the grammar."""


class OutOfSteps(Exception):
    """A comparison has done as much work as it may; no rule takes this for an answer without value."""


# Left to this thread's comparison, of about 5 microseconds each; a verdict must not depend on the machine.
STEPS: ContextVar[list[int] | None] = ContextVar("steps", default=None)


def spend(steps: int) -> None:
    """Take steps from those that are left to this comparison; raises `OutOfSteps`."""
    if (left := STEPS.get()) is not None:
        left[0] -= steps
        if left[0] < 0:
            raise OutOfSteps


class Node(NamedTuple):
    """`operator` is number, constant, symbol, or the name of an operation or function of `arguments`."""

    operator: str
    arguments: tuple["Node", ...] = ()
    value: Fraction | str = ""

    def walk(self) -> list["Node"]:
        """All nodes, a node before its last argument before its first; trees are too deep for recursion."""
        found, left = [], [self]
        while left:
            found.append(node := left.pop())
            left.extend(node.arguments)
        return found

    def symbols(self) -> set[str]:
        return {str(node.value) for node in self.walk() if node.operator == "symbol"}


_DECORATIONS = {name: name for name in ("overline", "vec", "hat", "tilde", "dot")}
_DECORATIONS |= {"bar": "overline", "overrightarrow": "vec", "widehat": "hat"}
_MAX_TOKENS = 600
_MAX_DEPTH = 60  # of brackets; each takes up to eight of Python's 1000 stack frames
_GREEK = (  # noqa: SIM905
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau phi chi psi "
    "omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega angle triangle"
).split()
FUNCTIONS = (  # noqa: SIM905
    "arcsin arccos arctan arccot sinh cosh tanh sin cos tan cot sec csc ln lg log exp abs max min"
).split()
_ALIASES = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "tg": "tan", "ctg": "cot", "cosec": "csc"}
_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d)|\d+\.\d+|\d+\.?(?!\d)|\.\d+)"
    r"|(?P<command>\\[A-Za-z]+|\\[{}])|(?P<word>[A-Za-z]+)|(?P<other>\S))"
)
_CLOSING = {"(": ")", "[": "]", "{": "}", "\\{": "\\}", "|": "|"}
_CLOSING |= {"\\lfloor": "\\rfloor", "\\lceil": "\\rceil"}
_STOPPERS = {"\\}"} | {f"\\{name}" for name in "cdot rfloor rceil le ge ne in cup cap circ".split()}  # noqa: SIM905


def parse_expression(text: str) -> Node:
    """Parse `text`; raises `NotAnExpression`."""
    spend(1 + len(text) // 4)
    parser = _Parser(_tokens(text))
    try:
        node = parser.sum()
    except (RecursionError, ValueError) as error:  # what Fraction and int refuse: a lone point, 10_二
        raise NotAnExpression(str(error)) from error
    if parser.position != len(parser.tokens):
        raise NotAnExpression(f"unexpected '{parser.tokens[parser.position]}'")
    return node


def _tokens(text: str) -> list[str]:
    tokens: list[str] = []
    for found in _TOKEN.finditer(text):
        if len(tokens) > _MAX_TOKENS:
            raise NotAnExpression("too long")
        number, command, word, other = found.groups()
        if word:
            tokens.extend(_split_word(word))
        elif command:
            tokens.append("\\" + _ALIASES.get(command[1:], command[1:]))
        else:
            tokens.append((number or other).rstrip(".") or ".")
    return tokens


def _split_word(word: str) -> list[str]:
    # Function names become commands, all other letters symbols: xsinx, AB, lnx.
    names = "|".join([*_ALIASES, *FUNCTIONS, "pi"])
    parts = re.findall(rf"({names})|([A-Za-z])", word)
    if sum(bool(letter) for _, letter in parts) > 4:  # more than a product of symbols has
        raise NotAnExpression(f"'{word}' is a word")
    return [f"\\{_ALIASES.get(name, name)}" if name else letter for name, letter in parts]


class _Parser:
    """Recursive descent over the tokens; each method parses one rule and returns its tree."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.position = self.depth = 0
        self.bars = 0  # 1 inside |...|, where the next bar closes and does not begin a factor

    def peek(self, ahead: int = 0) -> str:
        place = self.position + ahead
        return self.tokens[place] if place < len(self.tokens) else ""

    def take(self, expected: str = "") -> str:
        token = self.peek()
        if not token or (expected and token != expected):
            raise NotAnExpression(f"expected '{expected}', found '{token}'")
        self.position += 1
        return token

    def accept(self, *tokens: str) -> str:
        return self.take() if self.peek() in tokens else ""

    def sum(self) -> Node:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise NotAnExpression("nested too deep")
        node = self.product()
        while sign := self.accept("+", "-"):
            node = Node("add" if sign == "+" else "subtract", (node, self.product()))
        self.depth -= 1
        return node

    def product(self) -> Node:
        node = self.signed()
        while True:
            if sign := self.accept("\\cdot", "/", ":"):
                node = Node("multiply" if sign == "\\cdot" else "divide", (node, self.signed()))
            elif self.starts_factor():
                node = Node("multiply", (node, self.power(after_factor=True)))
            else:
                return node

    def starts_factor(self) -> bool:
        token = self.peek()
        if token == "|":
            return self.bars == 0
        return token[:1].isalnum() or token in _CLOSING or (token[:1] == "\\" and token not in _STOPPERS)

    def signed(self) -> Node:
        negative = False
        while sign := self.accept("+", "-"):
            negative ^= sign == "-"
        node = self.power()
        return Node("negate", (node,)) if negative else node

    def power(self, *, after_factor: bool = False) -> Node:
        if after_factor and self.peek()[0].isdigit() and self.tokens[self.position - 1][-1:].isdigit():
            raise NotAnExpression("two adjacent numbers")
        node = self.postfix(self.atom())
        if self.accept("^"):
            node = self.postfix(Node("power", (node, self.exponent())))
        return node

    def exponent(self) -> Node:
        if self.peek() in ("-", "+"):
            return self.signed()
        node = self.atom()
        # Powers are right-associative.
        return Node("power", (node, self.exponent())) if self.accept("^") else node

    def postfix(self, node: Node) -> Node:
        while True:
            if self.peek() == "!" and self.peek(1) != "!":  # n!! is not (n!)!
                node = Node("factorial", (node,))
            elif self.peek() == "%":
                node = Node("divide", (node, _number(100)))
            elif self.peek() == "^" and self.peek(1) == "\\circ":
                self.take()
                node = Node("degree", (node,))
            else:
                return node
            self.take()

    def atom(self) -> Node:
        token = self.take()
        if token[0].isdigit() or token[0] == ".":
            return self.number(token)
        if token in _CLOSING:
            return self.group(token)
        if token.isalpha() and token.isascii():
            return self.symbol(token)
        if token.startswith("\\"):
            return self.command(token[1:])
        raise NotAnExpression(f"unexpected '{token}'")

    def number(self, token: str) -> Node:
        if self.accept("_"):  # a whole number in another base: 1101_2 or 52_{8}
            base = self.group(self.take()) if self.peek() == "{" else _number(self.take()[:2])
            radix = int(str(base.value))
            if not 2 <= radix <= 10:
                raise NotAnExpression("subscript of a number that is no base")
            return _number(int(token, radix))
        if "." in token:
            return _number(token.replace(",", ""))
        whole, after = int(token.replace(",", "")), self.peek()
        return _number(whole + self.proper_fraction() if after == "\\frac" or after.isdigit() else whole)

    def proper_fraction(self) -> Fraction:
        """Take the fraction of a mixed number, if the next tokens are one; otherwise return 0."""
        text = " ".join(self.tokens[self.position : self.position + 7])
        forms = (r"\\frac \{ (\d+) \} \{ (\d+) \}", r"\\frac (\d)(\d)(?= |$)", r"(\d+) / (\d+)(?!\d| [\^!_])")
        for found in filter(None, (re.match(form, text) for form in forms)):
            if 0 < int(found[1]) < int(found[2]):
                self.position += len(found[0].split())
                return Fraction(int(found[1]), int(found[2]))
        return Fraction(0)

    def group(self, opening: str) -> Node:
        self.bars, outer = int(opening == "|"), self.bars
        node = self.sum()
        self.take(_CLOSING[opening])
        self.bars = outer
        name = {"|": "abs", "\\lfloor": "floor", "\\lceil": "ceil"}.get(opening)
        return Node(name, (node,)) if name else node

    def argument(self) -> Node:
        """Parse the argument of a command: a brace group, or one digit or symbol as in TeX."""
        token = self.peek()
        if not token.isdigit():
            return self.atom() if token == "{" else self.postfix(self.atom())
        # \frac12 is one half: the other digits are left for the next argument.
        if len(token) > 1:
            self.tokens[self.position] = token[1:]
        else:
            self.take()
        return _number(token[0])

    def symbol(self, letter: str) -> Node:
        name = letter + self.subscript()
        while self.peek() == "'":
            name += self.take()
        if name in ("i", "e"):
            return Node("constant", value=letter)
        if letter in "CAP" and len(name) > 1 and self.accept("^"):
            # C_n^k and A_n^k, as Chinese papers write combinations and arrangements.
            lower = parse_expression(name.removeprefix(letter).removeprefix("_"))
            return Node("binomial" if letter == "C" else "arrangements", (lower, self.argument()))
        return Node("symbol", value=name)

    def subscript(self) -> str:
        return "_" + self.raw() if self.accept("_") else ""

    def raw(self) -> str:
        """Take a token, or the tokens of a brace group, as part of a name."""
        start = self.position + 1
        if (token := self.take()) != "{":
            return token
        while self.take() != "}":
            pass
        return "".join(self.tokens[start : self.position - 1])

    def command(self, name: str) -> Node:
        if operation := {"frac": "divide", "binom": "binomial"}.get(name):
            return Node(operation, (self.argument(), self.argument()))
        if name == "sqrt":
            degree = self.group("[") if self.accept("[") else _number(2)
            radicand = self.group(self.take()) if self.peek() in ("(", "|") else self.argument()
            return Node("root", (radicand, degree))
        if name in FUNCTIONS:
            return self.function(name)
        if name in ("pi", "infty"):
            return Node("constant", value=name)
        if name in _DECORATIONS:
            return Node("symbol", value=f"\\{_DECORATIONS[name]}{{{self.raw()}}}" + self.subscript())
        if name in _GREEK:
            return Node("symbol", value=f"\\{name}" + self.subscript())
        raise NotAnExpression(f"unknown command '\\{name}'")

    def function(self, name: str) -> Node:
        base = self.argument() if name == "log" and self.accept("_") else None
        exponent = self.exponent() if self.peek(1) != "\\circ" and self.accept("^") else None
        if exponent == Node("negate", (_number(1),)) and f"arc{name}" in FUNCTIONS:
            name, exponent = f"arc{name}", None
        arguments = self.function_arguments()
        # \log_2 x has its base as second argument, max(a, b) as many as there are.
        node = Node(name, (*arguments, base) if base else arguments)
        return Node("power", (node, exponent)) if exponent else node

    def function_arguments(self) -> tuple[Node, ...]:
        if opening := self.accept("(", "\\{"):
            found = [self.sum()]
            while self.accept(","):
                found.append(self.sum())
            self.take(_CLOSING[opening])
            return tuple(found)
        # Without brackets a function takes the factors up to the next function: sin 2x cos x.
        node = self.power()
        while self.starts_factor() and self.peek()[1:] not in FUNCTIONS and self.peek() != "(":
            node = Node("multiply", (node, self.power(after_factor=True)))
        if self.peek() == "/" and self.peek(1).isdigit() and node.operator != "number":
            self.take()  # sin x/2 is the sine of half x
            node = Node("divide", (node, self.atom()))
        return (node,)


def _number(value: int | str | Fraction) -> Node:
    return Node("number", value=Fraction(value))
