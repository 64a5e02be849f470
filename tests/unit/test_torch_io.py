"""PyTorch's files, read and written without PyTorch: exact values, and nothing is ever executed."""

from __future__ import annotations

import base64
import contextlib
import os
import pickle
import random
import struct
import sys
import tracemalloc
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mindplm.errors import CheckpointError
from mindplm.tensors import BF16, LazyArray, cast
from mindplm.weights.pickle_reader import read_pickle
from mindplm.weights.torch_io import open_torch, torch_chunks

# Written by torch.save of PyTorch 2.13: an OrderedDict with _metadata that holds `a`, 0 to 5 as
# fp32 [2, 3]; `turned`, its transpose; `part`, a[1:, ::2]; `brain`, [1.5, -2, inf] in bfloat16; and
# `half`, a parameter, 0.1 in fp16.
REAL = (
    "c-p0v-A~g{7{<@mtw8xu6a+-UPaFbc-8UwPHfAyDg)n2Xc(Zg{p^atZZO<^85SJLH-l>0p@lG#{x8Cv(ctK3O^3FuVmB"
    "xD$&*>SX?f3|CvaZ>7e(&?V>+`nrG8aIoy&bizZq$#K^|C%)Qm_(Ud0=FuUUc8PYW`xeVi;->>y@%4+%Ze4sg`c(MJxa"
    "s&w?+M^O0f-_=~t=7PWA`igm*h@}^p->P9J#)v{GF^Q%z-xKJq9MmAeyr?R9%fFVN0s3`a@`%-|QT`&TCjw9#dN)_5<9"
    "z*+rjAXye)uBV?WM3VG7aBFtiJ>bC-8r6Y##OVdmY_!?N?Je*YP@E%$0*Cm{yH3&eY8X`V^3f>nT5U_`G?SoVq)m`lBX"
    "7^7$pZ-fk8$NVK|+I;arfA1yj+>aE76cmL$6;G1=_utlgCeBcv{eVbpfC4(DXwI-F-UFJQQsg-f;@O)(bX@*aOFv8pVq"
    "STzM0bE)1YR8#Satr&$6QS@OLCyL|aOzA3yi7ZS$w?9lhgK!q6t7{O+br2#?N-H!IAg)0)N23C<HHh1nZdElc5(G%dKF"
    "hKS;d!~O{oUUWc+`&&J?8g}TOS%_aSJb2%w+}V8>KSRaBJ#zmPi#o{rdKlHbalS6$a3?hC(A?dBxC|%FAjQXQbqQBKxd"
    "loEn&W2wS8(<lomo50aRH!XvC!=%i$%>;I{{y$l^=L!}<pXTJ~8kn{U`=tMVnrg}P(k!Fu(fK{!{k+&P<MUEOd-rk^&2"
    "44PrHAsFKJiyVk!;zSgCJy6hV-9W9o=~+Pe?D&=w*Tmn`(Lyp-uvbK$Ahnb7YZ=#X0#EC36$S_vvluZei$Vh0k+Lss;Q"
    "F%KUV0iH?Nm6l6d%DBI)={Je^L*Q!~j#B%V&i5)m;q6BQ#VF%geNV>79EEES7Umy=_^>mlMJWV`fHvrV7QA@6Q+?s|@R"
    "QRnpbxv+{K?Rrn}R&b8rfUCl0vqH<vdy6>dr^i(!%OTI)dRb@EJ6-Ho4msz|3pzvV2DN|_6uqD`aUMk%81;hAsCBv93?"
    "f%Ny`=N<54*_M+vM)SoR@iivaxl9n`&Ymp7W%iozpx!6OKMpP^n>n-QI&dV>;~pZ0|qLQtX%"
)


def real_file(tmp_path: Path) -> Path:
    path = tmp_path / "real.pt"
    path.write_bytes(zlib.decompress(base64.b85decode(REAL)))
    return path


