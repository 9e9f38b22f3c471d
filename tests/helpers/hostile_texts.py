"""Answers that a parser must bear: torn, nested, endless."""

HOSTILE = {
    "never closed": "<think>" + "x " * 50_000,
    "endless": "wren " * 20_000,
    "opened over and over": "<answer>" * 12_500,
    "closed over and over": "</answer>" * 11_111,
    "half tags": "<answer" * 14_000,
    "alternating": "<answer>a</answer>" * 5_600,
    "nested thoughts": "<think>" * 7_000 + "</think>" * 6_000 + "<answer>wren</answer>",
    "white space": "<answer>" + " \n" * 50_000 + "</answer>",
    "white space after": "<answer>wren</answer>" + " " * 100_000 + "x",
    "repeated pairs": "<answer>" + "aaaaaaaaaa!" * 9_000 + "</answer>",
    "combining marks": "<answer>" + "e" + "\u0301" * 100_000 + "</answer>",
    "brackets": "<answer>" + "(" * 100_000 + "</answer>",
    "letters": "<answer>A" + "." * 100_000 + "B</answer>",
}
