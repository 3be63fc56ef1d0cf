"""What a fuzzer has found interesting is decoded in each run; see ``tests/fuzz``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from decoders import DECODERS, check
from hypothesis import given
from hypothesis import strategies as st

CORPUS = Path(__file__).parent / "fuzz" / "corpus"

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@pytest.mark.parametrize("api", DECODERS)
def test_no_answer_of_the_corpus_breaks_its_decoder(api: str) -> None:
    """Fault 15: Whatever a server sends: items or one of our errors, however it is cut."""
    files = sorted((CORPUS / api).iterdir())

    assert len(files) >= 15
    for file in files:
        check(api, file.read_bytes())


@pytest.mark.parametrize("api", DECODERS)
@given(data=st.data())
def test_no_change_of_a_good_answer_breaks_its_decoder(api: str, data: st.DataObject) -> None:
    """Fault 15: Missing fields, wrong types, events dropped, doubled and out of order."""
    file = data.draw(st.sampled_from(sorted((CORPUS / api).glob("seed-*"))))
    events = file.read_bytes().split(b"\n\n")
    order = data.draw(st.lists(st.sampled_from(range(len(events))), max_size=12))
    body = b"\n\n".join(events[at] for at in order) + b"\n\n"
    fields = [b'"type"', b'"index"', b'"id"', b'"delta"', b'"text"', b'"usage"', b'"parts"']
    gone = data.draw(st.sampled_from(fields))
    other = data.draw(st.sampled_from([gone, b'"x"', b'"type": 3, "y"', gone + b": null, " + gone]))
    check(api, body.replace(gone, other))


@pytest.mark.parametrize("api", DECODERS)
@given(data=st.data())
def test_no_json_at_all_breaks_a_decoder(api: str, data: st.DataObject) -> None:
    """Fault 15: Unknown types and shapes."""
    values = data.draw(st.lists(JSON, max_size=4))
    check(api, b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in values))