def lazy(array: np.ndarray) -> LazyArray:
    return LazyArray(array.shape, array.dtype, lambda: array)


def save(path: Path, arrays: dict[str, Any]) -> Path:
    made = {n: a if isinstance(a, LazyArray) else lazy(a) for n, a in arrays.items()}
    path.write_bytes(b"".join(torch_chunks(made)))
    return path


def pack(path: Path, text: bytes, members: dict[str, bytes] | None = None, **kwargs: Any) -> Path:
    """A zip file around any pickle."""
    with zipfile.ZipFile(path, "w", **kwargs) as file:
        file.writestr("x/data.pkl", text)
        for name, data in (members or {}).items():
            file.writestr(f"x/{name}", data)
    return path


def unicode(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def number(value: int) -> bytes:
    if value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + value.to_bytes(8, "little")


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def view(shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0, size: int = 6) -> bytes:
    """A pickle of {"w": one view of storage 0}."""
    return (
        b"\x80\x02}" + unicode("w") + b"ctorch._utils\n_rebuild_tensor_v2\n((" + unicode("storage")
        + b"ctorch\nFloatStorage\n" + unicode("0") + unicode("cpu") + number(size) + b"tQ"
        + number(offset) + numbers(shape) + numbers(strides)
        + b"\x89ccollections\nOrderedDict\n)RtRs."
    )  # fmt: skip


SIX = np.arange(6, dtype="<f4")


def test_a_real_file_is_read_exactly(tmp_path: Path) -> None:
    found = open_torch(real_file(tmp_path))
    assert list(found) == ["a", "turned", "part", "brain", "half"]
    values = {name: np.asarray(array) for name, array in found.items()}
    assert (values["a"] == SIX.reshape(2, 3)).all()
    assert (values["turned"] == SIX.reshape(2, 3).T).all()
    assert values["turned"].flags.c_contiguous
    assert (values["part"] == [[3, 5]]).all()
    assert values["brain"].dtype == BF16
    assert cast(values["brain"], np.dtype("<f4")).tolist() == [1.5, -2.0, np.inf]
    assert values["half"].dtype == np.float16
    assert values["half"].shape == ()
    assert values["half"] == np.float16(0.1)


def every_kind() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    kinds = ["<f2", "<f4", "<f8", "i1", "u1", "<i2", "<i4", "<i8", "?"]
    arrays = {kind: (100 * rng.standard_normal((3, 5))).astype(kind) for kind in kinds}
    arrays["brain"] = rng.integers(0, 1 << 16, (4, 2)).astype("<u2").view(BF16)
    arrays["scalar"] = np.array(7.5, np.float32)
    arrays["none"] = np.zeros((0, 4), np.float16)
    arrays["中文 name"] = np.array([np.nan, -0.0, 1e-45], np.float32)
    return arrays


def test_what_is_written_is_read_bitwise(tmp_path: Path) -> None:
    arrays = every_kind()
    found = open_torch(save(tmp_path / "x.bin", arrays))
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].shape == array.shape
        assert found[name].dtype == array.dtype
        assert np.asarray(found[name]).tobytes() == array.tobytes()


def test_written_files_are_plain_zips_with_aligned_members(tmp_path: Path) -> None:
    path = save(tmp_path / "x.bin", every_kind())
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
        for info in file.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
            head = path.read_bytes()[info.header_offset :][:30]
            name, extra = struct.unpack("<HH", head[26:])
            assert (info.header_offset + 30 + name + extra) % 64 == 0


def test_copies_share_one_storage(tmp_path: Path) -> None:
    item = lazy(SIX)
    path = save(tmp_path / "x.bin", {"embed": item, "head": item, "own": SIX.copy()})
    with zipfile.ZipFile(path) as file:
        assert [name for name in file.namelist() if "data/" in name] == [
            "archive/data/0",
            "archive/data/1",
        ]
    found = open_torch(path)
    assert found["embed"] is found["head"] is not found["own"]


