"""Empty stand-ins for the system libraries of Ascend, made from the installed MindSpore wheel.

MindSpore's Ascend plugin loads only where the libraries of CANN are. To compile graphs, not to run
them, it is enough that these exist and export the names that the plugin looks for. What is made
here holds nothing of the vendor's: functions that return 0, made by gcc from a list of names.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from mindplm.errors import DeviceError

TOOLS = ("gcc", "g++", "nm", "readelf", "strings")
_FORMAT = "1"
_SYSTEM = (
    *("libc.so.6", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1", "libgomp.so.1", "libdl.so.2"),
    *("librt.so.1", "libpthread.so.0", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"),
)
# Loaded by name while running, so no library needs them and no symbol table names what they hold.
_LOADED_BY_NAME = ("libascendcl.so", "libhccl.so", "libacl_op_compiler.so", "libopapi.so")
_LOOKED_UP = re.compile(r"(acl|Hccl|hccl|HcclI|mstx|prof)[A-Za-z0-9_]+")
_CARD = "Ascend910B2"
_FUNCTIONS = {
    "aclrtGetSocName": f'const char* aclrtGetSocName(void){{return "{_CARD}";}}',
    "aclrtGetDeviceCount": "int aclrtGetDeviceCount(unsigned*n){*n=8;return 0;}",
    "aclrtGetDevice": "int aclrtGetDevice(int*d){*d=0;return 0;}",
    "aclrtGetMemInfo": "int aclrtGetMemInfo(int a,size_t*f,size_t*t)"
    "{*f=(size_t)60<<30;*t=(size_t)64<<30;return 0;}",
    "rtGetSocVersion": "int rtGetSocVersion(char*b,unsigned n)"
    f'{{strncpy(b,"{_CARD}",n);return 0;}}',
    "aclGetRecentErrMsg": 'const char* aclGetRecentErrMsg(void){return "";}',
}


def missing_tools() -> list[str]:
    """What this machine lacks to make the stand-ins."""
    lacking = [name for name in TOOLS if shutil.which(name) is None]
    if importlib.util.find_spec("mindspore") is None:
        return [*lacking, "mindspore"]
    if not (_plugin() / "libmindspore_ascend.so.2").exists() and not list(
        _plugin().glob("libmindspore_ascend.so*")
    ):
        lacking.append("the Ascend plugin in MindSpore's wheel")
    return lacking


def environment(cache: Path | None = None) -> dict[str, str]:
    """Variables with which a new process loads the plugin over the stand-ins; makes them once.

    Args:
        cache: Folder that keeps them; None: the user's.

    Raises:
        DeviceError: Something is missing to make them.
    """
    lacking = missing_tools()
    if lacking:
        raise DeviceError(f"compiling for Ascend here needs {', '.join(lacking)}")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = (cache or home / "mindplm") / f"ascend_stand_ins-{_key()}"
    cann = folder / "cann"  # the loader looks for a path component of this name
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            build(Path(made) / "cann")
            os.chmod(made, 0o755)
            if not folder.is_dir():
                shutil.copytree(made, folder)
    paths = [str(cann / "lib64"), str(_plugin() / "ascend"), os.environ.get("LD_LIBRARY_PATH", "")]
    return {
        "LD_LIBRARY_PATH": ":".join(path for path in paths if path),
        "ASCEND_HOME_PATH": str(cann),
        "MS_SIMULATION_LEVEL": "0",
    }


def _library() -> Path:
    spec = importlib.util.find_spec("mindspore")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "lib"


def _plugin() -> Path:
    return _library() / "plugin"


def _key() -> str:
    """Changes with the wheel."""
    from importlib import metadata

    version = metadata.version("mindspore")
    digest = hashlib.sha256(f"{_FORMAT} {version} {_library()}".encode()).hexdigest()
    return f"{version}-{digest[:8]}"


# --- what the plugin needs ------------------------------------------------------------------------


def _lines(*command: str) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, errors="replace").stdout.split(
        "\n"
    )


def _exported(path: Path) -> set[str]:
    lines = _lines("nm", "-D", "--defined-only", str(path))
    return {line.split()[-1].split("@")[0] for line in lines if line.strip()}


def _wanted(path: Path) -> set[str]:
    lines = (line.split() for line in _lines("nm", "-D", "--undefined-only", str(path)))
    wanted = {words[-1].split("@")[0] for words in lines if words[-2:-1] == ["U"]}
    for line in _lines("strings", "-n", "6", str(path)):
        if _LOOKED_UP.fullmatch(line):
            wanted.add(line)
    return wanted


def _needed(path: Path) -> list[str]:
    found = (re.search(r"NEEDED.*\[(.+)\]", line) for line in _lines("readelf", "-d", str(path)))
    return [match[1] for match in found if match]


def _system_libraries() -> dict[str, str]:
    found: dict[str, str] = {}
    for line in _lines("ldconfig", "-p"):
        if "=>" in line:
            found.setdefault(line.split()[0], line.split("=> ")[1])
    return found


def survey() -> tuple[list[str], list[str]]:
    """(names of functions and data, names of libraries) that the plugin needs and nothing has."""
    plugin = _plugin()
    shipped = [*_library().glob("*.so*"), *plugin.glob("**/*.so*")]
    patterns = (
        *("libmindspore_ascend.so*", "libmindspore_ops_ascend.so"),
        *("ascend/libmindspore_ascend_res_manager.so", "ascend/lib*collective*.so"),
        *("ascend/libmindspore_atb_kernels.so", "ascend/lib*hccl*.so"),
    )
    todo = [path for pattern in patterns for path in plugin.glob(pattern)]
    system = _system_libraries()
    names = {path.name for path in shipped}
    seen: set[Path] = set()
    wanted: set[str] = set()
    libraries = set(_LOADED_BY_NAME)
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        wanted |= _wanted(path)
        for name in _needed(path):
            if name in names:
                todo += [other for other in shipped if other.name == name]
            elif name not in system:
                libraries.add(name)
    provided: set[str] = set()
    ours = [path for path in shipped if "/ms_kernels" not in str(path)]
    for path in [*ours, *(Path(system[name]) for name in _SYSTEM if name in system)]:
        provided |= _exported(path)
    symbols = [name for name in wanted - provided if not re.match(r"_?Py", name)]
    return sorted(symbols), sorted(libraries)


# --- making them ----------------------------------------------------------------------------------


def sources(symbols: Iterable[str]) -> tuple[str, str]:
    """(C, C++) text that exports the names."""
    plain = ["#include <string.h>", "#include <stddef.h>"]
    classes = ["#include <map>", "#include <string>"]
    for name in symbols:
        if name in _FUNCTIONS:
            plain.append(_FUNCTIONS[name])
        elif "StatusFactory8Instance" in name:  # callers put entries into this map
            classes.append(
                f'extern "C" void* {name}()'
                "{static auto* m=new std::map<unsigned,std::string>[16];return m;}"
            )
        elif re.search(r"Instance(Ev)?$", name) or "InstanceEv" in name:
            plain.append(f"static long b_{name}[8192]; void* {name}(void){{return b_{name};}}")
        elif re.match(r"_ZT[VIS]", name):
            plain.append(f"char {name}[512];")
        else:
            plain.append(f"long {name}(void){{return 0;}}")
    return "\n".join(plain), "\n".join(classes)


def build(folder: Path) -> None:
    """Makes the libraries in folder/lib64.

    Raises:
        DeviceError: The compiler refuses.
    """
    symbols, libraries = survey()
    place = folder / "lib64"
    place.mkdir(parents=True)
    plain, classes = sources(symbols)
    (place / "names.c").write_text(plain)
    (place / "names.cc").write_text(classes)
    made = str(place / "names.o")
    classic = ("-w", "-D_GLIBCXX_USE_CXX11_ABI=0", "-fPIC", "-c")
    _compile("g++", *classic, str(place / "names.cc"), "-o", made)
    for name in libraries:
        content = ["-x", "c", os.devnull]
        if name in ("libascendcl.so", "libacl_op_compiler.so"):
            content = [str(place / "names.c"), made, "-lstdc++"]
        flags = ("-w", "-fno-builtin", "-shared", "-fPIC", f"-Wl,-soname,{name}")
        _compile("gcc", *flags, "-o", str(place / name), *content)


def _compile(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise DeviceError(f"{command[0]} cannot make stand-ins: {done.stderr.strip()[-300:]}")
