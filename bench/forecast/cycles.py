"""Reads off the control bits of NVIDIA machine code what it costs one warp, by a table of latencies. Nothing is run.

Every instruction says how many cycles the warp stalls after it, which of six barriers it sets and which it waits for
(Jia et al., arXiv 1804.06826, section 2.1). A walk over the code in order, with a latency for each kind of instruction
that sets a barrier, gives the cycles a warp needs when it has the scheduler to itself. Branches are not followed.
"""

import re
from dataclasses import dataclass

# Cycles until the result is there, rounded; other kinds: 20. Asynchronous copies and products are waited for elsewhere.
LATENCY = {
    "LDG": 300, "LD": 300, "ATOMG": 700, "LDS": 30, "LDSM": 33, "STS": 10, "HMMA": 33, "F2F": 14, "MUFU": 20, "SHFL": 24,
    "REDUX": 30, "S2R": 30, "LDC": 30, "R2UR": 12, "I2F": 14, "LDGSTS": 0, "HGMMA": 0, "DEPBAR": 0,
}  # fmt: skip
# Cycles that an instruction keeps a narrow unit busy.
OCCUPIES = {"F2F": 8, "MUFU": 8, "HMMA": 8, "LDSM": 8, "LDS": 4, "SHFL": 4}
BARRIER = 25  # cycles that a barrier of the program costs beside waiting
SHORTEST_LOOP = 30  # instructions; shorter loops are those of Triton's runtime


@dataclass(frozen=True)
class Instruction:
    """One instruction with its control bits."""

    address: int
    text: str
    stall: int
    sets: tuple[int | None, int | None]  # barriers set when the result is there, and when the operands have been read
    waits: tuple[int, ...]

    @property
    def kind(self) -> str:
        """Returns the first part of the name, such as LDG."""
        return re.sub(r"^@!?U?P\w+\s+", "", self.text).split()[0].split(".")[0]


def instructions(sass: str) -> list[Instruction]:
    """Parses a listing by `cuobjdump -sass`."""
    code = []
    pattern = r"/\*([0-9a-f]{4,})\*/\s+(.*?);\s*/\* 0x[0-9a-f]+ \*/\s*/\* 0x([0-9a-f]+) \*/"
    for address, text, high in re.findall(pattern, sass):
        control = int(high, 16) >> 41
        sets = tuple(None if barrier == 7 else barrier for barrier in (control >> 5 & 7, control >> 8 & 7))
        waits = tuple(barrier for barrier in range(6) if control >> 11 >> barrier & 1)
        code.append(Instruction(int(address, 16), text.strip(), control & 15, sets, waits))
    return code


def loops(code: list[Instruction]) -> list[list[Instruction]]:
    """Returns the bodies of the loops: from where a branch leads back to the branch."""
    index = {instruction.address: i for i, instruction in enumerate(code)}
    bodies = []
    for i, instruction in enumerate(code):
        target = re.search(r"\bBRA(?:\.\w+)*\s.*?(0x[0-9a-f]+)", instruction.text)
        first = index.get(int(target.group(1), 16), i) if target else i
        if i - first >= SHORTEST_LOOP:
            bodies.append(code[first : i + 1])
    return bodies


def warp_cycles(code: list[Instruction]) -> int:
    """Counts cycles from the first instruction to the last, one after the other, for a warp alone."""
    now, ready, free = 0, [0] * 6, dict.fromkeys(OCCUPIES, 0)
    for instruction in code:
        now = max([now, *(ready[barrier] for barrier in instruction.waits)])
        kind = instruction.kind
        start = max(now, free.get(kind, 0))
        free[kind] = start + OCCUPIES.get(kind, 0)
        for barrier, latency in zip(instruction.sets, (LATENCY.get(kind, 20), 15), strict=True):
            if barrier is not None:
                ready[barrier] = max(ready[barrier], start + latency)
        now = start + max(1, instruction.stall) + (BARRIER if kind == "BAR" else 0)
    return now