@pytest.mark.parametrize("order", ["little", "big"])
def test_views_and_byte_order_are_honoured(tmp_path: Path, order: str) -> None:
    data = SIX.astype(">f4" if order == "big" else "<f4").tobytes()
    members = {"data/0": data, "byteorder": order.encode()}
    for shape, strides, offset in [((2, 3), (3, 1), 0), ((3, 2), (1, 3), 0), ((2, 2), (3, 2), 0),
                                   ((4,), (1,), 2), ((), (), 5), ((1, 6), (99, 1), 0)]:  # fmt: skip
        path = pack(tmp_path / "x.pt", view(shape, strides, offset), members)
        expected = np.lib.stride_tricks.as_strided(SIX[offset:], shape, [4 * s for s in strides])
        assert (np.asarray(open_torch(path)["w"]) == expected).all()


@pytest.mark.parametrize(
    "text",
    [
        view((2, 4), (3, 1)),  # reaches beyond the storage
        view((6,), (1,), offset=1),
        view((6,), (0,)),  # would grow
        view((1 << 20, 1 << 20), (0, 0)),
        view((3, 3), (1, 1)),  # overlaps itself
        view((2, 3), (3,)),
        view((-1, 3), (3, 1)),
        view((2, 3), (3, 1), size=1 << 50),
        view((1,) * 40, (1,) * 40),
    ],
)
def test_views_that_lie_are_refused(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(CheckpointError, match="x.pt"):
        open_torch(pack(tmp_path / "x.pt", text, {"data/0": SIX.tobytes()}))


# --- nothing is executed --------------------------------------------------------------------------


class Call:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any):
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def exploits(mark: Path) -> dict[str, tuple[bytes, str]]:
    """Name -> (pickle, what the refusal has to name); run by pickle.loads, most make a file."""
    command = f"touch {mark}"
    code = f"open({str(mark)!r}, 'w')"
    made: dict[str, tuple[bytes, str]] = {}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        made[f"system{protocol}"] = (
            pickle.dumps(Call(os.system, command), protocol),
            "posix.system",
        )
        builtins = "__builtin__" if protocol < 3 else "builtins"
        made[f"eval{protocol}"] = (pickle.dumps(Call(eval, code), protocol), f"{builtins}.eval")
        made[f"exec{protocol}"] = (pickle.dumps(Call(exec, code), protocol), f"{builtins}.exec")
        chain = Call(getattr, Call(__import__, "os"), "system")
        made[f"getattr{protocol}"] = (pickle.dumps(chain, protocol), f"{builtins}.getattr")
    run = unicode(command)
    dotted = "OrderedDict.__init__.__globals__"
    made |= {
        "os": (b"\x80\x02cos\nsystem\n" + run + b"\x85R.", "os.system"),
        "stack": (b"\x80\x04" + unicode("posix") + unicode("system") + b"\x93" + run + b"\x85R.",
                  "posix.system"),
        "dotted": (b"\x80\x04" + unicode("collections") + unicode(dotted) + b"\x93.",
                   f"collections.{dotted}"),
        "inst": (f"(S'{command}'\nios\nsystem\n.".encode(), "os.system"),
        "inst_list": (b"(icollections\nOrderedDict\n.", "collections.OrderedDict"),
        "obj": (b"(cos\nsystem\n" + run + b"o.", "os.system"),
        "obj_allowed": (b"(ccollections\nOrderedDict\no.", "OBJ"),
        "newobj": (b"\x80\x02cos\nsystem\n" + run + b"\x85\x81.", "os.system"),
        "newobj_allowed": (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "NEWOBJ"),
        "newobj_ex": (b"\x80\x04ccollections\nOrderedDict\n)}\x92.", "NEWOBJ_EX"),
        "ext1": (b"\x80\x02\x82\x01)R.", "extension code 1"),
        "ext2": (b"\x80\x02\x83\x01\x01)R.", "extension code 257"),
        "ext4": (b"\x80\x02\x84\x01\x00\x00\x00)R.", "extension code 1"),
        "copyreg": (b"\x80\x02ccopyreg\n_reconstructor\n.", "copyreg._reconstructor"),
        "copy_reg": (b"\x80\x02ccopy_reg\nadd_extension\n.", "copy_reg.add_extension"),
        "numpy": (b"\x80\x02cnumpy\nload\n" + unicode("/x") + b"\x85R.", "numpy.load"),
        "numpy_exec": (b"\x80\x02cnumpy.testing._private.utils\nrunstring\n.", "runstring"),
        "torch_load": (b"\x80\x02ctorch\nload\n.", "torch.load"),
        "torch_bytes": (b"\x80\x02ctorch.storage\n_load_from_bytes\n.", "_load_from_bytes"),
        "torch_hook": (b"\x80\x02ctorch._utils\n_rebuild_parameter_with_state\n.", "with_state"),
        "runpy": (b"\x80\x02crunpy\n_run_code\n.", "runpy._run_code"),
        "persid": (b"Pstorage\n.", "PERSID"),
        "call_type": (b"\x80\x02ctorch\nFloatStorage\n)R.", "torch.FloatStorage"),
        "call_text": (b"\x80\x02" + run + b")R.", "str"),
        "build_name": (b"\x80\x02ccollections\nOrderedDict\n}b.", "inner state"),
        "build_list": (b"\x80\x02]}b.", "inner state"),
        "buffer": (b"\x80\x05\x97.", "NEXT_BUFFER"),
        "set": (b"\x80\x04\x8f(" + run + b"\x90.", "EMPTY_SET"),
        "spaces": (b"\x80\x02cos system\nx\n.", "os.system.x"),
    }  # fmt: skip
    return made


