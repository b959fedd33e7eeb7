"""Foreign texts in Markdown stay what they are."""

from __future__ import annotations

import pytest
import yaml

from capaft.support.markdown import fenced, front_matter, inline
from capaft.support.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("lora+nola on glue/sst2, f1_macro", "lora+nola on glue/sst2, f1_macro"),
        ("</script><b>&", "&lt;/script&gt;&lt;b&gt;&amp;"),
        ("a | b\n---\n# c", r"a \| b\\n---\\n\# c"),
        ("`x` *y* _z_ ~~w~~ [l](u)", r"\`x\` \*y\* \_z\_ \~\~w\~\~ \[l\](u)"),
        ("https://a.b @team $x$ ![i]", r"https\://a.b \@team \$x\$ \!\[i\]"),
        ("\x1b[2J", r"\\x1b\[2J"),
    ],
)
def test_a_text_stays_in_its_line_and_means_nothing(text: str, shown: str) -> None:
    assert inline(text) == shown


def test_code_does_not_end_its_block() -> None:
    assert fenced("x = '````'", "python") == "`````python\nx = '````'\n`````"
    assert fenced("a\n# c\x1b") == "```\na\n# c\\x1b\n```"


def test_metadata_reads_back() -> None:
    plain = front_matter({"base_model": "org/model", "tags": ["capaft", "lora+nola"], "pipeline_tag": ""})
    assert plain == "---\nbase_model: org/model\ntags:\n- capaft\n- lora+nola\n---\n"
    names = ["a: b", "--- x", "no", "1e3", "x\ny: z", "\u202e\u2028", "# c", "'\"{}"]
    block = front_matter({"base_model": "x\n---\nevil: true", "tags": names})
    assert block.count("---\n") == 2
    read = yaml.safe_load(block.split("---\n", 1)[1].rsplit("---\n", 1)[0])
    assert read == {"base_model": r"x\n---\nevil: true", "tags": [printable(name) for name in names]}
