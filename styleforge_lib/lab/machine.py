"""What a GPU can do at most, as measured: the two ceilings of the roofline model (Williams et al., 2009)."""

from dataclasses import dataclass

from styleforge_lib.lab import records


@dataclass(frozen=True)
class Machine:
    """A GPU's measured ceilings: ``bytes_per_s`` of a large copy (read plus written), ``flops_per_s`` by precision."""

    name: str
    bytes_per_s: float
    flops_per_s: dict[str, float]
    where: str

    @classmethod
    def measured(cls) -> "Machine":
        """Return this machine's GPU if it has been measured, else the recorded one (``make bench`` measures)."""
        return cls._of(records.latest(operator="ceiling"), "no record of a GPU's ceilings")

    @classmethod
    def named(cls, name: str) -> "Machine":
        """Return the recorded GPU whose name holds `name`, such as "H200"; LookupError lists those that there are."""
        rows = [row for row in records.read() if row.operator == "ceiling"]
        there = ", ".join(sorted({row.gpu for row in rows})) or "none"
        found = [row for row in rows if name.lower() in row.gpu.lower()]
        return cls._of(records.latest(found), f"no record of the ceilings of {name!r}; recorded GPUs: {there}")

    @classmethod
    def _of(cls, rows: "list[records.Measurement]", missing: str) -> "Machine":
        copies = [row for row in rows if row.version == "copy"]
        if not copies:
            raise LookupError(f"{missing}: `make bench` on a GPU writes one")
        rates = {row.dtype: row.tflops * 1e12 for row in rows if row.version == "matmul"}
        return cls(copies[0].gpu, copies[0].gbytes * 1e9, rates, copies[0].where)

    def floor_ms(self, *, flops: float = 0, bytes: float = 0, dtype: str = "float32") -> float:
        """Return the least time that arithmetic and traffic allow: the larger of the two, in milliseconds."""
        return 1e3 * max(flops / self.flops_per_s[dtype], bytes / self.bytes_per_s)