NAMES = sorted(exploits(Path("x")))


@pytest.mark.parametrize("name", NAMES)
def test_exploits_are_refused_with_what_they_ask_for(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pickle, "Unpickler", None)
    monkeypatch.setattr(pickle, "loads", None)
    mark = tmp_path / "executed"
    text, asked = exploits(mark)[name]
    seen = set(sys.modules)
    with pytest.raises(CheckpointError) as error:
        open_torch(pack(tmp_path / "x.pt", text))
    assert "refused" in str(error.value)
    assert asked in str(error.value)
    assert not mark.exists()
    assert not {name for name in set(sys.modules) - seen if "mindplm" not in name}


def test_the_exploits_would_work_elsewhere(tmp_path: Path) -> None:
    for name in ("system2", "eval4", "exec4", "os", "stack", "inst", "obj"):
        mark = tmp_path / name
        pickle.loads(exploits(mark)[name][0])
        assert mark.exists(), name


@pytest.mark.parametrize(
    "text",
    [
        b"\x80\x02r\xff\xff\xff\xff.",  # a memo of four thousand million
        b"\x80\x02}r\xff\xff\xff\xff.",
        b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f.",  # a text without end
        b"\x80\x05\x96" + b"\xff" * 7 + b"\x7f.",
        b"\x80\x02\x8b\xff\xff\xff\x7f.",
        b"\x80\x04\x95" + b"\xff" * 8,
        b"(" * 200_000 + b".",
        b"]" + b"]q\x00h\x00a" * 20_000 + b".",
        b"\x80\x02}" + b")" + b"q\x00h\x00\x86" * 200 + b"K\x01s.",  # a key of 2**200 parts
        b"\x80\x02}" + b"(" * 60_000 + b"t" * 60_000 + b"K\x01s.",
        b"I" + b"9" * 100_000 + b"\n.",
        b"\x80\x02}\x8b\xff\xff\x00\x00" + b"\x7f" * 0xFFFF + b"K\x01s.",
        b"",
        b".",
        b"\x80\x02}",
        b"\x80\x02(.",
        b"\x80\x02}}}.",
        b"0.",
        b"\xfe",
        b"\x80\x02NQ.",
        b"\x80\x02h\x07.",
        b"\x80\x02\x87.",
        b"\x80\x02ccollections\nOrderedDict\n(K\x01tR.",
    ],
    ids=lambda text: text[:12].hex(),
)
def test_pickles_that_waste_or_break_stay_small(text: bytes) -> None:
    tracemalloc.start()
    try:
        with contextlib.suppress(CheckpointError):
            assert read_pickle(text) == {}  # an empty one is harmless
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()


