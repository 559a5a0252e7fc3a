"""What Hopper allows a tile program: checked before code is written for it."""

from __future__ import annotations

from dataclasses import dataclass

from ...diagnostics import ScheduleError
from ..passes.share_memory import size_of
from ..tree import statements
from . import nodes as op

SHARED_LIMIT = 227 * 1024  # bytes that one block may use
REGISTER_FILE = 65536
_ALIGNMENT = 1024


@dataclass(frozen=True, slots=True)
class SharedLayout:
    """Offsets in the shared memory of a block."""

    tiles: dict[op.SharedTile, int]
    barriers: dict[op.Barrier, int]
    nbytes: int


def shared_layout(program: op.TileProgram) -> SharedLayout:
    """Where tiles and barriers lie: tiles aligned for their swizzle, barriers behind them."""
    tiles: dict[op.SharedTile, int] = {}
    barriers: dict[op.Barrier, int] = {}
    size = 0
    for tile in program.tiles:
        tiles[tile] = size
        size += -(-tile.nbytes * tile.stages // _ALIGNMENT) * _ALIGNMENT
    for barrier in program.barriers:
        barriers[barrier] = size
        size += 8 * barrier.stages
    return SharedLayout(tiles, barriers, size)


def verify_tile_program(program: op.TileProgram) -> None:
    """Check the limits of the machine.

    Raises:
        ScheduleError: shared memory, threads, registers, barriers, or a tensor map are over a
            limit, or copies are not aligned.
    """
    nbytes = shared_layout(program).nbytes
    _require(
        nbytes <= SHARED_LIMIT, program,
        f"{nbytes} bytes of shared memory, at most {SHARED_LIMIT}", "fewer stages",
    )  # fmt: skip
    _require(program.threads <= 1024, program, f"{program.threads} threads, at most 1024")
    _require(program.cluster <= 8, program, f"clusters of {program.cluster} blocks, at most 8")
    _require(program.grid % program.cluster == 0, program, "a grid that is no whole clusters")
    _check_registers(program)
    for map in program.maps:
        _check_map(program, map)
    for ahead in (s for s in statements(program) if isinstance(s, op.Ahead)):
        early = {type(s).__name__ for s in statements(ahead.body) if isinstance(s, op.TileOp)}
        early -= {"Let", "TmaPrefetch"}
        _require(
            not early, program, f"{', '.join(sorted(early))} before the launch ahead has ended"
        )
    names = [s for s in statements(program) if isinstance(s, op.NamedBarrier)]
    _require(not names or program.warpgroups < 16, program, "more than 15 named barriers")


def _check_registers(program: op.TileProgram) -> None:
    at_launch = REGISTER_FILE // program.threads // 8 * 8
    total = 0
    for role in program.roles:
        count = role.registers or at_launch
        fits = 24 <= count <= 256 and count % 8 == 0
        _require(fits, program, f"{count} registers for {role.name}: a multiple of 8, 24 to 256")
        total += count * role.warpgroups * op.WARPGROUP
        held = sum(acc.tiles * acc.shape.registers for acc in role.accumulators)
        held += sum(size_of(array) // 4 for array in role.arrays)
        _require(
            held + 32 <= min(count, 255), program,
            f"{held} registers of accumulators, and addresses, in the {count} of {role.name}",
            "smaller tiles, or more consumers",
        )  # fmt: skip
        for acc in role.accumulators:
            n = acc.shape.n
            # The assembler wants room for one instruction in what a thread has at the launch.
            _require(
                acc.shape.registers + 26 <= at_launch, program,
                f"wgmma with {n} columns, where a thread starts with {at_launch} registers",
                "fewer columns, or fewer consumers",
            )  # fmt: skip
            step = 16 if acc.shape.dtype.itemsize == 1 and n > 32 else 8
            _require(8 <= n <= 256 and n % step == 0, program, f"wgmma with {n} columns")
    _require(total <= REGISTER_FILE, program, f"{total} registers, at most {REGISTER_FILE}")


def _check_map(program: op.TileProgram, map: op.TensorMap) -> None:
    inner = map.box[0] * map.buffer.dtype.itemsize
    _require(len(map.dims) <= 5, program, f"{len(map.dims)} dimensions of {map.name}, at most 5")
    _require(
        all(s % 16 == 0 and s < 1 << 40 for s in (map.offset, *map.strides)), program,
        f"offset {map.offset} and strides of {map.strides} bytes of {map.name}: they must be "
        "multiples of 16",
    )  # fmt: skip
    _require(all(1 <= b <= 256 for b in map.box), program, f"a box of {map.box}, at most 256 each")
    _require(
        not map.swizzle.span or inner == map.swizzle.span, program,
        f"rows of {inner} bytes of {map.name} with a swizzle of {map.swizzle.span}",
    )  # fmt: skip
    _require(all(0 < d < 1 << 32 for d in map.dims), program, f"extents {map.dims} of {map.name}")
    walk = map.im2col
    if walk is not None:
        corners = (*walk.lower, *walk.upper)
        _require(
            len(map.dims) == 4 and all(-128 <= c < 128 for c in corners), program,
            f"windows of {map.name} between {walk.lower} and {walk.upper}: at most 128 pixels away",
        )  # fmt: skip
        _require(all(1 <= s <= 8 for s in walk.strides), program, f"strides of {walk.strides}")


def _require(holds: bool, program: op.TileProgram, what: str, hint: str = "") -> None:
    if not holds:
        raise ScheduleError(f"{program.name} asks for {what}", hint=hint)
