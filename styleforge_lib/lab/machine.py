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
        rows = records.latest(operator="ceiling")
        copies = [row for row in rows if row.version == "copy"]
        if not copies:
            raise LookupError("no record of a GPU's ceilings: `make bench` on a GPU writes one")
        rates = {row.dtype: row.tflops * 1e12 for row in rows if row.version == "matmul"}
        return cls(copies[0].gpu, copies[0].gbytes * 1e9, rates, copies[0].where)

    def floor_ms(self, *, flops: float = 0, bytes: float = 0, dtype: str = "float32") -> float:
        """Return the least time that arithmetic and traffic allow: the larger of the two, in milliseconds."""
        return 1e3 * max(flops / self.flops_per_s[dtype], bytes / self.bytes_per_s)