def test_pickles_of_endless_steps_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mindplm.weights.pickle_reader._MAX_STEPS", 1000)
    with pytest.raises(CheckpointError, match="refused: its pickle has over 1,000 steps"):
        read_pickle(b"]" * 2000 + b".")


def test_random_pickles_give_values_or_refusals() -> None:
    whole = zlib.decompress(base64.b85decode(REAL))
    rng = random.Random(0)
    start = whole.index(b"\x80\x02")
    good = bytearray(whole[start : whole.index(b".PK", start) + 1])
    for _ in range(3000):
        text = bytearray(good)
        for _ in range(rng.randint(1, 6)):
            text[rng.randrange(len(text))] = rng.randrange(256)
        with contextlib.suppress(CheckpointError):
            read_pickle(bytes(text[: rng.choice([len(text), rng.randrange(len(text))])]))


# --- containers -----------------------------------------------------------------------------------


def test_other_formats_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    legacy = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19." + b"x" * 99
    for data, message in [
        (legacy, "before version 1.6.*torch.save"),
        (b"", "no PyTorch file"),
        (b"\x1f\x8b" + b"x" * 99, "no PyTorch file"),
    ]:  # fmt: skip
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=message):
            open_torch(path)
    pack(path, b"\x80\x02}.", {"constants.pkl": b"x"})
    with pytest.raises(CheckpointError, match="TorchScript"):
        open_torch(path)
    with pytest.raises(CheckpointError, match="absent.bin is missing"):
        open_torch(tmp_path / "absent.bin")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"\x80\x02}.", "holds a dict, expected a dictionary of named tensors"),
        (b"\x80\x02].", "holds a list"),
        (b"\x80\x02}" + unicode("state") + b"}s.", "state; save its 'state' alone"),
        (b"\x80\x02}K\x01K\x02s.", "1 entries are no named tensors: 1"),
    ],
)
def test_what_is_not_a_set_of_tensors_is_told(tmp_path: Path, text: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_torch(pack(tmp_path / "x.pt", text))


def test_a_zip_bomb_is_refused_unopened(tmp_path: Path) -> None:
    bomb = {"data/0": bytes(64 << 20)}
    path = pack(
        tmp_path / "x.pt", view((4,), (1,), size=16 << 20), bomb, compression=zipfile.ZIP_DEFLATED
    )
    assert path.stat().st_size < 1 << 20
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="compressed or encrypted"):
        open_torch(path)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_damaged_values_are_found_when_they_are_read(tmp_path: Path) -> None:
    for text in (view((6,), (1,)), view((2, 2), (3, 2))):
        path = pack(tmp_path / "x.pt", text, {"data/0": SIX.tobytes()})
        data = bytearray(path.read_bytes())
        data[data.index(SIX.tobytes()) + 5] ^= 1
        path.write_bytes(bytes(data))
        found = open_torch(path)
        with pytest.raises(CheckpointError, match="storage 0 does not match its checksum"):
            np.asarray(found["w"])


