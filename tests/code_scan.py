"""Finds calls that could run code from data, read pickles, or write past `diticli.files`, in Python source.

Reads the syntax tree, runs nothing.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

FORBIDDEN = {
    *("eval", "exec", "compile", "__import__", "execfile", "input", "breakpoint"),
    *("os.system", "os.popen", "os.execv", "os.execvp", "os.spawnv", "subprocess.getoutput", "tempfile.mktemp"),
    *("subprocess.getstatusoutput", "asyncio.create_subprocess_shell", "asyncio.create_subprocess_exec"),
    *("os.execl", "os.execle", "os.execlp", "os.execve", "os.execvpe", "os.spawnl", "os.spawnve", "os.posix_spawn"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open"),
    *("cPickle.loads", "dill.load", "dill.loads", "cloudpickle.load", "cloudpickle.loads", "joblib.load"),
    *("pandas.read_pickle", "torch.hub.load", "torch.jit.load", "torch.package.PackageImporter", "numpy.fromregex"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "yaml.UnsafeLoader", "yaml.Loader"),
    *("runpy.run_path", "runpy.run_module", "code.interact", "types.FunctionType", "builtins.eval", "builtins.exec"),
}
ORDINARY_NAMES = {"compile", "input"}  # of parameters; only their calls count
FORBIDDEN_METHODS = {"extract", "extractall", "unpack_archive", "run_path"}
FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "code", "runpy", "jsonpickle"}
FORBIDDEN_MODULES |= {"imp", "pty", "xmlrpc", "telnetlib", "ftplib"}
HARMLESS_IMPORTS = {"pickle.UnpicklingError"}  # only to catch what torch raises
# call -> (keyword, the one constant it must have)
REQUIRED = {
    "torch.load": ("weights_only", True),
    "numpy.load": ("allow_pickle", False),
}
FORBIDDEN_KEYWORDS = {"trust_remote_code": True, "allow_pickle": True, "weights_only": False, "shell": True}
FORBIDDEN_KEYWORDS |= {"custom_pipeline": None, "use_safetensors": False}  # None: whatever it is given
ALIASES = {"np": "numpy", "pd": "pandas"}
DYNAMIC_IMPORTS = {"importlib.import_module", "importlib.util.spec_from_file_location"}
CHILD_STARTERS = {f"subprocess.{name}" for name in ("Popen", "run", "call", "check_output", "check_call")}
ISOLATED = {"-P", "-I"}
"""A child Python must not take modules or settings from the working folder, which may be somebody else's data."""
PICTURE_OPENERS = {"PIL.Image.open", "Image.open"}

WRITERS = {
    *("os.replace", "os.rename", "os.renames", "os.link", "os.symlink", "os.truncate", "os.mkfifo"),
    *("shutil.copy", "shutil.copy2", "shutil.copyfile", "shutil.copytree", "shutil.move", "io.open", "os.fdopen"),
    *("tempfile.mkstemp", "tempfile.mkdtemp", "tempfile.NamedTemporaryFile", "numpy.savetxt"),
    *("torch.save", "safetensors.torch.save_file", "safetensors.numpy.save_file", "save_file"),
    *("safetensors.numpy.save_model", "safetensors.torch.save_model", "sqlite3.connect"),
}
WRITING_METHODS = {"write_text", "write_bytes", "touch", "symlink_to", "hardlink_to", "tofile", "savefig", "to_csv"}
"""Of paths, arrays, figures and tables."""
OPEN_FILES = {"file", "buffer"}
"""What an open file is called where a library fills it: `picture.save(file, format="PNG")`."""
FILLERS = {"save", "savez", "savez_compressed", "dump"}


def writes(source: str, name: str = "<source>") -> list[str]:
    """`name:line: what` for each call that may write to a path by other means than `diticli.files`."""
    tree = ast.parse(source, name)
    names = dict(ALIASES) | dict(_imported(tree))
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return sorted(f"{name}:{call.lineno}: {ast.unparse(call.func)}" for call in calls if _may_write(call, names))


def _may_write(call: ast.Call, names: dict[str, str]) -> bool:
    dotted = _dotted(call.func, names)
    method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    if dotted in WRITERS or method in WRITING_METHODS:
        return True
    if dotted == "os.open":
        return re.search(r"O_(WRONLY|RDWR|CREAT|APPEND|TRUNC)", ast.unparse(call)) is not None
    if dotted == "numpy.memmap":
        return not any(word.arg == "mode" and ast.unparse(word.value) == "'r'" for word in call.keywords)
    if dotted == "open" or method == "open":
        # The mode comes second in `open`, first in `Path.open`; of neither is known which it is when it is computed.
        given = [*call.args[:2], *(word.value for word in call.keywords if word.arg == "mode")]
        modes = [part.value for part in given if isinstance(part, ast.Constant) and isinstance(part.value, str)]
        computed = dotted == "open" and len(call.args) > 1 and not isinstance(call.args[1], ast.Constant)
        return computed or any(set(mode) <= set("rwaxbt+") and set(mode) & set("wax+") for mode in modes)
    if method in ("replace", "rename"):  # of strings `replace` has two arguments, of dates none without a name
        return len(call.args) == 1 and not call.keywords
    if method in FILLERS and call.args:
        first = call.args[0]
        return not (isinstance(first, ast.Name) and first.id in OPEN_FILES)
    return False


