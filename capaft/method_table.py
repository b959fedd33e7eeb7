"""What methods there are, as a table."""

from __future__ import annotations

from typing import Any

from capaft.methods import HOSTS
from capaft.methods.stack import HOSTLESS

COMPOSES = "composes with +nola, +capaboost, +nola+capaboost"


def rows() -> list[dict[str, Any]]:
    """One record a method: its name, kind, what it is, its equation and its paper."""
    found: list[dict[str, Any]] = [
        {
            "name": name,
            "kind": "host",
            "summary": f"{host.summary}; {COMPOSES}",
            "equation": host.equation,
            "paper": host.paper,
        }
        for name, host in HOSTS.items()
    ]
    found.append(
        {
            "name": "nola",
            "kind": "parameterisation",
            "summary": "factors as trained combinations of a seeded random basis; alone it means lora+nola",
            "equation": "theta = theta0 + G c",
            "paper": "arXiv 2310.02556",
        }
    )
    found.append(
        {
            "name": "capaboost",
            "kind": "transform",
            "summary": "one factor used under d static random masks; alone it means lora+capaboost",
            "equation": "dW = (alpha/r) sum_j (U∘M_Uj)(D∘M_Dj)",
            "paper": "arXiv 2407.01320",
        }
    )
    found += [
        {"name": name, "kind": "alone", "summary": summary, "equation": "", "paper": ""}
        for name, summary in HOSTLESS.items()
    ]
    return found


def text() -> str:
    """The table as plain lines."""
    lines = ["A stack is host[+nola][+capaboost]; head and full stand alone.", ""]
    for row in rows():
        lines.append(f"{row['name']:<10} {row['kind']:<17} {row['summary']}")
        if row["equation"]:
            lines.append(f"{'':<28} {row['equation']}   ({row['paper']})")
    return "\n".join(lines)
