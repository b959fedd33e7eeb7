"""What a shell offers for a method and a preset."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from capaft.config import completion
from capaft.config.completion import complete_method, complete_preset
from capaft.config.presets import preset_names
from capaft.methods.registry import BUILT_IN
from capaft.methods.stack import HOSTLESS, canonical_method, stacks_of


def test_every_stack_completes_and_every_word_is_a_stack() -> None:
    words = complete_method("")
    assert {*HOSTLESS, *(stack for host in BUILT_IN for stack in stacks_of(host))} <= set(words)
    assert len(set(words)) == len(words)
    for word in words:
        canonical_method(word)


def test_the_beginning_counts() -> None:
    assert complete_method("dora+") == ["dora+nola", "dora+capaboost", "dora+nola+capaboost"]
    assert complete_method("x") == []
    assert [name for name, _ in complete_preset("nola-glue-r")] == [
        n for n in preset_names() if n[:11] == "nola-glue-r"
    ]


def test_methods_of_other_packages_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("loha", "acme.adapters:LoHa", "capaft.methods")
    monkeypatch.setattr(completion, "entry_points", lambda group: [entry] if group == entry.group else [])
    tails = ["", "+nola", "+capaboost", "+nola+capaboost"]
    assert complete_method("acme.l") == [f"acme.loha{tail}" for tail in tails]


def test_a_shell_gets_them_at_once() -> None:
    code = (
        "import os, sys\n"
        "os.environ |= {'_CAPAFT_COMPLETE': 'complete_bash', 'COMP_CWORD': '3'}\n"
        "os.environ['COMP_WORDS'] = 'capaft train --method ia3'\n"
        "from capaft.commands.app import app\n"
        "try: app(prog_name='capaft')\n"
        "finally: assert not {'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["ia3", "ia3+nola"]
