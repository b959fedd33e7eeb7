from __future__ import annotations

import yaml

from capaft.support.markdown import fenced, front_matter, inline


def test_a_text_stays_in_its_line_and_means_nothing() -> None:
    text = "a|b\n# c <script> [d](javascript:e) `f` \x1b[2J &lt; _g_"
    assert inline(text) == (r"a\|b\\n\# c \<script\> \[d\]\(javascript\:e\) \`f\` \\x1b\[2J \&lt; \_g\_")
    assert inline("lora+nola on data.csv, 3 runs") == "lora+nola on data.csv, 3 runs"


def test_code_does_not_end_its_block() -> None:
    assert fenced("x = '````'", "python") == "`````python\nx = '````'\n`````"


def test_metadata_holds_one_value_a_key() -> None:
    entries = {"base_model": "a\n---\nlicense: mit: [x", "tags": ["a: b"]}
    text = front_matter(entries | {"pipeline_tag": ""})
    assert yaml.safe_load(text.removeprefix("---\n").removesuffix("---\n")) == entries
    assert text.count("\n---\n") == 1