def findings(source: str, name: str = "<source>") -> list[str]:
    """`name:line: what` for each suspicious import, call or keyword."""
    tree = ast.parse(source, name)
    names, lists = dict(ALIASES) | dict(_imported(tree)), _assigned(tree)
    found = []
    for node in ast.walk(tree):
        problems = _of_import(node) if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.Call):
            problems = _of_call(node, names, lists)
        elif isinstance(node, ast.Attribute | ast.Name) and _dotted(node, names) in FORBIDDEN - ORDINARY_NAMES:
            problems = [_dotted(node, names)]  # also where it is handed on instead of called
        found += [f"{name}:{getattr(node, 'lineno', 0)}: {problem}" for problem in problems]
    return sorted(set(found))


def _imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """What the names of a module stand for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.asname, alias.name) for alias in node.names if alias.asname)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)


def _of_import(node: ast.Import | ast.ImportFrom) -> list[str]:
    module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
    given = [f"{module}.{alias.name}" if module else alias.name for alias in node.names]
    return [f"import {name}" for name in given if name.split(".")[0] in FORBIDDEN_MODULES - _harmless(name)]


def _harmless(name: str) -> set[str]:
    return {name.split(".")[0]} if name in HARMLESS_IMPORTS else set()


def _of_call(node: ast.Call, names: dict[str, str], lists: dict[str, list[ast.AST]]) -> list[str]:
    dotted = _dotted(node.func, names)
    keywords = {word.arg: word.value for word in node.keywords}
    problems = [dotted] if dotted in FORBIDDEN else []
    if isinstance(node.func, ast.Attribute) and node.func.attr in FORBIDDEN_METHODS:
        problems.append(f".{node.func.attr}()")
    if dotted in REQUIRED:
        keyword, wanted = REQUIRED[dotted]
        value = keywords.get(keyword)
        if not (isinstance(value, ast.Constant) and value.value is wanted):
            problems.append(f"{dotted} without {keyword}={wanted}")
    if dotted in PICTURE_OPENERS and "formats" not in keywords:
        problems.append("Image.open without formats=")
    if dotted in DYNAMIC_IMPORTS and not (node.args and isinstance(node.args[0], ast.Constant)):
        problems.append(f"{dotted} of a computed name")
    if dotted in CHILD_STARTERS and not (node.args and _isolated(node.args[0], lists)):
        problems.append(f"{dotted} of something else than [sys.executable, '-P' or '-I', ...]")
    elif dotted in CHILD_STARTERS and "cwd" not in keywords:
        problems.append(f"{dotted} without a working folder of its own (cwd=)")
    for word, value in keywords.items():
        if word in FORBIDDEN_KEYWORDS:
            bad = FORBIDDEN_KEYWORDS[word]
            if bad is None or not (isinstance(value, ast.Constant) and value.value is not bad):
                problems.append(f"{word}={ast.unparse(value)}")
    return problems


def _isolated(command: ast.AST, lists: dict[str, list[ast.AST]]) -> bool:
    """Whether the first option of a command is one of `ISOLATED`; of a name, whether that is so wherever it is set."""
    if isinstance(command, ast.Name):
        return command.id in lists and all(_isolated(value, {}) for value in lists[command.id])
    parts = command.elts[1:2] if isinstance(command, ast.List | ast.Tuple) else []
    return any(isinstance(part, ast.Constant) and part.value in ISOLATED for part in parts)


def _assigned(tree: ast.AST) -> dict[str, list[ast.AST]]:
    """What the names of a module are set to, wherever that is."""
    found: dict[str, list[ast.AST]] = {}
    for node in ast.walk(tree):
        for target in node.targets if isinstance(node, ast.Assign) else ():
            if isinstance(target, ast.Name):
                found.setdefault(target.id, []).append(node.value)
    return found


def _dotted(node: ast.AST, names: dict[str, str]) -> str:
    """The full name of an attribute chain, "" for anything else."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        inner = _dotted(node.value, names)
        return f"{inner}.{node.attr}" if inner else ""
    return ""