def test_confusing_zip_directories_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with pytest.warns(UserWarning, match="Duplicate"):
        pack(path, view((6,), (1,)), {"data/0": SIX.tobytes(), "data.pkl": b"\x80\x02}."})
    with pytest.raises(CheckpointError, match="occurs twice"):
        open_torch(path)
    pack(path, view((6,), (1,)), {"data/0": SIX.tobytes(), "data/1": SIX.tobytes()})
    data = bytearray(path.read_bytes())
    entry = data.index(b"x/data/1", data.index(b"PK\x01\x02")) - 46
    for place, message in [(0, "is damaged"), (1 << 30, "beyond the end")]:
        data[entry + 42 : entry + 46] = struct.pack("<I", place)
        path.write_bytes(bytes(data))
        with pytest.raises(CheckpointError, match=message):
            open_torch(path)
    pack(path, view((6,), (1,)), {"data/7": SIX.tobytes()})
    with pytest.raises(CheckpointError, match="the values of w are missing"):
        open_torch(path)
    pack(path, view((6,), (1,)), {"data/0": SIX.tobytes()[:-1]})
    with pytest.raises(CheckpointError, match="a storage of 23 bytes instead of 6 x 4"):
        open_torch(path)


def test_files_beyond_four_gigabytes_have_wide_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the limit lowered every place and size is written into the wide fields."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    arrays = {f"w{i}": np.arange(40 * i, dtype="<f4") for i in range(5)}
    path = save(tmp_path / "x.bin", arrays)
    assert b"PK\x06\x07" in path.read_bytes()
    found = open_torch(path)
    for name, array in arrays.items():
        assert np.asarray(found[name]).tobytes() == array.tobytes()
    monkeypatch.undo()
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None


# --- bfloat16 -------------------------------------------------------------------------------------


def test_bfloat16_rounds_to_the_nearest_and_back_exactly() -> None:
    every = np.arange(1 << 16, dtype="<u4").astype("<u2").view(BF16)
    wide = cast(every, np.dtype("<f4"))
    again = cast(wide, BF16)
    numbers_only = ~np.isnan(wide)
    assert (again.view("<u2") == every.view("<u2"))[numbers_only].all()
    assert np.isnan(cast(again, np.dtype("<f4"))[~numbers_only]).all()
    values = np.array([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20], np.float32)
    assert cast(cast(values, BF16), np.dtype("<f4")).tolist() == [1, 1 + 4 * 2**-8, 1 + 2 * 2**-8]


@pytest.mark.parametrize("dtype", [np.dtype("<f2"), BF16])
def test_values_beyond_a_type_are_refused_not_made_infinite(dtype: np.dtype) -> None:
    assert np.isinf(cast(cast(np.float32([np.inf]), dtype), np.dtype("<f8"))).all()
    with pytest.raises(CheckpointError, match="do not fit into .*float16; choose another dtype"):
        cast(np.array([3.4028e38, np.inf, 1], np.float32), dtype)


# --- with PyTorch, where it is installed ----------------------------------------------------------


def test_pytorch_reads_what_is_written(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; byte tests cover this")
    arrays = every_kind()
    item = lazy(SIX)
    path = save(tmp_path / "x.bin", {**arrays, "one": item, "two": item})
    for mmap in (False, True):
        found = torch.load(path, weights_only=True, mmap=mmap)
        assert list(found) == [*arrays, "one", "two"]
        assert found["one"].data_ptr() == found["two"].data_ptr()
        for name, array in arrays.items():
            value = found[name]
            bits = value.view(torch.int16) if value.dtype == torch.bfloat16 else value
            assert tuple(value.shape) == array.shape
            assert bits.numpy().tobytes() == array.tobytes()


def test_files_of_this_pytorch_are_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; byte tests cover this")
    model = torch.nn.TransformerEncoderLayer(8, 2, 16)
    path = tmp_path / "x.pt"
    torch.save(model.half().state_dict(), path)
    found = open_torch(path)
    for name, value in model.state_dict().items():
        assert (np.asarray(found[name]) == value.numpy()).all()
    torch.save(model, path)
    with pytest.raises(CheckpointError, match="asks for torch.nn.modules"):
        open_torch(path)
